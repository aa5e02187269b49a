"""What `hope inspect-data` says of a preset is what training with it does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.runner import ROOT, environment, hope
from tests.clips import ACTION_DIM, DIM, GRID, make_features, write_clip

SIZES = f"data: {{grid: {GRID}, embed_dim: {DIM}, action_dim: {ACTION_DIM}, batch_size: 2, workers: 0, %s}}"
MODEL = "model: {kind: vit_ac, width: 16, depth: 1, num_heads: 2%s}"


def preset(folder: Path, name: str, *, frames: int = 8, model: str = "") -> None:
    objective = f"objective: {{T_teacher: {frames - 1}, T_rollout: {frames - 1}}}"
    lines = [SIZES % f"num_timesteps: {frames}", MODEL % model, objective, "training: {epochs: 1, device: cpu}"]
    (folder / "presets").mkdir(exist_ok=True)
    (folder / f"presets/{name}.yaml").write_text("\n".join(lines) + "\n")


def clips(folder: Path, lengths: list[int]) -> None:
    for number, frames in enumerate(lengths):
        actions = np.zeros((2 * frames, ACTION_DIM), np.float32)
        actions[1] = number + 1
        write_clip(folder / "clips", number, features=make_features(number, frames), actions=actions)


def fits(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    outcome = hope(["inspect-data", "clips", "--json", *arguments], folder)
    assert outcome.code in (0, 3), outcome.err
    return {fit["name"]: fit for fit in json.loads(outcome.out)["presets"]}


def trained(folder: Path, fit: dict[str, Any]) -> list[int]:
    """Training and held-out clips of a run of the preset with the overrides that it is said to need."""
    outcome = hope(
        ["train", "--preset", fit["name"], "--data-dir", "clips", "--json", "--wandb", "disabled", *fit["overrides"]],
        folder,
    )
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    return [summary["train_clips"], summary["held_out_clips"]]


@pytest.mark.parametrize("arguments", [[], ["--num-timesteps", "16"], ["--num-timesteps", "4"]])
def test_each_preset_is_fitted_to_the_clips_that_are_long_enough_for_it(arguments: list[str], tmp_path: Path) -> None:
    clips(tmp_path, [16] * 6 + [6] + [10] * 4 + [16] * 2)
    preset(tmp_path, "short", frames=8)
    preset(tmp_path, "long", frames=16)
    preset(tmp_path, "tiny", frames=4)
    found = fits(tmp_path, *arguments)
    assert (found["tiny"]["fits"], found["tiny"]["overrides"]) == (True, [])
    for name, expected in (("tiny", [12, 1]), ("short", [11, 1]), ("long", [7, 1])):
        fit = found[name]
        assert fit["overrides"] == ([] if name == "tiny" else ["data.on_short=skip"])
        assert [fit["train_clips"], fit["held_out_clips"]] == expected == trained(tmp_path, fit), name


@pytest.mark.parametrize("broken", ["rows", "values", "absent"])
def test_clips_without_usable_extrinsics_are_left_out_for_a_preset_that_has_them(broken: str, tmp_path: Path) -> None:
    clips(tmp_path, [8] * 6)
    preset(tmp_path, "seeing", model=", use_extrinsics: true")
    preset(tmp_path, "blind")
    assert fits(tmp_path)["seeing"]["problem"] == "it needs extrinsics.npy in every clip"
    for number in range(6):
        np.save(tmp_path / f"clips/clip_{number:05d}/actions_states/extrinsics.npy", np.ones((8, ACTION_DIM - 1)))
    assert fits(tmp_path)["seeing"]["fits"]
    file = tmp_path / "clips/clip_00003/actions_states/extrinsics.npy"
    if broken == "absent":
        file.unlink()
    else:
        np.save(file, np.ones((5, ACTION_DIM - 1)) if broken == "rows" else np.full((8, ACTION_DIM - 1), np.nan))
    found = fits(tmp_path)
    assert found["blind"]["fits"]
    fit = found["seeing"]
    assert fit["overrides"] == ["data.on_error=skip", "data.max_skipped=0.167"]
    assert [fit["train_clips"], fit["held_out_clips"]] == [4, 1] == trained(tmp_path, fit)
    refused = hope(["train", "--preset", "seeing", "--data-dir", "clips", "--wandb", "disabled"], tmp_path)
    assert refused.code == 3
    assert "clip_00003" in refused.err


@pytest.mark.parametrize("defect", ["rows", "values"])
def test_short_clips_that_have_another_defect(defect: str, tmp_path: Path) -> None:
    """They are too short before they are anything else; a preset that would read them has to leave them out."""
    clips(tmp_path, [8] * 10 + [5, 5])
    preset(tmp_path, "usual")
    preset(tmp_path, "short", frames=4)
    rows = np.ones((3, ACTION_DIM)) if defect == "rows" else np.full((10, ACTION_DIM), np.nan)
    np.save(tmp_path / "clips/clip_00010/actions_states/actions.npy", rows.astype(np.float32))
    found = fits(tmp_path)
    assert found["usual"]["overrides"] == ["data.on_short=skip"]
    assert found["short"]["overrides"] == ["data.on_error=skip", "data.max_skipped=0.084"]
    for name, expected in (("usual", [9, 1]), ("short", [10, 1])):
        assert [found[name]["train_clips"], found[name]["held_out_clips"]] == expected == trained(tmp_path, found[name])


def test_short_clips_with_values_that_training_does_not_use(tmp_path: Path) -> None:
    clips(tmp_path, [8] * 15 + [6] * 5)
    preset(tmp_path, "six", frames=6)
    for number in range(15, 20):
        file = tmp_path / f"clips/clip_{number:05d}/actions_states/actions.npy"
        rows = np.load(file)
        rows[5] = np.nan
        np.save(file, rows)
    fit = fits(tmp_path)["six"]
    assert (fit["fits"], fit["train_clips"], fit["held_out_clips"]) == (True, 18, 2)
    assert trained(tmp_path, fit) == [18, 2]


def test_a_clip_of_one_frame_whose_actions_are_not_finite(tmp_path: Path) -> None:
    clips(tmp_path, [8] * 5 + [1])
    preset(tmp_path, "usual")
    file = tmp_path / "clips/clip_00005/actions_states/actions.npy"
    np.save(file, np.full((2, ACTION_DIM), np.nan, np.float32))
    assert fits(tmp_path)["usual"]["overrides"] == ["data.on_short=skip"]


@pytest.mark.slow
def test_the_picture_is_there_when_stdout_is_closed(tmp_path: Path) -> None:
    clips(tmp_path, [8] * 3)
    with subprocess.Popen(
        [sys.executable, "-m", "hopecli.cli.main", "inspect-data", "clips", "--plot", "p.png"],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.wait(timeout=100)
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
