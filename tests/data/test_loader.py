"""Batches in a reproducible order that processes share and a resumed run re-enters, and reading them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data._utils.pin_memory import pin_memory

from hopecli.data.clip import ClipBatch
from hopecli.data.loader import (
    EpochBatches,
    InOrder,
    LoadedBatch,
    _reading,
    load_batches,
    require_all,
    stand_in,
)
from hopecli.data.store import ClipStore
from hopecli.errors import DataError
from tests.clips import count_rows, data_settings, feature_file, make_features, write_clip, write_clips

CLIPS, BATCH = 23, 8  # two global batches, seven clips dropped


def epoch_batches(
    *, seed: int = 1, epoch: int = 0, first_step: int = 0, accumulate: int = 1, rank: int = 0, world: int = 1
) -> list[list[int]]:
    sampler = EpochBatches(
        clips=CLIPS,
        global_batch=BATCH,
        seed=seed,
        epoch=epoch,
        first_step=first_step,
        accumulate=accumulate,
        rank=rank,
        world=world,
    )
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def flat(batches: list[list[int]]) -> list[int]:
    return [i for batch in batches for i in batch]


def test_an_epoch_is_the_start_of_a_permutation() -> None:
    batches = epoch_batches()
    assert [len(batch) for batch in batches] == [8, 8]
    seen = flat(batches)
    assert len(set(seen)) == 16
    assert set(seen) <= set(range(CLIPS))
    assert seen != sorted(seen)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert epoch_batches() == epoch_batches()
    orders = [epoch_batches(seed=seed, epoch=epoch) for seed in (0, 1, 2) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    generator = torch.get_rng_state()
    epoch_batches()
    assert torch.equal(torch.get_rng_state(), generator)  # the global generator is not drawn from


@pytest.mark.parametrize(("world", "accumulate"), [(1, 4), (2, 1), (4, 2)])
def test_processes_and_micro_batches_share_each_global_batch(world: int, accumulate: int) -> None:
    whole = epoch_batches()
    shares = [epoch_batches(rank=rank, world=world, accumulate=accumulate) for rank in range(world)]
    for step, batch in enumerate(whole):
        parts = [share[step * accumulate : (step + 1) * accumulate] for share in shares]
        assert sorted(flat([micro for part in parts for micro in part])) == sorted(batch)
        assert {len(micro) for part in parts for micro in part} == {BATCH // world // accumulate}


def test_resuming_gives_the_rest_of_the_epoch() -> None:
    assert epoch_batches(first_step=1) == epoch_batches()[1:]
    assert (
        epoch_batches(first_step=1, accumulate=2, rank=1, world=2) == epoch_batches(accumulate=2, rank=1, world=2)[2:]
    )
    assert epoch_batches(first_step=2) == []
    assert epoch_batches(first_step=5) == []


def test_a_batch_that_cannot_be_shared_equally_is_an_error() -> None:
    with pytest.raises(ValueError, match="8 is not a multiple of 3 processes x 1"):
        epoch_batches(world=3)


@pytest.mark.parametrize(("clips", "batch", "world"), [(7, 3, 1), (7, 3, 2), (2, 5, 3), (6, 3, 4)])
def test_in_order_repeats_and_drops_nothing(clips: int, batch: int, world: int) -> None:
    shares = [InOrder(clips=clips, batch=batch, rank=rank, world=world) for rank in range(world)]
    assert sorted(flat([b for share in shares for b in share])) == list(range(clips))
    for share in shares:
        assert len(list(share)) == len(share)
        assert flat(list(share)) == sorted(flat(list(share)))


def folder_store(folder: Path, workers: int) -> ClipStore:
    return ClipStore(folder, data_settings({"workers": workers}), use_extrinsics=False)


def load(store: ClipStore, names: list[str], batch: int) -> list[LoadedBatch]:
    return list(load_batches(store, names, InOrder(clips=len(names), batch=batch), pin_memory=False))


def same(a: LoadedBatch, b: LoadedBatch) -> bool:
    assert a.clips is not None
    assert b.clips is not None
    return (
        a.clips.names == b.clips.names
        and [str(e) for e in a.errors] == [str(e) for e in b.errors]
        and torch.equal(a.clips.features, b.clips.features)
        and torch.equal(a.clips.actions, b.clips.actions)
        and torch.equal(a.clips.states, b.clips.states)
    )


def test_worker_processes_give_the_same_batches_and_bring_errors_back(tmp_path: Path) -> None:
    write_clips(tmp_path, range(5))
    broken = make_features(3)
    broken[0, 0, 0] = float("nan")
    write_clip(tmp_path, 3, features=broken)
    names = [f"clip_{i:05d}" for i in range(5)]
    here, there = (load(folder_store(tmp_path, workers), names, 2) for workers in (0, 2))
    assert len(here) == 3
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert here[0].clips is not None
    assert here[0].clips.names == ("clip_00000", "clip_00001")
    assert torch.equal(here[0].clips.features[1], torch.from_numpy(make_features(1)))
    for loaded in (here[1], there[1]):
        assert loaded.clips is not None
        assert loaded.clips.names == ("clip_00002",)
        assert [error.where for error in loaded.errors] == ["clip_00003"]
        assert str(loaded.errors[0]).startswith("clip_00003: features hold NaN")
        assert str(loaded.errors[0]).count("clip_00003") == 1
        with pytest.raises(DataError, match="clip_00003: features hold NaN"):
            require_all(loaded)


def test_a_batch_of_broken_clips_has_no_clips(tmp_path: Path) -> None:
    write_clips(tmp_path, [0, 1])
    for name in ("clip_00000", "clip_00001"):
        feature_file(tmp_path, name).unlink()
    (loaded,) = load(folder_store(tmp_path, 0), ["clip_00000", "clip_00001"], 2)
    assert loaded.clips is None
    assert len(loaded.errors) == 2
    with pytest.raises(DataError, match=r"^clip_00000: "):
        require_all(loaded)


def test_batches_keep_the_stored_dtype_unless_files_differ(tmp_path: Path) -> None:
    for number, dtype in enumerate(("float16", "float16", "float32")):
        write_clip(tmp_path, number, features=make_features(number, dtype=dtype))
    half, mixed = load(folder_store(tmp_path, 0), ["clip_00000", "clip_00001", "clip_00001", "clip_00002"], 2)
    assert require_all(half).features.dtype == torch.float16
    assert require_all(mixed).features.dtype == torch.float32
    assert torch.equal(require_all(mixed).features[1], torch.from_numpy(make_features(2)))


def test_extrinsics_travel_with_the_batch(tmp_path: Path) -> None:
    for number in (0, 1):
        write_clip(tmp_path, number, extrinsics=count_rows(6, width=1) + number)
    store = ClipStore(tmp_path, data_settings(), use_extrinsics=True)
    (loaded,) = load(store, ["clip_00000", "clip_00001"], 2)
    batch = require_all(loaded).to(torch.device("cpu"), torch.float64)
    assert batch.extrinsics is not None
    assert batch.extrinsics.tolist() == [[[1.0], [3.0]], [[2.0], [4.0]]]
    assert batch.features.dtype == torch.float64
    assert (len(batch), batch.features.shape[1]) == (2, 3)
    assert batch.with_actions(torch.zeros_like(batch.actions)).extrinsics is batch.extrinsics


def test_the_next_clip_that_can_be_read_stands_in(tmp_path: Path) -> None:
    write_clips(tmp_path, range(4))
    names = [f"clip_{i:05d}" for i in range(4)]
    store = ClipStore(tmp_path, data_settings(), use_extrinsics=False)
    for bad, missing, expected in [
        (1, 1, 2),
        (2, 1, 3),
        (3, 3, 0),
    ]:  # one more bad clip each time
        feature_file(tmp_path, names[bad]).write_bytes(b"")
        batch = stand_in(store, names, names[missing])
        assert batch.names == (names[expected],)
        torch.testing.assert_close(batch.features[0], torch.from_numpy(make_features(expected)))
    feature_file(tmp_path, names[0]).write_bytes(b"")
    with pytest.raises(DataError, match="no training clip can be read"):
        stand_in(store, names, names[3])


@pytest.mark.parametrize(
    ("error", "killed"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), True),
        (RuntimeError("Pin memory thread exited unexpectedly"), True),
        (ConnectionResetError("Connection reset by peer"), True),
        (EOFError(), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (ValueError("a mistake"), False),
    ],
)
def test_only_a_lost_reader_is_reported_as_one(error: Exception, killed: bool) -> None:
    """Other errors, as of pinning, have another remedy than fewer readers: their own message must be seen."""

    def batches() -> Iterator[LoadedBatch]:
        yield LoadedBatch(None)
        raise error

    reading = _reading(batches())
    assert next(reading) == LoadedBatch(None)
    with pytest.raises(DataError if killed else type(error)) as raised:
        next(reading)
    assert ("a process that reads clips died" in str(raised.value)) == killed
    assert killed or raised.value is error


@pytest.mark.parametrize("extrinsics", [False, True])
def test_the_loader_can_page_lock_a_batch(extrinsics: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a DataLoader with pin_memory calls. Pinning itself needs a CUDA device: here it leaves a mark."""
    pinned: list[Tensor] = []

    def pin(x: Tensor) -> Tensor:
        pinned.append(x.clone())
        return pinned[-1]

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    rows = torch.ones(2, 2, 1) if extrinsics else None
    clips = ClipBatch(torch.ones(2, 3, 4, 5), torch.ones(2, 2, 2), torch.ones(2, 2, 2), rows, ("a", "b"))
    found = pin_memory(LoadedBatch(clips, (DataError("broken"),)))
    assert isinstance(found, LoadedBatch)
    assert found.clips is not None
    there = [found.clips.features, found.clips.actions, found.clips.states, found.clips.extrinsics]
    assert [x is not None and any(x is p for p in pinned) for x in there] == [True, True, True, extrinsics]
    assert found.clips.names == ("a", "b")
    assert len(found.errors) == 1
    assert pin_memory(LoadedBatch(None)).clips is None
