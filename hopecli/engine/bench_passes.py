"""The passes that a benchmark times: teacher forcing, both kinds of rollout, a training and an adaptation step.

Shapes: B clips, N patches, D feature width, H rollout steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hopecli.config.schema import Settings
from hopecli.data.clip import ClipBatch
from hopecli.engine.adapt import only_adapted
from hopecli.engine.optim import PeriodicAdamW, parameter_groups
from hopecli.engine.runtime import Runtime
from hopecli.engine.train_step import TrainingObjective, initial_phase
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.rollout import normalise, recomputed_rollout, rollout, teacher_forced

Pass = Callable[[], object]
ADAPTATION_LR = 1e-6


def inference_passes(model: PredictorModule, settings: Settings, raw: ClipBatch, runtime: Runtime) -> dict[str, Pass]:
    """teacher_forced, rollout and rollout_recomputed, in evaluation mode without gradients."""
    clip, o = _normalised(raw, settings), settings.objective
    horizon = settings.data.num_timesteps - 1

    def forced() -> Tensor:
        return teacher_forced(model, clip, frames=o.T_teacher, normalize_reps=o.normalize_reps)

    def with_memory() -> Tensor:
        return rollout(model, clip, context_frames=1, horizon=horizon, normalize_reps=o.normalize_reps)

    def recomputed() -> Tensor:
        return recomputed_rollout(model, clip, horizon=horizon, normalize_reps=o.normalize_reps)

    def without_gradients(call: Pass) -> Pass:
        def run() -> object:
            model.eval()
            with torch.no_grad(), runtime.autocast():
                return call()

        return run

    calls = {"teacher_forced": forced, "rollout": with_memory, "rollout_recomputed": recomputed}
    return {name: without_gradients(call) for name, call in calls.items()}


def training_pass(model: PredictorModule, settings: Settings, raw: ClipBatch, runtime: Runtime) -> Pass | None:
    """Both losses, backward, clipping and the optimizer's step; None for a model without parameters."""
    if not any(p.requires_grad for p in model.parameters()):
        return None
    objective = TrainingObjective(model, settings.objective)
    optimizer = PeriodicAdamW(
        parameter_groups(model, settings.optimizer, settings.model), settings.optimizer, fused=True
    )
    optimizer.set_learning_rate(0.0)
    limit = float("inf") if settings.optimizer.grad_clip is None else settings.optimizer.grad_clip

    def run() -> None:
        model.train()
        with runtime.autocast():
            total, _, _ = objective(raw, initial_phase(settings.objective))
        total.backward()
        nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return run


def adaptation_pass(model: PredictorModule, settings: Settings, raw: ClipBatch, runtime: Runtime) -> Pass | None:
    """A rollout, backward into LayerNorm gains and biases alone and AdamW; None for a model without them."""
    norms = [p for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()]
    if not norms:
        return None
    clip, o = _normalised(raw, settings), settings.objective
    horizon = settings.data.num_timesteps - 1
    optimizer = torch.optim.AdamW(norms, lr=ADAPTATION_LR)

    def run() -> None:
        model.eval()
        with only_adapted(model, norms):
            with runtime.autocast():
                out = rollout(
                    model, clip, context_frames=1, horizon=horizon, normalize_reps=o.normalize_reps, detach=True
                )
                loss = (out - clip.features[:, 1:]).abs().mean()
            loss.backward()
            optimizer.step()

    return run


def _normalised(raw: ClipBatch, settings: Settings) -> ClipBatch:
    features = normalise(raw.features, enabled=settings.objective.normalize_reps)
    return raw.with_features(features)
