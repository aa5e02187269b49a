"""Pre-norm transformer block with frame-causal attention and a key/value cache.

Shapes: B clips, L tokens given now, P tokens in the cache, H heads, hd channels per head, W = H * hd.
Every token sees all tokens of its own frame and of earlier frames, conditioning tokens included.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hopecli.models.rope import RotaryTables, rotate

USUAL_FRAMES = 8  # a 16-frame clip: its rollout then allocates once


class KeyValueBuffer:
    """Room for keys and values, each [B, H, capacity, hd], of which the first `used` tokens are written."""

    def __init__(self, like: Tensor, capacity: int):
        shape = (*like.shape[:2], capacity, like.shape[3])
        self.key, self.value, self.used = like.new_empty(shape), like.new_empty(shape), 0

    def append(self, k: Tensor, v: Tensor) -> None:
        """Write k and v [B, H, L, hd] behind the used tokens."""
        start, self.used = self.used, self.used + k.shape[2]
        self.key[:, :, start : self.used] = k
        self.value[:, :, start : self.used] = v


class KeyValue(NamedTuple):
    """Rotated keys and values of the frames seen so far, in pieces [B, H, L, hd] along the tokens: a value that never
    changes.

    With gradients a piece per step, joined where they are used, so that activation checkpointing keeps each frame once
    and not every prefix; each in memory of its own, because a view would keep the queries alive too. Without, one
    piece: a view of a shared `buffer`, which grows by doubling, so that a rollout does not copy the past at each step.
    Only the newest memory may write into the room behind it; an older one copies first.
    """

    keys: tuple[Tensor, ...] = ()
    values: tuple[Tensor, ...] = ()
    buffer: KeyValueBuffer | None = None

    @property
    def tokens(self) -> int:
        """How many tokens P it holds."""
        return sum(piece.shape[2] for piece in self.keys)

    def extended(self, k: Tensor, v: Tensor) -> KeyValue:
        """These and new keys and values [B, H, L, hd]."""
        if torch.is_grad_enabled():
            return KeyValue((*self.keys, k.contiguous()), (*self.values, v.contiguous()))
        buffer, seen = self.buffer, self.tokens
        needed = seen + k.shape[2]
        closed = buffer is not None and buffer.key.is_inference() and not torch.is_inference_mode_enabled()
        other = buffer is not None and buffer.key.dtype != k.dtype  # written under autocast and read without, or so
        if buffer is None or closed or other or buffer.used != seen or buffer.key.shape[2] < needed:
            buffer = KeyValueBuffer(k, max(2 * needed, USUAL_FRAMES * k.shape[2]))
            for pieces in zip(self.keys, self.values, strict=True):
                buffer.append(*pieces)
        buffer.append(k, v)
        return KeyValue((buffer.key[:, :, :needed],), (buffer.value[:, :, :needed],), buffer)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Keys and values, each [B, H, P, hd]."""
        if len(self.keys) == 1:
            return self.keys[0], self.values[0]
        return torch.cat(self.keys, dim=2), torch.cat(self.values, dim=2)


def frame_causal_attention(q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int) -> Tensor:
    """Attention output [B, H, L, hd] for the last L of the P tokens in k and v [B, H, P, hd].

    One unmasked call per frame over the keys up to it: half the work of a masked square, and it needs no mask, so
    that the fused kernels of every backend can be used.
    """
    if q.shape[2] == tokens_per_frame:  # a step: every key is seen
        return F.scaled_dot_product_attention(q, k, v)
    seen = k.shape[2] - q.shape[2]
    outputs = []
    for frame in q.split(tokens_per_frame, dim=2):
        seen += frame.shape[2]
        outputs.append(F.scaled_dot_product_attention(frame, k[:, :, :seen], v[:, :, :seen]))
    return torch.cat(outputs, dim=2)


