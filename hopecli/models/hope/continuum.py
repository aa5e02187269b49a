"""The continuum memory system: a chain of residual MLPs, ordered from the fastest to the slowest.

Shapes: [..., d]. Source: Nested Learning (Behrouz et al. 2025), Eq. 96. How often a level's weights move (Eq. 31) is
the optimizer's business, not the model's.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ContinuumLevel(nn.Module):
    """x + fc2(GELU(fc1(LayerNorm(x)))), exact GELU."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d] -> the same shape."""
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))
