"""Sizes and run lengths with which a part of a model does nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hopecli.config.load import load_preset
from hopecli.config.schema import ConvLSTMSettings, HopeSettings, ViTACSettings
from hopecli.engine.model_notes import drop_path_note, length_notes, rope_note, still_levels_note, unlearned_frames_note
from hopecli.models.build import build_model

GRID, DIM, ACTIONS = 3, 8, 2


def moved(model: ViTACSettings | HopeSettings, other: ViTACSettings | HopeSettings | None = None) -> float:
    """How much predictions change with the model's layout of RoPE (`other`), or when patches change places."""
    torch.manual_seed(0)
    frames = torch.randn(2, 3, GRID * GRID, DIM, dtype=torch.float64)
    actions = torch.randn(2, 3, ACTIONS, dtype=torch.float64)

    def run(settings: ViTACSettings | HopeSettings, x: torch.Tensor) -> torch.Tensor:
        built = build_model(settings, grid=GRID, embed_dim=DIM, action_dim=ACTIONS, seed=0).double().eval()
        with torch.no_grad():
            return built(x, actions, torch.zeros_like(actions))

    if other is not None:
        return (run(model, frames) - run(other, frames)).abs().max().item()
    places = torch.randperm(GRID * GRID)
    return (run(model, frames[:, :, places]) - run(model, frames)[:, :, places]).abs().max().item()


@pytest.mark.parametrize(("channels", "positions", "layouts"), [(5, False, False), (6, True, False), (12, True, True)])
def test_what_is_said_of_narrow_heads_is_so(channels: int, positions: bool, layouts: bool) -> None:
    sizes: dict[str, Any] = {"width": 2 * channels, "depth": 2, "num_heads": 2}
    vit, exact = ViTACSettings(**sizes), ViTACSettings(**sizes, rope="exact")
    rounding = 1e-12  # float64
    assert (moved(vit) > rounding) == positions
    assert (moved(vit, exact) > rounding) == layouts
    assert ("knows no positions" in (rope_note(vit) or "")) != positions
    assert ("is the same as vjepa2" in (rope_note(exact) or "")) == (positions and not layouts)
    assert rope_note(vit) is None or not positions


def test_hope_is_told_where_it_uses_rope() -> None:
    narrow: dict[str, Any] = {"width": 8, "num_heads": 2, "depth": 1}
    note = "note: 3D RoPE turns nothing in heads of 4 channels (model.width / model.num_heads), it needs 6"
    assert rope_note(HopeSettings(**narrow)) == note
    assert moved(HopeSettings(**narrow), HopeSettings(**narrow, use_rope=False)) == 0.0
    assert rope_note(HopeSettings(**narrow, use_rope=False)) is None
    assert rope_note(ConvLSTMSettings()) is None


def test_levels_that_take_no_step() -> None:
    hope = HopeSettings(cms_update_periods=(1, 4, 16))
    assert still_levels_note(hope, 16) is None
    assert "cms_update_periods 16 take no step in a run of 15" in (still_levels_note(hope, 15) or "")
    assert "cms_update_periods 4, 16 take no step in a run of 3" in (still_levels_note(hope, 3) or "")
    assert still_levels_note(ViTACSettings(), 3) is None


@pytest.mark.parametrize(("depth", "drop_path", "said"), [(1, 0.5, True), (1, 0.0, False), (2, 0.5, False)])
def test_stochastic_depth_of_one_block(depth: int, drop_path: float, said: bool) -> None:
    model = ViTACSettings(width=16, depth=depth, num_heads=2, drop_path=drop_path)
    built = build_model(model, grid=2, embed_dim=4, action_dim=2, seed=0)
    last = built.get_submodule(f"predictor_blocks.{depth - 1}")
    assert (drop_path_note(model) is not None) == said == (drop_path > 0.0 and last.drop_path == 0.0)


@pytest.mark.parametrize(
    ("overrides", "learned", "rollout"),
    [
        ([], None, 9),  # all 8
        (["data.num_timesteps=10"], 8, 9),
        (["data.num_timesteps=10", "objective.T_teacher=9"], None, 9),
        (["data.num_timesteps=10", "objective.T_teacher=9", "objective.loss_weight_teacher=0"], 8, 9),
        (["data.num_timesteps=10", "objective.T_rollout=9"], None, 9),
        (["data.num_timesteps=10", "objective.curriculum=[{epoch: 1, T_rollout: 8}]"], 9, 9),
        (["data.num_timesteps=10", "objective.T_rollout=6", "objective.context_frames=3"], 9, 7),
        (["data.num_timesteps=10", "objective.curriculum=[{epoch: 1, context_frames: 2}]"], 9, 8),
        (["data.num_timesteps=10", "objective.curriculum=[{epoch: 30, T_rollout: 9}]"], 8, 9),  # 30 epochs: too late
        (["data.num_timesteps=10", "objective.T_rollout=9", "objective.curriculum=[{epoch: 0, T_rollout: 7}]"], 8, 9),
        (
            [
                "data.num_timesteps=10",
                "objective.context_frames=3",
                "objective.curriculum=[{epoch: 0, context_frames: 1}]",
            ],
            8,
            7,
        ),
    ],
)
def test_frames_that_no_phase_learns_from(overrides: list[str], learned: int | None, rollout: int) -> None:
    overrides = ["objective.curriculum=[]", *overrides]
    settings = load_preset("vjepa2_ac", overrides).settings
    note = unlearned_frames_note(settings)
    assert (note is None) == (learned is None)
    if learned is not None:
        assert f"with 10 frames, of which training learns from the first {learned} only" in str(note)
        in_phases = any("T_rollout: " in text and "30" not in text for text in overrides)
        steps = f"T_rollout={rollout} in objective.curriculum" if in_phases else f"objective.T_rollout={rollout}"
        assert f" set objective.T_teacher=9 and {steps}" in str(note)
        advised = "objective.T_teacher=9" if in_phases else f"objective.T_teacher=9 and {steps}"
        assert unlearned_frames_note(load_preset("vjepa2_ac", [*overrides, *advised.split(" and ")]).settings) is None


@pytest.mark.parametrize(("epochs", "late"), [(2, 2), (3, 5), (5, 5), (6, None)])
def test_a_phase_at_the_end_of_a_run_or_past_it_never_holds(epochs: int, late: int | None) -> None:
    phases = "objective.curriculum=[{epoch: 2, T_rollout: 2}, {epoch: 5, T_rollout: 3}]"
    notes = length_notes(load_preset("quickstart", [f"training.epochs={epochs}", phases]).settings, 9)
    note = f"note: training.epochs={epochs} ends before the curriculum's phase of epoch {late}"
    assert notes == ([] if late is None else [note])
