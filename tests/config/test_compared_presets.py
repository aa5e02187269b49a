"""The presets that are compared: the numbers of the protocol, and what may differ between them."""

from __future__ import annotations

import pytest
import torch

from hopecli.config.explain import differences
from hopecli.config.load import load_preset
from hopecli.models.build import build_model, count_parameters

TRAINING = ("vjepa2_ac", "baseline_convlstm", "ac_hope_vit_param_matched", "ac_hope_vit_depth_matched")


def parameters(preset: str) -> int:
    s = load_preset(preset).settings
    with torch.device("meta"):
        return count_parameters(
            build_model(s.model, grid=s.data.grid, embed_dim=s.data.embed_dim, action_dim=s.data.action_dim, seed=0)
        )


def test_parameter_counts() -> None:
    vit = parameters("vjepa2_ac")
    assert vit == 43_378_816
    assert parameters("baseline_convlstm") == pytest.approx(5.26e6, rel=1e-3)
    assert parameters("ac_hope_vit_param_matched") == pytest.approx(vit, rel=5e-3)
    assert parameters("baseline_identity") == 0
    assert parameters("quickstart_hope") == pytest.approx(parameters("quickstart"), rel=5e-2)
    assert parameters("quickstart_convlstm") == pytest.approx(parameters("quickstart"), rel=5e-2)


@pytest.mark.parametrize("preset", TRAINING)
def test_shared_numbers(preset: str) -> None:
    s = load_preset(preset).settings
    d, o = s.data, s.objective
    assert (d.num_timesteps, d.grid, d.embed_dim, d.action_dim) == (8, 16, 1024, 2)
    assert (d.batch_size, d.workers, s.training.seed, d.feature_map) == (64, 8, 42, "vjepa2_vitl16")
    assert (o.T_teacher, o.T_rollout, o.context_frames, o.normalize_reps, o.loss_exp) == (7, 7, 1, True, 1.0)
    assert (o.loss_weight_teacher, o.loss_weight_rollout) == (1.0, 1.0)
    assert s.optimizer.betas == (0.9, 0.999)
    assert s.optimizer.weight_decay == 0.04


@pytest.mark.parametrize("preset", TRAINING[2:])
def test_hope_numbers(preset: str) -> None:
    s = load_preset(preset).settings
    m, o, w = s.model, s.optimizer, s.schedule
    assert m.kind == "hope"
    assert (m.width, m.num_heads, m.cms_update_periods) == (384, 16, (1, 4, 16))
    deep = preset.endswith("depth_matched")
    assert (m.depth, m.memory_multiplier) == ((24, 1.0) if deep else (6, 2.0))
    assert m.cms_multipliers == ((2.0, 2.0, 2.0) if deep else (4.0, 4.0, 5.0))
    assert m.activation_checkpointing is deep
    assert (o.lr, o.titan_lr_scale, o.cms_lr_scale) == (1.5e-4, 0.2, 1.0)
    assert (o.memory_weight_decay, o.grad_clip) == (0.005, 3.0)
    assert (w.warmup_start_lr, w.warmup_pct, w.constant_pct, w.decay_pct) == (3e-5, 0.15, 0.75, 0.10)
    assert s.training.epochs == 60
    assert [(p.epoch, p.loss_weight_teacher) for p in s.objective.curriculum] == [(0, 1.0), (15, 0.7), (25, 0.5)]


@pytest.mark.parametrize(
    ("twin", "base"),
    [("baseline_convlstm", "vjepa2_ac"), ("baseline_identity", "vjepa2_ac"), ("quickstart_convlstm", "quickstart")],
)
def test_a_baseline_differs_in_the_model_only(twin: str, base: str) -> None:
    changed = differences(load_preset(base).settings, load_preset(twin).settings)
    assert {key.split(".")[0] for key in changed} == {"description", "model"}


def test_the_hope_twin_changes_no_data_and_no_steps() -> None:
    changed = differences(load_preset("quickstart").settings, load_preset("quickstart_hope").settings)
    others = {"description", "optimizer.grad_clip", "optimizer.memory_weight_decay"}
    assert {key for key in changed if not key.startswith("model.")} == others
