"""The HOPE block: self-modifying memories, written and read once per frame, then the continuum memory system.

Shapes: B clips, C = cond_tokens + g * g tokens of one frame, d width, h memory hidden width.
Source: Nested Learning (Behrouz et al. 2025), Eqs. 76-97, as fixed for a frame-causal predictor: all that a frame needs
(keys, values, rates) is read at the state before it, the frame is one chunk of the write, and the read sees the write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hopecli.models.hope.continuum import ContinuumLevel
from hopecli.models.hope.memory import Memories, MemoryWeights, read
from hopecli.models.hope.update import EPS, Write, apply_write, at_least_float32, prepare_write
from hopecli.models.rope import RotaryTables, rotate
from hopecli.models.tokens import trunc_normal

ReadOrder = Literal["after_write", "before_write"]
SELF_MEMORIES = 4  # k, v, eta, alpha: read at the start of a frame; the fifth, mem, is read with the query


@dataclass(frozen=True)
class FastWeights:
    """A block's memory after a frame: a value, independent of the model's parameters.

    `mem` holds the fifth memory after the frame's write. The other four are next read in the next frame, so they are
    kept as they were before this frame, with the `write` they still owe: after the last frame nobody pays for it.
    """

    mem: MemoryWeights
    others: MemoryWeights
    write: Write

    def settled(self) -> MemoryWeights:
        """The four memories k, v, eta, alpha after the frame's write, per clip."""
        return apply_write(self.others, self.write)

    def all(self) -> MemoryWeights:
        """All five memories after the frame: [B, 5, h, d] and [B, 5, d, h]."""
        pairs = zip(self.settled(), self.mem, strict=True)
        return MemoryWeights(*(torch.cat(pair, dim=1) for pair in pairs))

    def detach(self) -> FastWeights:
        """The same numbers without history."""
        return FastWeights(self.mem.detach(), self.others.detach(), self.write.detach())


class HopeBlock(nn.Module):
    """One block; a pure function of (tokens, memory, rotary tables), so that recomputation is exact."""

    def __init__(
        self,
        *,
        width: int,
        grid: int,
        cond_tokens: int,
        num_heads: int,
        memory_multiplier: float,
        cms_multipliers: Sequence[float],
        read: ReadOrder = "after_write",
    ):
        if read not in ("after_write", "before_write"):
            raise ValueError(f"read is {read!r}, not after_write or before_write")
        super().__init__()
        self.grid, self.cond_tokens, self.num_heads, self.read_order = grid, cond_tokens, num_heads, read
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.local_conv = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.memories = Memories(width=width, hidden=int(memory_multiplier * width))
        self.gates = nn.Linear(width, 2)
        self.norm_o = nn.LayerNorm(width, eps=EPS)
        self.out_proj = nn.Linear(width, width)
        self.cms = nn.ModuleList(ContinuumLevel(width=width, hidden=int(m * width)) for m in cms_multipliers)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Small slow rates and long retention: eta starts at sigmoid(-2) = 0.12, alpha at sigmoid(3) = 0.95."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.memories.initialise()
        nn.init.zeros_(self.local_conv.weight)
        nn.init.zeros_(self.gates.weight)
        self.gates.bias.copy_(torch.tensor([-2.0, 3.0]))

    def forward(self, x: Tensor, memory: FastWeights | None, rotary: RotaryTables | None) -> tuple[Tensor, FastWeights]:
        """Tokens x [B, C, d] of one frame -> the same shape, and the memory after the frame.

        `memory` None is the state before the first frame: the parameters. `rotary` is the frame's tables, or None.
        """
        y = self._mix_locally(self.norm1(x))
        others, mem = self.start() if memory is None else (memory.settled(), memory.mem)
        write = self._prepare(y, others, rotary)
        written = apply_write(mem, write)
        query = self._rotated(self.q_proj(y), rotary)
        out = read(written if self.read_order == "after_write" else mem, query)[:, 0].to(y.dtype)
        x = x + self.out_proj(self.norm_o(out))
        for level in self.cms:
            x = level(x)
        return x, FastWeights(written, others, write)

    def start(self) -> tuple[MemoryWeights, MemoryWeights]:
        """The parameters as the state before the first frame, shared by the batch: k, v, eta, alpha together, and mem.

        Cloned, because the optimizer changes parameters in place and a memory must not change with them.
        """
        four_in, mem_in = self.memories.w_in.clone().split((SELF_MEMORIES, 1))
        four_out, mem_out = self.memories.w_out.clone().split((SELF_MEMORIES, 1))
        return MemoryWeights(four_in, four_out), MemoryWeights(mem_in, mem_out)

    def _prepare(self, y: Tensor, others: MemoryWeights, rotary: RotaryTables | None) -> Write:
        """Keys, values and rates of the frame from its tokens y [B, C, d] at the state before the frame."""
        key, value, rate, retention = read(others, y).unbind(1)  # each [B, C, d]
        return prepare_write(self._rotated(key, rotary), rms_normalise(value), *self._rates(rate, retention))

    def _rates(self, rate: Tensor, retention: Tensor) -> tuple[Tensor, Tensor]:
        """eta [B, C] and alpha [B] from the reads [B, C, d] of their memories, in float32 at least: in the 8 bits of
        bfloat16 an alpha above 0.998 is 1, which never forgets anything."""
        gates = self.gates
        with torch.autocast(rate.device.type, enabled=False):
            weight, bias, rate, retention = (at_least_float32(x) for x in (gates.weight, gates.bias, rate, retention))
            eta = torch.sigmoid(rms_normalise(rate) @ weight[0] + bias[0])
            return eta, torch.sigmoid(rms_normalise(retention) @ weight[1] + bias[1]).mean(dim=1)

    def _rotated(self, x: Tensor, rotary: RotaryTables | None) -> Tensor:
        """n(R_t(x)) of x [B, C, d]: rotary embedding per head, then unit RMS over all of d."""
        if rotary is not None:
            tables = RotaryTables(*(table[:, None] for table in rotary))  # [C, 1, hd] over [B, C, H, hd]
            x = rotate(x.unflatten(-1, (self.num_heads, -1)), tables).flatten(-2)
        return rms_normalise(x)

    def _mix_locally(self, y: Tensor) -> Tensor:
        """y [B, C, d] plus a depthwise 3x3 convolution over the patches; conditioning tokens pass unchanged."""
        condition, patches = y.split((self.cond_tokens, self.grid**2), dim=1)
        mixed = self.local_conv(patches.mT.unflatten(-1, (self.grid, self.grid))).flatten(2).mT
        return torch.cat([condition, patches + mixed], dim=1)


def rms_normalise(x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) over the last axis, without gain; finite at x = 0."""
    return F.rms_norm(x, x.shape[-1:], eps=EPS)
