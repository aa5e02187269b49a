"""Reading the rows of actions, states and extrinsics: how many frames they belong to, and what is no number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hopecli.data.headers import ClipProblem
from hopecli.data.store import ClipStore
from tests.clips import ACTION_DIM, FRAMES, count_rows, data_settings, make_features, write_clip, write_clips


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


@pytest.mark.parametrize("rows", [FRAMES - 1, FRAMES])
def test_a_row_per_transition_or_encoded_frame_is_taken_as_it_is(rows: int, tmp_path: Path) -> None:
    name = write_clip(tmp_path, 1, states=count_rows(rows) + 100, extrinsics=count_rows(rows, width=1) + 200)
    sample = ClipStore(tmp_path, data_settings(), use_extrinsics=True).read(name)
    assert sample.states.tolist() == [[100.0, 100.5], [101.0, 101.5]]
    assert sample.extrinsics is not None
    assert sample.extrinsics.tolist() == [[200.0], [201.0]]


def test_actions_read_alone_are_those_of_the_clip_and_finite(tmp_path: Path) -> None:
    """What the rows of other clips are taken from for the shuffled-action row of `hope eval`."""
    store = ClipStore(tmp_path, data_settings({"action_alignment": "per_timestep"}), use_extrinsics=False)
    name = write_clip(tmp_path, 1)
    assert store.read_actions(name).tolist() == store.read(name).actions.tolist() == [[2.0, 2.5], [4.0, 4.5]]
    for row in range(6):
        rows = count_rows(6)
        rows[row, 0] = np.nan
        write_clip(tmp_path, 1, actions=rows)
        if row in (1, 3):  # the last rows of the first two tubelets
            with pytest.raises(ClipProblem, match="actions hold NaN"):
                store.read_actions(name)
        else:
            assert store.read_actions(name).isfinite().all()


def test_what_is_the_same_in_most_clips_is_told_from_a_sample_of_all_parts(tmp_path: Path) -> None:
    """The first 70 clips are pushed once and have no states, the last 70 move all the time and have."""
    once = np.zeros((6, 2), np.float32)
    once[1] = 1.0
    write_clips(tmp_path, range(140))
    for number in range(70):
        write_clip(tmp_path, number, actions=once)
        write_clip(tmp_path, number + 70, states=count_rows(6))
    names = [f"clip_{number:05d}" for number in range(140)]
    store = ClipStore(tmp_path, data_settings(), use_extrinsics=False)
    assert store.sampled_states(names) == (23, 47)
    assert store.dropped_actions(names) == (23, 47)
    assert store.sampled_states(names[:64]) == (0, 64)
    assert store.sampled_states(names[70:]) == (35, 35)
    assert store.sampled_states([]) == (0, 0)
    for reduce, dropped in (("last", 23), ("mean", 0), ("sum", 0)):  # count_rows: no row repeats another
        settings = data_settings({"action_alignment": "per_timestep", "action_reduce": reduce})
        assert ClipStore(tmp_path, settings, use_extrinsics=False).dropped_actions(names) == (dropped, 47)
