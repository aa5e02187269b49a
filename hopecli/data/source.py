"""Where the clips of a run are: the user's folder, or the built-in simulation's cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from hopecli.config.schema import DataSettings
from hopecli.data.store import EXPECTED_TREE
from hopecli.errors import DataError, written

# Counts up whenever the simulation, renderer or encoder changes, so that old caches are not reused.
PHYSICS_VERSION = 1


def clips_folder(settings: DataSettings, say: Callable[[str], None]) -> Path:
    """The folder to read clips from; makes the built-in clips on first use. `say` takes one line for the user."""
    if settings.source == "physics":
        return _physics_folder(settings, say)
    if settings.data_dir is None:
        raise DataError(
            "no folder of clips is given",
            where="--data-dir",
            fix=f"pass --data-dir DIR or set HOPE_DATA_DIR; {EXPECTED_TREE}",
        )
    return Path(settings.data_dir)


def cache_folder() -> Path:
    """HOPE_CACHE_DIR, else the user's cache folder."""
    given = os.environ.get("HOPE_CACHE_DIR")
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given) if given else Path(base) / "hopecli"


def _physics_folder(settings: DataSettings, say: Callable[[str], None]) -> Path:
    from hopecli.data.make_clips import make_clips

    p = settings.physics
    recipe = {"version": PHYSICS_VERSION, **p.model_dump(), "grid": settings.grid, "dim": settings.embed_dim}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    folder = cache_folder() / "physics" / f"{p.domain}-{p.clips}x{settings.grid}x{settings.embed_dim}-{key}"
    if folder.is_dir():
        return folder
    say(f"making {p.clips} built-in clips ({p.domain}, grid {settings.grid}, width {settings.embed_dim}) in {folder}")
    with written(folder.parent, kind=DataError, fix="make it writable, or choose another folder with HOPE_CACHE_DIR"):
        folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        make_clips(
            folder,
            clips=p.clips,
            grid=settings.grid,
            dim=settings.embed_dim,
            domain=p.domain,
            seed=p.seed,
            dtype=p.dtype,
        )
    except DataError:
        if not folder.is_dir():  # another process may have finished the same clips first
            raise
    return folder
