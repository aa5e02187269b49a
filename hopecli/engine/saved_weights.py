"""The .safetensors file of a checkpoint: where it is, and its tensors and metadata, read as one version of it.

A run that is training may put another file in its place at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open

from hopecli.engine.saved_state import misfit, too_deep
from hopecli.errors import CheckpointError, accessed, exists, is_file

WEIGHTS = "model.safetensors"
OTHER_CHECKPOINT = "use another checkpoint of the run (RUN/checkpoints/epoch_*, where it has any) or another copy"
_INFO = {"preset": str, "step": int, "epoch": int, "split": str, "tta": dict[str, Any]}
_RUN_FILES = ("split.json", "environment.json")  # beside the config.yaml of a run directory
_EPOCH = re.compile(r"epoch_[0-9]{4,}")
_PART_BYTES = 2**20
# Seconds before each look for a checkpoint: `last` is without its name for a moment while a new one takes it.
_PAUSES = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)


class ReplacedError(CheckpointError):
    """Another process removed or replaced a file while it was being opened; the next try finds the new one."""


def find_weights(given: str) -> tuple[Path, Path | None]:
    """The .safetensors file of a run directory, a checkpoint directory or a file, and its run directory."""
    path = Path(given)
    checkpoints = path / "checkpoints"
    with accessed(path, kind=CheckpointError):  # a run's own checkpoints come before what was put into it
        beside = [] if _is_run(path) else [path / WEIGHTS]
    candidates = [
        path,
        *beside,
        checkpoints / "last" / WEIGHTS,
        checkpoints / ".last.old" / WEIGHTS,  # a crash between the two renames of a swap leaves this
    ]
    for pause in _PAUSES:
        time.sleep(pause)
        with accessed(path, kind=CheckpointError):
            if pause == _PAUSES[-1]:  # no `last`: the disk failed when it was to be made of an epoch's checkpoint
                candidates += [folder / WEIGHTS for folder in reversed(epoch_folders(checkpoints))]
                candidates.append(path / WEIGHTS)
            file = next((candidate for candidate in candidates if is_file(candidate)), None)
            if file is not None:
                return file, _run_of(file)
            found = "no checkpoint in it" if exists(path) else "no such file or directory"
    raise CheckpointError(
        found, where=str(path), fix="give a run directory, a checkpoint directory or a .safetensors file"
    )


def epoch_folders(checkpoints: Path) -> list[Path]:
    """The checkpoints of epochs, oldest first, without a user's copies beside them (`epoch_0005_best`); none where
    there is no such folder."""
    with suppress(FileNotFoundError, NotADirectoryError):
        found = [path for path in checkpoints.iterdir() if _EPOCH.fullmatch(path.name)]
        return sorted(found, key=lambda path: (len(path.name), path.name))  # 9999 before 10000
    return []


def _run_of(file: Path) -> Path | None:
    """The run directory that a file lies in; one that links to a checkpoint elsewhere is its run too."""
    places = (*file.resolve().parents, *Path(os.path.abspath(file)).parents)
    return next((folder for folder in places if _is_run(folder)), None)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, and not just any project with a config.yaml."""
    return is_file(folder / "config.yaml") and any(is_file(folder / name) for name in _RUN_FILES)


@contextmanager
def opened(file: Path) -> Iterator[tuple[Any, BinaryIO]]:
    """A .safetensors file, opened by safetensors and as bytes; CheckpointError when that, or reading in the body,
    fails.

    ReplacedError when it is not the same file all the while: safe_open opens it twice, for metadata and for tensors.
    """
    with accessed(file, kind=CheckpointError):  # safe_open calls a file that may not be read a missing one
        try:
            held = open(file, "rb")  # noqa: SIM115 (closed by the next statement)
        except FileNotFoundError as error:
            raise _replaced(file) from error
    with held:  # so that no other file can take its number
        try:
            with safe_open(file, framework="pt") as archive:
                if not _is_still(file, held):
                    raise _replaced(file)
                yield archive, held
        except (OSError, RuntimeError, SafetensorError) as error:  # RuntimeError is what torch makes of a missing file
            if not _is_still(file, held):
                raise _replaced(file) from error
            what = f"not a readable .safetensors file: {' '.join(str(error).split())}"
            raise CheckpointError(what, where=str(file), fix=OTHER_CHECKPOINT) from error


def _replaced(file: Path) -> ReplacedError:
    return ReplacedError("was removed or replaced while it was being read", where=str(file), fix="try again")


def digest(held: BinaryIO) -> str:
    """SHA-256 of an open file, in hexadecimal."""
    held.seek(0)
    sums = hashlib.sha256()
    while part := held.read(_PART_BYTES):
        sums.update(part)
    return sums.hexdigest()


def _is_still(file: Path, held: BinaryIO) -> bool:
    with suppress(OSError):
        return os.path.samestat(file.stat(), os.fstat(held.fileno()))
    return False


def read_metadata(file: Path, metadata: Mapping[str, str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and info; CheckpointError when the file was not written by hopecli, or they are not what it writes."""
    try:
        settings, info = (_parsed((metadata or {})[key]) for key in ("settings", "info"))
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            "was not written by hopecli: its metadata holds no settings", where=str(file), fix="train with `hope train`"
        ) from error
    wrong = _wrong_info(info) if isinstance(settings, dict) else "settings"
    if wrong is not None:
        what = f"its metadata does not hold what it should: {wrong} is of another type or out of range"
        raise CheckpointError(what, where=str(file), fix=OTHER_CHECKPOINT)
    return settings, info


def _parsed(text: str) -> Any:
    """A JSON text; None when it is nested so deeply that to walk through it may overflow the stack."""
    with suppress(RecursionError):
        value = json.loads(text)
        return None if too_deep(value) else value
    return None


def _wrong_info(info: object) -> str | None:
    """What is wrong in a file's info, None for nothing. All of it may be absent, and more may be there."""
    if not isinstance(info, dict):
        return "info"
    known = [(info[key], kind, f"info.{key}") for key, kind in _INFO.items() if key in info]
    wrong = next((found for part in known if (found := misfit(*part)) is not None), None)
    if wrong is None and info.get("step", 0) < 0:
        return "info.step"
    return wrong or misfit(info.get("tta", {}).get("fingerprints", []), list[str], "info.tta.fingerprints")
