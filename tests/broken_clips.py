"""Clips that are each wrong in one way, among healthy ones, and the code that a survey must give each."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

GRID, DIM, FRAMES, ROWS = 2, 6, 4, 8
PATCHES = GRID * GRID
HEALTHY_IDS = range(100, 140)
FEATURES = "feature_maps/vjepa2_vitl16.npy"
ACTIONS = "actions_states/actions.npy"
STATES = "actions_states/states.npy"
EXTRINSICS = "actions_states/extrinsics.npy"

Defect = Callable[[Path], None]


def features(seed: int) -> np.ndarray:
    """Random features [FRAMES, PATCHES, DIM] in float16."""
    return np.random.default_rng(seed).standard_normal((FRAMES, PATCHES, DIM)).astype(np.float16)


def push(seed: int) -> np.ndarray:
    """One push at row 1 of [ROWS, 2]."""
    rows = np.zeros((ROWS, 2), np.float32)
    rows[1] = np.random.default_rng(seed).uniform(0.3, 1.0, 2)
    return rows


def write_healthy(folder: Path, number: int) -> Path:
    """One clip without a defect, with states and extrinsics."""
    clip = folder / f"clip_{number:05d}"
    (clip / "feature_maps").mkdir(parents=True)
    (clip / "actions_states").mkdir()
    np.save(clip / FEATURES, features(number))
    np.save(clip / ACTIONS, push(number))
    np.save(clip / STATES, push(number + 1))
    np.save(clip / EXTRINSICS, push(number + 2)[:, :1])
    return clip


def _changed(file: str, change: Callable[[np.ndarray], np.ndarray]) -> Defect:
    def apply(clip: Path) -> None:
        np.save(clip / file, change(np.load(clip / file)))

    return apply


def _with_value(file: str, value: float) -> Defect:
    def change(array: np.ndarray) -> np.ndarray:
        array.flat[array.shape[-1]] = value  # row 1, which every alignment uses
        return array

    return _changed(file, change)


def _written(file: str, content: bytes) -> Defect:
    def apply(clip: Path) -> None:
        (clip / file).write_bytes(content)

    return apply


def _cut(file: str) -> Defect:
    def apply(clip: Path) -> None:
        (clip / file).write_bytes((clip / file).read_bytes()[:-3])

    return apply


def _removed(file: str) -> Defect:
    return lambda clip: (clip / file).unlink()


def _byte(file: str, position: int, value: bytes) -> Defect:
    def apply(clip: Path) -> None:
        content = bytearray((clip / file).read_bytes())
        content[position] = ord(value)
        (clip / file).write_bytes(content)

    return apply


def _lost_link(file: str) -> Defect:
    def apply(clip: Path) -> None:
        (clip / file).unlink()
        (clip / file).symlink_to("nowhere.npy")

    return apply


def _lost_clip(clip: Path) -> None:
    shutil.rmtree(clip)
    clip.symlink_to("nowhere", target_is_directory=True)


def _pickled(clip: Path) -> None:
    np.save(clip / FEATURES, np.array([{"a": 1}], dtype=object), allow_pickle=True)


def _copied(clip: Path) -> None:
    shutil.rmtree(clip)
    shutil.copytree(clip.parent / "clip_00001", clip)


def _still(array: np.ndarray) -> np.ndarray:
    return np.repeat(array[:1], len(array), axis=0)


# (code, what is done); the healthy original of the duplicate is clip_00001.
DEFECTS: list[tuple[str, Defect]] = [
    ("missing_features", _removed(FEATURES)),
    ("missing_actions", _removed(ACTIONS)),
    ("unreadable", _written(FEATURES, b"")),
    ("unreadable", _written(FEATURES, b"\x89PNG not an array")),
    ("unreadable", _written(ACTIONS, pickle.dumps([1.0]))),
    ("unreadable", _byte(FEATURES, 80, b"(")),
    ("unreadable", _lost_link(STATES)),
    ("missing_features", _lost_clip),
    ("truncated", _cut(FEATURES)),
    ("truncated", _cut(ACTIONS)),
    ("truncated", _cut(STATES)),
    ("pickled", _pickled),
    ("odd_shape", _changed(FEATURES, lambda x: x.reshape(-1))),
    ("odd_shape", _changed(FEATURES, lambda x: x[None, :, :, None])),
    ("odd_dtype", _changed(FEATURES, lambda x: x.astype(np.int32))),
    ("float64", _changed(FEATURES, lambda x: x.astype(np.float64))),
    ("feature_width", _changed(FEATURES, lambda x: x[..., :-1])),
    ("grid", _changed(FEATURES, lambda x: x[:, :3])),
    ("not_divisible", _changed(FEATURES, lambda x: x.reshape(-1, DIM)[:-1])),
    ("too_few_frames", _changed(FEATURES, lambda x: x[:-1])),
    ("actions_shape", _changed(ACTIONS, lambda x: np.tile(x, (1, 2)))),
    ("actions_shape", _changed(ACTIONS, lambda x: x[:5])),
    ("actions_dtype", _changed(ACTIONS, lambda x: x.astype("U8"))),
    ("states_shape", _changed(STATES, lambda x: x[:, :1])),
    ("not_finite", _with_value(FEATURES, np.nan)),
    ("not_finite", _with_value(FEATURES, np.inf)),
    ("not_finite", _with_value(ACTIONS, -np.inf)),
    ("not_finite", _with_value(STATES, np.nan)),
    ("duplicate", _copied),
    ("zero_variance", _changed(FEATURES, lambda x: np.full_like(x, 2.5))),
    ("no_motion", _changed(FEATURES, _still)),
    ("actions_zero", _changed(ACTIONS, np.zeros_like)),
    ("mixed_dtypes", _changed(FEATURES, lambda x: x.astype(np.float32))),
]


def write_broken_folder(folder: Path) -> dict[str, list[str]]:
    """clip_00001 and HEALTHY_IDS healthy, clip_00002 on with one defect each; returns the clips of every code."""
    write_healthy(folder, 1)
    for number in HEALTHY_IDS:
        write_healthy(folder, number)
    expected: dict[str, list[str]] = {}
    for number, (code, spoil) in enumerate(DEFECTS, start=2):
        clip = write_healthy(folder, number)
        spoil(clip)
        expected.setdefault(code, []).append(clip.name)
    return expected
