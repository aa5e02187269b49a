"""Tiny clip folders for tests, written with numpy alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hopecli.config.schema import DataSettings

GRID, DIM, ACTION_DIM, FRAMES = 2, 4, 2, 3
PATCHES = GRID * GRID
TINY: dict[str, Any] = {
    "num_timesteps": FRAMES,
    "grid": GRID,
    "embed_dim": DIM,
    "action_dim": ACTION_DIM,
    "batch_size": 2,
    "workers": 0,
}


def data_settings(changes: dict[str, Any] | None = None) -> DataSettings:
    """Settings for the tiny clips, with some keys changed."""
    return DataSettings.model_validate({**TINY, **(changes or {})})


def make_features(seed: int, frames: int = FRAMES, dtype: str = "float32") -> np.ndarray:
    """Random features [frames, PATCHES, DIM]."""
    return np.random.default_rng(seed).standard_normal((frames, PATCHES, DIM)).astype(dtype)


def count_rows(rows: int, width: int = ACTION_DIM) -> np.ndarray:
    """Rows whose values tell their place: row i is [i, i + 0.5, ...]."""
    return (np.arange(rows)[:, None] + 0.5 * np.arange(width)).astype(np.float32)


def write_clip(
    folder: Path,
    number: int,
    *,
    features: np.ndarray | None = None,
    actions: np.ndarray | None = None,
    states: np.ndarray | None = None,
    extrinsics: np.ndarray | None = None,
) -> str:
    """Write clip_{number:05d}; features default to random ones and actions to `count_rows`. Returns the clip's name."""
    name = f"clip_{number:05d}"
    features = make_features(number) if features is None else features
    actions = count_rows(2 * FRAMES) + number if actions is None else actions
    maps, rows = folder / name / "feature_maps", folder / name / "actions_states"
    maps.mkdir(parents=True, exist_ok=True)
    rows.mkdir(exist_ok=True)
    np.save(maps / "vjepa2_vitl16.npy", features)
    for stem, array in (("actions", actions), ("states", states), ("extrinsics", extrinsics)):
        if array is not None:
            np.save(rows / f"{stem}.npy", array)
    return name


def write_clips(folder: Path, numbers: range | list[int]) -> Path:
    """Write one default clip per number and return the folder."""
    for number in numbers:
        write_clip(folder, number)
    return folder


def feature_file(folder: Path, name: str) -> Path:
    """The clip's feature file."""
    return folder / name / "feature_maps" / "vjepa2_vitl16.npy"


def action_file(folder: Path, name: str) -> Path:
    """The clip's action file."""
    return folder / name / "actions_states" / "actions.npy"
