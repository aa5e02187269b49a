"""A batch of clips, as every later part sees it.

Shapes: B clips, T encoded frames, N patches, D feature width, A action width. A clip of T frames has T-1 transitions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClipBatch:
    """features [B, T, N, D] in the stored dtype, actions [B, T-1, A], states [B, T-1, A],
    extrinsics [B, T-1, A-1] or None, names: the clips' folder names, in order."""

    features: Tensor
    actions: Tensor
    states: Tensor
    extrinsics: Tensor | None
    names: tuple[str, ...]

    def __len__(self) -> int:
        return self.features.shape[0]

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> ClipBatch:
        """The batch on `device` in `dtype`; the stored dtype travels, so that a float16 clip moves half the bytes."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True).to(dtype)

        extrinsics = None if self.extrinsics is None else move(self.extrinsics)
        return ClipBatch(move(self.features), move(self.actions), move(self.states), extrinsics, self.names)

    def with_features(self, features: Tensor) -> ClipBatch:
        """The same clips with other features [B, T, N, D], normalised ones for example."""
        return ClipBatch(features, self.actions, self.states, self.extrinsics, self.names)

    def with_actions(self, actions: Tensor) -> ClipBatch:
        """The same clips under other actions [B, T-1, A]."""
        return ClipBatch(self.features, actions, self.states, self.extrinsics, self.names)
