"""The settings for which parameters get no gradient are the ones that are told to DistributedDataParallel."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from hopecli.config.schema import HopeSettings, ObjectiveSettings, Settings, TrainingSettings
from hopecli.config.schema.objective import CurriculumPhase
from hopecli.data.clip import ClipBatch
from hopecli.engine.idle_parameters import leaves_parameters_idle
from hopecli.engine.train_step import TrainingObjective, initial_phase
from hopecli.models.build import build_model
from hopecli.objectives.schedules import phase_at

CLIPS, FRAMES, GRID, DIM, ACTIONS = 2, 4, 2, 8, 2
SMALL: dict[str, Any] = {"width": 12, "depth": 1, "num_heads": 2, "memory_multiplier": 1.0}
SMALL |= {"cms_multipliers": (1.0,), "cms_update_periods": (1,)}


def idle_in(model: HopeSettings, objective: ObjectiveSettings, epoch: int) -> int:
    """How many parameters have no gradient after a step of that epoch."""
    predictor = build_model(model, grid=GRID, embed_dim=DIM, action_dim=ACTIONS, seed=0)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(CLIPS, FRAMES, GRID * GRID, DIM, generator=generator)
    actions = torch.randn(CLIPS, FRAMES - 1, ACTIONS, generator=generator)
    batch = ClipBatch(features, actions, torch.zeros_like(actions), None, ("one", "two"))
    phase = phase_at(epoch, initial_phase(objective), objective.curriculum)
    total, _, _ = TrainingObjective(predictor, objective)(batch, phase)
    total.backward()
    return sum(p.requires_grad and p.grad is None for p in predictor.parameters())


@pytest.mark.parametrize("read", ["before_write", "after_write"])
@pytest.mark.parametrize("truncate", [None, 1, 2])
def test_what_is_idle_is_known_beforehand(read: Any, truncate: int | None) -> None:
    model = HopeSettings(**SMALL, read=read, truncate_memory_gradient=truncate)
    found = set()
    for teacher, (context, horizon), weights in itertools.product(
        (1, 2), ((1, 1), (1, 2), (2, 1), (2, 2), (3, 1)), ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0))
    ):
        objective = ObjectiveSettings(
            T_teacher=teacher,
            context_frames=context,
            T_rollout=horizon,
            loss_weight_teacher=weights[0],
            loss_weight_rollout=weights[1],
        )
        idle = idle_in(model, objective, 0) > 0
        assert leaves_parameters_idle(Settings(model=model, objective=objective)) == idle, (
            teacher,
            context,
            horizon,
            weights,
        )
        found.add(idle)
    always, never = (read, truncate) == ("before_write", 1), (read, truncate) == ("after_write", None)
    assert found == ({True} if always else {False} if never else {True, False})


def test_phases_count_that_a_run_goes_through() -> None:
    model = HopeSettings(**SMALL, read="before_write")
    change = CurriculumPhase(epoch=1, loss_weight_rollout=0.0)
    all_along = CurriculumPhase(epoch=0, loss_weight_rollout=1.0)
    objective = ObjectiveSettings(T_teacher=1, T_rollout=2, curriculum=(change,))
    assert idle_in(model, objective, 0) == 0
    assert idle_in(model, objective, 1) > 0
    settings = Settings(model=model, objective=objective, training=TrainingSettings(epochs=2))
    assert leaves_parameters_idle(settings)
    assert not leaves_parameters_idle(settings.model_copy(update={"training": TrainingSettings(epochs=1)}))
    first = ObjectiveSettings(T_teacher=1, T_rollout=2, loss_weight_rollout=0.0, curriculum=(all_along,))
    assert idle_in(model, first, 0) == 0
    assert not leaves_parameters_idle(settings.model_copy(update={"objective": first}))
