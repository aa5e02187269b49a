"""Facts about a folder of clips: what `hope inspect-data` reports.

The JSON of `hope inspect-data --json` is `Survey` with its parts, key by key; each dataclass says what its keys mean
and CODES what the codes of findings mean. A number that could not be measured is null.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hopecli.data.survey_actions import ActionFacts
from hopecli.data.survey_content import FeatureFacts, MotionFacts
from hopecli.data.survey_duplicates import DuplicateFacts
from hopecli.data.survey_findings import CODES, Finding
from hopecli.data.survey_shapes import Geometry


@dataclass(frozen=True)
class IdFacts:
    """first, last: numeric ids. missing: ids absent between them; gaps: the first ten runs [from, to] of these."""

    first: int
    last: int
    missing: int
    gaps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class StorageFacts:
    """bytes: all feature and action-state files. The rate is that of reading sampled features, page cache included."""

    bytes: int
    read_bytes: int
    read_seconds: float
    read_bytes_per_second: float | None


@dataclass(frozen=True)
class PresetFit:
    """Whether a preset trains on these clips as it is, else the overrides it needs; `problem` where none help.

    train_clips, held_out_clips, held_out_ids: the split it would make of the clips without errors.
    """

    name: str
    fits: bool
    overrides: tuple[str, ...]
    problem: str | None
    train_clips: int | None
    held_out_clips: int | None
    held_out_ids: tuple[int, int] | None


@dataclass(frozen=True)
class Survey:
    """Everything reported of a folder. depth: sample or deep; layouts and dtypes: clips per kind; states and
    extrinsics: clips that have the file; usable: clips that pass training's check; checked_frames: the num_timesteps
    they were checked for; content_read: clips that were read whole; errors, warnings: kinds of each among the findings
    (their clips are listed there)."""

    folder: str
    feature_map: str
    depth: str
    clips: int
    usable: int
    content_read: int
    ids: IdFacts
    layouts: dict[str, int]
    dtypes: dict[str, int]
    geometry: Geometry
    checked_frames: int
    actions: ActionFacts
    states: int
    extrinsics: int
    features: FeatureFacts | None
    motion: MotionFacts | None
    duplicates: DuplicateFacts
    storage: StorageFacts
    presets: tuple[PresetFit, ...]
    findings: tuple[Finding, ...]
    errors: int
    warnings: int
    seconds: float


@dataclass(frozen=True)
class Pictures:
    """What the picture shows. norms: token norms [k]. actions: non-zero rows [k, 1 or 2]. pca: one clip's first three
    principal components [T, gh, gw, 3] in 0..1."""

    norms: np.ndarray
    actions: np.ndarray
    pca: np.ndarray | None
    pca_clip: str | None


@dataclass(frozen=True)
class Surveyed:
    """The survey with what is not part of its JSON, and material for the picture.

    frames: id -> T of the clips without a defect but perhaps their length, ascending. defective: likewise of clips with
    another defect, where T is known. no_extrinsics: ids among `frames` without extrinsics that a model could use.
    """

    survey: Survey
    frames: dict[int, int]
    defective: dict[int, int]
    no_extrinsics: frozenset[int]
    pictures: Pictures | None


__all__ = [
    "CODES",
    "ActionFacts",
    "DuplicateFacts",
    "FeatureFacts",
    "Finding",
    "Geometry",
    "IdFacts",
    "MotionFacts",
    "Pictures",
    "PresetFit",
    "StorageFacts",
    "Survey",
    "Surveyed",
]