class FrameCausalAttention(nn.Module):
    """Multi-head attention; `qkv` output is ordered q, k, v, then head, then channel."""

    def __init__(self, *, width: int, num_heads: int, tokens_per_frame: int):
        super().__init__()
        self.num_heads, self.tokens_per_frame = num_heads, tokens_per_frame
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: RotaryTables | None, past: KeyValue | None) -> tuple[Tensor, KeyValue | None]:
        """x [B, L, W] and rotary tables [L, 1, hd] -> output [B, L, W] and the cache including these tokens.

        `past` None is a pass that no step follows: it keeps no cache.
        """
        heads = self.num_heads
        qk, v = self.qkv(x).unflatten(-1, (3 * heads, -1)).split((2 * heads, heads), dim=2)  # [B, L, 2H and H, hd]
        if rotary is not None:  # before the axes are swapped, while memory is in order
            qk = rotate(qk, rotary).to(v.dtype)
        q, k = qk.transpose(1, 2).split(heads, dim=1)  # each [B, H, L, hd]
        v = v.transpose(1, 2)
        cache = None if past is None else past.extended(k, v)
        keys, values = (k, v) if cache is None else cache.joined()
        out = frame_causal_attention(q, keys, values, tokens_per_frame=self.tokens_per_frame)
        return self.proj(out.transpose(1, 2).flatten(2)), cache


class GeluMLP(nn.Module):
    """fc2(GELU(fc1 x)), exact GELU."""

    def __init__(self, *, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))

    @property
    def output(self) -> nn.Linear:
        """The layer that writes into the residual stream."""
        return self.fc2


class SwiGluMLP(nn.Module):
    """fc3(silu(fc1 x) * fc2 x); wide: the hidden width is cut to 2/3 and rounded up to a multiple of 8."""

    def __init__(self, *, width: int, hidden: int, wide: bool = True):
        super().__init__()
        if wide:
            hidden = -(-int(2 * hidden / 3) // 8) * 8
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(width, hidden)
        self.fc3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))

    @property
    def output(self) -> nn.Linear:
        """The layer that writes into the residual stream."""
        return self.fc3


class Block(nn.Module):
    """x + attn(norm1 x), then x + mlp(norm2 x), each branch dropped per clip with probability `drop_path`."""

    def __init__(
        self,
        *,
        width: int,
        num_heads: int,
        mlp_ratio: float,
        mlp: str,
        wide_swiglu: bool,
        drop_path: float,
        tokens_per_frame: int,
    ):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.drop_path = drop_path
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = FrameCausalAttention(width=width, num_heads=num_heads, tokens_per_frame=tokens_per_frame)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp: GeluMLP | SwiGluMLP
        if mlp == "swiglu":
            self.mlp = SwiGluMLP(width=width, hidden=hidden, wide=wide_swiglu)
        else:
            self.mlp = GeluMLP(width=width, hidden=hidden)

    def draw_kept(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        """Stochastic depth (Huang et al. 2016): what both branches of x [B, L, W] are multiplied by, each [B, 1, 1]: 0
        for a dropped clip, 1 / keep for a kept one; None when nothing is dropped.

        Apart from `forward`, so that activation checkpointing computes again without drawing again.
        """
        if not self.training or self.drop_path == 0.0:
            return None
        keep = 1.0 - self.drop_path
        attention, mlp = (x.new_empty(x.shape[0], 1, 1).bernoulli_(keep) / keep for _ in range(2))
        return attention, mlp

    def forward(
        self, x: Tensor, rotary: RotaryTables | None, past: KeyValue | None, kept: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, KeyValue | None]:
        """x [B, L, W] and rotary tables [L, 1, hd] -> the shape of x, and the cache including these tokens (None
        without `past`); `kept` as drawn by `draw_kept`."""
        branch, cache = self.attn(self.norm1(x), rotary, past)
        x = x + (branch if kept is None else branch * kept[0].to(branch.dtype))
        branch = self.mlp(self.norm2(x))
        return x + (branch if kept is None else branch * kept[1].to(branch.dtype)), cache
