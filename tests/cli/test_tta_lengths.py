"""Streams and evaluations of clips longer than those trained on: what is scored, what shows forgetting and what is
said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.runner import TINY, Outcome, evaluate, hope, only_run
from tests.clips import DIM, make_features, write_clip

LONG, SHORT = 16, 8
UNUSED = "note: clips are read with 16 frames, of which only the first 8 are used: {0}.T_rollout=7 ({0}.T_rollout=null "


def clips_of(folder: Path, lengths: list[int], *, first: int = 0) -> None:
    """One clip per number of frames, with a push at original frame 1."""
    for number, frames in enumerate(lengths, start=first):
        actions = np.zeros((2 * frames, 2), np.float32)
        actions[1] = number + 1
        write_clip(folder, number, features=make_features(number, frames), actions=actions)


def trained_on(folder: Path, lengths: list[int], *changes: str) -> Path:
    """A run on the first 8 frames of such clips, of which the last half is held out; beside it four long clips."""
    clips_of(folder / "clips", lengths)
    clips_of(folder / "long", [LONG] * 4, first=50)
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, f"data.embed_dim={DIM}"]
    outcome = hope([*command, "--data-dir", "clips", "data.val_split=0.5", "training.epochs=1", *changes], folder)
    assert outcome.code == 0, outcome.err
    return only_run(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_on(tmp_path_factory.mktemp("lengths"), [LONG] * 8)


def ran(run: Path, command: str, *arguments: str) -> Outcome:
    given = [command, "--ckpt", str(run), "--device", "cpu", "--data-dir", "long", *arguments]
    outcome = hope(given, run.parents[2])
    assert outcome.code == 0, outcome.err
    return outcome


def adapted(run: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    outcome = ran(run, "tta", "adaptation.steps=1", f"data.num_timesteps={LONG}", "--json", *arguments)
    result: dict[str, Any] = json.loads(outcome.out)
    return result, outcome.err


@pytest.mark.parametrize(
    "changes", [[], ["adaptation.T_rollout=15"], ["adaptation.mode=sequential"], ["adaptation.context_frames=3"]]
)
def test_forgetting_is_measured_on_as_many_frames_as_the_stream(run: Path, changes: list[str]) -> None:
    found, err = adapted(run, *changes)
    assert (found["forgetting"]["clips"], found["forgetting"]["left_out"]) == (4, 0)
    assert found["forgetting"]["source"] == "held out from training"
    assert "of fewer" not in err
    assert "clips are read with" not in err


def test_the_source_loss_is_that_of_the_whole_clips(run: Path) -> None:
    found, _ = adapted(run)
    whole = evaluate(run, f"data.num_timesteps={LONG}", "--name", "whole")
    model = next(row for row in whole["rows"] if row["name"] == "model")
    assert found["forgetting"]["before"] == pytest.approx(model["l1"]["mean"], rel=1e-5)  # another batch size


def test_held_out_clips_shorter_than_the_stream_are_no_source(tmp_path: Path) -> None:
    run = trained_on(tmp_path, [SHORT] * 7 + [10])
    found, err = adapted(run)
    assert found["forgetting"] is None
    assert found["T_rollout"] == LONG - 1
    note = "note: forgetting is not measured: the held-out clips have 8 to 10 frames, the stream uses 16 (give --source"
    assert note in err
    found, _ = adapted(run, "adaptation.T_rollout=7")  # as long as the training clips
    assert found["forgetting"]["clips"] == 4
    found, err = adapted(run, "adaptation.T_rollout=9")
    label = "held out from training, without 3 of fewer than 10 frames"
    assert (found["forgetting"]["clips"], found["forgetting"]["source"]) == (1, label)
    assert "note: 3 held-out clips left out of forgetting: fewer than the stream's 10 frames" in err


def test_built_in_held_out_clips_are_never_longer_than_8_frames(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, f"data.embed_dim={DIM}"]
    assert hope([*command, "training.epochs=1"], tmp_path).code == 0
    clips_of(tmp_path / "long", [LONG] * 2)
    found, err = adapted(only_run(tmp_path))
    assert found["forgetting"] is None
    assert "the held-out clips have 8 frames, the stream uses 16 (give --source-data-dir)" in err


def test_frames_read_but_not_scored_are_said(run: Path) -> None:
    pinned = {"eval": "test_ac_predictor", "tta": "test_ac_predictor_tta"}
    for command, section in (("eval", "evaluation"), ("tta", "adaptation")):
        longer = ["--preset", pinned[command], f"data.num_timesteps={LONG}"]
        outcome = ran(run, command, *longer, "--name", "pinned")
        assert outcome.err.count(UNUSED.format(section)) == 1
        outcome = ran(run, command, *longer, f"{section}.T_rollout=null", "--name", "all", "--json")
        assert "clips are read with" not in outcome.err
        assert json.loads(outcome.out)["T_rollout"] == LONG - 1
        assert "clips are read with" not in ran(run, command, *longer[:2], "--name", "short").err


def test_the_title_of_a_stream_names_its_window(run: Path) -> None:
    out = ran(run, "tta", "adaptation.steps=1", "adaptation.context_frames=2").out
    assert "Test-time adaptation, 4 clips (all of long), 1 order, 2 context frames, 6 predicted frames" in out


def test_another_context_than_in_training_is_said(run: Path, tmp_path: Path) -> None:
    from_three = trained_on(tmp_path, [LONG] * 8, "objective.context_frames=3", "objective.T_rollout=5")
    note = "note: clips are scored from 1 true frame on, by hope eval from 3 (adaptation.context_frames=3)"
    for made, changes, said in ((from_three, [], 1), (from_three, ["adaptation.context_frames=1"], 0), (run, [], 0)):
        assert ran(made, "tta", "adaptation.steps=1", "--name", "context", *changes).err.count(note) == said
    fixed = ["adaptation.steps=1", "adaptation.T_rollout=7", "--name", "fixed"]
    advice = "(adaptation.context_frames=3 adaptation.T_rollout=null)"
    assert advice in ran(from_three, "tta", *fixed).err
    assert advice not in ran(from_three, "tta", *fixed, *advice.strip("()").split()).err


def test_teacher_forcing_covers_what_the_rollout_covers(run: Path) -> None:
    short, whole = evaluate(run), evaluate(run, f"data.num_timesteps={LONG}", "--name", "teacher")
    part = evaluate(run, f"data.num_timesteps={LONG}", "evaluation.T_rollout=7", "--name", "part")
    two = evaluate(run, "evaluation.context_frames=1", "evaluation.T_rollout=2", "--name", "two")
    assert [r["T_teacher"] for r in (short, whole, part, two)] == [7, 15, 7, 2]
    assert part["loss_teacher"]["mean"] == pytest.approx(short["loss_teacher"]["mean"], rel=1e-5)
    assert whole["loss_teacher"]["mean"] != pytest.approx(short["loss_teacher"]["mean"], rel=1e-5)
    # From one true frame the first step is the teacher-forced one.
    one = evaluate(run, "evaluation.T_rollout=1", "--name", "one")
    model = next(row for row in one["rows"] if row["name"] == "model")
    assert one["loss_teacher"]["mean"] == pytest.approx(model["l1"]["mean"], rel=1e-5)
