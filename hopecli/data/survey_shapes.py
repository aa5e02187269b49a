"""What the clips' headers say together: layouts, dtypes, T, N, grid and D, inferred without settings.

Shapes: T encoded frames, N = gh * gw patches, D feature width, R action rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from hopecli.data.align import TUBELET, accepted_action_rows
from hopecli.data.headers import ArrayHeader

LAYOUTS = {2: "[T*N, D]", 3: "[T, N, D]", 4: "[T, gh, gw, D]"}
ALIGNMENTS = ("impulse", "per_timestep", "as_is")


@dataclass(frozen=True)
class Geometry:
    """What most clips have; None = could not be told. grid: (gh, gw), None when N is no square and no layout says it.

    frame_counts: clips per T, ascending. inferred_from: where N comes from.
    """

    frames: int | None
    patches: int | None
    grid: tuple[int, int] | None
    width: int | None
    frame_counts: dict[int, int]
    inferred_from: str | None


@dataclass
class Shapes:
    """Counts over clips; `pairs` has one entry per combination of feature shape and action shape, not one per clip."""

    pairs: Counter[tuple[tuple[int, ...], tuple[int, int] | None]] = field(default_factory=Counter)
    layouts: Counter[str] = field(default_factory=Counter)
    dtypes: Counter[str] = field(default_factory=Counter)
    dtype_clips: dict[str, list[str]] = field(default_factory=dict)

    def add(self, clip: str, features: ArrayHeader, actions: tuple[int, int] | None) -> None:
        """One clip whose feature header could be read, with its actions' shape (R, A) where that could be."""
        shape, dtype = features.shape, str(features.dtype)
        self.pairs[shape, actions] += 1
        self.layouts[LAYOUTS.get(len(shape), f"{len(shape)}-dimensional")] += 1
        self.dtypes[dtype] += 1
        names = self.dtype_clips.setdefault(dtype, [])
        if len(names) < 5:
            names.append(clip)

    def geometry(self, known_grids: Sequence[int]) -> Geometry:
        """The most common T, N and D. `known_grids` (of presets) settle [T*N, D] where action rows do not."""
        known = [(shape, actions, n) for (shape, actions), n in self.pairs.items() if len(shape) in LAYOUTS]
        usable = [(shape, actions[0] if actions else None, n) for shape, actions, n in known if all(shape)]
        width = _most([(shape[-1], n) for shape, _, n in usable])
        votes: Counter[tuple[int, tuple[int, int] | None, str]] = Counter()
        for shape, rows, n in usable:
            vote = _patches(shape, rows, known_grids)
            if vote is not None:
                votes[vote] += n
        if not votes:
            votes = _preset_votes(usable, known_grids)
        if not votes:
            return Geometry(None, None, None, width, {}, None)
        per_count: Counter[int] = Counter()
        for (count, _, _), n in votes.items():
            per_count[count] += n
        patches = per_count.most_common(1)[0][0]
        best = max((vote for vote in votes if vote[0] == patches), key=lambda vote: votes[vote])
        counts: Counter[int] = Counter()
        for shape, _, n in usable:
            frames = frames_of(shape, patches)
            if frames is not None:
                counts[frames] += n
        frames = _most(list(counts.items()))
        return Geometry(frames, patches, best[1], width, dict(sorted(counts.items())), best[2])

    def alignments(self, patches: int | None, action_width: int | None) -> dict[str, int]:
        """How many clips of this action width have action rows that fit each `data.action_alignment`."""
        fits = dict.fromkeys(ALIGNMENTS, 0)
        for (shape, actions), n in self.pairs.items():
            frames = None if patches is None else frames_of(shape, patches)
            if frames is None or actions is None or actions[1] != action_width:
                continue
            for rule in ALIGNMENTS:
                fits[rule] += n if actions[0] in accepted_action_rows(rule, frames) else 0
        return fits


def frames_of(shape: tuple[int, ...], patches: int) -> int | None:
    """T of a feature shape with N patches per frame, None when it does not divide."""
    if len(shape) == 2:
        return None if shape[0] % patches else shape[0] // patches
    return shape[0] if len(shape) in LAYOUTS and math.prod(shape[1:-1]) == patches else None


def _patches(
    shape: tuple[int, ...], rows: int | None, known_grids: Sequence[int]
) -> tuple[int, tuple[int, int] | None, str] | None:
    """(N, grid, source) of one shape."""
    if len(shape) == 4:
        return shape[1] * shape[2], (shape[1], shape[2]), f"shape {LAYOUTS[4]}"
    if len(shape) == 3:
        return shape[1], _square(shape[1]), f"shape {LAYOUTS[3]}"
    candidates = list(_by_action_rows(shape[0], rows))
    # 9 x 256 rows with 8 action rows are also 4 x 576: a grid that is in use beats one that merely fits.
    candidates.sort(key=lambda candidate: math.isqrt(candidate[0]) not in known_grids)
    return candidates[0] if candidates else None


def _by_action_rows(feature_rows: int, rows: int | None) -> Iterator[tuple[int, tuple[int, int] | None, str]]:
    if rows is None:
        return
    for frames, rule in ((rows // TUBELET, "rows // 2"), (rows, "rows"), (rows + 1, "rows + 1")):
        if frames > 1 and feature_rows % frames == 0:
            patches = feature_rows // frames
            if _square(patches) is not None:
                yield patches, _square(patches), f"shape {LAYOUTS[2]} and action rows: T = {rule}"


def _preset_votes(
    usable: list[tuple[tuple[int, ...], int | None, int]], known_grids: Sequence[int]
) -> Counter[tuple[int, tuple[int, int] | None, str]]:
    votes: Counter[tuple[int, tuple[int, int] | None, str]] = Counter()
    for grid in sorted(set(known_grids), reverse=True):
        patches = grid * grid
        fitting = sum(n for shape, _, n in usable if shape[0] % patches == 0 and shape[0] > patches)
        if fitting:
            votes[patches, (grid, grid), "the grid of a preset (action rows do not tell)"] = fitting
    return votes


def _square(patches: int) -> tuple[int, int] | None:
    side = math.isqrt(patches)
    return (side, side) if side * side == patches else None


def _most(counts: list[tuple[int, int]]) -> int | None:
    total: Counter[int] = Counter()
    for value, n in counts:
        total[value] += n
    return total.most_common(1)[0][0] if total else None
