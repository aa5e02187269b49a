"""Training settings that change nothing because of others are found, and no others."""

from __future__ import annotations

import pytest

from hopecli.config.files import list_presets
from hopecli.config.load import load_preset, overridden
from hopecli.engine.train_idle import idle_settings, replaced_settings

COPY_LAST = "model={kind: copy_last}"


def idle(preset: str, *overrides: str) -> set[str]:
    """The keys of the overrides that are idle."""
    return set(idle_settings(overridden(overrides), load_preset(preset, overrides).settings))


@pytest.mark.parametrize(
    ("key", "value", "preset", "switch", "other"),
    [
        ("schedule.warmup_start_lr", "1e-5", "quickstart", "schedule={warmup_pct: 0, constant_pct: 0.915}", "seed=1"),
        ("schedule.final_lr", "1e-5", "quickstart", "schedule={decay_pct: 0, constant_pct: 0.915}", "seed=1"),
        (
            "data.action_reduce",
            "sum",
            "ac_predictor",
            "data.action_alignment=as_is",
            "data.action_alignment=per_timestep",
        ),
        ("data.max_skipped", "0.5", "quickstart", "data.on_error=error", "data.on_error=skip"),
        ("training.keep_last", "2", "quickstart", "training.save_every=0", "training.save_every=2"),
        ("model.rope", "exact", "quickstart_hope", "model.use_rope=false", "model.use_rope=true"),
        ("model.num_heads", "2", "quickstart_hope", "model.use_rope=false", "model.use_rope=true"),
        ("optimizer.lr", "1e-3", "quickstart", COPY_LAST, "seed=1"),
        ("data.max_skipped", "0.5", "baseline_identity", "data.on_error=error", "data.on_error=skip"),
        ("training.accumulate", "2", "quickstart", COPY_LAST, "seed=1"),
        ("objective.loss_weight_teacher", "0.5", "quickstart", COPY_LAST, "seed=1"),
        ("objective.T_rollout", "2", "quickstart", "objective.curriculum=[{epoch: 0, T_rollout: 3}]", COPY_LAST),
        ("objective.T_rollout", "2", "quickstart", "objective.curriculum=[{epoch: 0, T_rollout: 3}]", "seed=1"),
    ],
)
def test_one_setting_makes_another_idle(key: str, value: str, preset: str, switch: str, other: str) -> None:
    asked = f"{key}={value}"
    assert idle(preset, asked, switch) - {switch.partition("=")[0]} == {key}
    assert key not in idle(preset, asked, other.replace("seed", "training.seed"))


@pytest.mark.parametrize(
    ("overrides", "replaced"),
    [
        (["objective.loss_weight_teacher=0.2"], {"objective.loss_weight_teacher"}),
        (["objective.loss_weight_teacher=1"], set()),  # what the first phase sets as well
        (["objective.loss_weight_rollout=0.2"], set()),
        (["objective.loss_weight_teacher=0.2", "objective.curriculum=[]"], set()),
        (["objective.loss_weight_teacher=0.2", "objective.curriculum=[{epoch: 1, loss_weight_teacher: 1}]"], set()),
        (["objective.curriculum=[{epoch: 0, context_frames: 2, T_rollout: 6}]", "objective.context_frames=1"],
         {"objective.context_frames", "objective.T_rollout"}),
    ],
)  # fmt: skip
def test_what_the_first_phase_of_the_curriculum_replaces(overrides: list[str], replaced: set[str]) -> None:
    assert set(replaced_settings(load_preset("vjepa2_ac", overrides).settings.objective)) == replaced


def test_no_preset_replaces_its_own_settings() -> None:
    for name in list_presets():
        found = load_preset(name)
        assert replaced_settings(found.settings.objective) == {}, name
        assert idle_settings([], found.settings) == {}, name


def test_the_first_phase_leaves_the_context_of_validation() -> None:
    phases = "objective.curriculum=[{epoch: 0, context_frames: 2, T_rollout: 6}]"
    found = replaced_settings(load_preset("quickstart", [phases]).settings.objective)
    assert found["objective.context_frames"].endswith("context_frames: 2; validation and hope eval use it")
