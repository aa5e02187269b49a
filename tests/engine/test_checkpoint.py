"""Checkpoints: what is written reads back, a failed write leaves the old one, and foreign files are refused."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hopecli.engine.checkpoint import (
    TRAINER,
    duplicate_checkpoint,
    load_checkpoint,
    load_into,
    load_trainer,
    remove_old,
    save_checkpoint,
    write_weights,
)
from hopecli.engine.saved_weights import WEIGHTS, find_weights
from hopecli.errors import CheckpointError, written

SETTINGS = {"data": {"grid": 4}, "optimizer": {"betas": [0.9, 0.999]}}


def weights(value: float) -> dict[str, Tensor]:
    return {"a.weight": torch.full((2, 3), value), "a.bias": torch.zeros(2, dtype=torch.float16)}


def save(folder: Path, value: float = 1.0, step: int = 7) -> Path:
    trainer = {"optimizer": {"exp_avg": torch.full((2,), value)}, "step": step}
    save_checkpoint(folder, weights=weights(value), settings=SETTINGS, info={"step": step}, trainer=trainer)
    return folder


def hidden(folder: Path) -> list[str]:
    """What is left of temporary names."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_round_trip(tmp_path: Path) -> None:
    folder = save(tmp_path / "run" / "checkpoints" / "last")
    found = load_checkpoint(str(folder))
    assert found.weights.keys() == weights(1.0).keys()
    for name, value in weights(1.0).items():
        assert torch.equal(found.weights[name], value)
        assert found.weights[name].dtype == value.dtype
    assert (found.settings, found.info) == (SETTINGS, {"step": 7})
    assert found.run_dir is None
    state = load_trainer(folder)
    assert state["step"] == 7
    assert torch.equal(state["optimizer"]["exp_avg"], torch.ones(2))
    assert sorted(path.name for path in folder.iterdir()) == sorted([WEIGHTS, TRAINER])


def test_shared_and_strided_weights_are_written_as_they_are(tmp_path: Path) -> None:
    transposed = torch.arange(6.0).reshape(2, 3).T
    write_weights(tmp_path / WEIGHTS, {"t": transposed.requires_grad_()}, SETTINGS, {})
    assert torch.equal(load_checkpoint(str(tmp_path)).weights["t"], transposed)
    assert [path.name for path in tmp_path.iterdir()] == [WEIGHTS]


def test_run_directory_checkpoint_directory_and_file_name_the_same(tmp_path: Path) -> None:
    run = tmp_path / "run"
    folder = save(run / "checkpoints" / "last")
    (run / "config.yaml").write_text("data: {}\n")
    assert find_weights(str(folder)) == (folder / WEIGHTS, None)  # any project may have a config.yaml
    (run / "split.json").write_text("{}")
    for given in (run, folder, folder / WEIGHTS):
        assert find_weights(str(given)) == (folder / WEIGHTS, run)
    alone = tmp_path / "other.safetensors"
    shutil.copy(folder / WEIGHTS, alone)
    assert load_checkpoint(str(alone)).run_dir is None


def test_a_new_checkpoint_replaces_the_old_one(tmp_path: Path) -> None:
    folder = save(tmp_path / "last")
    save(folder, value=2.0, step=8)
    assert load_checkpoint(str(folder)).info == {"step": 8}
    assert load_trainer(folder)["step"] == 8
    assert hidden(tmp_path) == []


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    named: list[set[int]] = []  # what was flushed at each renaming of a folder
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        fsync(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)

    def rename(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            named.append(set(flushed))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    save(tmp_path / "last")
    (before,) = named
    folder = tmp_path / "last"
    assert {path.stat().st_ino for path in (*folder.iterdir(), folder)} <= before
    assert tmp_path.stat().st_ino in flushed


@pytest.mark.parametrize("in_the_way", [".last.tmp", ".last.old"])
def test_a_failed_write_leaves_the_old_checkpoint(in_the_way: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "last")
    (tmp_path / in_the_way).write_text("a file where a folder must go")
    with pytest.raises(CheckpointError, match="last: cannot be written") as raised:
        save(folder, value=2.0, step=8)
    assert raised.value.exit_code == 4
    assert load_checkpoint(str(folder)).info == {"step": 7}
    assert load_trainer(folder)["step"] == 7
    (tmp_path / in_the_way).unlink()
    save(folder, value=2.0, step=8)
    assert load_checkpoint(str(folder)).info == {"step": 8}


def test_a_trainer_state_that_cannot_be_saved_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "last")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        save_checkpoint(folder, weights=weights(2.0), settings=SETTINGS, info={}, trainer={"bad": lambda: None})
    assert load_checkpoint(str(folder)).info == {"step": 7}
    assert hidden(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(tmp_path / "checkpoints" / "last")
    with pytest.raises(CheckpointError, match="cannot be written"):
        duplicate_checkpoint(save(tmp_path / "last"), tmp_path / "checkpoints" / "epoch_0001")


def test_the_system_error_below_a_library_error_is_the_reason() -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(CheckpointError, match="No space left on device"),
        written("state", fix="free some", also=(RuntimeError,)),
        open("/dev/full", "wb", buffering=0) as file,
    ):
        torch.save({"a": torch.zeros(1000)}, file)


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_read_only_folder_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = save(tmp_path / "run" / "last")
    folder.parent.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="cannot be written"):
            save(folder, step=8)
        assert load_checkpoint(str(folder)).info == {"step": 7}
    finally:
        folder.parent.chmod(0o700)


