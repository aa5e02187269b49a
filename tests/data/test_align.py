"""How rows of a file become transitions, with numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hopecli.data.align import accepted_action_rows, align_actions, align_per_frame, impulse_drops, last_drops
from tests.clips import count_rows

TENS = np.array([[10.0], [11.0], [20.0], [22.0], [30.0], [34.0]])  # 6 original frames: 3 encoded frames, 2 transitions


@pytest.mark.parametrize(
    ("alignment", "reduce", "expected"),
    [
        ("impulse", "last", [11.0, 0.0]),
        ("impulse", "sum", [11.0, 0.0]),  # one push: nothing to reduce
        ("per_timestep", "last", [11.0, 22.0]),
        ("per_timestep", "mean", [10.5, 21.0]),
        ("per_timestep", "sum", [21.0, 42.0]),
        ("as_is", "last", [10.0, 11.0]),
    ],
)
def test_rules(alignment: str, reduce: str, expected: list[float]) -> None:
    out = align_actions(TENS, alignment=alignment, reduce=reduce, transitions=2)
    assert out.dtype == np.float32
    assert out[:, 0].tolist() == expected


@pytest.mark.parametrize(("row", "dropped"), [(0, True), (1, False), (2, True), (5, True)])
def test_impulse_leaves_out_every_row_but_the_second(row: int, dropped: bool) -> None:
    rows = np.zeros((6, 2), np.float32)
    assert not impulse_drops(rows)
    rows[row, 1] = -0.5
    assert impulse_drops(rows) is dropped


@pytest.mark.parametrize(
    ("rows", "dropped"),
    [
        ([0, 5, 0, 7, 0, 9], False),  # rows 2t hold nothing
        ([5, 5, 7, 7, 9, 9], False),  # what is left out is said again
        ([5, 5, 6, 7, 9, 9], True),
        ([5, 0, 0, 0, 0, 0], True),
        ([5, 5, 7, 7, 8, 9], False),  # the last tubelet is no transition
        ([5, 5, 7], False),  # a file cut short: whoever reads it says so
    ],
)
def test_last_leaves_out_first_rows_of_their_own(rows: list[float], dropped: bool) -> None:
    assert last_drops(np.array(rows, np.float32)[:, None].repeat(2, 1), transitions=2) is dropped


def test_every_column_is_aligned() -> None:
    out = align_actions(count_rows(6, width=3), alignment="impulse", reduce="last", transitions=2)
    assert out.tolist() == [[1.0, 1.5, 2.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize(("alignment", "rows"), [("impulse", (6, 7)), ("per_timestep", (6, 7)), ("as_is", (2, 3))])
def test_accepted_row_counts_of_three_frames(alignment: str, rows: tuple[int, ...]) -> None:
    # T = original_frames // 2, so an odd last frame is dropped by the encoder.
    assert accepted_action_rows(alignment, 3) == rows


def test_result_does_not_share_memory_with_the_file() -> None:
    rows = count_rows(6)
    out = align_actions(rows, alignment="as_is", reduce="last", transitions=2)
    out += 100
    assert rows.max() < 100


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (6, [1.0, 3.0]),  # one row per original frame: the newest that is known at each encoded frame
        (7, [1.0, 3.0]),
        (3, [0.0, 1.0]),  # one row per encoded frame
        (2, [0.0, 1.0]),  # one row per transition
    ],
)
def test_per_frame_rows(rows: int, expected: list[float]) -> None:
    out = align_per_frame(count_rows(rows), frames=3, transitions=2)
    assert out[:, 0].tolist() == expected
