"""What the token predictors are built of."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from hopecli.config.schema import HopeSettings, ModelSettings, ViTACSettings
from hopecli.models.build import build_model
from hopecli.models.tokens import TokenPredictor

MODELS = [
    ViTACSettings(width=12, depth=1, num_heads=2),
    HopeSettings(
        width=12, depth=1, num_heads=2, memory_multiplier=1.0, cms_multipliers=(1.0,), cms_update_periods=(1,)
    ),
]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: settings.kind)
def test_one_action_builds_without_a_warning(settings: ModelSettings) -> None:
    """With A = 1 the extrinsics encoder has no inputs."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = build_model(settings, grid=2, embed_dim=6, action_dim=1, seed=0)
        assert caught == []
        nn.Linear(0, 3)  # torch still warns where nobody expects an empty layer
    assert len(caught) == 1
    assert model.get_parameter("extrinsics_encoder.weight").shape == (12, 0)


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: settings.kind)
def test_tokens_are_action_state_extrinsics_and_patches_in_that_order(settings: ModelSettings) -> None:
    """A ViT sees a set, but HOPE writes a frame's tokens one after the other."""
    model = build_model(settings.model_copy(update={"use_extrinsics": True}), grid=2, embed_dim=6, action_dim=3, seed=0)
    assert isinstance(model, TokenPredictor)
    frames, actions, states = torch.randn(1, 2, 4, 6), torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    extrinsics = torch.randn(1, 2, 2)
    tokens = model.embed(frames, actions, states, extrinsics)
    assert tokens.shape == (1, 2, 3 + 4, 12)
    assert torch.equal(tokens[:, :, 0], model.action_encoder(actions))
    assert torch.equal(tokens[:, :, 1], model.state_encoder(states))
    assert torch.equal(tokens[:, :, 2], model.extrinsics_encoder(extrinsics))
    assert torch.equal(tokens[:, :, 3:], model.predictor_embed(frames))
