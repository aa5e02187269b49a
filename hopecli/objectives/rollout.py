"""Where losses and scores walk time: teacher forcing and autoregressive rollout on the cell interface.

Shapes: B clips, T frames, N patches, D feature width, C context frames, H rollout steps. Source: V-JEPA 2-AC, Eqs. 2-4.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.models.protocol import Memory, Predictor

REPRESENTATION_EPS = 1e-5


def normalise(features: Tensor, *, enabled: bool = True) -> Tensor:
    """LayerNorm without gain over D (eps 1e-5), the space all losses live in; the identity when not `enabled`."""
    if not enabled:
        return features
    features = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
    return F.layer_norm(features, features.shape[-1:], eps=REPRESENTATION_EPS)


def teacher_forced(model: Predictor, clip: ClipBatch, *, frames: int, normalize_reps: bool) -> Tensor:
    """Predictions of frames 1..`frames` [B, frames, N, D] from the true frames before each, in one parallel pass.

    `clip.features` are already normalised; predictions are normalised the same way.
    """
    rows = None if clip.extrinsics is None else clip.extrinsics[:, :frames]
    out = model(clip.features[:, :frames], clip.actions[:, :frames], clip.states[:, :frames], rows)
    return normalise(out, enabled=normalize_reps)


def next_frame(
    model: Predictor, clip: ClipBatch, *, t: int, memory: Memory, normalize_reps: bool, frame: Tensor | None = None
) -> tuple[Tensor, Memory]:
    """One step of a walk: the prediction of frame t+1 [B, N, D] from the clip's frame t (or from `frame` in its place)
    under its conditions, and the memory after it. `clip.features` are already normalised."""
    rows = None if clip.extrinsics is None else clip.extrinsics[:, t]
    frame = clip.features[:, t] if frame is None else frame
    out, memory = model.step(frame, clip.actions[:, t], clip.states[:, t], rows, memory=memory, t=t)
    return normalise(out, enabled=normalize_reps), memory


def observe(model: Predictor, clip: ClipBatch, *, frames: int, memory: Memory | None = None) -> Memory:
    """The memory after the clip's first `frames` true frames, from `memory` or the model's initial state."""
    if memory is None:
        memory = model.initial_state(len(clip))
    for t in range(frames):
        _, memory = next_frame(model, clip, t=t, memory=memory, normalize_reps=False)
    return memory


def steps(
    model: Predictor,
    clip: ClipBatch,
    *,
    context_frames: int,
    horizon: int,
    normalize_reps: bool,
    detach: bool = False,
    memory: Memory | None = None,
) -> Iterator[tuple[int, Tensor, Memory]]:
    """Walk a clip: C true frames, then the model's own predictions; yields (t, prediction of frame t+1, memory).

    `detach` cuts the gradient of the fed-back prediction (not of the memory). `memory` starts the walk, by default
    the model's initial state.
    """
    if memory is None:
        memory = model.initial_state(len(clip))
    frame = None
    for t in range(context_frames + horizon - 1):
        given = None if t < context_frames else frame
        prediction, memory = next_frame(
            model, clip, t=t, memory=memory, normalize_reps=normalize_reps, frame=given
        )  # [B, N, D]
        yield t, prediction, memory
        frame = prediction.detach() if detach else prediction


def rollout(
    model: Predictor,
    clip: ClipBatch,
    *,
    context_frames: int,
    horizon: int,
    normalize_reps: bool,
    detach: bool = False,
    memory: Memory | None = None,
) -> Tensor:
    """Predictions of frames C..C+H-1 [B, H, N, D]: H autoregressive steps after C true frames; gradients flow through
    the whole rollout unless `detach`. `memory` starts the walk, by default the model's initial state."""
    walk = steps(
        model,
        clip,
        context_frames=context_frames,
        horizon=horizon,
        normalize_reps=normalize_reps,
        detach=detach,
        memory=memory,
    )
    return torch.stack([prediction for t, prediction, _ in walk if t >= context_frames - 1], dim=1)


def recomputed_rollout(model: Predictor, clip: ClipBatch, *, horizon: int, normalize_reps: bool) -> Tensor:
    """The rollout from one true frame [B, H, N, D] without memory: every step runs the whole past again.

    `clip.features` are already normalised. Equal to `rollout` with context_frames 1.
    """
    frames = [clip.features[:, 0]]
    for t in range(horizon):
        rows = None if clip.extrinsics is None else clip.extrinsics[:, : t + 1]
        out = model(torch.stack(frames, dim=1), clip.actions[:, : t + 1], clip.states[:, : t + 1], rows)
        frames.append(normalise(out[:, -1], enabled=normalize_reps))
    return torch.stack(frames[1:], dim=1)
