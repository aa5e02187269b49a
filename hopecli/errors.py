"""Every error a user can cause, each with its exit code, how files are looked at so that none of them is missed, and
which of several processes says it; and how words are shown, or given to be typed.

A message says what is wrong, where, the value found and how to fix it.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
import subprocess
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

CHECK_ACCESS = "check that it is there and may be read"
FREE_SPACE = "make it writable or free disk space"
THEN_RESUME = f"{FREE_SPACE}, then --resume (without a checkpoint yet, start again)"

_TURNS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # of text in two directions
_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_NOWHERE_ON_WINDOWS = (21, 123, 1921)  # a drive without a disk, a name that no file may have, a link to nowhere


def printable(text: str) -> str:
    """The text with characters that steer a terminal as their escapes, line breaks aside: names and settings may be
    somebody else's, and must not change colours, move the cursor or turn the writing round."""
    return "".join(_escaped(c) if c != "\n" and _steers(c) else c for c in text)


def one_line(text: str) -> str:
    """The same with line breaks as their escapes too."""
    return printable(text).replace("\n", "\\n")


def command_line(words: Sequence[str]) -> str:
    """What a user is to type, as one line quoted for the shell: in double quotes on Windows, whose shells take single
    quotes literally."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)


def _steers(character: str) -> bool:
    """Control characters, line separators and what is no character; not joiners, which belong to words and emoji."""
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(character) in _TURNS


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class HopeError(Exception):
    """An error with a one-line message for the user.

    what: the problem. where: file, clip or key. value: what was found. fix: what to do next.
    """

    exit_code = 1
    together = False  # whether every process of the run has it at the same place

    def __init__(self, what: str, *, where: str | None = None, value: object | None = None, fix: str | None = None):
        self.what, self.where, self.value, self.fix = what, where, value, fix
        text = what
        if where is not None:
            text = f"{one_line(where)}: {what}"  # a path may hold a line break, the message is one line
        if value is not None:
            text += f" (got {value!r})" if isinstance(value, str) else f" (got {value})"
        if fix is not None:
            text += f"{'' if text.endswith(('.', '?')) else '.'} {fix[0].upper()}{fix[1:]}"
        super().__init__(printable(text))


class SettingsError(HopeError):
    """A preset, an override or a command-line option is wrong."""

    exit_code = 2


class DataError(HopeError):
    """Clips are missing, malformed or do not fit the settings."""

    exit_code = 3


class CheckpointError(HopeError):
    """A checkpoint or run directory is missing, damaged, does not fit or cannot be written."""

    exit_code = 4


class DeviceError(HopeError):
    """The device or precision asked for cannot be had on this machine."""

    exit_code = 5


class DivergedError(HopeError):
    """A loss or gradient stopped being finite."""

    exit_code = 6


class StoppedError(HopeError):
    """The run was stopped by a signal after saving; it can be resumed."""

    exit_code = 75


class AbortedError(HopeError):
    """Ctrl-C was pressed twice."""

    exit_code = 130


@contextmanager
def written(
    where: str | PathLike[str],
    *,
    kind: type[HopeError] = CheckpointError,
    fix: str = FREE_SPACE,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Around code that writes `where`: a system error (no permission, full disk, ...) becomes a `kind` with `fix`.

    `also`: what libraries raise in place of OSError, or on top of one.
    """
    expected: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except expected as error:
        if isinstance(error.__context__, AbortedError | KeyboardInterrupt) and not isinstance(error, OSError):
            raise error.__context__ from None  # what torch makes of an interrupt in the midst of a file
        system = next((e for e in (error, error.__context__) if isinstance(e, OSError)), None)
        reason = error if system is None else system.strerror or system
        raise kind(f"cannot be written: {reason}", where=str(where), fix=fix) from error


@contextmanager
def accessed(where: str | PathLike[str], *, kind: type[HopeError]) -> Iterator[None]:
    """Around code that looks for or reads `where`: a system error (no permission, lost mount, ...) becomes a `kind`."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot be read: {error.strerror or error}", where=str(where), fix=CHECK_ACCESS) from error


def exists(path: str | PathLike[str]) -> bool:
    """Whether there is something at `path`; OSError when that cannot be known (no permission, lost mount, ...).

    Path's methods of these names say no then since Python 3.14, as os.path's always did, so that what may not be looked
    at passes for missing.
    """
    return _mode(path) is not None


def nearest_existing(path: Path) -> Path:
    """`path`, or the folder above it that is there: where it would be made."""
    return next(place for place in (path, *path.absolute().parents) if exists(place))


def is_file(path: str | PathLike[str]) -> bool:
    """Whether `path` is a file, or leads to one; OSError when that cannot be known."""
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def is_dir(path: str | PathLike[str]) -> bool:
    """Whether `path` is a folder, or leads to one; OSError when that cannot be known."""
    mode = _mode(path)
    return mode is not None and stat.S_ISDIR(mode)


def _mode(path: str | PathLike[str]) -> int | None:
    """The st_mode of what `path` leads to; None when it leads nowhere."""
    try:
        return os.stat(path).st_mode
    except UnicodeEncodeError as error:
        reason = "the locale has no such characters (set LC_ALL=C.UTF-8)"
        raise OSError(errno.EILSEQ, reason, os.fspath(path)) from error
    except ValueError:  # no file has such a name: it holds a zero byte, say
        return None
    except OSError as error:
        if error.errno in _NOWHERE or getattr(error, "winerror", None) in _NOWHERE_ON_WINDOWS:
            return None
        raise


def one_of_several() -> bool:
    """Whether torchrun has started this process as one of several: other variables may be left of something else."""
    processes = os.environ.get("WORLD_SIZE", "1").strip()
    return processes.isdecimal() and int(processes) > 1


def is_first() -> bool:
    """Whether this process speaks to the user: it is alone, or the main one."""
    return not one_of_several() or os.environ.get("RANK", "0").strip() == "0"


def is_first_here() -> bool:
    """Whether this process is alone, or the first one of its machine."""
    return not one_of_several() or os.environ.get("LOCAL_RANK", "0").strip() == "0"
