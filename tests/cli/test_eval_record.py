"""results.json of hope eval and hope tta says how clips were read, and which seed is whose; its files are of one run
of the command."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.config.schema import PhysicsSettings
from hopecli.data.make_clips import make_clips
from hopecli.engine.checkpoint import load_checkpoint, write_weights
from hopecli.errors import CheckpointError
from hopecli.report import files
from hopecli.report.lock import stream_lock
from tests.cli.runner import hope, small_run

READ = {
    "feature_map": "vjepa2_vitl16",
    "num_timesteps": 8,
    "grid": 2,
    "embed_dim": 8,
    "action_dim": 2,
    "action_alignment": "impulse",
    "action_reduce": "last",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = small_run(tmp_path_factory.mktemp("record"), "training.seed=7")
    make_clips(found.parents[2] / "ice", clips=3, grid=2, dim=8, domain="ice", seed=1)
    return found


def written(run: Path, command: str, name: str, *arguments: str) -> dict[str, Any]:
    """results.json of a command."""
    given = [command, "--ckpt", str(run), "--device", "cpu", "--name", name, *arguments]
    outcome = hope(given, run.parents[2])
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads((run / command / name / "results.json").read_text())
    return found


@pytest.mark.parametrize("command", ["eval", "tta"])
def test_how_clips_of_a_folder_were_read(run: Path, command: str) -> None:
    assert written(run, command, "impulse", "--data-dir", "ice")["read_as"] == READ
    changed = ["data.action_alignment=per_timestep", "data.action_reduce=sum"]
    other = {**READ, "action_alignment": "per_timestep", "action_reduce": "sum"}
    assert written(run, command, "sum", "--data-dir", "ice", *changed)["read_as"] == other


@pytest.mark.parametrize("command", ["eval", "tta"])
def test_how_built_in_clips_were_made(run: Path, command: str) -> None:
    made = ["data.source=physics", "data.physics.domain=ice", "data.physics.clips=4", "data.physics.seed=5"]
    physics = {"clips": 4, "domain": "ice", "seed": 5, "dtype": "float16"}
    assert set(physics) == set(PhysicsSettings.model_fields)
    assert written(run, command, "made", *made)["read_as"] == {**READ, "physics": physics}


def test_the_seed_of_the_run_is_told_from_the_evaluations(run: Path) -> None:
    found = written(run, "eval", "seed", "evaluation.seed=3")
    assert (found["seed"], found["training_seed"]) == (3, 7)
    found = written(run, "tta", "seed", "adaptation.seed=3")
    assert (found["protocol"]["seed"], found["training_seed"]) == (3, 7)


def test_a_split_made_again_must_be_the_one_trained_on(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(run))
    info = {**checkpoint.info, "split": "0" * 16}
    write_weights(tmp_path / "w.safetensors", weights=checkpoint.weights, settings=checkpoint.settings, info=info)
    outcome = hope(["eval", "--ckpt", "w.safetensors"], tmp_path, HOPE_CACHE_DIR=str(run.parents[2] / "cache"))
    assert outcome.code == 0, outcome.err
    assert "the training split is not known, so overlap with training clips cannot be checked" in outcome.err
    (results,) = (tmp_path / "runs/eval/w").glob("*/results.json")
    assert results.parent.name.startswith("all_")
    assert json.loads(results.read_text())["overlap_with_training"] is None


def test_only_an_adaptation_writes_weights(run: Path) -> None:
    for adapt in ("none", "layernorm"):
        written(run, "tta", adapt, f"adaptation.adapt={adapt}")
    assert [(run / f"tta/{adapt}/adapted.safetensors").exists() for adapt in ("none", "layernorm")] == [False, True]


def test_the_files_of_one_evaluation_stay_together(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are written no other process writes there: two settings at once would leave a file of each."""
    pytest.importorskip("fcntl")
    held = []
    real = files.write_text

    def write_text(path: Path, text: str) -> None:
        with pytest.raises(CheckpointError, match="another process"), stream_lock(path.parent):
            pass
        held.append(path.name)
        real(path, text)

    monkeypatch.setattr(files, "write_text", write_text)
    written(run, "eval", "together")
    assert held == ["results.json", "per_clip.csv"]


def test_a_clip_without_a_finite_error_is_not_passed_over(run: Path) -> None:
    """Whose features overflow in the normalised space: means and ratios over it are unknown, and it is the worst."""
    folder = run.parents[2]
    shutil.copytree(folder / "ice", folder / "huge")
    names = sorted(path.name for path in (folder / "huge").iterdir() if path.is_dir())
    features = folder / "huge" / names[1] / "feature_maps/vjepa2_vitl16.npy"
    values = np.load(features).astype(np.float32)
    values[-2:] = np.sign(values[-2:]) * np.float32(3e38)
    np.save(features, values)
    command = ["eval", "--ckpt", str(run), "--device", "cpu", "--data-dir", "huge", "evaluation.num_worst_clips=3"]
    outcome = hope(command, folder)
    assert outcome.code == 0, outcome.err
    assert f"warning: an error is not finite (NaN or infinite) on 1 of 3 clips, the first {names[1]}" in outcome.err
    assert "RuntimeWarning" not in outcome.err
    (file,) = run.glob("eval/*huge*/results.json")
    results = json.loads(file.read_text())
    assert results["clips_not_finite"] == results["worst_clips"][:1] == [names[1]]
    assert results["clips_with_ratio"] == 3
    for row in results["rows"]:
        means = (row["l1"], row["relative_per_clip"], row["error_to_signal_per_clip"])
        assert [mean["mean"] for mean in means] == [None] * 3, row["name"]
        assert row["l1_per_horizon"][0]["mean"] is not None  # frames before it
        assert row["relative_per_clip_per_horizon"][0]["mean"] is not None
    with open(file.parent / "per_clip.csv", newline="", encoding="utf-8") as opened:
        lines = list(csv.DictReader(opened))
    assert [line["clip"] for line in lines] == results["worst_clips"]
    assert lines[0]["l1"] == lines[0]["l1_h7"] == ""
    assert float(lines[1]["l1"]) >= float(lines[2]["l1"])
