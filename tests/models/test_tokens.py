"""What the token predictors are built of."""

from __future__ import annotations

import warnings

import pytest
from torch import nn

from hopecli.config.schema import HopeSettings, ModelSettings, ViTACSettings
from hopecli.models.build import build_model

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
