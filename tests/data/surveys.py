"""Surveying a folder as tests do: every clip read, pictures off, unless they say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hopecli.data.store import ClipStore
from hopecli.data.survey import Survey, Surveyed
from hopecli.data.survey_run import survey_folder, training_settings
from tests.clips import GRID


def look(folder: Path, changes: dict[str, Any] | None = None) -> Surveyed:
    options: dict[str, Any] = {
        "feature_map": None,
        "sample": 1000,
        "deep": False,
        "known_grids": [16, GRID],
        "num_timesteps": 8,
        "shorten": True,
        "pictures": False,
        "on_progress": lambda stage, done, total: None,
    }
    return survey_folder(folder, **{**options, **(changes or {})})


def survey(folder: Path, changes: dict[str, Any] | None = None) -> Survey:
    return look(folder, changes).survey


def store_as_surveyed(folder: Path, found: Survey) -> ClipStore:
    settings = training_settings(found.geometry, found.actions, found.feature_map, 8, shorten=True)
    return ClipStore(folder, settings, use_extrinsics=False)


def tree(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*"))
    return [(str(path.relative_to(folder)), path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths]


def push_rows(rows: int, at: tuple[int, ...]) -> np.ndarray:
    actions = np.zeros((rows, 2), np.float32)
    actions[list(at)] = (0.5, -2.0)
    return actions
