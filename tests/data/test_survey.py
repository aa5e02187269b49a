"""Surveying folders: every defect, the statistics, and that nothing is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hopecli.data import survey_duplicates
from hopecli.data.headers import ClipProblem
from hopecli.data.survey import CODES
from hopecli.data.survey_content import pca_images
from hopecli.errors import DataError
from tests.broken_clips import DEFECTS, write_broken_folder, write_healthy
from tests.clips import FRAMES, feature_file, make_features, write_clip
from tests.data.surveys import look, push_rows, store_as_surveyed, survey, tree


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


def test_outliers_are_over_five_times_the_median_root_mean_square(tmp_path: Path) -> None:
    """Values of one size with random signs, so that each root mean square is that size; the mean of these is 2.8."""
    sizes = np.ones(16)
    sizes[3], sizes[5:10] = 4.75, 6.0
    for number in range(3):
        signs = np.random.default_rng(number).choice([-1.0, 1.0], size=(4, 4, 16))
        write_clip(tmp_path, number, features=(signs * sizes).astype(np.float32), actions=push_rows(8, (1,)))
    found = survey(tmp_path).features
    assert found is not None
    assert found.outlier_dimensions == (5, 6, 7, 8, 9)


def test_longer_clips_are_measured_over_the_frames_training_uses(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path, number, features=make_features(number, frames=12), actions=push_rows(24, (1,)))
    found = survey(tmp_path)
    assert found.geometry.frame_counts == {12: 3}
    assert found.checked_frames == 8
    assert found.motion is not None
    assert len(found.motion.copy_last_l1) == 7


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


@pytest.mark.parametrize(("clips", "deep", "copies", "alike"), [(0, False, 0, 3), (2, False, 1, 2), (0, True, 3, 0)])
def test_copies_beyond_the_reading_allowed_are_only_alike(
    clips: int, deep: bool, copies: int, alike: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clips alike, where the files of so many may be read to compare them."""
    for number in range(4):
        write_clip(tmp_path, number, features=make_features(0), actions=push_rows(6, (1,)))
    files = [*(tmp_path / "clip_00000").rglob("*.npy")]
    monkeypatch.setattr(survey_duplicates, "HASH_BUDGET", clips * sum(path.stat().st_size for path in files))
    found = survey(tmp_path, {"deep": deep})
    assert (found.duplicates.clips, found.duplicates.alike) == (copies, alike)


def test_at_most_sixteen_dimensions_are_named(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((4, 4, 32)).astype(np.float32)
    features[..., 5:25] = 1.0
    write_clip(tmp_path, 0, features=features, actions=push_rows(8, (1,)))
    found = survey(tmp_path).features
    assert found is not None
    assert (found.dead_count, found.dead_share, found.dead_dimensions) == (20, 20 / 32, tuple(range(5, 21)))


def test_one_far_token_does_not_take_the_colours_of_all_others() -> None:
    tokens = np.random.default_rng(0).standard_normal((50, 4, 6)).astype(np.float32)
    tokens[0, 0] = 1000.0
    image = pca_images(tokens, (2, 2))
    assert image.shape == (50, 2, 2, 3)
    assert (image.min(), image.max()) == (0.0, 1.0)
    # Normal values between their 1st and 99th percentile have a standard deviation of about a fifth of that range;
    # between the smallest and the largest here it would be 0.001 along the first component.
    assert image.std(axis=(0, 1, 2)).min() > 0.1


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


@pytest.mark.usefixtures("permissions_obeyed")
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
