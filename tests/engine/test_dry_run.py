"""What a dry run expects a model to need."""

from __future__ import annotations

from hopecli.config.schema import CopyLastSettings, ViTACSettings
from hopecli.engine.dry_run import static_bytes
from hopecli.models.build import build_model


def test_trained_weights_count_four_times_and_frozen_ones_once() -> None:
    settings = ViTACSettings(width=16, depth=1, num_heads=2)
    model = build_model(settings, grid=2, embed_dim=6, action_dim=3, seed=0)
    frozen = 2 * 16 + 16  # the encoder of extrinsics that are not used
    everything = sum(p.numel() for p in model.parameters())
    # float32: a weight, its gradient and AdamW's two moments.
    assert static_bytes(model) == 4 * (4 * (everything - frozen) + frozen)
    assert static_bytes(model.bfloat16()) == 2 * (4 * (everything - frozen) + frozen)
    copy_last = build_model(CopyLastSettings(), grid=2, embed_dim=6, action_dim=3, seed=0)
    assert static_bytes(copy_last) == 0
