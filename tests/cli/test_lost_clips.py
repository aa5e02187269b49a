"""Clips that break, or are mended, while a run is interrupted: it goes on with what is left, as data.on_error says."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.report.tta import ConsoleStream
from tests.cli.runner import TINY, Outcome, hope, one_line, only_run
from tests.data.io_errors import fail_reading

TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "--data-dir", "clips", "data.batch_size=1"]
SKIP = ["data.on_error=skip", "data.max_skipped=0.2"]
FEATURES = "feature_maps/vjepa2_vitl16.npy"


def truncate(clip: Path) -> None:
    os.truncate(clip / FEATURES, 300)


def lose_actions(clip: Path) -> None:
    (clip / "actions_states/actions.npy").unlink()


def spoil(clip: Path) -> bytes:
    """Write a NaN, which only reading all of a clip finds, and return what was there."""
    before = (clip / FEATURES).read_bytes()
    features = np.load(clip / FEATURES)
    features[2, 1, 5] = np.nan
    np.save(clip / FEATURES, features)
    return before


def resumed(folder: Path, *arguments: str) -> Outcome:
    return hope(["train", "--resume", "last", "--json", *arguments], folder)


def listed(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((only_run(folder) / "split.json").read_text())["skipped"]
    return found


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A folder with a run that clip_00003 ended in its first epoch, with the steps before it saved, and mended."""
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    before = spoil(tmp_path / "clips/clip_00003")
    outcome = hope([*TRAIN, "data.workers=0"], tmp_path)
    assert outcome.code == 3
    assert "is saved; go on with" in outcome.err
    (tmp_path / "clips/clip_00003" / FEATURES).write_bytes(before)
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated: "),
        (lose_actions, "missing_actions: "),
        (shutil.rmtree, "missing: not in the folder"),
        (spoil, "not_finite: features hold NaN"),
    ],
)
@pytest.mark.parametrize("clip", ["clip_00005", "clip_00009"])  # trained on, and held out
def test_a_run_goes_on_without_a_clip_that_is_lost(
    damage: Callable[[Path], None], reason: str, clip: str, ended: Path
) -> None:
    damage(ended / "clips" / clip)
    refused = resumed(ended)
    assert refused.code in (3, 4)
    assert clip in one_line(refused)
    few = resumed(ended, "data.on_error=skip", "data.max_skipped=0.09")
    assert few.code == 3
    if clip == "clip_00009":  # the only one held out
        assert "one of them held out" in one_line(resumed(ended, *SKIP))
        return
    outcome = resumed(ended, *SKIP)
    assert outcome.code == 0, outcome.err
    assert f"1 clip of the run skipped, the first {clip}: {reason}" in outcome.err
    found = json.loads(outcome.out)
    assert (found["train_clips"], found["held_out_clips"], found["skipped_clips"]) == (8, 1, 1)
    assert found["steps"] == 2 * 9  # the order of the others is that of a run without the damage
    assert list(listed(ended)) == [clip]


def test_a_clip_that_broke_twice(ended: Path) -> None:
    """It ended the run, was mended (other content than at the start), and is lost later."""
    assert resumed(ended).code == 0
    truncate(ended / "clips/clip_00003")
    assert resumed(ended, *SKIP).code == 0
    assert list(listed(ended)) == ["clip_00003"]