def test_what_a_crash_between_the_two_renames_leaves_is_found_and_kept(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    save(checkpoints / "last").rename(checkpoints / ".last.old")
    assert load_checkpoint(str(tmp_path)).info == {"step": 7}
    save(checkpoints / "last", step=8)
    assert load_checkpoint(str(tmp_path)).info == {"step": 8}
    assert hidden(checkpoints) == []


def test_duplicate_survives_the_replacement_of_its_source(tmp_path: Path) -> None:
    last = save(tmp_path / "last")
    duplicate_checkpoint(last, tmp_path / "epoch_0001")
    save(last, value=2.0, step=8)
    copy = load_checkpoint(str(tmp_path / "epoch_0001"))
    assert copy.info == {"step": 7}
    assert torch.equal(copy.weights["a.weight"], weights(1.0)["a.weight"])
    assert hidden(tmp_path) == []


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (None, [1, 2, 9999, 10_000]),
        (2, [9999, 10_000]),
        (1, [10_000]),  # which comes before epoch_9999 in the alphabet
        (4, [1, 2, 9999, 10_000]),
        (5, [1, 2, 9999, 10_000]),
    ],
)
def test_remove_old_keeps_the_newest(keep: int | None, left: list[int], tmp_path: Path) -> None:
    for epoch in (1, 2, 9999, 10_000):
        (tmp_path / f"epoch_{epoch:04d}").mkdir()
    (tmp_path / "last").mkdir()
    remove_old(tmp_path, keep)
    assert {path.name for path in tmp_path.iterdir()} == {*(f"epoch_{e:04d}" for e in left), "last"}


def test_nothing_to_find(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such file or directory"):
        find_weights(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match="no checkpoint in it"):
        find_weights(str(tmp_path))


def test_foreign_and_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(weights(1.0), path)
    with pytest.raises(CheckpointError, match="was not written by hopecli"):
        load_checkpoint(str(path))
    save_file(weights(1.0), path, {"settings": "{", "info": "{}"})
    with pytest.raises(CheckpointError, match="was not written by hopecli"):
        load_checkpoint(str(path))
    whole = (save(tmp_path / "last") / WEIGHTS).read_bytes()
    for content in (b"", whole[:-8], pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"m\.safetensors: not a readable \.safetensors file"):
            load_checkpoint(str(path))


class Planted:
    """An object whose unpickling would create a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.mark,)


def test_a_pickled_trainer_state_is_refused_without_running_it(tmp_path: Path) -> None:
    folder, mark = save(tmp_path / "last"), tmp_path / "ran"
    torch.save({"step": Planted(mark)}, folder / TRAINER)
    with pytest.raises(CheckpointError, match=rf"{TRAINER} cannot be read"):
        load_trainer(folder)
    assert not mark.exists()
    for content in (b"", (folder / TRAINER).read_bytes()[:100]):
        (folder / TRAINER).write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            load_trainer(folder)
    (folder / TRAINER).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_trainer(folder)


def test_weights_that_do_not_fit_name_the_keys(tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(save(tmp_path / "last")))
    model = nn.Sequential()
    model.add_module("a", nn.Linear(3, 2))
    load_into(model, checkpoint)
    assert torch.equal(model.state_dict()["a.weight"], torch.ones(2, 3))
    model.add_module("b", nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"do not fit.*b\.weight"):
        load_into(model, checkpoint)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_named(value: float, tmp_path: Path) -> None:
    """1e300 is finite only in the file, not in a model of float32."""
    bias = torch.tensor([0.0, value], dtype=torch.float64)
    write_weights(tmp_path / WEIGHTS, {"weight": torch.ones(2, 3), "bias": bias}, SETTINGS, {})
    with pytest.raises(CheckpointError, match=r"bias holds NaN or infinite values\. Use an earlier"):
        load_into(nn.Linear(3, 2), load_checkpoint(str(tmp_path)))


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_asks_for(umask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        folder = save(tmp_path / "last")
        duplicate_checkpoint(folder, tmp_path / "epoch_0001")
        write_weights(tmp_path / "adapted.safetensors", weights(1.0), SETTINGS, {})
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.stat().st_mode & 0o777 for path in files} == {mode}


@pytest.mark.usefixtures("permissions_obeyed")
def test_weights_that_may_not_be_read(tmp_path: Path) -> None:
    folder = save(tmp_path / "last")
    (folder / WEIGHTS).chmod(0)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: cannot be read: Permission denied"):
        load_checkpoint(str(folder))
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}: cannot be read: Permission denied"):
        load_trainer(folder)
    (folder / TRAINER).chmod(0)
    with pytest.raises(CheckpointError, match=rf"{TRAINER} cannot be read: Permission denied"):
        load_trainer(folder)
