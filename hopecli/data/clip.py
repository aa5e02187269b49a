"""A batch of clips, as every later part sees it.

Shapes: B clips, T encoded frames, N patches, D feature width, A action width. A clip of T frames has T-1 transitions.
"""

from __future__ import annotations

from collections.abc import Callable
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
        # On MPS a copy that is not waited for may read memory that has been given back (pytorch issue 139550).
        ahead = device.type == "cuda"
        return self._each(lambda x: x.to(device, non_blocking=ahead).to(dtype))

    def pin_memory(self) -> ClipBatch:
        """The batch in page-locked memory; what a DataLoader calls."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> ClipBatch:
        extrinsics = None if self.extrinsics is None else change(self.extrinsics)
        return ClipBatch(change(self.features), change(self.actions), change(self.states), extrinsics, self.names)

    def with_features(self, features: Tensor) -> ClipBatch:
        """The same clips with other features [B, T, N, D], normalised ones for example."""
        return ClipBatch(features, self.actions, self.states, self.extrinsics, self.names)

    def with_actions(self, actions: Tensor) -> ClipBatch:
        """The same clips under other actions [B, T-1, A]."""
        return ClipBatch(self.features, actions, self.states, self.extrinsics, self.names)