def test_a_skipped_clip_that_is_mended_is_used_again(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    before = {n: spoil(tmp_path / f"clips/clip_0000{n}") for n in (3, 8)}
    outcome = hope([*TRAIN, "data.val_split=0.2", "data.on_error=skip", "data.max_skipped=0.2"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert list(listed(tmp_path)) == ["clip_00003", "clip_00008"]
    for n, content in before.items():
        assert json.loads(resumed(tmp_path).out)["skipped_clips"] == len(listed(tmp_path))
        (tmp_path / f"clips/clip_0000{n}" / FEATURES).write_bytes(content)
    outcome = resumed(tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["train_clips"], found["held_out_clips"], found["skipped_clips"]) == (8, 2, 0)
    assert listed(tmp_path) == {}
    truncate(tmp_path / "clips/clip_00004")
    np.save(tmp_path / "clips/clip_00005" / FEATURES, np.load(tmp_path / "clips/clip_00006" / FEATURES))
    outcome = resumed(tmp_path)  # skipping, as the run was started: one is lost, another is not what it was
    assert outcome.code == 4
    assert "(got 'clip_00005 has other content')" in one_line(outcome)


def test_a_clip_left_out_at_the_start_stays_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk failed then and works again; the others keep the sides that were made without it."""
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    with monkeypatch.context() as patch:
        fail_reading(patch, tmp_path / "clips/clip_00005" / FEATURES)
        assert hope([*TRAIN, *SKIP], tmp_path).code == 0
    whole = tmp_path / "clips/clip_00007/actions_states/actions.npy"
    new = tmp_path / "clips/clip_00010"
    outcome = resumed(tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["train_clips"] == 8
    assert list(listed(tmp_path)) == ["clip_00005"]
    shutil.copytree(whole.parents[1], new)
    outcome = resumed(tmp_path)
    assert outcome.code == 4
    assert "(got 'clip_00010 is new')" in one_line(outcome)


@dataclass(frozen=True)
class Streams:
    """A trained run, and streams of eight ice clips under it; `whole` were its scores by clip, nothing damaged."""

    folder: Path
    whole: dict[str, float]

    def tta(self, *arguments: str) -> Outcome:
        given = ["tta", "--ckpt", str(only_run(self.folder)), "--device", "cpu", "--data-dir", "ice", "--name", "part"]
        return hope([*given, "--json", "adaptation.steps=1", *arguments], self.folder)

    def scores(self) -> dict[str, float]:
        lines = (only_run(self.folder) / "tta/part/per_clip.csv").read_text().splitlines()
        return {row["clip"]: float(row["online"]) for row in csv.DictReader(lines)}

    def stopped_after_three(self, *arguments: str) -> None:
        shown = ConsoleStream.clip

        def stop(sink: ConsoleStream, row: TtaClip, progress: TtaProgress) -> None:
            shown(sink, row, progress)
            if progress.done == 3:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ConsoleStream, "clip", stop)  # only says when the signal comes
            assert self.tta(*arguments).code == 75


@pytest.fixture
def streams(tmp_path: Path) -> Streams:
    assert hope(["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"], tmp_path).code == 0
    make_clips(tmp_path / "ice", clips=8, grid=2, dim=8, domain="ice", seed=1)
    found = Streams(tmp_path, {})
    assert found.tta().code == 0
    return replace(found, whole=found.scores())


@pytest.mark.parametrize("damage", [truncate, lose_actions, shutil.rmtree, spoil])
@pytest.mark.parametrize("clip", ["clip_00001", "clip_00005"])  # scored before, and still to come
def test_a_stream_goes_on_without_a_clip_that_is_lost(
    damage: Callable[[Path], object], clip: str, streams: Streams
) -> None:
    streams.stopped_after_three()
    damage(streams.folder / "ice" / clip)
    refused = streams.tta("--resume")
    assert refused.code in (3, 4)
    assert clip in one_line(refused)
    outcome = streams.tta("--resume", *SKIP)
    assert outcome.code == 0, outcome.err
    scores = streams.scores()
    scored = [name for name in streams.whole if name != clip or clip == "clip_00001"]
    assert list(scores) == scored
    until = scored[:5]  # after the damaged clip the weights are others
    assert [scores[name] for name in until] == [streams.whole[name] for name in until]
    assert list(json.loads(outcome.out)["skipped_clips"]) == ([clip] if clip == "clip_00005" else [])


def test_a_clip_that_ended_a_stream_may_come_back_mended(streams: Streams) -> None:
    clip = streams.folder / "ice/clip_00004"
    before = spoil(clip)
    outcome = streams.tta()
    assert outcome.code == 3
    assert "clip_00004: features hold NaN" in one_line(outcome)
    assert "the stream up to this clip is saved; once the clip is mended, go on with --resume" in outcome.err
    assert streams.tta("--resume").code == 3
    (clip / FEATURES).write_bytes(before)
    outcome = streams.tta("--resume")
    assert outcome.code == 0, outcome.err
    assert streams.scores() == streams.whole


def test_what_a_stream_left_out_at_its_start_stays_out(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_reading(patch, streams.folder / "ice/clip_00005" / FEATURES)
        streams.stopped_after_three(*SKIP)
    outcome = streams.tta("--resume", *SKIP)
    assert outcome.code == 0, outcome.err
    assert list(streams.scores()) == [name for name in streams.whole if name != "clip_00005"]
    assert list(json.loads(outcome.out)["skipped_clips"]) == ["clip_00005"]


def test_too_many_lost_clips_cost_no_scores(streams: Streams) -> None:
    for name in ("clip_00004", "clip_00006"):
        spoil(streams.folder / "ice" / name)
    outcome = streams.tta(*SKIP)
    assert outcome.code == 3
    assert "2 of 8 clips cannot be used, more than data.max_skipped allows" in one_line(outcome)
    outcome = streams.tta("--resume", "data.on_error=skip", "data.max_skipped=0.3")
    assert outcome.code == 0, outcome.err
    assert len(streams.scores()) == 6
