"""What a survey infers from clips of every form: sizes, grid, alignment, ids, feature map, conditions."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.broken_clips import write_healthy
from tests.clips import FRAMES, action_file, count_rows, feature_file, make_features, write_clip, write_clips
from tests.data.surveys import push_rows, survey


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
        # Action rows that do not tell: of the presets' grids 16 and 2 the larger that leaves more than one frame.
        ((512, 5), 3, (2, 256, (16, 16))),
        ((256, 5), 6, (64, 4, (2, 2))),
        ((36, 5), 1, (9, 4, (2, 2))),  # not one frame of 6 x 6
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


def test_rows_of_original_frames_are_told_where_lengths_differ(tmp_path: Path) -> None:
    """The most common number of rows, 9, is none of the most common length, 3 frames."""
    for number, (frames, rows) in enumerate([(3, 6), (3, 7), (3, 7), (4, 9), (4, 9), (4, 9), (5, 10), (3, 6)]):
        write_clip(tmp_path, number, features=make_features(number, frames), actions=push_rows(rows, (1,)))
    actions = survey(tmp_path).actions
    assert (actions.original_frames, actions.suggested_alignment) == (9, "impulse")


@pytest.mark.parametrize(
    ("pushed", "elsewhere", "still", "suggested", "because"),
    [
        (9, 1, 0, "impulse", "in 9 of 10 clips with any action"),
        (17, 3, 0, "per_timestep", "in 3 of 20 clips with any action"),
        (2, 0, 18, "impulse", "one non-zero row, at index 1, in 2 of 2 clips with any action"),
        (0, 0, 2, "impulse", "every action is zero"),
    ],
)
def test_nine_of_ten_moving_clips_suggest_an_impulse(
    pushed: int, elsewhere: int, still: int, suggested: str, because: str, tmp_path: Path
) -> None:
    places: list[tuple[int, ...]] = [(1,)] * pushed + [(1, 2)] * elsewhere + [()] * still
    for number, at in enumerate(places):
        write_clip(tmp_path, number, actions=push_rows(2 * FRAMES, at))
    actions = survey(tmp_path).actions
    assert actions.suggested_alignment == suggested
    assert because in str(actions.suggested_because)


def test_pushes_elsewhere_are_named_when_impulse_would_drop_them(tmp_path: Path) -> None:
    for number in range(20):
        write_clip(tmp_path, number, actions=push_rows(2 * FRAMES, (1, 3) if number == 7 else (1,)))
    found = survey(tmp_path)
    assert found.actions.suggested_alignment == "impulse"
    assert [(f.code, f.clips) for f in found.findings] == [("actions_dropped", ("clip_00007",))]


def test_ids_gaps_and_two_folders_with_one_id(tmp_path: Path) -> None:
    for number in (3, 4, 7, 20):
        write_healthy(tmp_path, number)
    ids = survey(tmp_path).ids
    assert (ids.first, ids.last, ids.missing, ids.gaps) == (3, 20, 14, ((5, 6), (8, 19)))
    (tmp_path / "clip_4").mkdir()
    found = survey(tmp_path)
    assert found.clips == 5
    assert [(f.code, f.count) for f in found.findings] == [("duplicate_id", 1)]


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


def test_the_usual_feature_map_is_taken_where_any_clip_has_it(tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path, number)
        path = feature_file(tmp_path, f"clip_{number:05d}")
        shutil.copyfile(path, path.with_name("other.npy"))
        if number != 2:
            path.unlink()
    found = survey(tmp_path)
    assert found.feature_map == "vjepa2_vitl16"
    assert [(f.code, f.count) for f in found.findings] == [("missing_features", 3)]


def test_a_single_missing_id_is_a_gap(tmp_path: Path) -> None:
    write_clips(tmp_path, [1, 3, 7])
    ids = survey(tmp_path).ids
    assert (ids.first, ids.last, ids.missing, ids.gaps) == (1, 7, 4, ((2, 2), (4, 6)))


def test_a_sample_reaches_from_the_first_clip_to_the_last(tmp_path: Path) -> None:
    for number in range(9):
        features = make_features(number)
        if number % 4 == 0:
            features[0, 0, 0] = np.nan
        write_clip(tmp_path, number, features=features, actions=push_rows(2 * FRAMES, (1,)))
    found = survey(tmp_path, {"sample": 3})
    assert found.content_read == 3
    assert [(f.code, f.clips) for f in found.findings] == [("not_finite", ("clip_00000", "clip_00004", "clip_00008"))]


def test_a_dtype_that_training_refuses_is_no_mixture(tmp_path: Path) -> None:
    for number, dtype in enumerate(["float16", "float16", "float32", "float64"]):
        write_clip(tmp_path, number, features=make_features(number, dtype=dtype), actions=push_rows(2 * FRAMES, (1,)))
    found = {f.code: f.clips for f in survey(tmp_path).findings}
    assert found == {"float64": ("clip_00003",), "mixed_dtypes": ("clip_00002",)}


def test_the_usual_dtype_is_one_that_training_takes(tmp_path: Path) -> None:
    for number, dtype in enumerate(["float64", "float64", "float16", "float64", "float32", "float16"]):
        write_clip(tmp_path, number, features=make_features(number, dtype=dtype), actions=push_rows(2 * FRAMES, (1,)))
    found = {f.code: (f.count, f.example) for f in survey(tmp_path).findings}
    assert found["float64"][0] == 3
    assert found["mixed_dtypes"] == (1, "float32 among float16")


def test_ten_gaps_are_listed_and_all_counted(tmp_path: Path) -> None:
    write_clips(tmp_path, list(range(0, 25, 2)))
    ids = survey(tmp_path).ids
    assert (ids.missing, ids.gaps) == (12, tuple((gap, gap) for gap in range(1, 21, 2)))


def test_the_rate_is_that_of_the_features_read(tmp_path: Path) -> None:
    write_clips(tmp_path, range(3))
    storage = survey(tmp_path).storage
    assert storage.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.npy"))
    assert storage.read_bytes == 3 * make_features(0).nbytes
    assert storage.read_bytes_per_second == pytest.approx(storage.read_bytes / storage.read_seconds)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 4), (3, 4, 0), (3, 0, 4)])
def test_an_empty_array_tells_no_sizes(shape: tuple[int, ...], tmp_path: Path) -> None:
    write_clips(tmp_path, range(2))
    before = survey(tmp_path).geometry
    write_clip(tmp_path, 2, features=np.zeros(shape, np.float32))
    assert survey(tmp_path).geometry == before


def test_hidden_feature_files_are_not_taken_for_features(tmp_path: Path) -> None:
    for number in range(3):
        name = write_clip(tmp_path, number)
        file = feature_file(tmp_path, name)
        file.rename(file.with_name("dinov2.npy"))
        file.with_name("._dinov2.npy").write_bytes(b"Mac OS X")
    found = survey(tmp_path)
    assert (found.feature_map, found.usable, found.findings) == ("dinov2", 3, ())


def test_actions_of_an_absurd_length_are_not_read(tmp_path: Path) -> None:
    """A sparse file of 128 GiB as its header says: the check names it by its length."""
    names = [write_clip(tmp_path, number) for number in range(3)]
    path = action_file(tmp_path, names[1])
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (17179869184, 2)}\n"
    with open(path, "wb") as file:
        file.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        file.truncate(10 + len(header) + 2**37)
    found = survey(tmp_path)
    assert found.usable == 2
    assert [(finding.severity, finding.clips) for finding in found.findings] == [("error", ("clip_00001",))]
