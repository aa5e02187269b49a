"""A stream's state that cannot be read, or holds what it should not, is a checkpoint error that names the place."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.engine.tta_state import STATE_FILE, read_state
from hopecli.errors import CheckpointError
from tests.engine.streams import make_job, noise_clips, settings


class StopAtOnce(NullStreamSink):
    """Sends this process a real signal after the first clip."""

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a stream that was interrupted after one of its clips."""
    stream(make_job(settings(), noise_clips(2), tmp_path, sink=StopAtOnce(), source=noise_clips(1)))
    return tmp_path


def without(*path: str) -> Callable[[Any], object]:
    def damage(state: Any) -> object:
        tree = state
        for key in path[:-1]:
            tree = tree[key]
        del tree[path[-1]]
        return state

    return damage


def replaced(*path: Any, by: object) -> Callable[[Any], object]:
    def damage(state: Any) -> object:
        tree = state
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = by
        return state

    return damage


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (lambda state: [state], ""),
        (lambda state: None, ""),
        (lambda state: torch.zeros(3), ""),
        (lambda state: {}, ".adapters"),
        (without("identity"), ".identity"),
        (without("adapters"), ".adapters"),
        (without("record"), ".record"),
        (without("adapters", "adapted"), ".adapters.adapted"),
        (without("adapters", "adapted", "optimizer"), ".adapters.adapted.optimizer"),
        (replaced("identity", by=None), ".identity"),
        (replaced("adapters", "adapted", by=None), ".adapters.adapted"),
        (replaced("adapters", "adapted", "weights", by=[1]), ".adapters.adapted.weights[0]"),
        (replaced("adapters", "adapted", "memory", by=3), ".adapters.adapted.memory"),
        (replaced("record", by=[]), ".record"),
        (replaced("record", "position", by="one"), ".record.position"),
        (replaced("record", "rows", by=None), ".record.rows"),
        (replaced("record", "rows", 0, by={}), ".record.rows[0].after_update"),
        (replaced("record", "rows", 0, "online", by=None), ".record.rows[0].online"),
        (replaced("record", "source", 0, "more", by=1), ".record.source[0].more"),
        (replaced("record", "frozen", by={"a": 1.0}), ".record.frozen.a"),
    ],
)
def test_a_state_that_holds_something_else(damage: Callable[[Any], object], place: str, folder: Path) -> None:
    file = folder / STATE_FILE
    torch.save(damage(torch.load(file, weights_only=True)), file)
    with pytest.raises(CheckpointError) as raised:
        stream(make_job(settings(), noise_clips(2), folder, resume=True))
    assert f"{folder}: {STATE_FILE} does not hold what it should: {STATE_FILE}{place} is " in str(raised.value)
    assert str(raised.value).endswith("Delete it and run without --resume")


ADAPTED = ("adapters", "adapted")
OPTIMIZER = (*ADAPTED, "optimizer")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (replaced(*ADAPTED, "weights", by=[]), "it has 0 weights, the adapter has"),
        (replaced(*ADAPTED, "weights", 0, by=torch.ones(1)), r"tensor 0 of the weights has the shape \[1\]"),
        (replaced(*ADAPTED, "buffers", by=[torch.ones(1)]), "it has 1 buffers, the adapter has 0"),
        (replaced(*ADAPTED, "memory", by=[torch.ones(1)]), "it holds a memory, and the model carries none"),
        (replaced(*OPTIMIZER, "state", by=None), "it holds no optimizer state"),
        (replaced(*OPTIMIZER, "state", 0, by=[]), "the optimizer's state of parameter 0"),
        (replaced(*OPTIMIZER, "state", 0, "step", by="1"), "the step of parameter 0 is not a tensor"),
        (replaced(*OPTIMIZER, "state", 0, "exp_avg", by=torch.ones(1)), r"the exp_avg of parameter 0 has the shape"),
        (replaced(*OPTIMIZER, "param_groups", 0, "params", by=[{}]), "does not have"),
        (replaced(*OPTIMIZER, "param_groups", 0, "betas", by=(0.5, 0.5)), "has another betas"),
        (without(*OPTIMIZER, "accumulated"), "it holds no optimizer state"),
    ],
)
def test_a_state_of_another_adapter(damage: Callable[[Any], object], reason: str, folder: Path) -> None:
    file = folder / STATE_FILE
    torch.save(damage(torch.load(file, weights_only=True)), file)
    with pytest.raises(CheckpointError, match=f"{STATE_FILE} does not fit this stream: .*{reason}") as raised:
        stream(make_job(settings(), noise_clips(2), folder, resume=True))
    assert str(raised.value).endswith("Delete it and run without --resume")


@pytest.mark.parametrize(
    ("kind", "adapt", "damage"),
    [
        ("hope", "layernorm", replaced(*ADAPTED, "memory", by=[])),
        ("hope", "none", replaced(*ADAPTED, "memory", 0, by=torch.ones(1))),
        ("hope", "none", replaced(*ADAPTED, "memory", 0, 0, 0, by=torch.ones(2, 1))),
        ("hope", "none", replaced(*ADAPTED, "memory", 0, 2, 3, by=torch.ones(1, dtype=torch.int64))),
        ("convlstm", "bias", replaced(*ADAPTED, "memory", by=[torch.ones(1)])),
        ("convlstm", "none", replaced(*ADAPTED, "memory", 1, by=torch.ones(1, 5, 3, 3))),
    ],
)
def test_a_memory_of_another_model(kind: str, adapt: str, damage: Callable[[Any], object], tmp_path: Path) -> None:
    carrying = settings(kind, memory="carry", adapt=adapt)
    stream(make_job(carrying, noise_clips(2), tmp_path, sink=StopAtOnce()))
    file = tmp_path / STATE_FILE
    torch.save(damage(torch.load(file, weights_only=True)), file)
    with pytest.raises(
        CheckpointError, match=f"{STATE_FILE} does not fit this stream: its memory does not have the form"
    ):
        stream(make_job(carrying, noise_clips(2), tmp_path, resume=True))


@pytest.mark.parametrize("frames", [1, 2, 3])
@pytest.mark.parametrize("kind", ["hope", "convlstm"])
def test_the_memory_after_any_number_of_frames_is_the_models(kind: str, frames: int, tmp_path: Path) -> None:
    carrying = settings(kind, memory="carry", adapt="none", context_frames=1, T_rollout=frames)
    stream(make_job(carrying, noise_clips(2), tmp_path, sink=StopAtOnce()))
    assert read_state(tmp_path)["adapters"]["adapted"]["memory"] is not None
    assert stream(make_job(carrying, noise_clips(2), tmp_path, resume=True)).position == 2


@pytest.mark.parametrize("content", [b"", b"xx"])
def test_a_state_that_cannot_be_read_has_a_reason(content: bytes, folder: Path) -> None:
    (folder / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{STATE_FILE} cannot be read: \w"):
        stream(make_job(settings(), noise_clips(2), folder, resume=True))


def test_each_adapter_of_the_stream_must_be_there(folder: Path) -> None:
    assert read_state(folder)["record"]["position"] == 1
    file = folder / STATE_FILE
    state = torch.load(file, weights_only=True)
    torch.save({**state, "identity": {"baselines": "frozen,periodic_reset"}}, file)
    with pytest.raises(CheckpointError, match=r"stream\.pt\.adapters\.periodic_reset is missing"):
        read_state(folder)
