"""Reading the rows of actions, states and extrinsics: how many frames they belong to, and what is no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hopecli.data.headers import ClipProblem
from hopecli.data.store import ClipStore
from tests.clips import ACTION_DIM, count_rows, data_settings, make_features, write_clip


def test_rows_of_a_longer_clip_are_those_of_its_first_frames(tmp_path: Path) -> None:
    """18 rows of a file of 9 frames are one per original frame, however few of the frames are used."""
    rows = {"actions": count_rows(18), "states": count_rows(18) + 100, "extrinsics": count_rows(18, width=1) + 200}
    name = write_clip(tmp_path, 1, features=make_features(5, frames=9), **rows)
    settings = data_settings({"action_alignment": "per_timestep"})
    sample = ClipStore(tmp_path, settings, use_extrinsics=True).read(name)
    assert sample.actions.tolist() == [[1.0, 1.5], [3.0, 3.5]]
    assert sample.states.tolist() == [[101.0, 101.5], [103.0, 103.5]]
    assert sample.extrinsics is not None
    assert sample.extrinsics.tolist() == [[201.0], [203.0]]


@pytest.mark.parametrize("what", ["actions", "states", "extrinsics"])
@pytest.mark.parametrize("dtype", ["bool", "complex64", "U8"])
def test_rows_that_are_no_numbers_are_refused(dtype: str, what: str, tmp_path: Path) -> None:
    """A table of flags is some other file; read as 0 and 1 it would pass for pushes."""
    width = ACTION_DIM - 1 if what == "extrinsics" else ACTION_DIM
    rows = {"actions": count_rows(6), "extrinsics": count_rows(6, width=1), what: np.ones((6, width)).astype(dtype)}
    name = write_clip(tmp_path, 1, **rows)
    with pytest.raises(ClipProblem, match=f"{what} must be numbers") as raised:
        ClipStore(tmp_path, data_settings(), use_extrinsics=True).check(name)
    assert raised.value.code == f"{what}_dtype"
