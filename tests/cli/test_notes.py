"""What a command says on the way: clips left out, states missing, settings without effect, phases of the curriculum."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from tests.cli.runner import TINY, Outcome, evaluate, hope, only_run
from tests.clips import DIM, feature_file, make_features, write_clip

TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, f"data.embed_dim={DIM}", "training.epochs=1"]


def clips_of(folder: Path, frames: list[int], *, states: bool = False, first: int = 0) -> Path:
    """One clip per number of encoded frames, with a push at original frame 1."""
    for number, count in enumerate(frames, start=first):
        actions = np.zeros((2 * count, 2), np.float32)
        actions[1] = number + 1
        rows = np.full((count, 2), number, np.float32) if states else None
        write_clip(folder, number, features=make_features(number, count), actions=actions, states=rows)
    return folder


def ran(arguments: list[str], folder: Path) -> Outcome:
    outcome = hope(arguments, folder)
    assert outcome.code == 0, outcome.err
    return outcome


def test_longer_rollouts_are_scored_on_the_held_out_part_too(tmp_path: Path) -> None:
    """Most training clips are too short for them, but that does not make the folder another one."""
    clips_of(tmp_path / "clips", [8] * 9 + [10, 8, 8, 10, 10])
    ran([*TRAIN, "--data-dir", "clips", "data.val_split=0.3"], tmp_path)  # held out: the last four
    outcome = ran(
        ["eval", "--ckpt", "last", "--device", "cpu", "data.num_timesteps=10", "data.on_short=skip"], tmp_path
    )
    assert "2 clips (held out from training)" in outcome.out
    assert "clips left out" in outcome.out
    results = json.loads((only_run(tmp_path) / "eval/held_out/results.json").read_text())
    assert results["T_rollout"] == 9
    assert results["overlap_with_training"] == 0
    assert sorted(results["skipped_clips"]) == ["clip_00010", "clip_00011"]
    step, epoch = results["step"], results["epoch"]
    assert (step, epoch) == (2, 0)  # 10 training clips in batches of 4
    assert f"{step} steps" in outcome.out


def test_ranges_of_ids_have_results_of_their_own(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 10)
    clips_of(tmp_path / "other", [8] * 10, first=50)
    ran([*TRAIN, "--data-dir", "clips"], tmp_path)
    run = only_run(tmp_path)
    for start, end, label in (("null", "53", "0:53"), ("55", "null", "55:"), ("52", "56", "52:56")):
        ids = [f"data.clip_start={start}", f"data.clip_end={end}"]
        assert evaluate(run, "--data-dir", "other", *ids)["clips_from"] == f"all of other[{label}]"
    assert len(list((run / "eval").iterdir())) == 3


@pytest.mark.parametrize("trained_with", [True, False])
def test_states_that_training_knew_otherwise(trained_with: bool, tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 8, states=trained_with)
    clips_of(tmp_path / "same", [8] * 3, states=trained_with, first=20)
    clips_of(tmp_path / "changed", [8] * 3, states=not trained_with, first=20)
    assert "states.npy" not in ran([*TRAIN, "--data-dir", "clips"], tmp_path).err
    look = ["eval", "--ckpt", "last", "--device", "cpu", "--data-dir"]
    assert "states.npy" not in ran([*look, "same"], tmp_path).err
    warning = "lack the states.npy it was trained with" if trained_with else "it was trained on clips without"
    assert f"warning: 3 of 3 clips {'' if trained_with else 'have a states.npy, but '}{warning}" in (
        ran([*look, "changed"], tmp_path).err
    )


def test_states_of_some_training_clips_only(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 5, states=True)
    clips_of(tmp_path / "clips", [8] * 5, first=5)
    outcome = ran([*TRAIN, "--data-dir", "clips"], tmp_path)
    assert "warning: 4 of 9 training clips lack the states.npy of the others: zeros stand in" in outcome.err


def test_the_overrides_that_inspect_data_prints_are_enough(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 9 + [6] * 2 + [8] * 10)  # 2 of these 21 break
    feature_file(tmp_path / "clips", "clip_00003").write_bytes(b"")
    broken = np.load(feature_file(tmp_path / "clips", "clip_00015"))
    broken[5, 1, 1] = np.nan
    np.save(feature_file(tmp_path / "clips", "clip_00015"), broken)
    survey = json.loads(hope(["inspect-data", "clips", "--deep", "--json"], tmp_path).out)
    (fit,) = (fit for fit in survey["presets"] if fit["name"] == "quickstart")
    assert {"data.on_short=skip", "data.on_error=skip", "data.max_skipped=0.096"} <= set(fit["overrides"])
    small = ["model.width=16", "model.depth=1", "model.num_heads=2", "training.epochs=1"]
    command = ["train", "--preset", "quickstart", "--device", "cpu", "data.source=folder", "--data-dir", "clips"]
    line = " ".join(fit["overrides"])
    summary = json.loads(ran([*command, *shlex.split(line), *small, "--json"], tmp_path).out)
    assert summary["train_clips"] + summary["held_out_clips"] == survey["usable"] == 17


def test_settings_without_effect(tmp_path: Path) -> None:
    ran([*TRAIN, "data.embed_dim=8"], tmp_path)
    look = ["--ckpt", "last", "--device", "cpu"]
    idle = ["data.batch_size=2", "adaptation.lr=1", "logging.wandb=offline", "logging.log_every=1"]
    keys = ", ".join(text.split("=")[0] for text in idle)
    outcome = ran(["eval", *look, *idle, "evaluation.batch_size=2", "logging.runs_dir=runs"], tmp_path)
    assert f"note: this command does not use {keys}\n" in outcome.err  # runs_dir says where `last` is
    outcome = ran(["eval", "--ckpt", str(only_run(tmp_path)), *idle[:1], "logging.runs_dir=other"], tmp_path)
    assert "note: this command does not use data.batch_size, logging.runs_dir\n" in outcome.err
    arguments = ["evaluation.batch_size=2", "evaluation.clips=all", "adaptation.steps=1"]
    outcome = ran(["tta", *look, *arguments], tmp_path)
    assert "note: this command does not use evaluation.batch_size\n" in outcome.err


def test_diagnostics_are_of_training_only(tmp_path: Path) -> None:
    small = [part for part in TINY if not part.startswith("model.")]
    sizes = ["model.width=16", "model.num_heads=2", "model.depth=1", "data.physics.clips=8", "training.epochs=1"]
    ran(["train", "--preset", "quickstart_hope", "--device", "cpu", *small, *sizes], tmp_path)
    look = ["--ckpt", "last", "--device", "cpu", "logging.diagnostics_every=1"]
    for command in (["eval"], ["tta", "adaptation.adapt=none"]):
        outcome = ran([*command, *look], tmp_path)
        assert "note: this command does not use logging.diagnostics_every\n" in outcome.err


def test_phases_of_the_curriculum(tmp_path: Path) -> None:
    phases = "objective.curriculum=[{epoch: 1, loss_weight_teacher: 0.5}, {epoch: 2, T_rollout: 3}, {epoch: 7}]"
    outcome = ran([*TRAIN, "data.embed_dim=8", "training.epochs=3", phases], tmp_path)
    assert "note: training.epochs=3 ends before the curriculum's phase of epoch 7" in outcome.err
    said = [line for line in outcome.err.splitlines() if "loss_weight_teacher" in line]
    rest = "loss_weight_rollout 1, context_frames 1"
    assert [line.strip() for line in said] == [
        f"epoch 2: loss_weight_teacher 0.5, {rest}, T_rollout 7",
        f"epoch 3: loss_weight_teacher 0.5, {rest}, T_rollout 3",
    ]


def test_overrides_of_built_in_clips_with_a_folder(tmp_path: Path) -> None:
    """Without a word the folder's clips would be scored in place of those that were asked for."""
    clips_of(tmp_path / "clips", [8] * 8)
    small = [part for part in TRAIN if not part.startswith("data.physics.")]
    asked = "data.physics.domain=ice"
    assert "note: the clips of a folder do not use data.physics.domain\n" in (
        ran([*small, "--data-dir", "clips", asked], tmp_path).err
    )
    for command in ("eval", "tta"):
        outcome = hope([command, "--ckpt", "last", "--device", "cpu", asked], tmp_path)
        assert outcome.code == 2
        message = "error: data.physics.domain: has no effect on the clips of a folder (data.source=folder)"
        assert f"{message}. Add data.source=physics" in outcome.err
    outcome = hope([*small, "data.source=folder", asked], tmp_path, HOPE_DATA_DIR="clips")
    assert outcome.code == 0, outcome.err
    outcome = hope(["train", "--preset", "vjepa2_ac", asked], tmp_path, HOPE_DATA_DIR="clips")
    assert outcome.code == 2
    assert not (tmp_path / "runs/vjepa2_ac").exists()


