"""What `hope train` says of settings that do nothing: of the run, of the model, of its length."""

from __future__ import annotations

from pathlib import Path

from tests.cli.runner import TINY, only_run
from tests.cli.test_notes import TRAIN, ran


def test_settings_that_do_nothing_are_said(tmp_path: Path) -> None:
    """By a dry run as by training; what an own preset sets counts, what a shipped one does with its own does not."""
    small = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    phases = "objective.curriculum=[{epoch: 0, loss_weight_teacher: 0.5}, {epoch: 3, T_rollout: 2}]"
    command = [*small, phases, "objective.loss_weight_teacher=0.2", "training.keep_last=1", "training.save_every=0"]
    for more in (["--dry-run"], []):
        err = ran([*command, *more], tmp_path).err
        assert "note: without effect on training: " in err
        assert "training.keep_last (training.save_every=0)" in err
        why = "objective.curriculum begins with loss_weight_teacher: 0.5; change it, or drop it with "
        assert f"objective.loss_weight_teacher ({why}objective.curriculum=[])" in err
        assert "note: training.epochs=1 ends before the curriculum's phase of epoch 3" in err.splitlines()
    assert "without effect" not in ran([*small, "--dry-run", phases], tmp_path).err
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: vjepa2_ac\nobjective: {loss_weight_teacher: 0.2}\n")
    shrink = [*TINY, "data.source=physics", "data.workers=0", "--dry-run", "--device", "cpu"]
    assert "loss_weight_teacher (" in ran(["train", "--preset", str(mine), *shrink], tmp_path).err
    assert "without effect" not in ran(["train", "--preset", "vjepa2_ac", *shrink], tmp_path).err
    asked = "objective.curriculum=[{epoch: 0, loss_weight_teacher: 0.5}]"  # which means to replace the preset's value
    assert "without effect" not in ran(["train", "--preset", str(mine), *shrink, asked], tmp_path).err
    assert "without effect" not in ran(["train", "--resume", "last"], tmp_path).err
    idle = ["data.max_skipped=0.4", "logging.runs_dir=runs"]
    because = "data.max_skipped (data.on_error=error)"
    assert f"note: without effect on training: {because}\n" in ran(["train", "--resume", "last", *idle], tmp_path).err
    err = ran(["train", "--resume", str(only_run(tmp_path)), *idle], tmp_path).err
    assert f"training: {because}, logging.runs_dir (a run goes on where it is)\n" in err


def test_a_run_whose_first_phase_alone_has_weights_is_scored_on_shorter_clips(tmp_path: Path) -> None:
    none = ["objective.loss_weight_teacher=0", "objective.loss_weight_rollout=0"]
    phases = "objective.curriculum=[{epoch: 0, loss_weight_teacher: 1.0}]"
    ran([*TRAIN, "data.embed_dim=8", *none, phases], tmp_path)
    for command in (["eval"], ["tta", "adaptation.steps=1"]):
        ran([*command, "--ckpt", "last", "--device", "cpu", "data.num_timesteps=6"], tmp_path)


def test_a_run_too_short_for_diagnostics_is_said(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart_hope", "--device", "cpu", *TINY, "--dry-run"]  # 8 steps
    note = "note: logging.diagnostics_every=9: a run of 8 steps has no diagnostics"
    assert note in ran([*command, "logging.diagnostics_every=9"], tmp_path).err.splitlines()
    assert "diagnostics" not in ran([*command, "logging.diagnostics_every=8"], tmp_path).err


def test_parts_of_a_model_that_do_nothing_are_said(tmp_path: Path) -> None:
    """Narrow heads by their width, slow levels by the length of the run; by a dry run as by training."""
    hope_model = ["model={kind: hope, cms_update_periods: [1, 4, 16]}", "model.width=8"]
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, *hope_model]  # 8 steps
    notes = [
        "note: 3D RoPE turns nothing in heads of 4 channels (model.width / model.num_heads), it needs 6",
        "note: CMS levels of model.cms_update_periods 16 take no step in a run of 8: they keep their initial weights",
    ]
    for more in (["--dry-run"], []):
        said = ran([*command, *more], tmp_path).err.splitlines()
        assert [line for line in said if line in notes] == notes
    wide = ran([*TRAIN[:-2], "data.embed_dim=8"], tmp_path).err
    assert "RoPE" not in wide
    assert "CMS" not in wide
