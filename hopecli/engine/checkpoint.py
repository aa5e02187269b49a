"""Checkpoints: model.safetensors with the settings in its metadata, and the trainer's state beside it.

A checkpoint folder is written under a temporary name, flushed to the disk and renamed, so that it is whole or absent.
Nothing is unpickled: weights are safetensors, the trainer's state is read with weights_only=True.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hopecli.engine.results import ValidationRecord
from hopecli.engine.saved_state import read_saved
from hopecli.engine.saved_weights import (
    OTHER_CHECKPOINT,
    WEIGHTS,
    ReplacedError,
    digest,
    epoch_folders,
    find_weights,
    opened,
    read_metadata,
)
from hopecli.errors import THEN_RESUME, CheckpointError, is_dir, written

TRAINER = "trainer.pt"
_TRIES = 10  # to read a file that another process keeps replacing
_FORMAT = "hopecli-1"
# Stands in the file of a model without weights: with no tensor at all safetensors 0.4.3 writes one it cannot read.
_NO_WEIGHTS = "no_weights"
_WRITE_ERRORS = (RuntimeError, SafetensorError)  # torch and safetensors have their own


@dataclass(frozen=True)
class Checkpoint:
    """Weights with the settings they were trained under.

    path: the .safetensors file, which may hold others by now. run_dir: the run directory it belongs to, None for a file
    on its own. digest: SHA-256 of the file that was read, None unless it was asked for.
    """

    path: Path
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    info: dict[str, Any]
    run_dir: Path | None
    digest: str | None = None


@dataclass(frozen=True)
class TrainerState:
    """What trainer.pt holds, as a dict of these fields. Runs of earlier versions lack the last three.

    seconds: of training and validation until then, in all sessions of the run.
    """

    step: int
    optimizer: dict[str, Any]  # held against the model's parameters when it is restored
    scaler: dict[str, float] | None = None
    loss: float | None = None
    validation: ValidationRecord | None = None
    seconds: float = 0.0


def write_weights(
    path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
    """Write one .safetensors file, atomically, with settings and info (step, epoch, ...) in its metadata.

    Raises CheckpointError when it cannot be written.
    """
    with written(path, also=_WRITE_ERRORS):
        _save_weights(path, weights, settings, info)


def _save_weights(
    path: Path, weights: Mapping[str, Tensor], settings: Mapping[str, Any], info: Mapping[str, Any]
) -> None:
    metadata = {"format": _FORMAT, "settings": json.dumps(settings), "info": json.dumps(info)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in weights.items()} or {_NO_WEIGHTS: torch.empty(0)}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:  # Python's, so its mode is the one that the umask asks for
            mode = os.fstat(file.fileno()).st_mode
        save_file(tensors, temporary, metadata)
        if temporary.stat().st_mode != mode:  # some versions of safetensors put a private file in its place
            temporary.chmod(S_IMODE(mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path,
    *,
    weights: Mapping[str, Tensor],
    settings: Mapping[str, Any],
    info: Mapping[str, Any],
    trainer: Mapping[str, Any],
) -> None:
    """Write a checkpoint folder beside its final name, then swap it in; the one before stays until that moment."""
    with _swapped_in(folder) as temporary:
        _save_weights(temporary / WEIGHTS, weights, settings, info)
        with open(temporary / TRAINER, "wb") as file:  # a file of Python's, whose errors say what happened
            torch.save(dict(trainer), file)


def duplicate_checkpoint(source: Path, target: Path) -> None:
    """The same checkpoint under a second name, by hard links where the file system has them."""
    with _swapped_in(target) as temporary:
        for file in source.iterdir():
            try:
                os.link(file, temporary / file.name)
            except OSError:
                shutil.copy2(file, temporary / file.name)


@contextmanager
def _swapped_in(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the body succeeds; CheckpointError when it cannot be written."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    with written(folder, fix=THEN_RESUME, also=_WRITE_ERRORS):
        try:
            _make_way(temporary, folder)
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.iterdir():
                _to_disk(file)
            _folder_to_disk(temporary)
            _swap_in(temporary, folder)
            _folder_to_disk(folder.parent)
        finally:
            _discard(temporary)


def _to_disk(file: Path) -> None:
    """Wait until a file's bytes are on the disk, so that no power cut can leave its new name without them."""
    with open(file, "rb+") as written_file:
        os.fsync(written_file.fileno())


