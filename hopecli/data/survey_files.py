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
from hopecli.data.align import as_float32
from hopecli.data.headers import ClipProblem, check_finite, map_array, read_header
from hopecli.data.store import ClipStore
from hopecli.data.survey_actions import ActionTally
from hopecli.data.survey_shapes import Shapes

_FIRST_CLIPS = 64


@dataclass
class Look:
    """What the first pass sees. bad_actions: message per clip whose actions hold NaN or infinite values."""

    feature_map: str
    shapes: Shapes = field(default_factory=Shapes)
    actions: ActionTally = field(default_factory=ActionTally)
    bad_actions: dict[str, str] = field(default_factory=dict)
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
    """Headers, sizes and actions of every clip; what cannot be read is left to the check that follows."""
    look = Look(feature_map or find_feature_map(folder, list(clips.values())))
    settings = DataSettings.model_validate({"feature_map": look.feature_map})
    store = ClipStore(folder, settings, use_extrinsics=False)
    for done, name in enumerate(clips.values(), start=1):
        _look(store, name, look, points)
        on_progress("reading headers", done, len(clips))
    return look


def _look(store: ClipStore, name: str, look: Look, points: int) -> None:
    features, actions, *optional = store.paths(name)
    sizes = [_size(path) for path in (features, actions, *optional)]
    look.bytes += sum(size or 0 for size in sizes)
    look.states += sizes[2] is not None
    look.extrinsics += sizes[3] is not None
    rows = None
    if sizes[1] is not None:
        try:
            header = read_header(actions, clip=name)
            if len(header.shape) == 2 and header.dtype.kind in "fiu" and header.shape[1] > 0:
                rows = header.shape[0]
                values = np.asarray(map_array(actions, header))
                check_finite("actions", as_float32(values), clip=name)
                if rows:
                    look.actions.add(name, values, points=points)
        except ClipProblem as problem:
            if problem.code == "not_finite":
                look.bad_actions[name] = problem.what
        except OSError:
            pass
    if sizes[0] is not None:
        with contextlib.suppress(ClipProblem):
            look.shapes.add(name, read_header(features, clip=name), rows)


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


def whole_features(store: ClipStore, name: str) -> np.ndarray:
    """All frames of a clip that passed the check [T, N, D]; ClipProblem when any of its values is not finite."""
    path, _, states, extrinsics = store.paths(name)
    mapped = map_array(path, read_header(path, clip=name))
    patches = store.settings.grid**2
    features = np.array(mapped).reshape(-1, patches, store.settings.embed_dim)
    check_finite("features", features, clip=name)
    for what, optional in (("states", states), ("extrinsics", extrinsics)):
        if optional.exists():
            try:
                values = np.asarray(map_array(optional, read_header(optional, clip=name)))
            except ClipProblem:
                continue  # the check has judged it
            if values.dtype.kind in "fiu":
                check_finite(what, as_float32(values), clip=name)
    return features
