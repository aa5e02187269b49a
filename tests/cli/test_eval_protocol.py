"""hope eval measures as the run was trained, and as its own flags and settings say; the run's clip range, context and
space are none of the defaults."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from hopecli.data.split import read_split
from hopecli.engine.scores import bootstrap_weights, interval
from tests.cli.runner import TINY, Outcome, eval_row, evaluate, hope, only_run

CONTEXT, HORIZON = 2, 6
HELD_OUT = [f"clip_{i:05d}" for i in range(9, 14)]  # half of those from 4 to 13


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("protocol")
    make_clips(folder / "clips", clips=15, grid=2, dim=8, domain="base", seed=1)
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "--data-dir", "clips", "training.epochs=1"]
    changed = ["objective.context_frames=2", "objective.T_rollout=6", "objective.normalize_reps=false"]
    outcome = hope([*command, *changed, "data.clip_start=4", "data.clip_end=14", "data.val_split=0.5"], folder)
    assert outcome.code == 0, outcome.err
    return only_run(folder)


def outcome_of(run: Path, *arguments: str) -> Outcome:
    return hope(["eval", "--ckpt", str(run), "--device", "cpu", "--json", *arguments], run.parents[2])


@pytest.fixture(scope="module")
def results(run: Path) -> dict[str, Any]:
    return evaluate(run)


def test_context_and_space_are_those_of_training(run: Path, results: dict[str, Any]) -> None:
    """The baseline from the files in float64, features as they are; 1e-5 covers float32 means."""
    files = [run.parents[2] / "clips" / name / "feature_maps/vjepa2_vitl16.npy" for name in HELD_OUT]
    x = np.stack([np.load(file) for file in files]).astype(np.float64).reshape(len(files), 8, 4, 8)
    copy = np.abs(x[:, CONTEXT:] - x[:, CONTEXT - 1 : CONTEXT]).mean(axis=(0, 2, 3))
    first = np.abs(x[:, CONTEXT:] - x[:, :1]).mean(axis=(0, 2, 3))
    assert (results["context_frames"], results["T_rollout"], results["normalize_reps"]) == (CONTEXT, HORIZON, False)
    last = eval_row(results, "copy_last")
    assert [v["mean"] for v in last["l1_per_horizon"]] == pytest.approx(copy, rel=1e-5)
    assert last["relative_per_horizon"] == pytest.approx(copy / first, rel=1e-5)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = next(line for line in lines if line["type"] == "validation")
    # Same weights and clips, another batch size: float32 rounding.
    model = [v["mean"] for v in eval_row(results, "model")["l1_per_horizon"]]
    assert model == pytest.approx(validation["rollout_per_horizon"], rel=1e-5)


def test_precision_flag(run: Path, results: dict[str, Any]) -> None:
    half = evaluate(run, "--precision", "bf16", "--name", "half")
    assert (results["precision"], half["precision"]) == ("fp32", "bf16")
    exact, rough = (eval_row(r, "model")["l1"]["mean"] for r in (results, half))
    assert rough != pytest.approx(exact, rel=1e-6)  # more than float32 rounding
    assert rough == pytest.approx(exact, rel=0.01)  # bf16 rounds by up to 0.4 %, up and down; the mean moves less
    assert eval_row(half, "copy_last") == eval_row(results, "copy_last")  # runs no model


def test_seed_shuffles_the_actions_and_draws_the_resamples(run: Path, results: dict[str, Any]) -> None:
    other = evaluate(run, "evaluation.seed=1", "evaluation.bootstrap_samples=150", "--name", "seed")
    assert eval_row(other, "model")["l1"]["mean"] == eval_row(results, "model")["l1"]["mean"]
    assert eval_row(other, "shuffled_action")["l1"]["mean"] != eval_row(results, "shuffled_action")["l1"]["mean"]
    with open(run / "eval/seed/per_clip.csv", encoding="utf-8", newline="") as file:
        errors = np.array([float(r["l1_copy_last"]) for r in csv.DictReader(file)])
    bounds = []
    for samples, seed in ((150, 1), (150, 0), (2000, 1)):
        found = interval(errors, bootstrap_weights(len(errors), samples=samples, seed=seed))
        bounds.append((found.low, found.high))
    last = eval_row(other, "copy_last")["l1"]
    # The same sums in float64, of numbers that the file holds in full.
    assert (last["low"], last["high"]) == pytest.approx(bounds[0], rel=1e-9)
    for wrong in bounds[1:]:
        assert bounds[0] != pytest.approx(wrong, rel=1e-6)


def test_the_clip_range_of_training_ends_with_its_folder(run: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "other", clips=16, grid=2, dim=8, domain="ice", seed=9)
    other = ["--data-dir", str(tmp_path / "other")]
    assert evaluate(run, *other)["clips"] == 16
    assert evaluate(run, *other, "data.clip_start=5")["clips"] == 11


def test_a_foreign_folder_has_no_held_out_clips(run: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "other", clips=3, grid=2, dim=8, domain="ice", seed=9)
    outcome = outcome_of(run, "--data-dir", str(tmp_path / "other"), "evaluation.clips=held_out")
    assert outcome.code == 2
    assert "the held-out clips of the training run are not in this folder" in outcome.err
    outcome = outcome_of(run, "data.clip_end=5", "evaluation.clips=held_out")  # they are behind it
    assert outcome.code == 2
    assert "Widen data.clip_start and data.clip_end, give the training folder with --data-dir, or use" in outcome.err
    outcome = outcome_of(run, "data.source=physics", "evaluation.clips=held_out")
    assert ". Give the training folder with --data-dir, or use evaluation.clips=all" in outcome.err


@pytest.mark.parametrize("own", [0, 2])
def test_names_alone_or_half_of_the_training_clips_make_no_training_folder(own: int, run: Path, tmp_path: Path) -> None:
    """Clips 4 and 5 as trained on (or none), other ones under the names of as many others and of those held out."""
    make_clips(tmp_path / "made", clips=7, grid=2, dim=8, domain="ice", seed=9)
    for number in range(4, 4 + own):
        shutil.copytree(run.parents[2] / f"clips/clip_{number:05d}", tmp_path / f"other/clip_{number:05d}")
    for made, number in enumerate([*range(6, 6 + own), *range(9, 14)]):
        shutil.copytree(tmp_path / f"made/clip_{made:05d}", tmp_path / f"other/clip_{number:05d}")
    outcome = outcome_of(run, "--data-dir", str(tmp_path / "other"), "evaluation.clips=held_out")
    assert outcome.code == 2, outcome.err
    assert "the held-out clips of the training run are not in this folder" in outcome.err


def test_fingerprints_of_an_earlier_version_tell_no_overlap(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "runs/quickstart/copy")
    split = read_split(copy / "split.json")
    short = {name: mark[:20] for name, mark in split.fingerprints.items()}
    (copy / "split.json").write_text(replace(split, fingerprints=short).to_json())
    assert evaluate(copy)["overlap_with_training"] is None


def test_an_overlap_that_was_seen_counts_though_there_may_be_more(run: Path, tmp_path: Path) -> None:
    """Clips saved as another feature map, one of them without the map that training read."""
    copy = shutil.copytree(run.parents[2] / "clips", tmp_path / "copy")
    for file in copy.glob("*/feature_maps/vjepa2_vitl16.npy"):
        shutil.copy(file, file.with_name("other.npy"))
    (copy / "clip_00000/feature_maps/vjepa2_vitl16.npy").unlink()
    arguments = ["--data-dir", str(copy), "data.feature_map=other", "evaluation.clips=all"]
    results = evaluate(run, *arguments)
    assert (results["clips"], results["overlap_with_training"]) == (15, 5)


def test_the_action_width_belongs_to_the_checkpoint(run: Path) -> None:
    outcome = outcome_of(run, "data.action_dim=3")
    assert outcome.code == 2
    assert "data.action_dim" in outcome.err
    assert "belongs to the checkpoint" in outcome.err


def test_a_frame_like_the_first_leaves_its_clip_out_of_the_mean_of_ratios(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parents[2] / "clips", tmp_path / "resting")
    for number in (4, 5, 6):
        file = tmp_path / "resting" / f"clip_{number:05d}/feature_maps/vjepa2_vitl16.npy"
        frames = np.load(file).reshape(8, 4, 8)
        frames[CONTEXT] = frames[0]
        np.save(file, frames.reshape(32, 8))
    outcome = outcome_of(run, "--data-dir", str(tmp_path / "resting"))
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["clips"], found["clips_with_ratio"]) == (15, 12)
    assert outcome.err.count("note: 3 of 15 clips have a predicted frame that equals the first") == 1
    assert "equals the first" not in outcome_of(run).err
