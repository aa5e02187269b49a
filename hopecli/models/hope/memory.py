"""The five residual MLP memories of a HOPE block: reading them, and their fast weights as a value.

Shapes: B clips, L tokens, m memories, d width, h memory hidden width. A memory is M(x) = x + W_out GELU(W_in x)
(Nested Learning, Behrouz et al. 2025, Eqs. 89-91), its weights either shared by the batch ([m, h, d] and [m, d, h], as
before the first write) or one set per clip ([B, m, h, d] and [B, m, d, h]).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEMORY_NAMES = ("k", "v", "eta", "alpha", "mem")


class MemoryWeights(NamedTuple):
    """W_in and W_out of m memories, shared by the batch (3 axes) or one set per clip (4 axes)."""

    w_in: Tensor
    w_out: Tensor

    def detach(self) -> MemoryWeights:
        """The same numbers without history."""
        return MemoryWeights(self.w_in.detach(), self.w_out.detach())


class Memories(nn.Module):
    """The initial states of the five memories, in the order of `MEMORY_NAMES`."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.w_in = nn.Parameter(torch.empty(len(MEMORY_NAMES), hidden, width))
        self.w_out = nn.Parameter(torch.empty(len(MEMORY_NAMES), width, hidden))
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """w_in ~ N(0, 1/d), so that hidden pre-activations of unit-RMS inputs are unit; w_out ~ N(0, 0.02^2)."""
        nn.init.normal_(self.w_in, std=self.w_in.shape[-1] ** -0.5)
        nn.init.normal_(self.w_out, std=0.02)


def per_memory(x: Tensor, weight: Tensor) -> Tensor:
    """x [B, 1 or m, L, i] times the transpose of weight [m, o, i] or [B, m, o, i] -> [B, m, L, o].

    Shared weights serve all clips in one product per memory; torch.matmul would copy them once per clip.
    """
    memories = weight.shape[-3]
    x = x.expand(-1, memories, -1, -1)
    if weight.dim() == 4:
        return torch.bmm(x.flatten(0, 1), weight.flatten(0, 1).mT).unflatten(0, (-1, memories))
    tokens = x.transpose(0, 1).flatten(1, 2)  # [m, B*L, i]
    return torch.bmm(tokens, weight.mT).unflatten(1, (x.shape[0], -1)).transpose(0, 1)


def read(weights: MemoryWeights, x: Tensor) -> Tensor:
    """M(x) of every memory, [B, m, L, d] in the dtype of x, for inputs x [B, L, d] that all memories share."""
    inner = x[:, None].to(weights.w_in.dtype)  # [B, 1, L, d]; fast weights stay in float32 in a half precision model
    return (inner + per_memory(F.gelu(per_memory(inner, weights.w_in)), weights.w_out)).to(x.dtype)
