"""The training loss: d(p, h) = mean(|p - h|^loss_exp) / loss_exp, teacher-forced and over a rollout.

Shapes: B clips, T frames, N patches, D feature width. Source: V-JEPA 2-AC, Eqs. 2-4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.models.protocol import Predictor
from hopecli.objectives.rollout import normalise, rollout, teacher_forced
from hopecli.objectives.schedules import ObjectivePhase


def distance(prediction: Tensor, target: Tensor, loss_exp: float) -> Tensor:
    """mean(|p - h|^loss_exp) / loss_exp over all elements, a scalar; loss_exp 1 is L1.

    Where p equals h the gradient is 0, as that of L1 is there; with loss_exp below 1 it has no finite limit.
    """
    error = (prediction - target).abs()
    if loss_exp == 1.0:
        return error.mean()
    if loss_exp > 1.0:
        return error.pow(loss_exp).mean() / loss_exp
    away = error != 0.0  # true of NaN, which stays what it is
    return torch.where(away, torch.where(away, error, 1.0).pow(loss_exp), 0.0).mean() / loss_exp


@dataclass(frozen=True)
class LossTerms:
    """Scalars of one batch: total = weight_teacher * teacher + weight_rollout * rollout.

    A term of weight 0 is measured without gradients and is no part of the total, even when it is not finite.
    """

    total: Tensor
    teacher: Tensor
    rollout: Tensor


def training_loss(
    model: Predictor,
    clip: ClipBatch,
    *,
    phase: ObjectivePhase,
    T_teacher: int,
    normalize_reps: bool,
    loss_exp: float,
) -> LossTerms:
    """Both losses of raw clips (features not yet normalised) under the curriculum's current phase."""
    target = normalise(clip.features, enabled=normalize_reps)
    clip = clip.with_features(target)
    first, horizon = phase.context_frames, phase.T_rollout
    learning = torch.is_grad_enabled()
    with torch.set_grad_enabled(learning and phase.loss_weight_teacher > 0):
        forced = teacher_forced(model, clip, frames=T_teacher, normalize_reps=normalize_reps)
        teacher = distance(forced, target[:, 1 : T_teacher + 1], loss_exp)
    if not teacher.requires_grad:  # older torch would use its casts of the weights, which have no gradient, again
        torch.clear_autocast_cache()
    with torch.set_grad_enabled(learning and phase.loss_weight_rollout > 0):
        rolled = rollout(model, clip, context_frames=first, horizon=horizon, normalize_reps=normalize_reps)
        rolled_loss = distance(rolled, target[:, first : first + horizon], loss_exp)
    weighted = ((phase.loss_weight_teacher, teacher), (phase.loss_weight_rollout, rolled_loss))
    total = torch.stack([weight * loss for weight, loss in weighted if weight > 0]).sum()
    return LossTerms(total, teacher, rolled_loss)
