"""The settings a checkpoint was trained under, and its model in one call for use from Python."""

from __future__ import annotations

from hopecli.config.load import load_tree
from hopecli.config.schema import Settings
from hopecli.engine.checkpoint import Checkpoint, load_checkpoint, load_into
from hopecli.errors import CheckpointError, SettingsError
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule


def settings_of(checkpoint: Checkpoint) -> Settings:
    """The settings that a checkpoint was trained under; CheckpointError when they are not valid."""
    try:
        return load_tree(checkpoint.settings, name="checkpoint", origin="checkpoint").settings
    except SettingsError as error:
        raise CheckpointError(f"its settings are not valid: {error}", where=str(checkpoint.path)) from error


def load_model(given: str) -> tuple[PredictorModule, Settings]:
    """The model of a run directory, a checkpoint directory or a .safetensors file, on the CPU and in evaluation mode,
    and the settings it was trained under; CheckpointError when it cannot be read."""
    checkpoint = load_checkpoint(given)
    settings = settings_of(checkpoint)
    d = settings.data
    model = build_model(settings.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0)
    load_into(model, checkpoint)
    return model.eval(), settings
