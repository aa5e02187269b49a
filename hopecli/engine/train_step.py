"""One optimizer step: losses, backward, clipping, update. The same for every model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hopecli.config.schema import ObjectiveSettings, Settings
from hopecli.data.clip import ClipBatch
from hopecli.engine.runtime import Runtime
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.losses import training_loss
from hopecli.objectives.schedules import ObjectivePhase, phase_at


class TrainingObjective(nn.Module):
    """The whole training loss as one forward call, so that a distributed wrapper sees every use of the model."""

    def __init__(self, model: PredictorModule, settings: ObjectiveSettings):
        super().__init__()
        self.model, self.settings = model, settings

    def forward(self, clip: ClipBatch, phase: ObjectivePhase) -> tuple[Tensor, Tensor, Tensor]:
        """total, teacher and rollout loss, scalars."""
        s = self.settings
        terms = training_loss(
            self.model,
            clip,
            phase=phase,
            T_teacher=s.T_teacher,
            normalize_reps=s.normalize_reps,
            loss_exp=s.loss_exp,
        )
        return terms.total, terms.teacher, terms.rollout


@dataclass(frozen=True)
class StepBatch:
    """This process's part of a global batch, in micro-batches. weight: how much its mean counts in the mean over
    processes, 1 unless clips were left out on some of them; seconds: how long the step waited for it."""

    micro_batches: Sequence[ClipBatch]
    weight: float = 1.0
    seconds: float = 0.0


@dataclass(frozen=True)
class StepTensors:
    """Losses and gradient norm of one step, still on the device: [total, teacher, rollout, norm]."""

    values: Tensor
    clips: int


def phases_of(settings: Settings) -> list[tuple[int, ObjectivePhase]]:
    """The phases that training goes through, each with its first epoch (from 0)."""
    o = settings.objective
    epochs = [0, *(change.epoch for change in o.curriculum if 0 < change.epoch < settings.training.epochs)]
    return [(epoch, phase_at(epoch, initial_phase(o), o.curriculum)) for epoch in epochs]


def initial_phase(settings: ObjectiveSettings) -> ObjectivePhase:
    """The phase before the curriculum's first change."""
    return ObjectivePhase(
        settings.loss_weight_teacher, settings.loss_weight_rollout, settings.T_rollout, settings.context_frames
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make a step's stochastic depth a function of (seed, step, process): resuming needs no saved RNG state."""
    torch.manual_seed((seed * 1_000_003 + step) * 4_099 + rank)


def train_step(
    objective: nn.Module,
    optimizer: Any,
    batch: StepBatch,
    phase: ObjectivePhase,
    *,
    runtime: Runtime,
    grad_clip: float | None,
) -> StepTensors:
    """Backward over the micro-batches of one global batch, then one clipped optimizer step.

    Returns this process's part of the mean losses over the global batch (their mean over processes is that mean) and
    the gradient norm before clipping; nothing is read from the device.
    """
    micro_batches, weight = batch.micro_batches, batch.weight
    clips = sum(len(part) for part in micro_batches)
    losses = torch.zeros(3, device=runtime.device)
    for i, part in enumerate(micro_batches):
        share = len(part) / clips
        with runtime.no_sync(objective, last=i == len(micro_batches) - 1):
            total, teacher, rollout = objective(part.to(runtime.device), phase)
            runtime.accelerator.backward(total * (share * weight))
        losses += torch.stack([total.detach(), teacher.detach(), rollout.detach()]).float() * share
    limit = float("inf") if grad_clip is None else grad_clip
    norm = runtime.accelerator.clip_grad_norm_(objective.parameters(), limit)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    norm = torch.as_tensor(norm, device=losses.device, dtype=losses.dtype)
    return StepTensors(torch.cat([losses * weight, norm.reshape(1)]), clips)
