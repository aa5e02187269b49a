"""The write of a HOPE block: one frame of delta gradient descent (DGD) on m memories, in closed form.

Shapes: B clips, C tokens of the frame, m memories, d width, h memory hidden width. Source: Nested Learning (Behrouz et
al. 2025), Eqs. 83, 88, 91, 93. The literal rule runs over the tokens i = 1..C of the frame, for a matrix W with unit
inputs n_i, signals g_i and rates eta_i, after one retention W <- alpha W:

    W <- W (I - eta_i n_i n_i^T) - eta_i g_i n_i^T

With N, G the stacked rows and L = strictly-lower-triangular(diag(eta) N N^T) all C tokens are one triangular solve:

    W <- W - R^T (I + L)^-T N,    R = diag(eta) (N W^T + G)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.models.hope.memory import MemoryWeights, per_memory

EPS = 1e-6


class Write(NamedTuple):
    """What a frame writes into every memory: keys and values [B, C, d], rates eta [B, C], retention alpha [B].

    `solved_keys` [B, C, d] is diag(eta / sqrt(d)) (I + L)^-T N of W_in; its inputs are the keys: shared by memories.
    """

    keys: Tensor
    values: Tensor
    eta: Tensor
    alpha: Tensor
    solved_keys: Tensor

    def detach(self) -> Write:
        """The same numbers without history."""
        return Write(*(field.detach() for field in self))


def prepare_write(keys: Tensor, values: Tensor, eta: Tensor, alpha: Tensor) -> Write:
    """The write of one frame in float32 at least; keys and values [B, C, d] of unit RMS, eta [B, C], alpha [B]."""
    keys, values, eta, alpha = (at_least_float32(x) for x in (keys, values, eta, alpha))
    with torch.autocast(keys.device.type, enabled=False):
        unit = keys * keys.shape[-1] ** -0.5
        lower = eta[..., None] * torch.bmm(unit, unit.mT)  # [B, C, C]; the solve reads its strictly lower part
        solved = torch.linalg.solve_triangular(lower.mT, unit, upper=True, unitriangular=True)
        return Write(keys, values, eta, alpha, solved * (eta * keys.shape[-1] ** -0.5)[..., None])


def apply_write(weights: MemoryWeights, write: Write) -> MemoryWeights:
    """Weights [B, m, ...] after the frame's write; `weights` may still be shared by the batch."""
    with torch.autocast(write.keys.device.type, enabled=False):
        w_in, w_out = (at_least_float32(weight) for weight in weights)
        hidden, active, recalled, error = _recall(w_in, w_out, write)
        eta = write.eta[:, None, :, None]  # [B, 1, C, 1]
        alpha = write.alpha[:, None, None, None]  # [B, 1, 1, 1]
        # gelu_backward(g, a) is g * GELU'(a) in one kernel.
        delta = torch.ops.aten.gelu_backward(per_memory(error, w_out.mT), hidden)  # [B, m, C, h]
        signal_in = torch.addcmul(delta, alpha, hidden)
        gram = torch.matmul(active, active.mT)  # [B, m, C, C]
        size = (gram.diagonal(dim1=-2, dim2=-1) + EPS * w_in.shape[-2]).sqrt()[..., None]  # [B, m, C, 1]
        rate = eta / size
        signal_out = rate * torch.addcmul(error, alpha, recalled)  # [B, m, C, d]
        lower = rate * gram / size.mT
        solved = torch.linalg.solve_triangular(lower, signal_out, upper=False, unitriangular=True)
        solved_keys = -write.solved_keys[:, None].expand(-1, w_in.shape[-3], -1, -1)
        return MemoryWeights(
            _retain_and_add(alpha, w_in, signal_in, solved_keys),
            _retain_and_add(alpha, w_out, solved / -size, active),
        )


def surprise(weights: MemoryWeights, write: Write) -> Tensor:
    """|M(k_i) - M(v_i)| of every memory and token before the write, [B, m, C]."""
    with torch.autocast(write.keys.device.type, enabled=False):  # as the write itself
        return torch.linalg.vector_norm(_recall(*weights, write)[-1], dim=-1)


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is raised to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _recall(w_in: Tensor, w_out: Tensor, write: Write) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """At the keys: W_in k [B, m, C, h], its GELU u, W_out u [B, m, C, d], and the error M(k) - M(v) [B, m, C, d]."""
    keys, values = write.keys[:, None], write.values[:, None]
    hidden = per_memory(keys, w_in)
    active = F.gelu(hidden)
    recalled = per_memory(active, w_out)
    target = per_memory(F.gelu(per_memory(values, w_in)), w_out)
    return hidden, active, recalled, recalled - target + (keys - values)


def _retain_and_add(alpha: Tensor, weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """alpha [B, 1, 1, 1] times weight [(B,) m, o, i] plus left^T right, left [B, m, C, o], right [B, m, C, i]."""
    product = torch.bmm(left.flatten(0, 1).mT, right.flatten(0, 1)).unflatten(0, left.shape[:2])  # [B, m, o, i]
    return torch.addcmul(product, alpha, weight)
