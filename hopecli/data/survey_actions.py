"""What the clips' actions look like, and the alignment they suggest.

Shapes: R action rows, A action width.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from hopecli.data.align import as_float32

SCATTER_POINTS = 4000
# Above this share of clips with one push at row 1, the others are the exception worth naming.
MOSTLY = 0.9


@dataclass(frozen=True)
class ActionFacts:
    """Over every clip whose actions could be read, are finite and have the most common width.

    rows: clips per R. original_frames: the most common R when it counts original frames, else None.
    alignments: clips whose R fits each rule. range: (min, max) per action dimension.
    zero_rows: share of rows that are all zero; zero_clips: share of clips without any non-zero row.
    """

    width: int | None
    rows: dict[int, int]
    original_frames: int | None
    alignments: dict[str, int]
    suggested_alignment: str | None
    suggested_because: str | None
    range: tuple[tuple[float, float], ...]
    zero_rows: float | None
    zero_clips: float | None


@dataclass
class WidthTally:
    """Running sums over the clips of one action width; `dropped` are clips with non-zero rows other than row 1."""

    low: np.ndarray
    high: np.ndarray
    clips: int = 0
    rows: Counter[int] = field(default_factory=Counter)
    total_rows: int = 0
    zero_rows: int = 0
    zero_clips: int = 0
    impulse_clips: int = 0
    dropped: int = 0
    dropped_clips: list[str] = field(default_factory=list)
    zero_names: list[str] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)

    def add(self, clip: str, rows: np.ndarray, *, points: int) -> None:
        """Finite actions [R, A] of one clip; keeps at most `points` non-zero rows for the picture."""
        nonzero = np.asarray(rows.any(axis=1))
        self.clips += 1
        self.rows[len(rows)] += 1
        self.total_rows += len(rows)
        self.zero_rows += int(len(rows) - nonzero.sum())
        self.low, self.high = np.minimum(self.low, rows.min(axis=0)), np.maximum(self.high, rows.max(axis=0))
        if not nonzero.any():
            self.zero_clips += 1
            _keep(self.zero_names, clip)
        elif len(rows) > 1 and nonzero[1] and nonzero.sum() == 1:
            self.impulse_clips += 1
        else:
            self.dropped += 1
            _keep(self.dropped_clips, clip)
        kept = np.flatnonzero(nonzero)[:points]
        if len(kept):
            self.points.append(as_float32(rows[kept, :2]))

    def suggest(self, alignments: dict[str, int], rows: int) -> tuple[str | None, str | None]:
        """The alignment that these clips suggest, and why."""
        if not any(alignments.values()):
            return None, None
        if alignments["as_is"] > alignments["per_timestep"]:
            return "as_is", f"{rows} rows are one per encoded frame or transition"
        moving = self.clips - self.zero_clips
        if moving and self.impulse_clips >= MOSTLY * moving:
            return "impulse", f"one non-zero row, at index 1, in {self.impulse_clips} of {moving} clips with any action"
        if not moving:
            return "impulse", "the default: every action is zero, so the data cannot tell"
        because = f"non-zero rows other than index 1 in {self.dropped} of {moving} clips with any action"
        return "per_timestep", f"{because} (of each two, data.action_reduce=last takes the second, mean and sum both)"


@dataclass
class ActionTally:
    """Clips with finite actions, per action width."""

    widths: dict[int, WidthTally] = field(default_factory=dict)

    def add(self, clip: str, rows: np.ndarray, *, points: int) -> None:
        """Finite actions [R, A] of one clip; keeps at most `points` non-zero rows for the picture."""
        first = WidthTally(rows.min(axis=0), rows.max(axis=0))
        self.widths.setdefault(rows.shape[1], first).add(clip, rows, points=points)

    @property
    def width(self) -> int | None:
        """The most common one."""
        return max(self.widths, key=lambda width: self.widths[width].clips, default=None)

    @property
    def usual(self) -> WidthTally | None:
        """The clips of the most common width."""
        return None if self.width is None else self.widths[self.width]

    def facts(self, alignments: dict[str, int]) -> ActionFacts:
        """Sums as facts; `alignments` are counts over clips of the usual width."""
        usual = self.usual
        if usual is None:
            return ActionFacts(None, {}, None, alignments, None, None, (), None, None)
        most_rows = usual.rows.most_common(1)[0][0]
        suggestion, reason = usual.suggest(alignments, most_rows)
        ranges = zip(usual.low.tolist(), usual.high.tolist(), strict=True)
        return ActionFacts(
            width=self.width,
            rows=dict(sorted(usual.rows.items())),
            original_frames=most_rows if alignments.get("impulse", 0) > alignments.get("as_is", 0) else None,
            alignments=alignments,
            suggested_alignment=suggestion,
            suggested_because=reason,
            range=tuple((float(low), float(high)) for low, high in ranges),
            zero_rows=usual.zero_rows / usual.total_rows if usual.total_rows else None,
            zero_clips=usual.zero_clips / usual.clips,
        )


def even_share(total: int, place: int, count: int) -> int:
    """How many of `total` points the clip at `place` of `count` may keep: all shares together are `total`."""
    return (place + 1) * total // count - place * total // count


def _keep(names: list[str], clip: str) -> None:
    if len(names) < 5:
        names.append(clip)
