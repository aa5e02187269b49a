"""hope eval through the real command line."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from hopecli.engine.checkpoint import load_checkpoint, write_weights
from tests.cli.runner import TINY, eval_row, evaluate, hope, only_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.val_split=0.3"]
    assert hope(command, folder).code == 0
    return only_run(folder)


def test_defaults_to_the_held_out_part(run: Path) -> None:
    results = evaluate(run)
    assert results["clips"] == 6
    assert results["overlap_with_training"] == 0
    assert [r["name"] for r in results["rows"]] == ["model", "copy_last", "zero_action", "shuffled_action"]
    assert results["context_frames"] == 1
    assert results["T_rollout"] == 7
    for r in results["rows"]:
        assert r["l1"]["low"] <= r["l1"]["mean"] <= r["l1"]["high"]
        assert np.mean([x["mean"] for x in r["l1_per_horizon"]]) == pytest.approx(r["l1"]["mean"])
    assert json.loads((run / "eval/held_out/results.json").read_text()) == results
    assert (run / "eval/held_out/error_against_horizon.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_agrees_with_the_last_validation(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = [line for line in lines if line["type"] == "validation"][-1]
    results = evaluate(run)
    # Same weights and clips, other batch size: float32 rounding.
    assert eval_row(results, "model")["l1"]["mean"] == pytest.approx(validation["loss_rollout"], rel=1e-5)
    assert results["loss_teacher"]["mean"] == pytest.approx(validation["loss_teacher"], rel=1e-5)


def test_baselines_by_hand(run: Path) -> None:
    """copy-last, relative and error-to-signal from the files in float64; 1e-5 covers float32 means."""
    split = json.loads((run / "split.json").read_text())
    (clips,) = (run.parents[2] / "cache" / "physics").iterdir()
    x = np.stack([np.load(clips / c / "feature_maps/vjepa2_vitl16.npy") for c in split["held_out"]]).astype(np.float64)
    h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)  # [n, T, N, D]
    copy = np.abs(h[:, 1:] - h[:, :1]).mean(axis=(0, 2, 3))
    results = evaluate(run)
    last = eval_row(results, "copy_last")
    assert [v["mean"] for v in last["l1_per_horizon"]] == pytest.approx(copy, rel=1e-5)
    assert last["relative"] == pytest.approx(1.0)
    unit = h / np.linalg.norm(h, axis=-1, keepdims=True)
    cosine = (unit[:, 1:] * unit[:, :1]).sum(-1).mean(axis=(0, 2))
    assert [v["mean"] for v in last["cosine_per_horizon"]] == pytest.approx(cosine, rel=1e-5)
    std = h[:, 1:].reshape(len(h), 7, -1).std(axis=-1, ddof=1).mean(axis=0)
    assert last["error_to_signal_per_horizon"] == pytest.approx(copy / std, rel=1e-5)
    assert results["ratio_to_copy_last"] == pytest.approx(
        eval_row(results, "model")["l1"]["mean"] / copy.mean(), rel=1e-5
    )


def test_action_rows_differ_and_sensitivity_is_their_gap(run: Path) -> None:
    results = evaluate(run)
    model, shuffled = eval_row(results, "model")["l1"]["mean"], eval_row(results, "shuffled_action")["l1"]["mean"]
    assert eval_row(results, "zero_action")["l1"]["mean"] != model
    assert results["action_sensitivity"]["mean"] == pytest.approx(shuffled - model, abs=1e-9)
    assert results["action_sensitivity_relative"] == pytest.approx((shuffled - model) / model, rel=1e-6)


def test_file_and_preset_and_context(run: Path, tmp_path: Path) -> None:
    file = run / "checkpoints/last/model.safetensors"
    assert eval_row(evaluate(file), "model") == eval_row(evaluate(run), "model")
    results = evaluate(run, "--preset", "test_ac_predictor", "evaluation.context_frames=3", "evaluation.T_rollout=2")
    assert (results["context_frames"], results["T_rollout"]) == (3, 2)
    assert len(eval_row(results, "model")["l1_per_horizon"]) == 2
    copied = tmp_path / "alone.safetensors"  # without its run directory: the split is made again and must match
    shutil.copy(file, copied)
    alone = evaluate_in(run.parents[2], copied)
    assert eval_row(alone, "model") == eval_row(evaluate(run), "model")
    assert (run.parents[2] / "runs/eval/alone/held_out/results.json").is_file()


def test_a_file_from_elsewhere_decides_neither_folder_nor_device(run: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(str(run))
    settings = {**checkpoint.settings, "logging": {"runs_dir": str(tmp_path / "foreign"), "wandb": "online"}}
    settings["training"] = {**settings["training"], "device": "cuda"}
    write_weights(tmp_path / "w.safetensors", weights=checkpoint.weights, settings=settings, info=checkpoint.info)
    outcome = hope(["eval", "--ckpt", "w.safetensors"], tmp_path, HOPE_CACHE_DIR=str(run.parents[2] / "cache"))
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "runs/eval/w/held_out/results.json").is_file()
    assert not (tmp_path / "foreign").exists()


def evaluate_in(folder: Path, file: Path) -> dict[str, Any]:
    outcome = hope(["eval", "--ckpt", str(file), "--device", "cpu", "--json"], folder)
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def test_overlap_with_training_is_marked(run: Path, tmp_path: Path) -> None:
    (clips,) = (run.parents[2] / "cache" / "physics").iterdir()
    split = json.loads((run / "split.json").read_text())
    mixed = tmp_path / "mixed"
    make_clips(mixed, clips=3, grid=2, dim=8, domain="ice", seed=9)
    for i, name in enumerate(split["train"][:2]):  # other names: recognised by content
        shutil.copytree(clips / name, mixed / f"clip_{100 + i}")
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--data-dir", str(mixed), "--json"], run.parents[2])
    assert outcome.code == 0
    assert "warning: the checkpoint was trained on 2 of these 5 clips" in outcome.err
    results = json.loads(outcome.out)
    assert results["overlap_with_training"] == 2
    assert results["clips"] == 5
    copy = tmp_path / "copy"
    shutil.copytree(clips, copy)  # a copy of the training folder: again only its held-out part
    assert evaluate(run, "--data-dir", str(copy))["clips"] == 6
    assert evaluate(run, "evaluation.clips=all")["overlap_with_training"] == 14
    shutil.rmtree(copy / split["train"][0])  # also when some training clips are gone, damaged or not selected
    (copy / split["train"][1] / "actions_states" / "actions.npy").unlink()
    for selected in ([], [f"data.clip_start={int(split['held_out'][0][5:])}"]):
        results = evaluate(run, "--data-dir", str(copy), *selected)
        assert (results["clips"], results["overlap_with_training"]) == (6, 0)


def test_training_clips_saved_again_are_recognised(run: Path, tmp_path: Path) -> None:
    (clips,) = (run.parents[2] / "cache" / "physics").iterdir()
    copy = tmp_path / "copy"
    shutil.copytree(clips, copy)
    for maps in copy.glob("clip_*/feature_maps"):
        features = np.load(maps / "vjepa2_vitl16.npy")
        np.save(maps / "again.npy", features.astype(np.float32).reshape(8, 2, 2, 8))
        actions = maps.parent / "actions_states" / "actions.npy"
        np.save(actions, np.load(actions).astype(np.float64))
    again = ["--data-dir", str(copy), "data.feature_map=again"]
    assert evaluate(run, *again)["clips"] == 6
    assert evaluate(run, *again, "evaluation.clips=all")["overlap_with_training"] == 14
    for maps in copy.glob("clip_*/feature_maps"):  # its training features are still there, these are others
        np.save(maps / "other.npy", np.load(maps / "again.npy") + 1)
    other = ["--data-dir", str(copy), "data.feature_map=other"]
    assert evaluate(run, *other)["clips"] == 6
    assert evaluate(run, *other, "evaluation.clips=all")["overlap_with_training"] == 14
    for maps in copy.glob("clip_*/feature_maps"):
        (maps / "vjepa2_vitl16.npy").unlink()
    assert evaluate(run, *other)["overlap_with_training"] is None
    assert evaluate(run, *again)["clips"] == 6


def test_held_out_clips_that_are_no_fair_test_are_listed(run: Path, tmp_path: Path) -> None:
    (clips,) = (run.parents[2] / "cache" / "physics").iterdir()
    split = json.loads((run / "split.json").read_text())
    copy, name = tmp_path / "copy", split["held_out"][2]
    shutil.copytree(clips, copy)
    shutil.rmtree(copy / name)
    shutil.copytree(clips / split["train"][0], copy / name)
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--data-dir", str(copy), "--json"], run.parents[2])
    results = json.loads(outcome.out)
    assert results["clips"] == 5
    assert results["skipped_clips"] == {name: "it has the content of a training clip"}
    assert f"note: held-out {name} is left out: it has the content of a training clip" in outcome.err


def test_another_folder_is_scored_whole_however_it_is_given(tmp_path: Path) -> None:
    make_clips(tmp_path / "own", clips=8, grid=2, dim=8, domain="base", seed=1)
    make_clips(tmp_path / "other", clips=5, grid=2, dim=8, domain="ice", seed=2)
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.clip_start=3", "training.epochs=1"]
    assert hope([*command, "--data-dir", "own"], tmp_path).code == 0
    run = only_run(tmp_path)
    for given in (["--data-dir", "other"], ["data.data_dir=other"], ["data={data_dir: other}"]):
        assert evaluate(run, *given)["clips"] == 5
    outcome = hope(["eval", "--ckpt", str(run), "data={data_dir: absent}"], tmp_path, HOPE_DATA_DIR="other")
    assert outcome.code == 3  # a folder named in the command is not replaced
    assert "absent: no such folder of clips" in outcome.err
    built_in = ["data={source: physics, physics: {clips: 4, domain: ice}}"]
    assert evaluate(run, *built_in)["clips"] == 4


def test_clips_shorter_than_those_trained_on(run: Path) -> None:
    """The first frames of the same clips: the error at each of their horizons is the same."""
    whole, short = evaluate(run), evaluate(run, "data.num_timesteps=4", "--name", "short")
    assert (short["T_rollout"], short["clips"]) == (3, 6)
    known = [h["mean"] for h in eval_row(whole, "model")["l1_per_horizon"][:3]]
    # Float32 rounding of other shapes.
    assert [h["mean"] for h in eval_row(short, "model")["l1_per_horizon"]] == pytest.approx(known, rel=1e-5)
    outcome = hope(["eval", "--ckpt", str(run), "data.num_timesteps=4", "objective.T_rollout=2"], run.parents[2])
    assert outcome.code == 2
    assert "objective.T_rollout: belongs to the checkpoint" in outcome.err


def test_clips_shorter_than_the_context_trained_on(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    assert hope([*command, "objective.context_frames=3", "objective.T_rollout=2"], tmp_path).code == 0
    short = evaluate(only_run(tmp_path), "data.num_timesteps=3", "evaluation.context_frames=1")
    assert (short["context_frames"], short["T_rollout"]) == (1, 2)


def test_results_are_not_replaced_without_a_word(run: Path) -> None:
    command = ["eval", "--ckpt", str(run), "--device", "cpu", "--name", "twice"]
    assert "will be replaced" not in hope(command, run.parents[2]).err
    assert f"note: the results in {run / 'eval/twice'} will be replaced" in hope(command, run.parents[2]).err


def test_per_clip_file_worst_first(run: Path) -> None:
    results = evaluate(run, "evaluation.num_worst_clips=2", "--name", "worst")
    with open(run / "eval/worst/per_clip.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    errors = [float(r["l1"]) for r in rows]
    assert errors == sorted(errors, reverse=True)
    assert results["worst_clips"] == [r["clip"] for r in rows[:2]]
    assert np.mean(errors) == pytest.approx(eval_row(results, "model")["l1"]["mean"])
    assert float(rows[0]["l1_h7"]) > 0


def test_mistakes(run: Path, tmp_path: Path) -> None:
    folder = run.parents[2]
    for text in (
        "model.depth=3",
        " model.width=32",
        "model={kind: convlstm}",
        "data.grid=3",
        "data.embed_dim=4",
        "objective.normalize_reps=false",
        "training.epochs=9",
    ):
        outcome = hope(["eval", "--ckpt", str(run), text], folder)
        assert outcome.code == 2, text
        assert "belongs to the checkpoint" in outcome.err
    outcome = hope(["eval", "--ckpt", str(run), "model.depth=3", "data.grid=3"], folder)
    assert outcome.code == 2
    assert "data.grid, model.depth: belong to the checkpoint" in outcome.err
    outcome = hope(["eval", "--ckpt", str(run), "--name", ".."], folder)
    assert outcome.code == 2
    assert "not a folder's name" in outcome.err
    assert not (run / "results.json").exists()
    make_clips(tmp_path / "wide", clips=2, grid=2, dim=16, domain="base", seed=0)
    outcome = hope(["eval", "--ckpt", str(run), "--data-dir", str(tmp_path / "wide")], folder)
    assert outcome.code == 3
    assert "features have width 16, but data.embed_dim = 8" in outcome.err
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes((run / "checkpoints/last/model.safetensors").read_bytes()[:200])
    outcome = hope(["eval", "--ckpt", str(torn)], folder)
    assert outcome.code == 4
    assert "not a readable .safetensors file" in outcome.err


def test_single_clip_has_no_interval_and_no_shuffled_row(run: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "one", clips=1, grid=2, dim=8, domain="base", seed=5)
    results = evaluate(run, "--data-dir", str(tmp_path / "one"))
    assert results["action_sensitivity"] is None
    assert eval_row(results, "model")["l1"]["low"] is None
    assert "shuffled_action" not in [r["name"] for r in results["rows"]]


def test_a_run_finds_its_clips_from_any_directory_and_after_a_move(tmp_path: Path) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    make_clips(home / "clips", clips=8, grid=2, dim=8, domain="base", seed=1)
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "--data-dir", "clips", "training.epochs=1"]
    assert hope(command, home).code == 0
    run = only_run(home)
    look = ["eval", "--ckpt", str(run), "--device", "cpu", "--json"]
    first = hope(look, elsewhere)
    assert first.code == 0, first.err
    assert json.loads(first.out)["clips_from"] == "held out from training"
    assert hope(["train", "--resume", str(run)], elsewhere).code == 0
    shutil.move(home / "clips", elsewhere / "moved")
    lost = hope(look, elsewhere)
    assert lost.code == 3
    assert f"{home / 'clips'}: no such folder" in lost.err
    again = hope(look, elsewhere, HOPE_DATA_DIR="moved")
    assert again.code == 0, again.err
    assert f"note: {home / 'clips'}, which it was trained on, has gone: HOPE_DATA_DIR=" in again.err
    assert json.loads(again.out)["rows"] == json.loads(first.out)["rows"]
    built_in = hope([*look, "data.source=physics", "data.physics.domain=ice", "data.physics.clips=6"], elsewhere)
    assert built_in.code == 0, built_in.err
    assert json.loads(built_in.out)["clips_from"] == "all of physics_ice"
    # A folder that the command names is never replaced.
    assert hope([*look, "--data-dir", "absent"], elsewhere, HOPE_DATA_DIR="moved").code == 3
