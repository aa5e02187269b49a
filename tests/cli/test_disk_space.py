"""A run's checkpoints are held against the free disk space before the run, through the real CLI."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.runner import TINY, hope, one_line, only_run

# Wide enough for its numbers to outweigh the names and shapes beside them.
TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "model.width=128"]
Announce = Callable[[int], None]


@pytest.fixture
def announce(monkeypatch: pytest.MonkeyPatch) -> Announce:
    """Makes the system announce so many free bytes on every disk."""

    def change(free: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**40, free=free))

    return change


def test_checkpoints_that_do_not_fit(announce: Announce, tmp_path: Path) -> None:
    assert hope([*TRAIN, "training.epochs=4"], tmp_path).code == 0
    run = only_run(tmp_path)
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    parts = list((run / "checkpoints/last").iterdir())
    written = sum(path.stat().st_size for path in parts)
    assert len(parts) == 2

    announce(written // 2)
    line = one_line(hope(TRAIN, tmp_path))
    for words in (
        "runs/quickstart: a checkpoint needs ",
        "MiB, but the disk has ",
        "HOPE_RUNS_DIR or logging.runs_dir",
    ):
        assert words in line
    outcome = hope(["train", "--resume", "last"], tmp_path)
    assert (outcome.code, "HOPE_RUNS_DIR" in outcome.err) == (4, False)
    assert f"{run.relative_to(tmp_path)}: a checkpoint needs" in one_line(outcome)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files  # nothing is begun

    announce(written)  # room for one: what is needed is below what is written, which has names and shapes too
    outcome = hope(["train", "--resume", "last"], tmp_path)
    assert outcome.code == 0, outcome.err


def test_gradients_that_wait_are_part_of_a_checkpoint(announce: Announce, tmp_path: Path) -> None:
    """Of HOPE's slow levels, which have taken a step and wait for the next one after the three of this run."""
    slow = "model={kind: hope, memory_multiplier: 0.25, cms_multipliers: [0.25, 4, 4], cms_update_periods: [1, 2, 2]}"
    train = [*TRAIN[:-1], slow, "model.width=128", "training.epochs=1", "data.batch_size=6"]
    assert hope([*train, "logging.runs_dir=first"], tmp_path).code == 0
    last = next(tmp_path.glob("first/*/*/checkpoints/last"))
    written = sum(path.stat().st_size for path in last.iterdir())
    announce(int(0.95 * written))  # below what is needed, above it without them
    assert " a checkpoint needs " in one_line(hope(train, tmp_path))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("keep", "kept"),
    [
        ("training.keep_last=3", 3),
        ("training.keep_last=null", 4),
        ("training.save_every=0", 1),
        ("training.save_every=3", 2),
    ],
)
def test_a_note_when_those_that_are_kept_may_not_fit(keep: str, kept: int, announce: Announce, tmp_path: Path) -> None:
    train = [*TRAIN, "training.epochs=4", keep]
    assert hope([*train, "logging.runs_dir=first"], tmp_path).code == 0
    last = next(tmp_path.glob("first/*/*/checkpoints/last"))
    assert max(1, len(list(last.parent.glob("epoch_*")))) == kept  # `last` is the newest of them, or alone
    one = sum(path.stat().st_size for path in last.iterdir())
    for room, said in ((kept * one, True), ((kept + 1) * one, False)):  # one more while the oldest is replaced
        announce(room)
        outcome = hope(train, tmp_path)
        assert outcome.code == 0, outcome.err
        found = re.search(rf"note: the run's checkpoints \({kept} kept\) need ([\d.]+) MiB", outcome.err)
        assert (found is not None) == said
        # What is needed is below what is written, which has names and shapes too.
        assert found is None or 0.9 * (kept + 1) * one < float(found[1]) * 2**20 < (kept + 1) * one
    announce(one)
    outcome = hope(["train", "--resume", str(last.parents[1])], tmp_path)  # its checkpoints are there
    assert "the run's checkpoints" not in outcome.err


def test_a_disk_that_does_not_say_is_not_held_against_a_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    outcome = hope([*TRAIN, "training.epochs=1"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "checkpoints" not in outcome.err
