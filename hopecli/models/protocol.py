"""The one interface of every predictor: a recurrent cell with an explicit memory.

Shapes: B clips, T encoded frames, N = grid * grid patches, D feature width, A action width.
Memory is a value that goes in and comes out; a predictor keeps no hidden mutable state.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

Memory = Any  # KV cache | (h, c) | fast weights | None: opaque to callers, who only pass it on


class Predictor(Protocol):
    """What rollout, evaluation, adaptation and benchmarks may ask of a model."""

    def initial_state(self, batch_size: int) -> Memory:
        """Memory before the first frame, for `batch_size` clips."""
        ...

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: Memory, t: int
    ) -> tuple[Tensor, Memory]:
        """One frame in, the next frame out.

        frame [B, N, D] (normalised features), action [B, A], state_vec [B, A], extrinsics [B, A-1] or None,
        t the frame's index from 0. Returns the prediction of frame t+1 [B, N, D] and the memory after frame t.
        """
        ...

    def __call__(self, features: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        """The next frame at every position in one pass.

        features [B, T*N, D] or [B, T, N, D], actions [B, T, A], states [B, T, A], extrinsics [B, T, A-1] or None.
        Returns predictions in the shape of `features`: position t holds the prediction of frame t+1.
        """
        ...


class PredictorModule(nn.Module):
    """Base of all predictors: fixed sizes, the parallel call's shape handling and the default scan over `step`.

    carries_memory: whether the memory after one clip may start another clip (a key/value cache may not).
    """

    carries_memory = False

    def __init__(self, *, embed_dim: int, action_dim: int, grid: int):
        super().__init__()
        self.embed_dim, self.action_dim, self.grid = embed_dim, action_dim, grid
        self.num_patches = grid * grid

    def initial_state(self, batch_size: int) -> Memory:
        raise NotImplementedError(f"{type(self).__name__} must define initial_state")

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: Memory, t: int
    ) -> tuple[Tensor, Memory]:
        raise NotImplementedError(f"{type(self).__name__} must define step")

    def forward(self, features: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        """See `Predictor.__call__`; ValueError when actions, states or extrinsics are not as long as the frames."""
        frames = features.unflatten(1, (-1, self.num_patches)) if features.dim() == 3 else features  # [B, T, N, D]
        length = frames.shape[1]
        for name, rows in (("actions", actions), ("states", states), ("extrinsics", extrinsics)):
            if rows is not None and rows.shape[1] != length:
                raise ValueError(f"{name} have {rows.shape[1]} steps for {length} frames")
        return self.predict_frames(frames, actions, states, extrinsics).reshape(features.shape)

    def predict_frames(self, frames: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        """Predictions [B, T, N, D] for frames [B, T, N, D]: a scan of `step`, which a model may replace by one pass."""
        memory = self.initial_state(frames.shape[0])
        predictions = []
        for t in range(frames.shape[1]):
            rows = None if extrinsics is None else extrinsics[:, t]
            prediction, memory = self.step(frames[:, t], actions[:, t], states[:, t], rows, memory=memory, t=t)
            predictions.append(prediction)
        return torch.stack(predictions, dim=1)