def test_dropped_actions_are_said_by_every_command(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 8)
    for number in range(3):
        write_clip(tmp_path / "all", number, features=make_features(number, 8), actions=np.ones((16, 2), np.float32))
    ran([*TRAIN, "--data-dir", "clips"], tmp_path)
    warning = "warning: 3 of 3 clips have non-zero actions outside row 1, which data.action_alignment=impulse"
    for command in (["eval"], ["tta", "adaptation.steps=1"]):
        look = [*command, "--ckpt", "last", "--device", "cpu", "--data-dir"]
        assert warning in ran([*look, "all"], tmp_path).err
        assert "outside row 1" not in ran([*look, "clips"], tmp_path).err


def test_a_dry_run_says_what_the_run_would_of_its_clips(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 7 + [4])
    write_clip(tmp_path / "clips", 2, features=make_features(2, 8), actions=np.ones((16, 2), np.float32))
    np.save(tmp_path / "clips/clip_00003/actions_states/states.npy", np.ones((16, 2), np.float32))
    command = [*TRAIN, "--data-dir", "clips", "--dry-run", "data.on_short=skip"]
    err = ran(command, tmp_path).err
    assert "warning: 1 of 6 training clips have non-zero actions outside row 1" in err
    assert "warning: 5 of 6 training clips lack the states.npy" in err
    assert "clip_00007 would be skipped: " in err
    assert "outside row 1" not in ran([*command, "data.action_alignment=per_timestep"], tmp_path).err


