"""AC-HOPE-ViT: the token predictor with HOPE blocks, whose memory is per-clip fast weights.

Shapes: B clips, T frames, N patches, D feature width, W model width, C tokens per frame.
Source: Nested Learning (Behrouz et al. 2025), section 8, on the embeddings and tokens of V-JEPA 2-AC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hopecli.models.hope.titans import FastWeights, HopeBlock, ReadOrder
from hopecli.models.rope import RopeLayout
from hopecli.models.tokens import TokenPredictor


@dataclass(frozen=True)
class HopeMemory:
    """Fast weights of every block; empty before the first frame, where they are the parameters."""

    blocks: tuple[FastWeights, ...] = ()

    def detach(self) -> HopeMemory:
        """The same numbers without history."""
        return HopeMemory(tuple(block.detach() for block in self.blocks))


class HopePredictor(TokenPredictor):
    """Action-conditioned predictor of the next frame's features with self-modifying memories.

    `truncate_memory_gradient` n cuts the gradient through the memory before frames n, 2n, ...; None never does.
    """

    carries_memory = True

    def __init__(
        self,
        *,
        embed_dim: int,
        action_dim: int,
        grid: int,
        width: int,
        depth: int,
        num_heads: int,
        memory_multiplier: float,
        cms_multipliers: Sequence[float],
        read: ReadOrder = "after_write",
        use_rope: bool = True,
        rope: RopeLayout = "vjepa2",
        use_extrinsics: bool = False,
        activation_checkpointing: bool = False,
        truncate_memory_gradient: int | None = None,
    ):
        if truncate_memory_gradient is not None and truncate_memory_gradient < 1:
            raise ValueError(f"truncate_memory_gradient is {truncate_memory_gradient}, not at least 1")
        super().__init__(
            embed_dim=embed_dim,
            action_dim=action_dim,
            grid=grid,
            width=width,
            num_heads=num_heads,
            use_extrinsics=use_extrinsics,
            rope=rope if use_rope else None,
        )
        self.activation_checkpointing = activation_checkpointing
        self.truncate_memory_gradient = truncate_memory_gradient
        self.hope_blocks = nn.ModuleList(
            HopeBlock(
                width=width,
                grid=grid,
                cond_tokens=self.cond_tokens,
                num_heads=num_heads,
                memory_multiplier=memory_multiplier,
                cms_multipliers=cms_multipliers,
                read=read,
            )
            for _ in range(depth)
        )
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """As the ViT around the blocks; the blocks' own initial values inside."""
        super().initialise()
        for block in self.blocks():
            block.initialise()

    def blocks(self) -> list[HopeBlock]:
        """The blocks in order, typed."""
        return [block for block in self.hope_blocks if isinstance(block, HopeBlock)]

    def memory_parameters(self) -> Iterator[nn.Parameter]:
        """The memories' initial states: w_in and w_out of every block."""
        for block in self.blocks():
            yield from block.memories.parameters()

    def cms_parameters(self, level: int) -> Iterator[nn.Parameter]:
        """Parameters of one continuum level in every block, 0 <= level < len(cms_multipliers), fast to slow."""
        for block in self.blocks():
            yield from block.cms[level].parameters()

    def initial_state(self, batch_size: int) -> HopeMemory:
        """Empty: before the first write the parameters serve all clips, without a copy per clip."""
        return HopeMemory()

    def step(
        self,
        frame: Tensor,
        action: Tensor,
        state_vec: Tensor,
        extrinsics: Tensor | None,
        *,
        memory: HopeMemory,
        t: int,
    ) -> tuple[Tensor, HopeMemory]:
        """See `Predictor.step`. Any memory goes with any t, which only places the frame in the rotary embedding: a
        memory may be carried from one clip into the next.
        """
        every = self.truncate_memory_gradient
        if every is not None and t > 0 and t % every == 0:
            memory = memory.detach()
        rows = None if extrinsics is None else extrinsics[:, None]
        tokens = self.embed(frame[:, None], action[:, None], state_vec[:, None], rows)[:, 0]  # [B, C, W]
        rotary = self.rotary(first_frame=t, frames=1)
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        after = []
        for i, block in enumerate(self.hope_blocks):
            before = memory.blocks[i] if memory.blocks else None
            if recompute:
                tokens, fast = checkpoint(block, tokens, before, rotary, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens, fast = block(tokens, before, rotary)
            after.append(fast)
        return self.project(tokens), HopeMemory(tuple(after))
