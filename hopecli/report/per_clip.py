"""per_clip.csv of `hope eval`: one row per clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def per_clip_rows(
    *,
    names: Sequence[str],
    l1: Mapping[str, Sequence[Sequence[float]]],
    cosine: Mapping[str, Sequence[Sequence[float]]],
    copy_first: Sequence[Sequence[float]],
    teacher: Sequence[float],
    worst_first: bool,
) -> list[dict[str, Any]]:
    """Columns: clip, l1 of each row (mean over horizons), relative (to copy-first), cosine, teacher_l1, then the
    model's l1 per horizon (l1_h1, ...). In the clips' order, or by falling model error."""
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"clip": name, "l1": _mean(l1["model"][i])}
        row |= {f"l1_{key}": _mean(values[i]) for key, values in l1.items() if key != "model"}
        first = _mean(copy_first[i])
        row["relative"] = row["l1"] / first if first > 0 else None
        row["cosine"] = _mean(cosine["model"][i])
        row["teacher_l1"] = teacher[i]
        row |= {f"l1_h{h}": value for h, value in enumerate(l1["model"][i], start=1)}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["l1"]) if worst_first else rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
