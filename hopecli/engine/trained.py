"""The settings a checkpoint was trained under, and its model in one call for use from Python."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hopecli.config.load import load_tree
from hopecli.config.schema import Settings
from hopecli.engine.checkpoint import Checkpoint, load_checkpoint, load_into, require_fit
from hopecli.errors import CheckpointError, SettingsError
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule


class _WithoutNumbers(TorchFunctionMode):
    """Leaves out the drawing of initial values, for which torch would import half of its compiler on the meta device:
    seconds."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = {} if kwargs is None else kwargs
        if func in (nn.init.normal_, nn.init.trunc_normal_, Tensor.normal_, Tensor.erfinv_):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


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
    return model_of(checkpoint, settings), settings


def model_of(checkpoint: Checkpoint, settings: Settings) -> PredictorModule:
    """The model of these settings with the checkpoint's weights, in evaluation mode; CheckpointError when they do not
    fit, found out without memory for the model: a file may describe one that no machine could hold."""
    d, depth, found = settings.data, getattr(settings.model, "depth", 0), len(checkpoint.weights)
    if depth > found:
        what = f"its settings describe {depth} layers, it holds {found} tensors"
        raise CheckpointError(what, where=str(checkpoint.path), fix="use the file with the settings of its training")
    build = partial(build_model, settings.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0)
    with torch.device("meta"), _WithoutNumbers():
        require_fit(build(), checkpoint)
    model = build()
    load_into(model, checkpoint)
    return model.eval()
