"""Where the clips of a run are: the user's folder, or the built-in simulation's cache."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from hopecli.config.schema import DataSettings
from hopecli.data.each import each
from hopecli.data.folder import CLIP_NAME, EXPECTED_TREE
from hopecli.data.physics import FRAMES
from hopecli.data.staging import hidden_name
from hopecli.errors import DataError, SettingsError, is_dir, is_file, written

# Counts up whenever the simulation, renderer or encoder changes, so that old caches are not reused.
PHYSICS_VERSION = 2


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
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = given or f"{base}/hopecli"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        fix = "set HOPE_CACHE_DIR to a folder"
        raise SettingsError("no such home folder", where="the cache", value=folder, fix=fix) from error


def _physics_folder(settings: DataSettings, say: Callable[[str], None]) -> Path:
    from hopecli.data.make_clips import make_clips

    p = settings.physics
    recipe = {"version": PHYSICS_VERSION, **p.model_dump(), "grid": settings.grid, "dim": settings.embed_dim}
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:10]
    folder = cache_folder() / "physics" / f"{p.domain}-{p.clips}x{settings.grid}x{settings.embed_dim}-{key}"
    fix = "make it writable with enough free space, or choose another folder with HOPE_CACHE_DIR"
    with written(folder.parent, kind=DataError, fix=fix):
        if _complete(folder, settings):
            return folder
        if is_dir(folder):
            say(f"the built-in clips in {folder} are not complete: making them again")
            _discard(folder, settings)
        folder.parent.mkdir(parents=True, exist_ok=True)
    say(f"making {p.clips} built-in clips ({p.domain}, grid {settings.grid}, width {settings.embed_dim}) in {folder}")
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
    except DataError as error:
        if not _complete(folder, settings):  # another process may have finished the same clips first
            fix = f"{error.fix} (HOPE_CACHE_DIR names the cache)"
            raise DataError(error.what, where=error.where, value=error.value, fix=fix) from error
    return folder


def _complete(folder: Path, settings: DataSettings) -> bool:
    """Whether the cached folder still holds all that was made: files may have been removed or cut short since."""
    p = settings.physics
    least = {
        "feature_maps/vjepa2_vitl16.npy": _saved_size((FRAMES // 2, settings.grid**2, settings.embed_dim), p.dtype),
        "actions_states/actions.npy": _saved_size((FRAMES, 2), "float32"),
    }

    def whole(clip: str) -> bool:
        with suppress(FileNotFoundError):
            return all((folder / clip / file).stat().st_size >= size for file, size in least.items())
        return False

    if not is_file(folder / "clips.json"):
        return False
    try:
        with os.scandir(folder) as entries:
            clips = [entry.name for entry in entries if CLIP_NAME.match(entry.name)]
    except FileNotFoundError:  # another process has just put it aside
        return False
    return len(clips) == p.clips and all(each(whole, clips))


def _saved_size(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of the .npy file of an array [shape]: its header and its values."""
    head = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.tell() + math.prod(shape) * np.dtype(dtype).itemsize


def _discard(folder: Path, settings: DataSettings) -> None:
    """Remove an incomplete folder; it is renamed first, so that no process sees a part of it under its own name."""
    aside = folder.parent / hidden_name(folder.name)
    with suppress(FileNotFoundError):  # another process has put it aside
        os.rename(folder, aside)
        if _complete(aside, settings):
            # Another process had made it again since it was looked at.
            with suppress(OSError):
                os.rename(aside, folder)
        shutil.rmtree(aside, ignore_errors=True)
