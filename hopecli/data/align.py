"""How the action, state and extrinsics rows of a file become the T-1 transitions of a clip.

Shapes: T encoded frames in the file, A action width. V-JEPA 2 encodes tubelets of 2, so T = original_frames // 2.
"""

from __future__ import annotations

import numpy as np

TUBELET = 2


def original_row_counts(frames: int) -> tuple[int, int]:
    """Row counts of a file with one row per original frame: T = rows // 2."""
    return TUBELET * frames, TUBELET * frames + 1


def accepted_action_rows(alignment: str, frames: int) -> tuple[int, ...]:
    """Row counts that `data.action_alignment` accepts for a clip of `frames` encoded frames."""
    return (frames - 1, frames) if alignment == "as_is" else original_row_counts(frames)


def as_float32(rows: np.ndarray) -> np.ndarray:
    """The rows in float32; a number too large for it becomes infinite, which `check_finite` then reports."""
    with np.errstate(over="ignore"):
        return np.asarray(rows, dtype=np.float32)


def align_actions(rows: np.ndarray, *, alignment: str, reduce: str, transitions: int) -> np.ndarray:
    """Transitions [transitions, A] float32 from a file's rows [*, A], whose count has been checked.

    impulse: the row at original index 1 is transition 0, every other transition is zero. per_timestep: the rows of
    tubelet t (2t and 2t+1) reduced by last, mean or sum. as_is: row t.
    """
    rows = as_float32(rows)
    if alignment == "impulse":
        out = np.zeros((transitions, rows.shape[1]), np.float32)
        out[0] = rows[1]
        return out
    if alignment == "as_is":
        return rows[:transitions].copy()
    pairs = rows[: TUBELET * transitions].reshape(transitions, TUBELET, rows.shape[1])
    if reduce == "last":
        return pairs[:, -1].copy()
    return pairs.mean(axis=1) if reduce == "mean" else pairs.sum(axis=1)


def impulse_drops(rows: np.ndarray) -> bool:
    """Whether `impulse` leaves non-zero rows out."""
    return bool(rows[:1].any() or rows[2:].any())


def last_drops(rows: np.ndarray, *, transitions: int) -> bool:
    """Whether `per_timestep` with `last` leaves out a non-zero row 2t that is not repeated by row 2t+1."""
    first, last = (rows[start : TUBELET * transitions : TUBELET] for start in range(TUBELET))
    return any(a.any() and (a != b).any() for a, b in zip(first, last, strict=False))


def align_per_frame(rows: np.ndarray, *, frames: int, transitions: int) -> np.ndarray:
    """States or extrinsics [transitions, *] float32: one row per original frame gives the last row of each tubelet (the
    newest that is known when frame t is), one row per encoded frame or transition is taken as it is."""
    rows = as_float32(rows)
    if len(rows) in original_row_counts(frames):
        rows = rows[TUBELET - 1 :: TUBELET]
    return rows[:transitions].copy()
