"""Clips that break, or are mended, while a stream is interrupted: it goes on with what is left."""

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
from tests.cli.test_lost_clips import FEATURES, SKIP, lose_actions, spoil, truncate
from tests.data.io_errors import fail_reading


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


def test_a_stream_goes_on_without_a_clip_that_has_become_short(streams: Streams) -> None:
    streams.stopped_after_three()
    clip = streams.folder / "ice/clip_00005"
    np.save(clip / FEATURES, np.load(clip / FEATURES)[:5])
    np.save(clip / "actions_states/actions.npy", np.load(clip / "actions_states/actions.npy")[:10])
    assert "Lower data.num_timesteps or set data.on_short=skip" in one_line(streams.tta("--resume"))
    refused = one_line(streams.tta("--resume", "data.on_short=skip"))
    assert "go on without the clip with data.on_error=skip and data.max_skipped, or run" in refused
    outcome = streams.tta("--resume", "data.on_short=skip", *SKIP)
    assert outcome.code == 0, outcome.err
    assert list(streams.scores()) == [name for name in streams.whole if name != clip.name]


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


def test_a_clip_that_was_one_too_many_counts_no_more_when_it_is_mended(streams: Streams) -> None:
    before = {n: spoil(streams.folder / f"ice/clip_0000{n}") for n in (3, 4)}
    assert streams.tta(*SKIP).code == 3
    for n, content in before.items():
        (streams.folder / f"ice/clip_0000{n}" / FEATURES).write_bytes(content)
    outcome = streams.tta("--resume", *SKIP)
    assert outcome.code == 0, outcome.err
    assert list(json.loads(outcome.out)["skipped_clips"]) == ["clip_00003"]  # the stream had passed it
    assert [name for name in streams.whole if name not in streams.scores()] == ["clip_00003"]
