"""From model settings and clip sizes to a predictor; settings stop here."""

from __future__ import annotations

import torch

from hopecli.config.schema import ConvLSTMSettings, CopyLastSettings, HopeSettings, ModelSettings, ViTACSettings
from hopecli.models.protocol import PredictorModule


def build_model(settings: ModelSettings, *, grid: int, embed_dim: int, action_dim: int, seed: int) -> PredictorModule:
    """The predictor in float32 on the CPU: initial weights from `seed` alone, and no global generator is touched."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would set those of every GPU too
        return _build(settings, grid=grid, embed_dim=embed_dim, action_dim=action_dim)


def _build(settings: ModelSettings, *, grid: int, embed_dim: int, action_dim: int) -> PredictorModule:
    if isinstance(settings, ViTACSettings):
        from hopecli.models.vit_ac import ViTAC

        return ViTAC(
            grid=grid,
            embed_dim=embed_dim,
            action_dim=action_dim,
            width=settings.width,
            depth=settings.depth,
            num_heads=settings.num_heads,
            mlp_ratio=settings.mlp_ratio,
            mlp=settings.mlp,
            drop_path=settings.drop_path,
            rope=settings.rope,
            use_extrinsics=settings.use_extrinsics,
            activation_checkpointing=settings.activation_checkpointing,
        )
    if isinstance(settings, ConvLSTMSettings):
        from hopecli.models.convlstm import ConvLSTM

        return ConvLSTM(
            grid=grid,
            embed_dim=embed_dim,
            action_dim=action_dim,
            hidden=settings.hidden,
            kernel_size=settings.kernel_size,
        )
    if isinstance(settings, CopyLastSettings):
        from hopecli.models.copy_last import CopyLast

        return CopyLast(grid=grid, embed_dim=embed_dim, action_dim=action_dim)
    assert isinstance(settings, HopeSettings)
    from hopecli.models.hope.predictor import HopePredictor

    return HopePredictor(
        grid=grid,
        embed_dim=embed_dim,
        action_dim=action_dim,
        width=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        memory_multiplier=settings.memory_multiplier,
        cms_multipliers=settings.cms_multipliers,
        read=settings.read,
        use_rope=settings.use_rope,
        rope=settings.rope,
        use_extrinsics=settings.use_extrinsics,
        activation_checkpointing=settings.activation_checkpointing,
        truncate_memory_gradient=settings.truncate_memory_gradient,
    )


def count_parameters(model: torch.nn.Module) -> int:
    """All parameters, frozen ones included (as in the published counts)."""
    return sum(p.numel() for p in model.parameters())
