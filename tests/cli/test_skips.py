"""Clips that turn out to be unreadable: an error that names the clip, or with data.on_error=skip left out."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hopecli.data.make_clips import make_clips
from hopecli.report.files import MetricsFile
from tests.cli.runner import TINY, hope, hope_on_two, one_line
from tests.data.io_errors import fail_reading

QUICK = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


def clips_with(folder: Path, values: dict[int, float]) -> None:
    """Eight clips in `folder`/clips; those named hold one such value (only reading all of a clip can tell)."""
    shutil.rmtree(folder / "clips", ignore_errors=True)
    make_clips(folder / "clips", clips=8, grid=2, dim=8, domain="base", seed=1)
    for clip, value in values.items():
        path = folder / f"clips/clip_{clip:05d}/feature_maps/vjepa2_vitl16.npy"
        features = np.load(path)
        features[2, 1, 5] = value
        np.save(path, features)


def test_nan_clip_names_the_clip(tmp_path: Path) -> None:
    clips_with(tmp_path, {3: np.nan})
    command = [*QUICK, "--data-dir", "clips", "training.epochs=1"]
    for workers in ("0", "1"):
        outcome = hope([*command, f"data.workers={workers}"], tmp_path)
        assert outcome.code == 3
        assert "clip_00003: features hold NaN" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip"], tmp_path)
    assert outcome.code == 3
    assert "data.max_skipped" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.5", "logging.runs_dir=tolerant"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "skipping clip_00003" in outcome.err
    (split,) = (tmp_path / "tolerant").glob("*/*/split.json")
    assert "clip_00003" in json.loads(split.read_text())["skipped"]


def test_nan_in_a_held_out_clip_is_skipped_in_validation(tmp_path: Path) -> None:
    clips_with(tmp_path, {7: np.inf})
    command = [*QUICK, "--data-dir", "clips", "training.epochs=1", "data.val_split=0.3"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 3
    assert "clip_00007: features hold NaN or infinite" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.2", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["validation"]["clips"] == 1
    assert json.loads(outcome.out)["skipped_clips"] == 1


def test_a_batch_of_nothing_but_unreadable_clips_is_made_good(tmp_path: Path) -> None:
    clips_with(tmp_path, {3: np.nan})
    command = [*QUICK, "--data-dir", "clips", "data.batch_size=1", "data.on_error=skip", "data.max_skipped=0.2"]
    outcome = hope([*command, "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("skipping clip_00003") == 1
    result = json.loads(outcome.out)
    assert (result["train_clips"], result["held_out_clips"], result["skipped_clips"]) == (6, 1, 1)
    assert result["steps"] == 2 * (6 + 1)


def test_one_limit_holds_for_headers_and_content_together(tmp_path: Path) -> None:
    clips_with(tmp_path, {3: np.nan})
    file = tmp_path / "clips/clip_00001/feature_maps/vjepa2_vitl16.npy"
    file.write_bytes(file.read_bytes()[:-1])
    command = [*QUICK, "--data-dir", "clips", "data.on_error=skip"]
    outcome = hope([*command, "data.max_skipped=0.24"], tmp_path)  # 1 of 8 each, 2 of 8 together
    assert outcome.code == 3
    assert "2 of 8 clips cannot be used, more than data.max_skipped" in one_line(outcome)
    assert hope([*command, "data.max_skipped=0.25"], tmp_path).code == 0


def test_a_held_out_clip_skipped_in_training_is_not_asked_for_again(tmp_path: Path) -> None:
    clips_with(tmp_path, {7: np.nan})
    command = [*QUICK, "--data-dir", "clips", "data.val_split=0.3", "data.on_error=skip", "data.max_skipped=0.2"]
    outcome = hope([*command, "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    run = json.loads(outcome.out)["run_dir"]
    outcome = hope(["eval", "--ckpt", run, "--device", "cpu", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["clips"] == 1
    assert "NaN" in results["skipped_clips"]["clip_00007"]


def test_a_dry_run_leaves_out_what_training_would(tmp_path: Path) -> None:
    clips_with(tmp_path, {0: np.nan, 1: np.nan})
    command = [*QUICK, "--dry-run", "--data-dir", "clips", "data.batch_size=2"]
    refused = hope(command, tmp_path)
    assert refused.code == 3
    assert "clip_00000: features hold NaN" in one_line(refused)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.5", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    for clip in (0, 1):
        assert f"clip_{clip:05d} would be skipped: features hold NaN" in outcome.err
    assert json.loads(outcome.out)["batch"] == 2
    clips_with(tmp_path, dict.fromkeys(range(8), np.nan))
    nothing = hope([*command, "data.on_error=skip", "data.max_skipped=0.5"], tmp_path)
    assert nothing.code == 3
    assert "none of the clips can be read" in nothing.err


@pytest.mark.slow
def test_two_processes_leave_out_the_same_clips(tmp_path: Path) -> None:
    """One clip per process and step, so that a process without a clip would leave the other waiting."""
    clips_with(tmp_path, {3: np.nan, 6: np.inf})
    split = ["--data-dir", "clips", "data.val_split=0.3", "data.on_error=skip"]
    command = [*QUICK, *split, "data.batch_size=2"]
    outcome = hope_on_two([*command, "data.max_skipped=0.1"], tmp_path)
    assert outcome.code == 1  # torchrun's own
    assert "data.max_skipped allows" in outcome.err
    outcome = hope_on_two([*command, "data.max_skipped=0.3", "logging.runs_dir=good"], tmp_path)
    assert outcome.code == 0, outcome.err
    for name in ("clip_00003", "clip_00006"):
        assert outcome.err.count(f"skipping {name}") == 1
    (run,) = (tmp_path / "good").glob("*/*")
    assert set(json.loads((run / "split.json").read_text())["skipped"]) == {"clip_00003", "clip_00006"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["clips"] for line in lines if line["type"] == "validation"} == {1}

    judged = ["eval", "--ckpt", str(run), "--device", "cpu", "evaluation.clips=all", "evaluation.batch_size=1"]
    outcome = hope_on_two([*judged, "data.max_skipped=0.3", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["clips"] == 6
    assert set(results["skipped_clips"]) == {"clip_00003", "clip_00006"}
    assert hope([*judged, "data.max_skipped=0.2"], tmp_path).code == 3


def test_the_record_is_closed_when_the_list_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips_with(tmp_path, {3: np.nan})
    opened: list[MetricsFile] = []
    opening, replace = MetricsFile.__init__, os.replace

    def remember(self: MetricsFile, path: Path, **changes: Any) -> None:
        opening(self, path, **changes)
        opened.append(self)

    def no_second_list(source: Path, target: Path) -> None:
        if Path(target).name == "split.json" and Path(target).exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(MetricsFile, "__init__", remember)
    monkeypatch.setattr("hopecli.report.files.os.replace", no_second_list)
    outcome = hope([*QUICK, "--data-dir", "clips", "data.on_error=skip", "data.max_skipped=0.2"], tmp_path)
    assert outcome.code == 4, outcome.err
    assert "split.json: cannot be written: No space left on device" in one_line(outcome)
    assert [record.file.closed for record in opened] == [True]


@pytest.mark.slow
def test_two_processes_weigh_every_clip_alike(tmp_path: Path) -> None:
    """A share with an unreadable clip is smaller; the mean is over the clips that are left, on one process or two."""
    clips_with(tmp_path, {2: np.nan})
    still = ["optimizer.lr=0", "schedule.warmup_start_lr=0", "model.drop_path=0", "logging.log_every=1"]
    command = [*QUICK, "--data-dir", "clips", "data.on_error=skip", "data.max_skipped=0.2", *still]
    steps = []
    for launch, folder in ((hope, "one"), (hope_on_two, "two")):
        outcome = launch([*command, f"logging.runs_dir={folder}"], tmp_path)
        assert outcome.code == 0, outcome.err
        (file,) = (tmp_path / folder).glob("*/*/metrics.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        steps.append([(line["loss"], line["loss_rollout"], line["grad_norm"]) for line in lines if "grad_norm" in line])
    assert len(steps[0]) == 2
    # 1e-5: float32 sums in another order. Counting shares instead of clips is off by 5e-4 and more.
    assert steps[1] == [pytest.approx(step, rel=1e-5) for step in steps[0]]


def validations(runs: Path) -> list[tuple[int, float]]:
    """Step and rollout loss of every validation in the record of the only run."""
    (record,) = runs.glob("*/*/metrics.jsonl")
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    return [(line["step"], line["loss_rollout"]) for line in lines if line["type"] == "validation"]


def test_an_unreadable_clip_costs_no_steps(tmp_path: Path) -> None:
    """Met in validation after the first epoch's last step: the run goes on from there once it is mended or skipped."""
    clips_with(tmp_path, {7: np.nan})
    file = tmp_path / "clips/clip_00007/feature_maps/vjepa2_vitl16.npy"
    command = [*QUICK, "--data-dir", "clips", "data.val_split=0.3", "training.save_every=0"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 3
    assert "clip_00007: features hold NaN" in one_line(outcome)
    assert "the checkpoint of step 1 is saved; go on with hope train --resume " in outcome.err
    outcome = hope(["train", "--resume", "last"], tmp_path)  # begins with that validation: nothing new to save
    assert outcome.code == 3
    assert "is saved" not in outcome.err
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "runs", copy / "runs")
    outcome = hope(["train", "--resume", "last", "data.on_error=skip", "data.max_skipped=0.2", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["validation"]["clips"] == 1
    features = np.load(file)
    features[2, 1, 5] = 0.0
    np.save(file, features)
    outcome = hope(["train", "--resume", str(next((copy / "runs").glob("*/*"))), "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    repaired = json.loads(outcome.out)
    assert repaired["validation"]["clips"] == 2
    outcome = hope([*command, "logging.runs_dir=whole", "--json"], tmp_path)
    assert validations(tmp_path / "whole") == validations(copy / "runs")
    assert len(validations(copy / "runs")) == 2
    assert json.loads(outcome.out)["validation"]["loss_rollout"] == repaired["validation"]["loss_rollout"]
    assert json.loads(outcome.out)["loss"] == repaired["loss"]


def test_an_unreadable_training_clip_in_mid_epoch_costs_no_steps(tmp_path: Path) -> None:
    clips_with(tmp_path, {3: np.nan})
    command = [*QUICK, "--data-dir", "clips", "data.batch_size=1", "logging.log_every=100", "data.workers=0"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 3
    (run,) = (tmp_path / "runs").glob("*/*")
    done = torch.load(run / "checkpoints/last/trainer.pt", weights_only=True)["step"]
    assert 1 <= done < 7
    assert f"the checkpoint of step {done} is saved" in outcome.err
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, done + 1))
    copy = tmp_path / "copy"
    shutil.copytree(run, copy / "runs/quickstart/again")
    outcome = hope(["train", "--resume", "last", "data.on_error=skip", "data.max_skipped=0.2", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["steps"] == 14
    clips_with(tmp_path, {3: 0.0})  # mended: other content than when the run was started
    resume = ["train", "--resume", str(copy / "runs/quickstart/again"), "--json"]
    outcome = hope(resume, tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["skipped_clips"] == 0
    assert hope(resume, tmp_path).code == 0
    clips_with(tmp_path, {3: 0.0, 4: 0.0})
    outcome = hope(resume, tmp_path)
    assert outcome.code == 4
    assert "the clips are not those the run was started with (got 'clip_00004 has other content')" in one_line(outcome)
    clips_with(tmp_path, {3: 0.0, 4: float("nan")})
    outcome = hope(resume, tmp_path)
    assert outcome.code == 3
    assert "error: clip_00004: features hold NaN" in one_line(outcome)


def test_gradients_are_not_divided_by_a_variable_of_the_launcher(tmp_path: Path) -> None:
    norms = []
    for steps in ("1", "4"):
        extra = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": steps}
        outcome = hope([*QUICK, "training.epochs=1", f"logging.runs_dir=runs{steps}"], tmp_path, **extra)
        assert outcome.code == 0, outcome.err
        (file,) = (tmp_path / f"runs{steps}").glob("*/*/metrics.jsonl")
        norms.append([json.loads(line).get("grad_norm") for line in file.read_text().splitlines()])
    assert norms[0] == norms[1]


def test_a_disk_that_fails_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips_with(tmp_path, {})
    fail_reading(monkeypatch, tmp_path / "clips/clip_00003/feature_maps/vjepa2_vitl16.npy")
    command = [*QUICK, "--data-dir", "clips", "training.epochs=1"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 3
    assert "clips/clip_00003: cannot be read: Input/output error" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.1"], tmp_path)
    assert outcome.code == 3
    assert "1 of 8 clips cannot be used, more than data.max_skipped" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.2"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "1 clip skipped; split.json lists" in outcome.err
    (split,) = (tmp_path / "runs").glob("*/*/split.json")
    found = json.loads(split.read_text())
    assert found["skipped"] == {"clip_00003": "unreadable: cannot be read: Input/output error"}
    assert (len(found["train"]), found["held_out"]) == (6, ["clip_00007"])