def _folder_to_disk(folder: Path) -> None:
    """The same for the names in a folder, where the system can do it (Windows and some network disks cannot)."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap_in(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    if os.path.lexists(folder):  # a link that leads nowhere too; otherwise `old` may be all that a crash has left
        _make_way(old, folder)
        os.replace(folder, old)
    os.replace(temporary, folder)
    _discard(old)


def _make_way(taken: Path, folder: Path) -> None:
    """Nothing is at `taken`, a name beside `folder`, any more. Network disks keep a removed file that somebody still
    reads in its folder, under a hidden name: that folder is put aside until a later call can delete it."""
    _discard(taken)
    with suppress(OSError):
        for left in folder.parent.glob(f".{folder.name}.left.*"):
            _discard(left)
    if is_dir(taken):
        os.replace(taken, folder.with_name(f".{folder.name}.left.{time.time_ns()}"))


def _discard(folder: Path) -> None:
    """Delete a folder, also one that was made read-only: what is left of it would be in the way of the next save."""
    with suppress(OSError):
        if folder.is_symlink():  # somebody's `last`: what it leads to is theirs
            folder.unlink()
        else:
            folder.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def remove_old(checkpoints: Path, keep_last: int | None) -> None:
    """Delete all but the newest `keep_last` epoch checkpoints."""
    kept: list[Path] = []
    with suppress(OSError):  # they stay until the next time
        kept = epoch_folders(checkpoints)
    excess = 0 if keep_last is None else max(0, len(kept) - keep_last)
    for folder in kept[:excess]:
        shutil.rmtree(folder, ignore_errors=True)  # one that was made read-only is meant to stay


def load_checkpoint(given: str, *, hashed: bool = False) -> Checkpoint:
    """Read weights, settings and info of RUN, a checkpoint directory or a .safetensors file; `hashed`: its digest too.

    CheckpointError when there is none, or it is damaged or not of hopecli. One that is replaced by a newer one
    meanwhile, as a run that trains does, is read again.
    """
    for _ in range(_TRIES - 1):
        with suppress(ReplacedError):
            return _load(*find_weights(given), hashed)
    return _load(*find_weights(given), hashed)


def _load(file: Path, run_dir: Path | None, hashed: bool) -> Checkpoint:
    with opened(file) as (archive, held):
        settings, info = read_metadata(file, archive.metadata())
        keys = [key for key in archive.keys() if key != _NO_WEIGHTS]  # noqa: SIM118 (not a dict)
        weights = {key: archive.get_tensor(key) for key in keys}
        return Checkpoint(file, weights, settings, info, run_dir, digest(held) if hashed else None)


def load_trainer(folder: Path) -> dict[str, Any]:
    """The trainer's state of a checkpoint folder (weights_only), with the fields of TrainerState.

    Raises CheckpointError when it cannot be read, and when it was not saved at the step of the weights beside it.
    """
    state = read_saved(folder / TRAINER, TrainerState, fix=OTHER_CHECKPOINT)
    with opened(folder / WEIGHTS) as (archive, _):
        step = read_metadata(folder / WEIGHTS, archive.metadata())[1].get("step")
    if state["step"] != step:
        what = f"{TRAINER} is not of step {step}, of which {WEIGHTS} is"
        raise CheckpointError(what, where=str(folder), value=state["step"], fix=OTHER_CHECKPOINT)
    return state


def require_fit(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """CheckpointError naming the weights that a model, on the meta device, has no place for, or lacks."""
    _load_strictly(model, {name: value.to("meta") for name, value in checkpoint.weights.items()}, checkpoint)


def load_into(model: torch.nn.Module, checkpoint: Checkpoint) -> None:
    """Strictly load the weights; CheckpointError naming the keys that do not fit, or a tensor that is not finite."""
    _load_strictly(model, checkpoint.weights, checkpoint)
    wrong = next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None)
    if wrong is not None:  # of which every number computed would be as empty, and clips would take the blame
        what = f"{wrong} holds NaN or infinite values"
        raise CheckpointError(what, where=str(checkpoint.path), fix="use an earlier checkpoint")


def _load_strictly(model: torch.nn.Module, weights: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            "its weights do not fit the model its settings describe: " + " ".join(str(error).split())[:400],
            where=str(checkpoint.path),
            fix="use the file with the settings it was written with",
        ) from error
