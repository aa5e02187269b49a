"""Under torchrun all processes see the same clips, and end together when one of them meets an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.cli.runner import TINY, Outcome, evaluate, hope, hope_on_two, one_line, only_run
from tests.cli.test_skips import clips_with

COMMAND = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "--data-dir", "clips", "data.batch_size=2"]
COMMAND += ["model.drop_path=0", "logging.log_every=100", "data.workers=0"]


def errors(outcome: Outcome) -> list[str]:
    """Lines of stderr that a user would take for an error of ours."""
    return [line for line in outcome.err.splitlines() if "error: " in line and "torch" not in line]


def saved_step(folder: Path) -> int:
    (run,) = folder.glob("*/*")
    return int(torch.load(run / "checkpoints/last/trainer.pt", weights_only=True)["step"])


@pytest.mark.slow
def test_an_unreadable_clip_ends_both_with_the_steps_saved(tmp_path: Path) -> None:
    """It is met by one process only, in the step in which one process alone would meet it."""
    clip = 3
    clips_with(tmp_path, {clip: np.nan})
    alone = hope([*COMMAND, "logging.runs_dir=alone"], tmp_path)
    assert alone.code == 3
    both = hope_on_two(COMMAND, tmp_path)
    assert both.code == 1  # torchrun's own
    message = f"error: clip_{clip:05d}: features hold NaN or infinite values. Encode the clip again"
    assert errors(both) == [message], both.err
    step = saved_step(tmp_path / "runs")
    assert step == saved_step(tmp_path / "alone")
    run = only_run(tmp_path)
    command = f"torchrun --nproc_per_node 2 -m hopecli.cli.main train --resume {run.relative_to(tmp_path)}"
    assert f"the checkpoint of step {step} is saved; go on with {command}" in both.err
    (record,) = (tmp_path / "runs").glob("*/*/metrics.jsonl")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["step"] for line in lines if line["type"] == "train"] == list(range(1, step + 1))
    note = "note: the run was on 2 processes, now on 1: it goes on, but not bit for bit as it would have"
    skip = ["data.on_error=skip", "data.max_skipped=0.2"]
    resumed = hope(["train", "--resume", str(run), "--device", "cpu", *skip], tmp_path)
    assert resumed.code == 0, resumed.err
    assert note in resumed.err.splitlines()


@pytest.mark.slow
def test_an_unreadable_held_out_clip_ends_both(tmp_path: Path) -> None:
    clips_with(tmp_path, {7: np.nan})
    outcome = hope_on_two([*COMMAND, "data.val_split=0.5"], tmp_path)  # clips 4 to 7: two batches, one each
    assert len(errors(outcome)) == 1, outcome.err
    assert "clip_00007: features hold NaN" in errors(outcome)[0]
    assert saved_step(tmp_path / "runs") == 2


@pytest.mark.slow
def test_a_missing_folder_is_said_once(tmp_path: Path) -> None:
    outcome = hope_on_two([*COMMAND[:-4], "--data-dir", "nowhere"], tmp_path)
    assert len(errors(outcome)) == 1, outcome.err
    assert "nowhere: no such folder of clips" in errors(outcome)[0]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["nope", "quickstart"])
def test_a_mistake_that_each_finds_by_itself_is_said_once(preset: str, tmp_path: Path) -> None:
    outcome = hope_on_two(["train", "--preset", preset, "data.grid=x"], tmp_path)
    assert outcome.code == 1  # torchrun's own
    assert len(errors(outcome)) == 1, outcome.err


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--wandb", "online"], ["--dry-run", "data.batch_size=5"]])
def test_a_mistake_that_both_find_together_is_said_once(arguments: list[str], tmp_path: Path) -> None:
    clips_with(tmp_path, {})
    outcome = hope_on_two([*COMMAND, *arguments], tmp_path)
    assert outcome.code == 1  # torchrun's own
    assert len(errors(outcome)) == 1, outcome.err


def test_a_mistake_that_only_another_process_finds_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopecli.cli.main.SILENT_SECONDS", 0.01)
    outcome = hope(["train", "--preset", "nope"], tmp_path, LOCAL_RANK="1", WORLD_SIZE="2")
    assert outcome.code == 2
    assert "no such preset (got 'nope')" in one_line(outcome)


@pytest.mark.parametrize("extra", [{"LOCAL_RANK": "-1"}, {"LOCAL_RANK": "1"}, {"RANK": "1"}])
def test_what_is_left_of_a_launcher_silences_nothing(
    extra: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hopecli.cli.main.time.sleep", lambda seconds: pytest.fail("waits for no one"))
    assert "no such preset" in one_line(hope(["train", "--preset", "nope"], tmp_path, **extra))
    shown = hope(["train", "--preset", "quickstart", "--print-config"], tmp_path, **extra)
    assert "model:" in shown.out


@pytest.mark.parametrize(("rank", "lines"), [("0", 1), ("1", 0)])
def test_ctrl_c_is_said_once(rank: str, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hopecli.cli.train.resolve_settings", interrupted)
    outcome = hope(["train", "--preset", "quickstart"], tmp_path, WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank)
    assert outcome.code == 130
    assert len(outcome.err.splitlines()) == lines


@pytest.mark.slow
def test_two_learn_what_one_does_where_parameters_have_no_gradient(tmp_path: Path) -> None:
    """Of what writes a memory that no later frame reads (an ablation of HOPE); and nothing is said of it."""
    clips_with(tmp_path, {})
    small = "model={kind: hope, width: 16, depth: 1, num_heads: 2, read: before_write, truncate_memory_gradient: 1}"
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY[:-1], small, "--data-dir", "clips"]
    command += ["data.batch_size=2", "data.workers=0", "training.epochs=2"]
    alone = hope([*command, "logging.runs_dir=alone", "--json"], tmp_path)
    assert alone.code == 0, alone.err
    both = hope_on_two([*command, "--json"], tmp_path)
    assert both.code == 0, both.err
    assert "Warning" not in both.err
    one, two = (json.loads(outcome.out)["validation"]["loss_rollout"] for outcome in (alone, both))
    assert two == pytest.approx(one, rel=1e-5)  # float32 sums in another order, over six steps


@pytest.mark.slow
def test_evaluation_by_two_is_that_by_one(tmp_path: Path) -> None:
    clips_with(tmp_path, {})
    assert hope([*COMMAND, "training.epochs=1"], tmp_path).code == 0
    run = only_run(tmp_path)
    alone = evaluate(run, "evaluation.clips=all", "evaluation.batch_size=2")
    per_clip = (run / "eval/all_clips/per_clip.csv").read_text()
    outcome = hope_on_two(["eval", "--ckpt", str(run), "evaluation.clips=all", "evaluation.batch_size=2"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("warning: the checkpoint was trained on 7 of these 8 clips") == 1
    both = json.loads((run / "eval/all_clips/results.json").read_text())
    for key in ("rows", "loss_teacher", "action_sensitivity", "worst_clips"):
        assert both[key] == alone[key], key
    assert (run / "eval/all_clips/per_clip.csv").read_text() == per_clip
    assert both["overlap_with_training"] == 7


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities of their own on Linux only")
def test_late_threads_of_the_process_group_do_not_fail_a_finished_run(tmp_path: Path) -> None:
    """They abort a process in which Python takes itself down while they let go of a tensor."""
    quick = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    outcome = hope_on_two(quick, tmp_path, module="tests.cli.late_threads")
    assert outcome.code == 0, outcome.err
    assert "Held-out rollout L1" in outcome.out  # what was printed last is there
    assert saved_step(tmp_path / "runs") == 4