def test_rows_and_frames_that_training_leaves_out_are_said(tmp_path: Path) -> None:
    """Increments of which every second one is dropped, and clips longer than the objective's windows."""
    clips_of(tmp_path / "clips", [10] * 6)
    for number in range(2):
        write_clip(
            tmp_path / "clips", number, features=make_features(number, 10), actions=np.eye(20, 2, dtype=np.float32)
        )
    command = [*TRAIN, "--data-dir", "clips", "data.action_alignment=per_timestep"]
    longer = [*command, "data.num_timesteps=10"]
    halved = "note: in 2 of 5 training clips data.action_reduce=last leaves out rows 2t"
    frames = "of which training learns"
    for more in ([], ["--dry-run"]):
        err = ran([*longer, *more], tmp_path).err
        assert halved in err
        assert f"{frames} from the first 8 only" in err
        err = ran([*command, *more, "data.action_reduce=sum"], tmp_path).err
        assert "leaves out" not in err
        assert frames not in err
    assert "leaves out" not in ran(["eval", "--ckpt", "last", "--device", "cpu"], tmp_path).err


def test_a_preset_without_the_section_of_the_command(tmp_path: Path) -> None:
    ran([*TRAIN, "data.embed_dim=8"], tmp_path)
    look = ["--ckpt", "last", "--device", "cpu", "--preset"]
    for command, preset, section in (
        ("eval", "quickstart_tta", "evaluation"),
        ("tta", "test_ac_predictor", "adaptation"),
    ):
        outcome = ran([command, *look, preset], tmp_path)
        assert f"note: preset {preset} has no {section} section: that of the checkpoint is used" in outcome.err
    assert "section" not in ran(["eval", *look, "test_ac_predictor"], tmp_path).err
    assert "section" not in ran(["tta", *look, "quickstart_tta"], tmp_path).err


def test_optimizer_settings_of_hope_in_another_model(tmp_path: Path) -> None:
    asked = ["data.embed_dim=8", "optimizer.cms_lr_scale=2", "optimizer.lr=1e-3"]
    assert "note: a vit_ac model does not use optimizer.cms_lr_scale\n" in ran([*TRAIN, *asked], tmp_path).err
    hope_model = ["train", "--preset", "quickstart_hope", "--print-config", *asked]
    assert "does not use" not in ran(hope_model, tmp_path).err


def test_names_of_results_tell_ranges_and_seeds_apart(tmp_path: Path) -> None:
    ran([*TRAIN, "data.embed_dim=8", "data.val_split=0.3"], tmp_path)
    run = only_run(tmp_path)
    part = int(json.loads((run / "split.json").read_text())["held_out"][2][5:])
    assert evaluate(run)["clips"] == 6
    assert evaluate(run, f"data.clip_start={part}")["clips"] == 4
    for seed in (0, 3):
        evaluate(run, "data.source=physics", "data.physics.domain=ice", f"data.physics.seed={seed}")
    names = {folder.name for folder in (run / "eval").iterdir()}
    assert names == {"held_out", f"held_out_{part}__", "all_physics_ice", "all_physics_ice_seed3"}


@pytest.mark.slow
def test_intervals_over_few_clips_are_no_95_percent_intervals(tmp_path: Path) -> None:
    clips_of(tmp_path / "clips", [8] * 10)
    for folder, count in (("few", 3), ("enough", 20), ("one", 1)):
        clips_of(tmp_path / folder, [8] * count, first=50)
    ran([*TRAIN, "--data-dir", "clips", "data.val_split=0.2"], tmp_path)
    note = "note: 3 clips are few for 95 % intervals: about 75 % of such intervals hold the true mean"
    for command in ("eval", "tta"):
        scored = [command, "--ckpt", "last", "--device", "cpu", "--data-dir"]
        assert note in ran([*scored, "few"], tmp_path).err.splitlines()
        for folder in ("enough", "one"):
            assert re.search(r"note: \d+ clips? ", ran([*scored, folder], tmp_path).err) is None
    source = "note: 2 source clips are few for 95 % intervals: about 50 % of such intervals hold the true mean"
    assert source in ran(["tta", "--ckpt", "last", "--device", "cpu", "--data-dir", "enough"], tmp_path).err


@pytest.mark.parametrize(("preset", "overrides"), [("quickstart_tta", []), ("quickstart", ["model={kind: copy_last}"])])
def test_a_model_that_nobody_named_is_said(preset: str, overrides: list[str], tmp_path: Path) -> None:
    """Of a preset for adaptation or evaluation, which trains nothing of its own."""
    outcome = hope(["train", "--preset", preset, "--print-config", *overrides], tmp_path)
    assert outcome.code == 0, outcome.err
    note = f"note: preset {preset} says nothing of a model: the default vit_ac of full size is trained"
    assert (note in outcome.err.splitlines()) == (preset == "quickstart_tta")
