"""One forward and backward on one batch without training: sizes, time and memory to expect."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from hopecli.config.schema import Settings
from hopecli.data.clip import ClipBatch
from hopecli.engine.memory import peak_memory, reset_peak_memory
from hopecli.engine.optim import waiting_parameters
from hopecli.engine.runtime import Runtime
from hopecli.engine.train_step import TrainingObjective, phases_of, seed_step
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.schedules import ObjectivePhase


@dataclass(frozen=True)
class Pass:
    """Measures of one forward and backward; no gradient norm for a model without parameters."""

    seconds: float
    loss: float
    grad_norm: float | None
    activation_bytes_per_clip: float | None


def random_batch(settings: Settings, clips: int) -> ClipBatch:
    """Normally distributed clips of the settings' shapes, for a dry run without data."""
    d, generator = settings.data, torch.Generator().manual_seed(0)
    steps = d.num_timesteps - 1
    rows = torch.randn(clips, steps, d.action_dim, generator=generator)
    features = torch.randn(clips, d.num_timesteps, d.grid * d.grid, d.embed_dim, generator=generator)
    extrinsics = rows[..., 1:] if settings.use_extrinsics else None
    return ClipBatch(features, rows, torch.zeros_like(rows), extrinsics, tuple(f"random_{i}" for i in range(clips)))


def heaviest_phase(settings: Settings) -> tuple[int, ObjectivePhase]:
    """The phase of a run that keeps most predicted frames for the backward pass, and the epoch (from 0) it begins with:
    the one that decides whether the run fits into memory. The first one of equals."""
    teacher = settings.objective.T_teacher

    def frames(phase: ObjectivePhase) -> int:
        rollout = phase.context_frames - 1 + phase.T_rollout
        return (phase.loss_weight_teacher > 0) * teacher + (phase.loss_weight_rollout > 0) * rollout

    return max(phases_of(settings), key=lambda found: frames(found[1]))


def forward_backward(
    model: PredictorModule, settings: Settings, clips: ClipBatch, runtime: Runtime, phase: ObjectivePhase
) -> Pass:
    """One training forward and backward as in `phase`; gradients are dropped afterwards."""
    _warm_up(settings, runtime, phase)
    model.to(runtime.device).train()
    seed_step(settings.training.seed, 0, runtime.rank)  # as the first step of a run
    objective = TrainingObjective(model, settings.objective)
    batch = clips.to(runtime.device)
    before = reset_peak_memory(runtime.device)
    started = time.perf_counter()
    with runtime.autocast():
        total, _, _ = objective(batch, phase)
    gradients: list[torch.Tensor] = []
    if total.requires_grad:
        total.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))) if gradients else None
    loss = float(total.detach())
    seconds = time.perf_counter() - started
    peak = peak_memory(runtime.device)
    held = sum(g.numel() * g.element_size() for g in gradients)
    model.zero_grad(set_to_none=True)
    grown = None if before is None or peak is None else max(0.0, peak - before - held) / len(batch)
    return Pass(seconds, loss, norm, grown)


def _warm_up(settings: Settings, runtime: Runtime, phase: ObjectivePhase) -> None:
    """The same pass through a small model of the same kind, so that what torch loads and sets up once (activation
    checkpointing alone imports hundreds of modules) is not measured as a clip's activations and time."""
    data = settings.data.model_copy(update={"grid": 2})
    depth = {"depth": 1} if hasattr(settings.model, "depth") else {}
    small = settings.model_copy(update={"data": data, "model": settings.model.model_copy(update=depth)})
    model = build_model(small.model, grid=data.grid, embed_dim=data.embed_dim, action_dim=data.action_dim, seed=0).to(
        runtime.device
    )
    model.eval()  # draws nothing from the generators
    with runtime.autocast():
        total, _, _ = TrainingObjective(model, small.objective)(random_batch(small, 1).to(runtime.device), phase)
    if total.requires_grad:
        total.backward()


def static_bytes(model: PredictorModule, settings: Settings) -> int:
    """Weights, and for trainable ones a gradient and two AdamW moments, all in their own dtype; also the gradients that
    CMS levels have accumulated, beside those of the step that adds to them."""
    waiting = {id(p) for p in waiting_parameters(model, settings.optimizer, settings.model)}
    return sum(
        p.numel() * p.element_size() * (1 if not p.requires_grad else 5 if id(p) in waiting else 4)
        for p in model.parameters()
    )
