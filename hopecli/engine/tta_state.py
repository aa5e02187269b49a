"""Saving and restoring an interrupted stream: plain tensors, numbers and texts, read with weights_only=True."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopecli.engine.adapt import Adapter, AdapterState
from hopecli.engine.optim import MOMENTS, check_shape, fitted
from hopecli.engine.saved_state import read_saved
from hopecli.engine.tta_job import StreamRecord
from hopecli.errors import CheckpointError, accessed, is_file, written
from hopecli.models.convlstm import LSTMState
from hopecli.models.hope.memory import MemoryWeights
from hopecli.models.hope.predictor import HopeMemory
from hopecli.models.hope.titans import FastWeights
from hopecli.models.hope.update import Write
from hopecli.models.protocol import Memory, PredictorModule

STATE_FILE = "stream.pt"
START_AGAIN = "delete it and run without --resume"


@dataclass(frozen=True)
class SavedAdapter:
    """What the file holds of an adapter, as a dict of these fields."""

    weights: list[Tensor]
    buffers: list[Tensor]
    optimizer: dict[str, Any]
    memory: list[Any] | None


@dataclass(frozen=True)
class StreamState:
    """What the file holds, as a dict of these fields. clips: the fingerprint of every clip, in the stream's order;
    left_out: clips that were no part of it; unreadable: clips that ended it, and may come back mended."""

    identity: dict[str, Any]
    adapters: dict[str, SavedAdapter]
    record: StreamRecord
    clips: dict[str, str] = field(default_factory=dict)  # absent in a stream of an earlier version, as the next two
    left_out: dict[str, str] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def pack_memory(memory: Memory) -> list[Any] | None:
    """A carried memory as nested lists of tensors; None is the initial state."""
    if memory is None:
        return None
    if isinstance(memory, HopeMemory):
        return [[list(block.mem), list(block.others), list(block.write)] for block in memory.blocks]
    assert isinstance(memory, LSTMState), type(memory).__name__
    return list(memory)


def unpack_memory(packed: list[Any] | None, device: torch.device) -> Memory:
    """The inverse of `pack_memory`."""
    if packed is None:
        return None

    def build(kind: Callable[..., Any], tensors: list[Tensor]) -> Any:
        return kind(*(tensor.to(device) for tensor in tensors))

    if packed and isinstance(packed[0], Tensor):
        return build(LSTMState, packed)
    return HopeMemory(
        tuple(
            FastWeights(build(MemoryWeights, mem), build(MemoryWeights, others), build(Write, write))
            for mem, others, write in packed
        )
    )


def memory_tensors(memory: Memory) -> list[Tensor]:
    """Every tensor of a carried memory."""

    def walk(node: Any) -> list[Tensor]:
        return [node] if isinstance(node, Tensor) else [t for child in node or [] for t in walk(child)]

    return walk(pack_memory(memory))


def pack_adapter(adapter: Adapter) -> dict[str, Any]:
    """All that adaptation has changed."""
    state = adapter.snapshot()
    return {
        "weights": state.weights,
        "buffers": state.buffers,
        "optimizer": state.optimizer,
        "memory": pack_memory(state.memory),
    }


def unpack_adapter(adapter: Adapter, packed: dict[str, Any], device: torch.device) -> None:
    """Put a packed state into an adapter of the same groups; ValueError when it is not of this adapter."""
    for name, own in (("weights", adapter.parameters), ("buffers", list(adapter.model.buffers()))):
        if len(packed[name]) != len(own):
            raise ValueError(f"it has {len(packed[name])} {name}, the adapter has {len(own)}")
        for index, (value, tensor) in enumerate(zip(packed[name], own, strict=True)):
            check_shape(value, tensor.shape, f"tensor {index} of the {name}")
    if packed["memory"] is not None:
        _check_memory(packed["memory"], adapter.model)
    optimizer = packed["optimizer"]
    if adapter.optimizer is not None:
        moments = () if isinstance(adapter.optimizer, torch.optim.SGD) else MOMENTS
        checked = fitted(optimizer, adapter.optimizer.param_groups, moments)
        optimizer = {**checked, "accumulated": optimizer["accumulated"]}
    memory = unpack_memory(packed["memory"], device)
    adapter.restore(AdapterState(packed["weights"], packed["buffers"], optimizer, memory))


@torch.no_grad()
def _check_memory(packed: list[Any], model: PredictorModule) -> None:
    """ValueError unless a packed memory has the form of what the model leaves after one frame or more of a clip."""
    if not model.carries_memory:
        raise ValueError("it holds a memory, and the model carries none")
    like = next(model.parameters())
    frame = like.new_zeros(1, model.num_patches, model.embed_dim)
    action, extrinsics = like.new_zeros(1, model.action_dim), like.new_zeros(1, model.action_dim - 1)
    forms, memory = [], model.initial_state(1)
    for t in range(2):  # weights that the first frame does not write get an axis of clips in the second
        _, memory = model.step(frame, action, action, extrinsics, memory=memory, t=t)
        forms.append(_shapes(pack_memory(memory)))
    if _shapes(packed) not in forms:
        raise ValueError("its memory does not have the form of the model's")


def _shapes(node: object) -> Any:
    """The shape of every tensor in nested lists; what is no dense tensor of floating-point numbers is None."""
    if isinstance(node, list):
        return [_shapes(child) for child in node]
    if not isinstance(node, Tensor) or node.layout != torch.strided or not node.is_floating_point():
        return None
    return tuple(node.shape)


def unread_marks(state: dict[str, Any]) -> dict[str, str]:
    """The fingerprints of clips that an interrupted stream could not read: what is there now may be mended."""
    unread = {*state.get("unreadable", ()), *state["record"].get("skipped", ())}
    return {name: mark for name, mark in state.get("clips", {}).items() if name in unread}


def require_same_stream(
    state: dict[str, Any],
    asked: Mapping[str, Any],
    *,
    folder: Path,
    marks: Mapping[str, str],
    left_out: Mapping[str, str],
) -> None:
    """CheckpointError, naming the first thing that differs, when `state` is not that of the stream with the identity
    `asked`: of these clips of a folder, by their fingerprints, and these left out, with reasons."""
    saved = state["identity"]
    keys = {*saved, *asked} - {"source"}  # that an earlier version named their folder by; their content tells
    differing = sorted(key for key in keys if saved.get(key) != asked.get(key))
    if not differing:
        return
    key = differing[0]
    value: str | None
    what, value = f"another {key}", f"{asked.get(key)}, it had {saved.get(key)}"[:300]
    without = ""
    if key.startswith("clips") and state.get("clips"):
        what, value = "other clips", _changed_clip(state["clips"], folder, marks, left_out)
        if state["clips"].keys() - marks:
            without = "go on without the clip with data.on_error=skip and data.max_skipped, "
    elif key == "checkpoint":
        what, value = "another checkpoint, or the one of then was replaced (by a run that trains on)", None
    elif key.startswith("source"):
        what, value = "other source clips, or one of them has changed or cannot be read", None
    raise CheckpointError(
        f"the interrupted stream had {what}",
        where="--resume",
        value=value,
        fix=f"give the command it was started with, {without}or run without --resume",
    )


def _changed_clip(
    before: Mapping[str, str], folder: Path, marks: Mapping[str, str], left_out: Mapping[str, str]
) -> str:
    """The first clip that is new, gone, left out or not the same, else the folder."""
    for name in [*before, *marks]:
        if name not in marks:
            return f"{name} is left out: {left_out[name]}" if name in left_out else f"{name} is missing"
        if name not in before:
            return f"{name} is new"
        if before[name] != marks[name]:
            return f"{name} has other content"
    return f"the folder {folder}"


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write the stream's state, whole or not at all."""
    temporary = folder / f".{STATE_FILE}.{os.getpid()}.tmp"
    with written(folder / STATE_FILE, also=(RuntimeError,)):  # torch has its own write errors
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:  # a file of Python's, whose errors say what happened
                torch.save(state, file)
            os.replace(temporary, folder / STATE_FILE)
        finally:
            temporary.unlink(missing_ok=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The state of an interrupted stream, with the fields of StreamState and an adapter for each that its stream had.

    Raises CheckpointError when there is none, it cannot be read or it holds something else.
    """
    file = folder / STATE_FILE
    with accessed(file, kind=CheckpointError):
        found = is_file(file)
    if not found:
        raise CheckpointError(
            "no interrupted stream to go on with", where="--resume", value=str(folder), fix="run without --resume"
        )
    state = read_saved(file, StreamState, fix=START_AGAIN)
    baselines = str(state["identity"].get("baselines", "")).split(",")
    missing = sorted({"adapted", *(name for name in baselines if name == "periodic_reset")} - state["adapters"].keys())
    if missing:
        what = f"{STATE_FILE} does not hold what it should: {STATE_FILE}.adapters.{missing[0]} is missing"
        raise CheckpointError(what, where=str(folder), fix=START_AGAIN)
    return state
