"""What token predictors share: embeddings, conditioning tokens, rotary tables, output norm and projection.

Shapes: B clips, T frames, N = grid * grid patches, D feature width, W model width, A action width,
C = cond_tokens + N tokens per frame (order: action, state, extrinsics when on, patches row by row).
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn

from hopecli.models.protocol import PredictorModule
from hopecli.models.rope import RopeLayout, RotaryTables, rotary_tables


class TokenPredictor(PredictorModule):
    """Base of vit_ac and hope; parameter names as published for V-JEPA 2-AC."""

    def __init__(
        self,
        *,
        embed_dim: int,
        action_dim: int,
        grid: int,
        width: int,
        num_heads: int,
        use_extrinsics: bool,
        rope: RopeLayout | None,
    ):
        if width % num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads {num_heads}")
        super().__init__(embed_dim=embed_dim, action_dim=action_dim, grid=grid)
        self.width, self.num_heads, self.rope = width, num_heads, rope
        self.use_extrinsics = use_extrinsics
        self.cond_tokens = 3 if use_extrinsics else 2
        self.tokens_per_frame = self.cond_tokens + self.num_patches
        self.predictor_embed = nn.Linear(embed_dim, width)
        self.action_encoder = nn.Linear(action_dim, width)
        self.state_encoder = nn.Linear(action_dim, width)
        # Always present for key parity with published weights; without extrinsics it never sees data.
        with warnings.catch_warnings():  # A = 1 leaves it empty, which is as it should be
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors", category=UserWarning)
            self.extrinsics_encoder = nn.Linear(action_dim - 1, width)
        self.extrinsics_encoder.requires_grad_(use_extrinsics)
        self.predictor_norm = nn.LayerNorm(width, eps=1e-6)
        self.predictor_proj = nn.Linear(width, embed_dim)

    def embed(self, frames: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None) -> Tensor:
        """Tokens [B, T, C, W] of frames [B, T, N, D], actions [B, T, A], states [B, T, A], extrinsics [B, T, A-1].

        ValueError when the model uses extrinsics and there are none.
        """
        parts = [self.action_encoder(actions)[:, :, None], self.state_encoder(states)[:, :, None]]
        if self.use_extrinsics:
            if extrinsics is None:
                raise ValueError("this model was built with use_extrinsics and was given none")
            parts.append(self.extrinsics_encoder(extrinsics)[:, :, None])
        return torch.cat([*parts, self.predictor_embed(frames)], dim=2)

    def project(self, tokens: Tensor) -> Tensor:
        """Predicted features [..., N, D] of tokens [..., C, W]: patch tokens only."""
        return self.predictor_proj(self.predictor_norm(tokens[..., self.cond_tokens :, :]))

    def rotary(self, *, first_frame: int, frames: int) -> RotaryTables | None:
        """Rotary tables for these frames, float32 or, of a float64 model, float64; None without RoPE."""
        if self.rope is None:
            return None
        weight = self.predictor_embed.weight
        return rotary_tables(
            head_dim=self.width // self.num_heads,
            grid=self.grid,
            cond_tokens=self.cond_tokens,
            first_frame=first_frame,
            frames=frames,
            layout=self.rope,
            device=weight.device,
            dtype=weight.dtype,
        )

    @torch.no_grad()
    def initialise(self) -> None:
        """Published initialisation; conditioning biases start at N(0, 0.02^2).

        With zero-filled states a zero bias would make the state token exactly zero, where LayerNorm multiplies
        gradients by 1/sqrt(eps) and this one bias then carries most of the gradient norm.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
        for encoder in (self.action_encoder, self.state_encoder, self.extrinsics_encoder):
            nn.init.normal_(encoder.bias, std=0.02)


def trunc_normal(weight: Tensor) -> None:
    """Truncated normal, std 0.02, cut at +-2 (V-JEPA 2); an empty weight (A = 1 extrinsics) is left alone."""
    if weight.numel():
        nn.init.trunc_normal_(weight, std=0.02, a=-2.0, b=2.0)


def residual_scale(layer: int) -> float:
    """Factor on the output weights of residual layer i (from 1): 1 / sqrt(2 i)."""
    return 1.0 / math.sqrt(2.0 * layer)
