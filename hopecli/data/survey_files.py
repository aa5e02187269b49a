"""Reading clips for a survey: headers and actions of every clip, and whole feature files.

Shapes: T encoded frames, N patches, D feature width, R action rows, A action width.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hopecli.config.schema import DataSettings
from hopecli.data.align import align_per_frame, as_float32
from hopecli.data.headers import ClipProblem, check_finite, map_array, read_array, read_header
from hopecli.data.store import ClipStore
from hopecli.data.survey_actions import ActionTally, even_share
from hopecli.data.survey_shapes import Shapes

_FIRST_CLIPS = 64


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
    look = Look(feature_map or find_feature_map(folder, list(clips.values())))
    settings = DataSettings.model_validate({"feature_map": look.feature_map})
    store = ClipStore(folder, settings, use_extrinsics=False)
    for done, name in enumerate(clips.values(), start=1):
        _look(store, name, look, even_share(points, done - 1, len(clips)))
        on_progress("reading headers", done, len(clips))
    return look


def _look(store: ClipStore, name: str, look: Look, points: int) -> None:
    features, actions, *optional = store.paths(name)
    sizes = [_size(path) for path in (features, actions, *optional)]
    look.bytes += sum(size or 0 for size in sizes)
    look.states += sizes[2] is not None
    look.extrinsics += sizes[3] is not None
    shape = None
    if sizes[1] is not None:
        try:
            header = read_header(actions, clip=name)
            if len(header.shape) == 2 and header.dtype.kind in "fiu" and header.shape[1] > 0:
                shape = header.shape[0], header.shape[1]
                values = read_array(actions, header)
                check_finite("actions", as_float32(values), clip=name)
                if shape[0]:
                    look.actions.add(name, values, points=points)
        except ClipProblem as problem:
            if problem.code == "not_finite":
                look.bad_actions.add(name)
        except OSError:
            pass
    if sizes[0] is not None:
        with contextlib.suppress(ClipProblem):
            look.shapes.add(name, read_header(features, clip=name), shape)


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
            found.update(path.stem for path in (folder / name / "feature_maps").glob("*.npy"))
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
