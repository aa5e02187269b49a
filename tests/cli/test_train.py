"""hope train through the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from hopecli.config.load import load_preset
from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, hope, one_line, only_run

QUICK = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object], str]:
    """One tiny run: its folder, the JSON on stdout, and stderr."""
    folder = tmp_path_factory.mktemp("train")
    outcome = hope([*QUICK, "--json"], folder)
    assert outcome.code == 0, outcome.err
    return only_run(folder), json.loads(outcome.out), outcome.err


def test_summary_is_the_only_thing_on_stdout(trained: tuple[Path, dict[str, object], str]) -> None:
    run, summary, err = trained
    assert Path(str(summary["run_dir"])).name == run.name
    assert summary["steps"] == 8
    assert summary["train_clips"] == 18
    assert summary["held_out_clips"] == 2
    assert "Hardware Detection" in err
    assert "validation after epoch 2" in err


def test_run_directory_is_complete(trained: tuple[Path, dict[str, object], str]) -> None:
    run = trained[0]
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    folders = ("last", "epoch_0001", "epoch_0002")
    checkpoints = {f"checkpoints/{d}/{f}" for d in folders for f in ("model.safetensors", "trainer.pt")}
    assert names == {
        "config.yaml",
        "environment.json",
        "split.json",
        "metrics.jsonl",
        "train.log",
        *checkpoints,
    }


def test_config_is_the_resolved_preset(trained: tuple[Path, dict[str, object], str]) -> None:
    run = trained[0]
    settings = load_preset("quickstart", [*TINY, "training.device=cpu"]).settings
    assert yaml.safe_load((run / "config.yaml").read_text()) == settings.model_dump(mode="json")
    with safe_open(run / "checkpoints/last/model.safetensors", framework="pt") as archive:
        assert json.loads(archive.metadata()["settings"]) == settings.model_dump(mode="json")


def test_every_step_is_recorded_once(trained: tuple[Path, dict[str, object], str]) -> None:
    lines = metrics(trained[0])
    train = [line for line in lines if line["type"] == "train"]
    assert [line["step"] for line in train] == list(range(1, 9))
    for line in train:
        # quickstart weighs both losses 1; float32 sums.
        assert line["loss"] == pytest.approx(line["loss_teacher"] + line["loss_rollout"], rel=1e-5)
    assert train[0]["lr"] == pytest.approx(2e-3)  # 8 steps are too few for the warmup of 8.5 %
    assert [line["step"] for line in lines if line["type"] == "validation"] == [4, 8]


def test_validation_copy_last_matches_the_files(
    trained: tuple[Path, dict[str, object], str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = trained[0]
    split = json.loads((run / "split.json").read_text())
    (clips,) = (run.parents[2] / "cache" / "physics").iterdir()
    errors = []
    for name in split["held_out"]:
        x = np.load(clips / name / "feature_maps/vjepa2_vitl16.npy").astype(np.float64)
        h = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        errors.append(np.abs(h[1:] - h[:1]).mean(axis=(1, 2)))
    record = [line for line in metrics(run) if line["type"] == "validation"][-1]
    # float32 against float64: 1e-6 is ten times the rounding of a mean of this size.
    assert record["copy_last_per_horizon"] == pytest.approx(np.mean(errors, axis=0), abs=1e-6)


def test_same_seed_same_weights_other_seed_other_weights(
    trained: tuple[Path, dict[str, object], str], tmp_path: Path
) -> None:
    weights = {}
    for seed in ("42", "0"):
        folder = tmp_path / seed
        folder.mkdir()
        assert hope([*QUICK, "--seed", seed], folder).code == 0
        weights[seed] = (only_run(folder) / "checkpoints/last/model.safetensors").read_bytes()
    with safe_open(trained[0] / "checkpoints/last/model.safetensors", "pt") as archive:
        first = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118
    with safe_open(only_run(tmp_path / "42") / "checkpoints/last/model.safetensors", "pt") as archive:
        assert all(torch.equal(first[key], archive.get_tensor(key)) for key in first)
    with safe_open(only_run(tmp_path / "0") / "checkpoints/last/model.safetensors", "pt") as archive:
        assert not torch.equal(first["predictor_embed.weight"], archive.get_tensor("predictor_embed.weight"))


def test_accumulation_splits_the_same_global_batch(
    trained: tuple[Path, dict[str, object], str], tmp_path: Path
) -> None:
    assert hope([*QUICK, "training.accumulate=2"], tmp_path).code == 0
    whole = [line["loss"] for line in metrics(trained[0]) if line["type"] == "train"]
    split = [line["loss"] for line in metrics(only_run(tmp_path)) if line["type"] == "train"]
    # Same clips, sums in another order: float32 rounding, grown over 8 Adam steps.
    assert split == pytest.approx(whole, rel=1e-3)


def test_keep_last(tmp_path: Path) -> None:
    assert hope([*QUICK, "training.epochs=4", "training.keep_last=2"], tmp_path).code == 0
    folder = only_run(tmp_path) / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["epoch_0003", "epoch_0004", "last"]


def test_own_clips_from_the_environment(tmp_path: Path) -> None:
    make_clips(tmp_path / "mine", clips=8, grid=2, dim=8, domain="base", seed=1)
    (tmp_path / ".env").write_text("HOPE_DATA_DIR=mine\nHOPE_RUNS_DIR=elsewhere\n")
    command = [*QUICK, "data.source=folder", "training.epochs=1"]
    assert hope(command, tmp_path).code == 0
    assert len(list((tmp_path / "elsewhere" / "quickstart").iterdir())) == 1
    outcome = hope(command, tmp_path, HOPE_DATA_DIR="absent")  # the real environment wins over .env
    assert outcome.code == 3
    assert "absent" in outcome.err


def test_dry_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "--dry-run", "--json"], tmp_path)
    result = json.loads(outcome.out)
    assert outcome.code == 0
    assert (result["train_clips"], result["steps_per_epoch"], result["total_steps"]) == (18, 4, 8)
    assert result["parameters"] == load_and_count()
    assert result["grad_norm"] > 0
    assert result["micro_batch"] == result["global_batch"] == 4
    assert list(tmp_path.iterdir()) == []


def test_dry_run_estimates_a_micro_batch(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "--dry-run", "--json", "data.batch_size=16", "training.accumulate=2"], tmp_path)
    result = json.loads(outcome.out)
    assert (result["global_batch"], result["micro_batch"], result["batch"]) == (16, 8, 2)
    if result["activation_bytes_per_clip"] is not None:  # where the system tells the peak
        assert result["estimated_bytes"] == result["static_bytes"] + 8 * result["activation_bytes_per_clip"]


def test_dry_run_of_a_range_of_the_built_in_clips(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "--dry-run", "--json", "data.clip_start=8", "data.clip_end=18"], tmp_path)
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert (result["train_clips"], result["held_out_clips"], result["steps_per_epoch"]) == (9, 1, 2)
    outcome = hope([*QUICK, "--dry-run", "data.clip_start=100"], tmp_path)
    assert outcome.code == 3
    assert "the built-in clips: no clip has an id within data.clip_start=100 (got" in one_line(outcome)
    for more in (["--dry-run"], []):  # one that training refuses
        outcome = hope([*QUICK, *more, "data.clip_start=19", "data.batch_size=1"], tmp_path)
        assert outcome.code == 3
        assert "training needs at least 2 clips, one of them held out (got '1 usable')" in one_line(outcome)


def test_dry_run_without_parameters_has_no_gradient_norm(tmp_path: Path) -> None:
    outcome = hope(
        ["train", "-p", "baseline_identity", "--device", "cpu", "--dry-run", "--json", "data.grid=2"], tmp_path
    )
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["grad_norm"] is None


def test_a_preset_of_your_own_with_a_dot_in_its_name(tmp_path: Path) -> None:
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/mine.v2.yaml").write_text("extends: quickstart\n")
    outcome = hope(["train", "--preset", "mine.v2", "--device", "cpu", *TINY, "training.epochs=1"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert only_run(tmp_path).parent.name == "mine.v2"


def load_and_count() -> int:
    # width 16, depth 1, D 8, A 2: 12 w^2 + 13 w per block, 2 w final norm, embeddings, conditioning, projection.
    w, d = 16, 8
    return 12 * w * w + 13 * w + 2 * w + (d * w + w) + 2 * (2 * w + w) + (w + w) + (w * d + d)


def test_dry_run_without_clips_uses_random_numbers(tmp_path: Path) -> None:
    small = [text for text in TINY if not text.startswith("data.physics")]
    outcome = hope(["train", "--preset", "vjepa2_ac", "--dry-run", "--device", "cpu", *small], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "random numbers" in outcome.out


def test_print_config_round_trip(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "--print-config"], tmp_path)
    assert outcome.code == 0
    (tmp_path / "mine.yaml").write_text(outcome.out)
    as_json = hope([*QUICK, "--print-config", "--json"], tmp_path)
    assert json.loads(as_json.out) == yaml.safe_load(outcome.out)
    again = hope(["train", "--preset", "mine.yaml", "--print-config"], tmp_path)
    assert again.out == outcome.out


def test_wandb_offline_mirrors_and_online_needs_a_key(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "--wandb", "online"], tmp_path)
    assert outcome.code == 2
    assert "WANDB_API_KEY" in outcome.err
    assert not (tmp_path / "runs").exists()
    outcome = hope([*QUICK, "training.epochs=1", "--wandb", "offline"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert list((only_run(tmp_path) / "wandb").glob("offline-run-*"))
    assert len([line for line in metrics(only_run(tmp_path)) if line["type"] == "train"]) == 4


def test_actions_that_the_default_alignment_leaves_out_are_announced(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    command = [*QUICK, "--data-dir", "clips", "training.epochs=1"]
    assert "leaves out" not in hope(command, tmp_path).err
    for number in (2, 3):
        file = tmp_path / f"clips/clip_{number:05d}/actions_states/actions.npy"
        np.save(file, np.ones_like(np.load(file)))
    outcome = hope(command, tmp_path)
    assert "warning: 2 of 9 training clips have non-zero actions outside row 1" in outcome.err
    assert "leaves out" not in hope([*command, "data.action_alignment=per_timestep"], tmp_path).err


def test_records_keep_their_order_beside_diagnostics(tmp_path: Path) -> None:
    """W&B drops what is older than its newest record."""
    size = [*TINY, "model.depth=2", "logging.log_every=4", "logging.diagnostics_every=3", "training.epochs=1"]
    assert hope(["train", "--preset", "quickstart_hope", "--device", "cpu", *size], tmp_path).code == 0
    steps = [line["step"] for line in metrics(only_run(tmp_path))]
    assert steps == sorted(steps)
    assert len(steps) > 4


@pytest.mark.parametrize(
    ("override", "variable", "project"),
    [
        ("logging.wandb_project=mine", "theirs", "mine"),
        ("logging.wandb_project=null", "theirs", "theirs"),
        ("logging.wandb_project=null", "", "hopecli"),
    ],
)
def test_the_wandb_project_of_the_settings_comes_before_the_environment_s(
    override: str, variable: str, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def init(**options: Any) -> None:
        asked.append(options["project"])
        raise RuntimeError("no W&B in this test")  # the run goes on without its mirror

    monkeypatch.setattr("wandb.init", init)
    command = [*QUICK, "training.epochs=1", "--wandb", "offline", override]
    assert hope(command, tmp_path, WANDB_PROJECT=variable).code == 0
    assert asked == [project]


@pytest.mark.parametrize(
    ("flag", "given", "override", "key"),
    [
        ("--seed", "2", "training.seed=1", "training.seed"),
        ("--device", "cpu", "training.device=auto", "training.device"),
        ("--precision", "bf16", "training.precision=fp32", "training.precision"),
        ("--wandb", "offline", "logging.wandb=disabled", "logging.wandb"),
        ("--data-dir", "mine", "data.data_dir=other", "data.data_dir"),
    ],
)
def test_a_flag_beats_an_override(flag: str, given: str, override: str, key: str, tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--print-config", "--json"]
    section, name = key.split(".")
    for arguments in ([override, flag, given], [flag, given, override]):
        outcome = hope([*command, *arguments], tmp_path)
        assert outcome.code == 0, outcome.err
        assert str(json.loads(outcome.out)[section][name]).split("/")[-1] == given
