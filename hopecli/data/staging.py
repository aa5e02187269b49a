"""Folders that appear complete or not at all: filled under a hidden name, moved to their own at the end."""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from hopecli.errors import is_dir

_STALE_SECONDS = 24 * 3600
# File names have at most 255 bytes; what is added to a long one must not break it.
_NAME_BYTES = 200
_ENDINGS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP


@contextmanager
def staged(out_dir: Path, *, last: str) -> Iterator[Path]:
    """A hidden folder to fill, which becomes `out_dir` at the end of the block; an error leaves nothing of it.

    A new out_dir appears by one rename. One that exists (empty) stays the same directory, for it may be a mount point
    or someone's working directory: the entries move up into it one by one, the file `last` after all others, so that
    a folder without `last` was cut off (by a crash: every error and signal leaves it empty). SIGTERM and SIGHUP
    clean up as Ctrl-C does.
    """
    inside = is_dir(out_dir)
    parent = out_dir if inside else out_dir.parent
    staging = parent / hidden_name(out_dir.name)
    with sigterm_as_interrupt():
        try:
            staging.mkdir(parents=True)
            yield staging
            if inside:
                _move_up(staging, out_dir, last)
            else:
                os.replace(staging, out_dir)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def hidden_name(name: str) -> str:
    """A new hidden name beside `name` that tells which process owns it."""
    return f".{_short(name)}.{_place()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.partial"


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt while the block runs (in the main thread, unless they are ignored)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDINGS}
    handled = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]

    def on_signal(number: int, frame: FrameType | None) -> None:
        for each in handled:
            signal.signal(each, signal.SIG_IGN)  # a second one must not cut the clean-up short
        raise KeyboardInterrupt

    for number in handled:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, before[number])


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Signals whose handlers may raise wait for the end of the block (in the main thread), which must be short."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ctrl-C last and, on the way back, first: where a handler raises in between, `staged` restores the others.
    found = {number: signal.getsignal(number) for number in (*_ENDINGS, signal.SIGINT)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        came.append(number)

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number in reversed(handlers):
            signal.signal(number, handlers[number])
        if came:
            signal.raise_signal(came[0])


def _move_up(staging: Path, out_dir: Path, last: str) -> None:
    names = sorted(os.listdir(staging), key=lambda name: (name == last, name))
    if any(os.path.lexists(out_dir / name) for name in names):  # another process's, of which `last` would be lost
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(out_dir))
    try:
        for name in names:
            os.rename(staging / name, out_dir / name)
    except BaseException:
        for name in names:
            if not os.path.lexists(staging / name):  # it was moved: what stands there is ours
                _remove(out_dir / name)
        raise


def _remove(path: Path) -> None:
    if is_dir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_stale(out_dir: Path) -> None:
    """Remove hidden folders for `out_dir`, in and beside it, that no live process fills."""
    pattern = re.compile(rf"\.{re.escape(_short(out_dir.name))}\.(?:([0-9a-f]{{8}})-(\d{{1,9}})-)?[0-9a-f]+\.partial")
    for parent in (out_dir, out_dir.parent):
        for path in list(parent.iterdir()) if is_dir(parent) else ():
            match = pattern.fullmatch(path.name)
            if match is None:
                continue
            with suppress(OSError):  # another process may remove it at the same time
                # Another host of a shared disk, or another container, may be alive: only age tells.
                old = time.time() - path.stat().st_mtime > _STALE_SECONDS
                if old or (match[1] == _place() and not _alive(int(match[2]))):
                    shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, asking with signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _place() -> str:
    """Eight digits for the machine and, in containers, the numbering of processes: where a process id means one."""
    try:
        numbering = os.readlink("/proc/self/ns/pid")
    except OSError:
        numbering = ""
    return hashlib.sha256(f"{platform.node()} {numbering}".encode()).hexdigest()[:8]


def _short(name: str) -> str:
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")
