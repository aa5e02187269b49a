"""per_clip.csv of hope eval: each column of two clips by hand."""

from __future__ import annotations

from typing import Any

import pytest

from hopecli.report.per_clip import per_clip_rows


def rows(*, order: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
    """Two clips, two horizons; every number is another one. All are halves and quarters, so sums are exact."""
    return per_clip_rows(
        names=["clip_00001", "clip_00002"],
        l1={"model": [[1.0, 2.0], [3.0, 5.0]], "copy_last": [[2.0, 4.0], [8.0, 2.5]]},
        cosine={"model": [[0.75, 0.25], [0.5, -0.25]], "copy_last": [[1.0, 0.75], [0.25, 0.0]]},
        copy_first=[[2.0, 10.0], [1.0, 3.0]],
        target_std=[[4.0, 1.0], [0.5, 2.0]],
        teacher=[0.125, 0.375],
        order=order,
    )


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("clip", ["clip_00001", "clip_00002"]),
        ("l1", [1.5, 4.0]),
        ("l1_copy_last", [3.0, 5.25]),
        ("relative", [(0.5 + 0.2) / 2, (3.0 + 5.0 / 3.0) / 2]),  # each horizon to its own copy-first error
        ("cosine", [0.5, 0.125]),  # the model's
        ("teacher_l1", [0.125, 0.375]),
        ("l1_h1", [1.0, 3.0]),
        ("l1_h2", [2.0, 5.0]),
        ("relative_h1", [0.5, 3.0]),
        ("relative_h2", [0.2, 5.0 / 3.0]),
        ("cosine_h1", [0.75, 0.5]),
        ("cosine_h2", [0.25, -0.25]),
        ("error_to_signal_h1", [0.25, 6.0]),
        ("error_to_signal_h2", [2.0, 2.5]),
    ],
)
def test_a_column(column: str, expected: list[Any]) -> None:
    assert [row[column] for row in rows()] == expected


def test_in_another_order() -> None:
    assert [(row["clip"], row["teacher_l1"]) for row in rows(order=(1, 0))] == [
        ("clip_00002", 0.375),
        ("clip_00001", 0.125),
    ]


def test_relative_to_nothing_is_absent() -> None:
    (row,) = per_clip_rows(
        names=["a"],
        l1={"model": [[1.0, 3.0]]},
        cosine={"model": [[0.5, 0.25]]},
        copy_first=[[0.0, 2.0]],
        target_std=[[0.0, 4.0]],
        teacher=[0.1],
        order=[0],
    )
    assert (row["relative_h1"], row["relative_h2"]) == (None, 1.5)
    assert (row["error_to_signal_h1"], row["error_to_signal_h2"]) == (None, 0.75)
    assert row["relative"] is None  # a mean over some horizons would be another measure


def test_the_order_of_the_clips_changes_no_line() -> None:
    assert rows(order=(1, 0)) == rows()[::-1]
