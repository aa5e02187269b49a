"""Surveying folders: what is inferred from clips of every form, every defect, and that nothing is written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hopecli.data.headers import ClipProblem
from hopecli.data.store import ClipStore
from hopecli.data.survey import CODES, Survey, Surveyed
from hopecli.data.survey_run import survey_folder, training_settings
from hopecli.errors import DataError
from tests.broken_clips import DEFECTS, write_broken_folder, write_healthy
from tests.clips import FRAMES, GRID, count_rows, feature_file, make_features, write_clip


def look(folder: Path, changes: dict[str, Any] | None = None) -> Surveyed:
    options: dict[str, Any] = {
        "feature_map": None,
        "sample": 1000,
        "deep": False,
        "known_grids": [16, GRID],
        "num_timesteps": 8,
        "shorten": True,
        "pictures": False,
        "on_progress": lambda stage, done, total: None,
    }
    return survey_folder(folder, **{**options, **(changes or {})})


def survey(folder: Path, changes: dict[str, Any] | None = None) -> Survey:
    return look(folder, changes).survey


def store_as_surveyed(folder: Path, found: Survey) -> ClipStore:
    settings = training_settings(found.geometry, found.actions, found.feature_map, 8, shorten=True)
    return ClipStore(folder, settings, use_extrinsics=False)


def tree(folder: Path) -> list[tuple[str, int, int]]:
    paths = sorted(folder.rglob("*"))
    return [(str(path.relative_to(folder)), path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths]


def test_every_defect_is_found_named_and_counted_once(tmp_path: Path) -> None:
    assert len(DEFECTS) == 33
    expected = write_broken_folder(tmp_path)
    before = tree(tmp_path)
    found = survey(tmp_path)
    assert {f.code: list(f.clips) for f in found.findings} == expected
    assert {f.code: f.count for f in found.findings} == {code: len(clips) for code, clips in expected.items()}
    for finding in found.findings:
        assert (finding.severity, finding.meaning) == CODES[finding.code]
        assert finding.example
    assert found.errors + found.warnings == len(found.findings)
    assert tree(tmp_path) == before


def test_errors_are_exactly_what_training_refuses(tmp_path: Path) -> None:
    expected = write_broken_folder(tmp_path)
    found = survey(tmp_path)
    store = store_as_surveyed(tmp_path, found)
    refused = 0
    for code, clips in expected.items():
        for clip in clips:
            if CODES[code][0] == "warning":
                store.read(clip)
                continue
            with pytest.raises(ClipProblem) as raised:
                store.read(clip)
            assert raised.value.code == code
            refused += 1
    assert found.usable == found.clips - refused


def test_more_than_five_clips_are_counted_but_not_named(tmp_path: Path) -> None:
    for number in range(20):
        write_healthy(tmp_path, number)
        if number >= 12:
            feature_file(tmp_path, f"clip_{number:05d}").unlink()
    (finding,) = survey(tmp_path).findings
    assert (finding.code, finding.count) == ("missing_features", 8)
    assert finding.clips == tuple(f"clip_{number:05d}" for number in range(12, 17))


def test_a_sample_reads_fewer_clips_and_deep_all(tmp_path: Path) -> None:
    for number in range(10):
        write_healthy(tmp_path, number)
    features = make_features(0, frames=4)[..., :4].astype(np.float16)
    features[...] = np.nan
    np.save(feature_file(tmp_path, "clip_00004"), np.tile(features[..., :1], 6))
    sampled = survey(tmp_path, {"sample": 2})
    assert sampled.content_read == 2
    assert sampled.findings == ()
    deep = survey(tmp_path, {"sample": 2, "deep": True})
    assert deep.content_read == 10
    assert [(f.code, f.clips) for f in deep.findings] == [("not_finite", ("clip_00004",))]


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        ((8, 3, 3, 5), 16, (8, 9, (3, 3))),
        ((8, 2, 3, 5), 16, (8, 6, (2, 3))),
        ((8, 9, 5), 16, (8, 9, (3, 3))),
        ((8, 6, 5), 16, (8, 6, None)),
        ((72, 5), 16, (8, 9, (3, 3))),  # one row per original frame
        ((200, 5), 17, (8, 25, (5, 5))),
        ((72, 5), 8, (8, 9, (3, 3))),  # one row per encoded frame
        ((63, 5), 6, (7, 9, (3, 3))),  # one row per transition
        ((36, 5), 8, (9, 4, (2, 2))),  # 4 frames of 3 x 3 fit too, but a preset's grid is 2
    ],
)
def test_sizes_are_inferred_without_settings(
    shape: tuple[int, ...], rows: int, expected: tuple[int, int, tuple[int, int] | None], tmp_path: Path
) -> None:
    for number in range(3):
        features = np.random.default_rng(number).standard_normal(shape).astype(np.float16)
        write_clip(tmp_path, number, features=features, actions=count_rows(rows))
    found = survey(tmp_path).geometry
    assert (found.frames, found.patches, found.grid) == expected
    assert found.width == 5
    assert found.inferred_from


def test_a_preset_grid_settles_what_action_rows_do_not(tmp_path: Path) -> None:
    write_clip(tmp_path, 1, features=make_features(0, frames=8).reshape(32, 4), actions=count_rows(3))
    found = survey(tmp_path)
    assert (found.geometry.frames, found.geometry.patches) == (8, 4)
    assert "preset" in str(found.geometry.inferred_from)
    assert [f.code for f in found.findings] == ["actions_shape"]


def push_rows(rows: int, at: tuple[int, ...]) -> np.ndarray:
    actions = np.zeros((rows, 2), np.float32)
    actions[list(at)] = (0.5, -2.0)
    return actions


@pytest.mark.parametrize(
    ("rows", "at", "suggested"),
    [
        (2 * FRAMES, (1,), "impulse"),
        (2 * FRAMES, (1, 2), "per_timestep"),
        (2 * FRAMES + 1, (1,), "impulse"),
        (FRAMES, (0, 1), "as_is"),
        (FRAMES - 1, (0, 1), "as_is"),
    ],
)
def test_alignment_is_suggested_from_the_data(rows: int, at: tuple[int, ...], suggested: str, tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path, number, actions=push_rows(rows, at))
    actions = survey(tmp_path).actions
    assert actions.suggested_alignment == suggested
    assert actions.alignments[suggested] == 3
    values = push_rows(rows, at)
    assert actions.range == tuple(
        (float(low), float(high)) for low, high in zip(values.min(0), values.max(0), strict=True)
    )
    assert actions.zero_rows == pytest.approx(1 - len(at) / rows)
    assert actions.zero_clips == 0.0
    assert actions.original_frames == (rows if suggested != "as_is" else None)


def test_pushes_elsewhere_are_named_when_impulse_would_drop_them(tmp_path: Path) -> None:
    for number in range(20):
        write_clip(tmp_path, number, actions=push_rows(2 * FRAMES, (1, 3) if number == 7 else (1,)))
    found = survey(tmp_path)
    assert found.actions.suggested_alignment == "impulse"
    assert [(f.code, f.clips) for f in found.findings] == [("actions_dropped", ("clip_00007",))]


def test_feature_statistics_against_numpy(tmp_path: Path) -> None:
    clips = [make_features(number, frames=4) * 3 + 1 for number in range(5)]
    for number, features in enumerate(clips):
        features[..., 2] = 4.0  # a dead dimension
        write_clip(tmp_path, number, features=features, actions=push_rows(8, (1,)))
    found = survey(tmp_path)
    values = np.stack(clips).astype(np.float64)
    assert found.features is not None
    # float64 sums of float32 values: rounding far below 1e-9.
    assert found.features.mean == pytest.approx(values.mean(), abs=1e-9)
    assert found.features.std == pytest.approx(values.std(), abs=1e-9)
    assert (found.features.min, found.features.max) == (values.min(), values.max())
    assert found.features.dead_dimensions == (2,)
    assert found.features.dead_share == 0.25
    h = F.layer_norm(torch.from_numpy(values), (values.shape[-1],))
    expected = (h[:, 1:] - h[:, :1]).abs().mean(dim=(0, 2, 3))
    assert found.motion is not None
    # LayerNorm in float32 against float64: 1e-6 is rounding.
    assert found.motion.copy_last_l1 == pytest.approx(expected.tolist(), abs=1e-6)


def test_outlier_dimensions(tmp_path: Path) -> None:
    for number in range(3):
        features = np.random.default_rng(number).standard_normal((4, 4, 32)).astype(np.float32)
        features[..., 17] += 60.0
        write_clip(tmp_path, number, features=features, actions=push_rows(8, (1,)))
    found = survey(tmp_path).features
    assert found is not None
    assert found.outlier_dimensions == (17,)


def test_longer_clips_are_measured_over_the_frames_training_uses(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path, number, features=make_features(number, frames=12), actions=push_rows(24, (1,)))
    found = survey(tmp_path)
    assert found.geometry.frame_counts == {12: 3}
    assert found.checked_frames == 8
    assert found.motion is not None
    assert len(found.motion.copy_last_l1) == 7


def test_ids_gaps_and_two_folders_with_one_id(tmp_path: Path) -> None:
    for number in (3, 4, 7, 20):
        write_healthy(tmp_path, number)
    ids = survey(tmp_path).ids
    assert (ids.first, ids.last, ids.missing, ids.gaps) == (3, 20, 14, ((5, 6), (8, 19)))
    (tmp_path / "clip_4").mkdir()
    found = survey(tmp_path)
    assert found.clips == 5
    assert [(f.code, f.count) for f in found.findings] == [("duplicate_id", 1)]


def test_duplicates_need_the_whole_content_to_agree(tmp_path: Path) -> None:
    # Same size, same first and middle 4 KiB, same actions: the fingerprint agrees, the content does not.
    features = np.random.default_rng(0).standard_normal((4, 4, 1024)).astype(np.float32)
    almost = features.copy()
    almost[-1, -1, -1] += 1.0
    for number, array in enumerate([features, almost, features]):
        write_clip(tmp_path, number, features=array, actions=push_rows(8, (1,)))
    found = survey(tmp_path)
    assert found.duplicates.clips == 1
    assert [(f.code, f.clips) for f in found.findings] == [("duplicate", ("clip_00002",))]


def test_states_that_only_some_clips_have(tmp_path: Path) -> None:
    for number in range(4):
        write_healthy(tmp_path, number)
    (tmp_path / "clip_00002/actions_states/states.npy").unlink()
    (tmp_path / "clip_00003/actions_states/extrinsics.npy").unlink()
    np.save(tmp_path / "clip_00001/actions_states/extrinsics.npy", np.zeros((3, 3)))
    found = survey(tmp_path)
    assert (found.states, found.extrinsics) == (3, 3)
    assert {f.code: f.clips for f in found.findings} == {
        "missing_states": ("clip_00002",),
        "missing_extrinsics": ("clip_00003",),
        "extrinsics_unusable": ("clip_00001",),
    }
    assert found.errors == 0


def test_another_feature_map_is_found_by_itself(tmp_path: Path) -> None:
    for number in range(3):
        clip = write_healthy(tmp_path, number)
        (clip / "feature_maps/vjepa2_vitl16.npy").rename(clip / "feature_maps/dinov2.npy")
    assert survey(tmp_path).feature_map == "dinov2"
    assert survey(tmp_path).findings == ()
    named = survey(tmp_path, {"feature_map": "vjepa2_vitl16"})
    assert [(f.code, f.count) for f in named.findings] == [("missing_features", 3)]


def test_pictures_hold_norms_actions_and_components(tmp_path: Path) -> None:
    for number in range(3):
        write_healthy(tmp_path, number)
    pictures = look(tmp_path, {"pictures": True}).pictures
    assert pictures is not None
    assert pictures.pca is not None
    assert pictures.pca.shape == (4, 2, 2, 3)
    assert 0.0 <= pictures.pca.min() <= pictures.pca.max() <= 1.0
    assert pictures.actions.shape == (3, 2)
    assert len(pictures.norms) == 3 * 4 * 4


def test_folders_without_clips_are_data_errors(tmp_path: Path) -> None:
    for folder, what in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no clip_NNNNN folders")):
        with pytest.raises(DataError, match=what):
            survey(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_files_without_permission_are_unreadable(tmp_path: Path) -> None:
    for number in range(3):
        write_healthy(tmp_path, number)
    feature_file(tmp_path, "clip_00001").chmod(0)
    assert [(f.code, f.clips) for f in survey(tmp_path).findings] == [("unreadable", ("clip_00001",))]


def with_nan(array: np.ndarray, *place: int) -> np.ndarray:
    array = array.astype(np.float32)
    array[place] = np.nan
    return array


def test_values_that_training_does_not_read_are_no_errors(tmp_path: Path) -> None:
    """12 frames, of which 8 are used: impulse alignment reads action row 1, and states of the first 7 tubelets."""
    for number in range(20):
        write_clip(tmp_path, number, features=make_features(number, frames=12), actions=push_rows(24, (1,)))
    rows = push_rows(24, (1,))
    unused = {
        20: {"features": with_nan(make_features(20, frames=12), 8, 0, 0)},
        21: {"actions": with_nan(rows, 5, 0)},
        22: {"states": with_nan(rows, 0, 1)},
        23: {"states": with_nan(rows, 15, 1)},
        24: {"extrinsics": with_nan(rows[:, :1], 0, 0)},
    }
    used = {
        30: {"features": with_nan(make_features(30, frames=12), 7, 3, 3)},
        31: {"actions": with_nan(rows, 1, 0)},
        32: {"states": with_nan(rows, 13, 1)},
    }
    for number, changes in {**unused, **used}.items():
        write_clip(tmp_path, number, **{"features": make_features(number, frames=12), "actions": rows, **changes})
    found = survey(tmp_path)
    named = {f.code: f.clips for f in found.findings if f.code.startswith("not_finite")}
    assert named == {
        "not_finite": tuple(f"clip_000{number}" for number in used),
        "not_finite_unused": tuple(f"clip_000{number}" for number in unused),
    }
    assert found.usable == found.clips - len(used)
    assert found.features is not None
    assert np.isfinite(found.features.mean)
    store = store_as_surveyed(tmp_path, found)
    for number in range(20, 25):
        store.read(f"clip_{number:05d}")
    for number in used:
        with pytest.raises(ClipProblem, match="NaN"):
            store.read(f"clip_{number:05d}")


def test_extrinsics_that_are_not_finite_are_unusable(tmp_path: Path) -> None:
    for number in range(3):
        clip = write_healthy(tmp_path, number)
    np.save(clip / "actions_states/extrinsics.npy", np.full((8, 1), np.nan))
    assert {f.code: f.clips for f in survey(tmp_path).findings} == {"extrinsics_unusable": ("clip_00002",)}


def test_actions_of_another_width_do_not_count(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path, number, actions=push_rows(2 * FRAMES, (1,)))
    before = survey(tmp_path).actions
    write_clip(tmp_path, 3, actions=np.zeros((FRAMES - 1, 5), np.float32))
    found = survey(tmp_path)
    assert found.actions == before
    assert before.rows == {2 * FRAMES: 3}
    assert before.alignments == {"impulse": 3, "per_timestep": 3, "as_is": 0}
    assert [(f.code, f.clips) for f in found.findings] == [("actions_shape", ("clip_00003",))]


@pytest.mark.filterwarnings("error")
def test_enormous_values_cause_no_warnings(tmp_path: Path) -> None:
    for number in range(4):
        features = (make_features(number) * 1e30).astype(np.float32)
        write_clip(tmp_path, number, features=features, actions=push_rows(2 * FRAMES, (1,)).astype(np.float64) * 1e300)
    found = look(tmp_path, {"pictures": True})
    assert [(f.code, f.count) for f in found.survey.findings] == [("not_finite", 4)]
    for number in range(4):
        np.save(tmp_path / f"clip_0000{number}/actions_states/actions.npy", push_rows(2 * FRAMES, (1,)) * 1e30)
    found = look(tmp_path, {"pictures": True})
    assert found.pictures is not None
    assert found.pictures.pca is not None
    assert np.isfinite(found.pictures.pca).all()
    assert np.isfinite(found.pictures.norms).all()
