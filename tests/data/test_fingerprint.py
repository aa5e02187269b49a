"""Fingerprints recognise a clip by its numbers, whatever its name and however its files are written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.fingerprint import fingerprints, whole_hash
from hopecli.data.make_clips import make_clips
from hopecli.data.store import ClipStore
from tests.clips import DIM, GRID, PATCHES, count_rows, data_settings, make_features, write_clip

ROWS = count_rows(6) / 3  # no whole numbers: they are rounded when saved


def marks(folder: Path, **changes: object) -> list[str]:
    """The fingerprints of all clips of a folder, in order, after checking that whole hashes agree where they do."""
    clips = ClipStore(folder, data_settings(changes), use_extrinsics=False)
    found = list(fingerprints(clips, clips.select().values()).values())
    whole = [whole_hash(clips, name) for name in clips.select().values()]
    assert [found.index(mark) for mark in found] == [whole.index(digest) for digest in whole]
    return found


def test_a_clip_under_another_name_and_other_clips(tmp_path: Path) -> None:
    write_clip(tmp_path, 1)
    write_clip(tmp_path, 2)
    write_clip(tmp_path, 3, features=make_features(1), actions=np.ones((6, 2), np.float32))  # other actions
    shutil.copytree(tmp_path / "clip_00001", tmp_path / "clip_00777")
    one, two, three, copy = marks(tmp_path)
    assert copy == one
    assert len({one, two, three}) == 3


@pytest.mark.parametrize("large", [False, True])
def test_a_clip_saved_again(large: bool, tmp_path: Path) -> None:
    frames = (1 << 18) // (PATCHES * DIM) + 1 if large else 3
    exact = make_features(0, frames=frames)
    features = exact.astype(np.float16)
    rows = np.resize(ROWS, (2 * frames, 2))
    saved_again = [
        (features, rows),
        (exact, rows),
        (features.astype(np.float32), rows.astype(np.float64)),
        (features.reshape(frames, GRID, GRID, DIM), rows),
        (features.reshape(-1, DIM), np.asfortranarray(rows)),
        (np.asfortranarray(features), rows),
        (features, rows.astype(">f4")),
    ]
    for number, (array, actions) in enumerate(saved_again):
        write_clip(tmp_path, number, features=array, actions=actions)
    changed = features.copy()
    changed[0, 0, 0] += 1
    write_clip(tmp_path, 91, features=changed, actions=rows)
    *same, other = marks(tmp_path)
    assert len(set(same)) == 1
    assert other not in same


def test_every_sixteenth_of_a_large_clip_counts(tmp_path: Path) -> None:
    frames = (1 << 18) // (PATCHES * DIM) + 1
    features = make_features(0, frames=frames, dtype="float16")
    rows = np.resize(ROWS, (2 * frames, 2))
    write_clip(tmp_path, 0, features=features, actions=rows)
    for part in range(16):
        changed = features.copy()
        values = changed.reshape(-1)
        values[part * values.size // 16 : (part + 1) * values.size // 16] += 1
        write_clip(tmp_path, 1 + part, features=changed, actions=rows)
    assert len(set(marks(tmp_path))) == 17


def test_large_clips_of_one_push_and_background_are_told_apart(tmp_path: Path) -> None:
    """Built-in clips with the same push differ where disks are; the first rows of every frame are alike in many."""
    make_clips(tmp_path / "clips", clips=24, grid=16, dim=160, domain="base", seed=0)
    rows = np.zeros((16, 2), np.float32)
    rows[1] = (0.6, 0.0)
    for path in (tmp_path / "clips").glob("clip_*/actions_states/actions.npy"):
        np.save(path, rows)
    assert len(set(marks(tmp_path / "clips", num_timesteps=8, grid=16, embed_dim=160))) == 24


def test_any_patch_of_a_small_clip_counts(tmp_path: Path) -> None:
    """Built-in clips without a push share most patches, so samples of them would not tell them apart."""
    for number in (1, 2):
        features = np.zeros((4, 64, 64), np.float32)
        features[1, 40 + number] = 1.0
        write_clip(tmp_path, number, features=features, actions=np.zeros((8, 2), np.float32))
    assert len(set(marks(tmp_path, grid=8, embed_dim=64))) == 2


def test_numbers_too_large_for_float16_are_told_apart_from_usual_ones(tmp_path: Path) -> None:
    write_clip(tmp_path, 1, features=make_features(1) * 1e6)
    write_clip(tmp_path, 2, features=make_features(1), actions=count_rows(6) + 1)
    assert len(set(marks(tmp_path))) == 2


@pytest.mark.parametrize(
    ("frames", "expected"),
    [(3, "cf5ba749236c503dd5eb6844"), (1 << 15, "150476fae7b6611771ec5715")],
    ids=["read whole", "read in pieces"],
)
def test_marks_are_those_of_earlier_runs(frames: int, expected: str, tmp_path: Path) -> None:
    """split.json keeps them: a run resumes, and `hope eval` knows its clips, only as long as the recipe stays. Who
    changes the recipe changes MARK_BYTES too, and these numbers."""
    values = (np.arange(frames * PATCHES * DIM) * 7 % 1021).reshape(frames, PATCHES, DIM).astype(np.float16)
    write_clip(tmp_path, 1, features=values, actions=np.resize(ROWS, (2 * frames, 2)))
    assert marks(tmp_path) == [expected]
