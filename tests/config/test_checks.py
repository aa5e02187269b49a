"""Rules between settings: each broken by one change to a preset, and kept by the value at its bound."""

from __future__ import annotations

import pytest

from hopecli.config.load import load_preset
from hopecli.errors import SettingsError

IDLE = "both loss weights are 0"
NO_TEACHER, NO_ROLLOUT = "loss_weight_teacher: 0.0", "loss_weight_rollout: 0.0"


def test_weights_of_0_that_the_first_phase_replaces() -> None:
    none = ["objective.loss_weight_teacher=0", "objective.loss_weight_rollout=0"]
    first = "objective.curriculum=[{epoch: 0, %s}]"
    settings = load_preset("quickstart", [*none, first % "loss_weight_teacher: 1.0"]).settings
    assert settings.objective.curriculum[0].loss_weight_teacher == 1.0
    for phase in ("T_rollout: 2", NO_TEACHER):
        with pytest.raises(SettingsError, match=IDLE):
            load_preset("quickstart", [*none, first % phase])


@pytest.mark.parametrize(
    ("preset", "overrides", "part"),
    [
        ("quickstart", ["data.action_dim=3"], "data.action_dim = 3: must be 2 for source: physics"),
        ("quickstart", ["data.action_dim=1"], "data.action_dim = 1: must be 2 for source: physics"),
        ("quickstart", ["data.action_alignment=as_is"], "data.action_alignment = 'as_is': must be impulse for"),
        ("quickstart", ["data.num_timesteps=9"], "data.num_timesteps = 9: must be at most 8 for source: physics"),
        ("quickstart", ["data.embed_dim=3"], "data.embed_dim = 3: must be at least 4 for source: physics"),
        ("quickstart", ["data.grid=1"], "data.grid = 1: must be at least 2 for source: physics"),
        ("quickstart", ["model.mlp_ratio=1e308"], "model.mlp_ratio = 1e+308: should be less than or equal to 10000"),
        ("quickstart", ["optimizer.eps=1e-50"], "optimizer.eps = 1e-50: should be greater than"),
        ("quickstart", ["evaluation.bootstrap_samples=10000000"], "should be less than or equal to 1000000"),
        ("vjepa2_ac", [f"data.embed_dim=1{'0' * 400}"], "should be less than or equal to 1000000000"),
        ("quickstart", ["data.embed_dim=20000"], "data.embed_dim = 20000: must be at most 16384 for source: physics"),
        ("quickstart", ["data.grid=65"], "data.grid = 65: must be at most 64 for source: physics"),
        ("quickstart", ["data.feature_map=other"], "data.feature_map = 'other': must be vjepa2_vitl16 for"),
        ("vjepa2_ac", ["data.clip_start=5", "data.clip_end=5"], "data.clip_end = 5: must be above clip_start = 5"),
        ("vjepa2_ac", ["data.clip_start=5", "data.clip_end=4"], "data.clip_end = 4: must be above clip_start = 5"),
        ("baseline_convlstm", ["model.kernel_size=4"], "model.kernel_size = 4: must be odd"),
        (
            "quickstart_hope",
            ["model.cms_update_periods=[1, 4]"],
            "model.cms_update_periods = [1, 4]: needs one period per CMS level: 3 as in cms_multipliers",
        ),
        ("quickstart_hope", ["model.cms_multipliers=[1.0, 1.0]"], "needs one period per CMS level: 2"),
        (
            "quickstart_hope",
            ["model.width=32", "model.memory_multiplier=0.03"],
            "model.memory_multiplier = 0.03: leaves a hidden layer without a unit: at least 1 / width = 1 / 32",
        ),
        (
            "quickstart_hope",
            ["model.width=32", "model.cms_multipliers=[1.0, 0.03, 1.0]"],
            "model.cms_multipliers = [1.0, 0.03, 1.0]: leaves a hidden layer without a unit",
        ),
        ("quickstart", ["model.width=32", "model.mlp_ratio=0.03"], "model.mlp_ratio = 0.03: leaves a hidden layer"),
        (
            "quickstart",
            ["model.width=32", "model.mlp_ratio=0.06", "model.mlp=swiglu"],
            "model.mlp_ratio = 0.06: leaves a hidden layer without a unit: at least 2 / width = 2 / 32",
        ),
        (
            "vjepa2_ac",
            ["model.use_extrinsics=true", "data.action_dim=1"],
            "model.use_extrinsics = True: extrinsics have action_dim - 1 values",
        ),
        (
            "quickstart",
            ["objective.loss_weight_teacher=0", "objective.loss_weight_rollout=0"],
            f"objective.loss_weight_rollout = 0.0: {IDLE}",
        ),
        (  # one of them is 0 since an earlier phase, the other from here on
            "quickstart",
            [f"objective.curriculum=[{{epoch: 1, {NO_TEACHER}}}, {{epoch: 2, {NO_ROLLOUT}}}]"],
            f"objective.curriculum[1].loss_weight_rollout = 0.0: {IDLE}",
        ),
        (
            "quickstart",
            [f"objective.curriculum=[{{epoch: 1, {NO_ROLLOUT}}}, {{epoch: 2, {NO_TEACHER}}}]"],
            f"objective.curriculum[1].loss_weight_teacher = 0.0: {IDLE}",
        ),
        (
            "quickstart",
            ["objective.curriculum=[{epoch: 1, T_rollout: 6}, {epoch: 2, context_frames: 3}]"],
            "objective.curriculum[1].context_frames = 3: T_rollout + context_frames = 9 exceeds num_timesteps = 8",
        ),
        ("quickstart", ["schedule.warmup_pct=0.086"], "warmup_pct + constant_pct + decay_pct must sum to 1, not 1.001"),
        ("quickstart", ["logging.diagnostics_every=5"], "diagnostics_every = 5: only model.kind hope has diagnostics"),
        ("quickstart", ["adaptation.adapt=none+layernorm"], "adaptation.adapt = 'none+layernorm': must be none, or"),
        # No rollout is asked for, so one step at least must fit behind the context.
        ("quickstart", ["evaluation.context_frames=8"], "evaluation.context_frames = 8: must be at most data.num_t"),
        ("quickstart", ["adaptation.context_frames=8"], "adaptation.context_frames = 8: must be at most data.num_t"),
        (  # the context that evaluation takes from the objective counts
            "quickstart",
            ["objective.context_frames=3", "objective.T_rollout=5", "evaluation.T_rollout=6"],
            "evaluation.T_rollout = 6: T_rollout + context_frames = 9",
        ),
    ],
)
def test_a_broken_rule_is_named(preset: str, overrides: list[str], part: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_preset(preset, overrides)
    assert part in str(raised.value)
    assert "mistakes" not in str(raised.value)  # this one alone


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("quickstart", ["data.num_timesteps=8", "data.embed_dim=4", "data.grid=2"]),
        ("vjepa2_ac", ["data.clip_start=5", "data.clip_end=6"]),
        ("vjepa2_ac", ["data.clip_start=5"]),
        ("vjepa2_ac", ["data.clip_end=5"]),
        # None of the built-in clips' rules holds for those of a folder.
        (
            "ac_predictor",
            [
                "data.num_timesteps=9",
                "data.action_dim=3",
                "data.action_alignment=as_is",
                "data.embed_dim=3",
                "data.grid=1",
                "data.feature_map=other",
            ],
        ),
        ("vjepa2_ac", ["model.use_extrinsics=true"]),
        ("quickstart", ["evaluation.context_frames=7", "adaptation.context_frames=7", "adaptation.adapt=none"]),
        ("quickstart", ["objective.context_frames=3", "objective.T_rollout=5", "evaluation.T_rollout=5"]),
        ("baseline_convlstm", ["model.kernel_size=5"]),
        ("quickstart_hope", ["model.cms_multipliers=[1.0]", "model.cms_update_periods=[4]"]),
        ("quickstart_hope", ["model.width=32", "model.memory_multiplier=0.03125"]),
        ("quickstart", ["model.width=32", "model.mlp_ratio=0.0625", "model.mlp=swiglu"]),
        ("quickstart", ["objective.loss_weight_teacher=0"]),
        ("quickstart", ["objective.loss_weight_rollout=0"]),
        ("quickstart", [f"objective.curriculum=[{{epoch: 1, {NO_TEACHER}}}]"]),
        (  # the second phase takes the first one's weight back
            "quickstart",
            [
                f"objective.curriculum=[{{epoch: 1, {NO_TEACHER}}}, "
                f"{{epoch: 2, loss_weight_teacher: 1.0, {NO_ROLLOUT}}}]"
            ],
        ),
    ],
)
def test_the_value_at_a_rule_s_bound_is_allowed(preset: str, overrides: list[str]) -> None:
    load_preset(preset, overrides)
