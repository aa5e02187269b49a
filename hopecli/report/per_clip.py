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
    target_std: Sequence[Sequence[float]],
    teacher: Sequence[float],
    order: Sequence[int],
) -> list[dict[str, Any]]:
    """Columns: clip, l1 of each row (mean over horizons), relative (l1 / copy-first l1, mean over horizons), cosine,
    teacher_l1, then the model's l1, relative, cosine and error_to_signal per horizon (l1_h1, ...; empty where the base
    is 0). `order`: places of the clips in `names`."""
    rows = []
    for i in order:
        row: dict[str, Any] = {"clip": names[i], "l1": _mean(l1["model"][i])}
        row |= {f"l1_{key}": _mean(values[i]) for key, values in l1.items() if key != "model"}
        own = l1["model"][i]
        relative = _ratios(own, copy_first[i])
        row["relative"] = _mean_where_known(relative)
        row["cosine"] = _mean(cosine["model"][i])
        row["teacher_l1"] = teacher[i]
        for column, values in (
            ("l1", own),
            ("relative", relative),
            ("cosine", cosine["model"][i]),
            ("error_to_signal", _ratios(own, target_std[i])),
        ):
            row |= {f"{column}_h{h}": value for h, value in enumerate(values, start=1)}
        rows.append(row)
    return rows


def _ratios(values: Sequence[float], bases: Sequence[float]) -> list[float | None]:
    return [value / base if base > 0 else None for value, base in zip(values, bases, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_where_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if len(known) == len(values) else None
