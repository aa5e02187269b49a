"""Reading clips for a survey: headers and actions of every clip, and whole feature files.

Shapes: T encoded frames, N patches, D feature width, R action rows, A action width.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from hopecli.config.schema import DataSettings
from hopecli.data.align import align_per_frame, as_float32
from hopecli.data.each import each
from hopecli.data.headers import (
    ArrayHeader,
    ClipProblem,
    check_finite,
    feature_maps,
    map_array,
    read_array,
    read_header,
)
from hopecli.data.store import ClipStore
from hopecli.data.survey_actions import ActionTally, even_share
from hopecli.data.survey_shapes import Shapes

_FIRST_CLIPS = 64
_MOST_ACTIONS = 2**24  # numbers in one clip's file: more are a damaged header, which the check names without reading


@dataclass
class Look:
    """What the first pass sees. bad_actions: clips with NaN or infinite values in any action row."""

    feature_map: str
    shapes: Shapes = field(default_factory=Shapes)
    actions: ActionTally = field(default_factory=ActionTally)
    bad_actions: set[str] = field(default_factory=set)
    states: int = 0
    extrinsics: int = 0
    bytes: int = 0


def look_at(
    folder: Path,
    clips: dict[int, str],
    feature_map: str | None,
    *,
    points: int,
    on_progress: Callable[[str, int, int], None],
) -> Look:
    """Headers, sizes and actions of every clip, at most `points` action rows of all clips together for the picture;
    what cannot be read is left to the check that follows."""
    names = list(clips.values())
    look = Look(feature_map or find_feature_map(folder, names))
    settings = DataSettings.model_validate({"feature_map": look.feature_map})
    store = ClipStore(folder, settings, use_extrinsics=False)
    for done, (name, found) in enumerate(zip(names, each(partial(_read, store), names), strict=True), start=1):
        _add(name, found, look, even_share(points, done - 1, len(names)))
        on_progress("reading headers", done, len(names))
    return look


@dataclass(frozen=True)
class _Found:
    """Sizes in bytes of the features, actions, states and extrinsics (None: not there); the shape of the actions and,
    where they are all finite, their values; the header of the features. None is what cannot be read."""

    sizes: list[int | None]
    shape: tuple[int, int] | None
    actions: np.ndarray | None
    not_finite: bool
    features: ArrayHeader | None


def _read(store: ClipStore, name: str) -> _Found:
    features, actions, *optional = store.paths(name)
    sizes = [_size(path) for path in (features, actions, *optional)]
    shape = values = header = None
    not_finite = False
    if sizes[1] is not None:
        try:
            rows = read_header(actions, clip=name)
            if len(rows.shape) == 2 and rows.dtype.kind in "fiu" and rows.shape[1] > 0:
                shape = rows.shape[0], rows.shape[1]
                if math.prod(shape) <= _MOST_ACTIONS:
                    read = read_array(actions, rows)
                    check_finite("actions", as_float32(read), clip=name)
                    values = read
        except ClipProblem as problem:
            not_finite = problem.code == "not_finite"
        except OSError:
            pass
    if sizes[0] is not None:
        with contextlib.suppress(ClipProblem):
            header = read_header(features, clip=name)
    return _Found(sizes, shape, values, not_finite, header)


def _add(name: str, found: _Found, look: Look, points: int) -> None:
    look.bytes += sum(size or 0 for size in found.sizes)
    look.states += found.sizes[2] is not None
    look.extrinsics += found.sizes[3] is not None
    if found.actions is not None and len(found.actions):
        look.actions.add(name, found.actions, points=points)
    if found.not_finite:
        look.bad_actions.add(name)
    if found.features is not None:
        look.shapes.add(name, found.features, found.shape)


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def find_feature_map(folder: Path, names: list[str]) -> str:
    """The default's name where one of the first clips has it (or none has any), else the most common feature file."""
    default = DataSettings().feature_map
    found: Counter[str] = Counter()
    for name in names[:_FIRST_CLIPS]:
        with contextlib.suppress(OSError):  # the check that follows names the clip
            found.update(feature_maps(folder / name / "feature_maps"))
    if default in found or not found:
        return default
    return found.most_common(1)[0][0]


@dataclass(frozen=True)
class Content:
    """One clip's frames [T, N, D], all finite: those that training uses where others are not. `notes`: (code, message)
    of what training does not mind."""

    features: np.ndarray
    notes: tuple[tuple[str, str], ...]


def read_content(store: ClipStore, name: str) -> Content:
    """Features, states and extrinsics of a clip that passed the check; ClipProblem when a value that training reads is
    not finite."""
    path, _, *optional = store.paths(name)
    used = store.settings.num_timesteps
    mapped = map_array(path, read_header(path, clip=name))
    features = np.array(mapped).reshape(-1, store.settings.grid**2, store.settings.embed_dim)
    frames = len(features)
    check_finite("features", features[:used], clip=name)
    notes = []
    if problem := _not_finite("features", features, name):
        notes.append(("not_finite_unused", problem))
        features = features[:used]
    for what, file in zip(("states", "extrinsics"), optional, strict=True):
        if not os.path.lexists(file) or (what == "extrinsics" and not _fits_with_extrinsics(store, name)):
            continue
        rows = as_float32(np.asarray(map_array(file, read_header(file, clip=name))))
        aligned = align_per_frame(rows, frames=frames, transitions=used - 1)
        if what == "states":
            check_finite(what, aligned, clip=name)
        if what == "extrinsics" and (problem := _not_finite(what, aligned, name)):
            notes.append(("extrinsics_unusable", problem))
        elif problem := _not_finite(what, rows, name):
            notes.append(("not_finite_unused", problem))
    return Content(features, tuple(notes))


def _not_finite(what: str, values: np.ndarray, name: str) -> str | None:
    try:
        check_finite(what, values, clip=name)
    except ClipProblem as problem:
        return problem.what
    return None


def _fits_with_extrinsics(store: ClipStore, name: str) -> bool:
    try:
        ClipStore(store.folder, store.settings, use_extrinsics=True).check(name)
    except ClipProblem:  # the check of all clips has noted it
        return False
    return True
