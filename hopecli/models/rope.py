"""3D rotary position embedding of V-JEPA 2: time, height and width parts of every attention head.

Shapes: L tokens, hd channels per head. A head is split into a time, a height and a width part of
w = 2 * floor(floor(hd / 3) / 2) channels; what is left is not rotated. Source: V-JEPA 2
(Assran et al. 2025), section 2.1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

RopeLayout = Literal["vjepa2", "exact"]


class RotaryTables(NamedTuple):
    """cos [L, hd] and signed sin [L, hd], ready for `rotate`: the sign of each pair's first channel is folded in."""

    cos: Tensor
    signed_sin: Tensor


def part_width(head_dim: int) -> int:
    """Channels of each of the three rotated parts."""
    return 2 * (head_dim // 3 // 2)


def rotary_tables(
    *,
    head_dim: int,
    grid: int,
    cond_tokens: int,
    first_frame: int,
    frames: int,
    layout: RopeLayout,
    device: torch.device,
    dtype: torch.dtype,
) -> RotaryTables:
    """Tables for `frames` frames from `first_frame`, tokens in frame order: conditioning tokens, then patches by row.

    Patches turn by (frame, row, column), conditioning tokens by the frame only. L = frames * (cond_tokens + grid^2).
    ValueError for an unknown layout.
    """
    if layout not in get_args(RopeLayout):
        raise ValueError(f"rope is {layout!r}, not {' or '.join(get_args(RopeLayout))}")
    width = part_width(head_dim)
    tokens = cond_tokens + grid * grid
    dtype = dtype if dtype == torch.float64 else torch.float32
    patch = torch.arange(grid * grid, device=device)
    still = torch.zeros(cond_tokens, device=device, dtype=patch.dtype)
    row, column = torch.cat([still, patch // grid]), torch.cat([still, patch % grid])  # [tokens]
    frame = torch.arange(first_frame, first_frame + frames, device=device)
    positions = torch.stack(  # [L, 3]
        [frame.repeat_interleave(tokens), row.repeat(frames), column.repeat(frames)], dim=-1
    ).to(dtype)

    index = torch.arange(width // 2, device=device, dtype=dtype)
    frequency = 10000.0 ** (-index / (width / 2)) if width else index
    angles = positions[..., None] * frequency  # [L, 3, w/2]
    angles = angles.repeat(1, 1, 2) if layout == "vjepa2" else angles.repeat_interleave(2, dim=-1)  # [L, 3, w]
    angles = angles.flatten(1)  # [L, 3w]
    cos, sin = angles.cos(), angles.sin()
    sin[:, 0::2] *= -1
    rest = (cos.shape[0], head_dim - 3 * width)
    return RotaryTables(torch.cat([cos, cos.new_ones(rest)], -1), torch.cat([sin, sin.new_zeros(rest)], -1))


def rotate(x: Tensor, tables: RotaryTables) -> Tensor:
    """Rotate x [..., L, hd]: x * cos + r(x) * sin with r turning each adjacent pair (x0, x1) into (-x1, x0).

    Rolling two channels by one swaps them, in half the time of a flip (CPU).
    """
    swapped = x.unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2) if x.shape[-1] % 2 == 0 else _swap_pairs(x)
    return torch.addcmul(x * tables.cos, swapped, tables.signed_sin)


def _swap_pairs(x: Tensor) -> Tensor:
    """Pairs swapped when hd is odd: the last channel belongs to the unrotated rest."""
    even = x[..., :-1].unflatten(-1, (-1, 2)).roll(1, -1).flatten(-2)
    return torch.cat([even, x[..., -1:]], dim=-1)
