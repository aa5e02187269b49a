"""The V-JEPA 2-AC predictor: a frame-causal ViT with 3D RoPE, and a key/value cache as its memory.

Shapes: B clips, T frames, N patches, D feature width, W model width, C tokens per frame.
Source: V-JEPA 2 (Assran et al. 2025), section 3; parameter names as in the published weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hopecli.models.attention import Block, KeyValue
from hopecli.models.rope import RopeLayout, RotaryTables
from hopecli.models.tokens import TokenPredictor, residual_scale


@dataclass(frozen=True)
class KeyValueCache:
    """Keys and values of the frames seen so far, one entry per block; empty before the first frame."""

    blocks: tuple[KeyValue, ...] = ()


class ViTAC(TokenPredictor):
    """Action-conditioned ViT predictor of the next frame's features."""

    def __init__(
        self,
        *,
        embed_dim: int,
        action_dim: int,
        grid: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        mlp: str = "gelu",
        wide_swiglu: bool = True,
        drop_path: float = 0.0,
        rope: RopeLayout = "vjepa2",
        use_extrinsics: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__(
            embed_dim=embed_dim,
            action_dim=action_dim,
            grid=grid,
            width=width,
            num_heads=num_heads,
            use_extrinsics=use_extrinsics,
            rope=rope,
        )
        self.activation_checkpointing = activation_checkpointing
        self.predictor_blocks = nn.ModuleList(
            Block(
                width=width,
                num_heads=num_heads,
                mlp_ratio=mlp_ratio,
                mlp=mlp,
                wide_swiglu=wide_swiglu,
                drop_path=drop_path * i / max(1, depth - 1),
                tokens_per_frame=self.tokens_per_frame,
            )
            for i in range(depth)
        )
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Published initialisation: output weights of layer i (from 1) are divided by sqrt(2 i)."""
        super().initialise()
        for i, block in enumerate(self.blocks(), start=1):
            block.attn.proj.weight.mul_(residual_scale(i))
            block.mlp.output.weight.mul_(residual_scale(i))

    def blocks(self) -> list[Block]:
        """The blocks in order, typed."""
        return [block for block in self.predictor_blocks if isinstance(block, Block)]

    def initial_state(self, batch_size: int) -> KeyValueCache:
        """An empty cache (it has no batch axis yet)."""
        return KeyValueCache()

    def step(
        self,
        frame: Tensor,
        action: Tensor,
        state_vec: Tensor,
        extrinsics: Tensor | None,
        *,
        memory: KeyValueCache,
        t: int,
    ) -> tuple[Tensor, KeyValueCache]:
        """See `Predictor.step`. Costs one frame: keys and values of earlier frames come from the cache.

        ValueError when the cache does not hold exactly the t frames before this one.
        """
        cached = memory.blocks[0].tokens // self.tokens_per_frame if memory.blocks else 0
        if cached != t:
            raise ValueError(f"the cache holds {cached} frames, so the next frame is {cached}, not {t}")
        rows = None if extrinsics is None else extrinsics[:, None]
        tokens = self.embed(frame[:, None], action[:, None], state_vec[:, None], rows)[:, 0]  # [B, C, W]
        past = memory.blocks or (KeyValue(),) * len(self.predictor_blocks)
        tokens, memory = self._blocks(tokens, self.rotary(first_frame=t, frames=1), past)
        return self.project(tokens), memory

    def predict_frames(self, frames: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        """All T frames in one frame-causal pass: [B, T, N, D] -> [B, T, N, D]."""
        tokens = self.embed(frames, actions, states, extrinsics)  # [B, T, C, W]
        rotary = self.rotary(first_frame=0, frames=frames.shape[1])
        past = (None,) * len(self.predictor_blocks)
        out, _ = self._blocks(tokens.flatten(1, 2), rotary, past)  # [B, T*C, W]
        return self.project(out.unflatten(1, tokens.shape[1:3]))

    def _blocks(
        self, tokens: Tensor, rotary: RotaryTables | None, pasts: Sequence[KeyValue | None]
    ) -> tuple[Tensor, KeyValueCache]:
        """Tokens [B, L, W] after every block, and the cache after them: of blocks whose past is None, none."""
        if rotary is not None:
            rotary = RotaryTables(*(table[:, None] for table in rotary))  # [L, 1, hd] over [B, L, H, hd]
        recompute = self.activation_checkpointing and torch.is_grad_enabled()
        caches = []
        for block, past in zip(self.blocks(), pasts, strict=True):
            inputs = (tokens, rotary, past, block.draw_kept(tokens))
            if recompute:  # nothing random is left in the block: torch cannot restore the generator of MPS
                tokens, cache = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
            else:
                tokens, cache = block(*inputs)
            if cache is not None:
                caches.append(cache)
        return tokens, KeyValueCache(tuple(caches))
