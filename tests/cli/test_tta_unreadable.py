"""A clip with a sound header whose data cannot be read: the stream ends at once, or goes on without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from tests.cli.runner import Outcome, hope, one_line, small_run
from tests.data.io_errors import fail_reading

REASON = "cannot be read: Input/output error"
FEATURES = "feature_maps/vjepa2_vitl16.npy"
LOST = ("clip_00001", "clip_00003")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = small_run(tmp_path_factory.mktemp("unreadable"), "data.val_split=0.3")
    make_clips(found.parents[2] / "ice", clips=6, grid=2, dim=8, domain="ice", seed=1)
    return found


def tta(run: Path, *arguments: str) -> Outcome:
    given = ["tta", "--ckpt", str(run), "--device", "cpu", "--data-dir", "ice", "--json", "adaptation.steps=1"]
    return hope([*given, *arguments], run.parents[2])


def test_such_clips_of_the_stream(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ice = run.parents[2] / "ice"
    fail_reading(monkeypatch, *(ice / name / FEATURES for name in LOST))
    ended = tta(run)
    assert ended.code == 3
    assert f"{ice / LOST[0]}: {REASON}" in one_line(ended)
    skip = "data.on_error=skip"
    many = tta(run, skip, "data.max_skipped=0.3")
    assert many.code == 3
    assert "2 of 6 clips cannot be used, more than data.max_skipped allows" in many.err
    outcome = tta(run, skip, "data.max_skipped=0.4")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["clips"] == 4
    assert found["skipped_clips"] == dict.fromkeys(LOST, REASON)
    assert outcome.err.count(f"{LOST[0]} is left out: {REASON}") == 1


def test_one_limit_holds_before_and_within_the_stream(
    run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A clip that only reading all of it shows to be bad counts with those left out before."""
    clips = tmp_path / "clips"
    make_clips(clips, clips=6, grid=2, dim=8, domain="ice", seed=1)
    file = clips / "clip_00002" / FEATURES
    np.save(file, np.full_like(np.load(file), np.nan))
    fail_reading(monkeypatch, clips / LOST[0] / FEATURES)
    skip = ["--data-dir", str(clips), "--name", "both", "data.on_error=skip"]
    few = tta(run, *skip, "data.max_skipped=0.2")  # 1 of 6 each
    assert few.code == 3
    assert "2 of 6 clips cannot be used, more than data.max_skipped allows" in few.err
    outcome = tta(run, *skip, "data.max_skipped=0.34")
    assert outcome.code == 0, outcome.err
    assert sorted(json.loads(outcome.out)["skipped_clips"]) == ["clip_00001", "clip_00002"]


def test_a_source_clip(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was one of those held out; the stream is not affected where clips may be skipped."""
    (own,) = (run.parents[2] / "cache/physics").iterdir()
    held_out = json.loads((run / "split.json").read_text())["held_out"]
    fail_reading(monkeypatch, own / held_out[0] / FEATURES)
    assert tta(run, "--name", "source").code == 3
    outcome = tta(run, "--name", "source", "data.on_error=skip")
    assert outcome.code == 0, outcome.err
