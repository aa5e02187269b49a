"""Reading clips: every layout, dtype and alignment of the contract, and each way a clip can be wrong."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hopecli.data.headers import ClipProblem
from hopecli.data.source import clips_folder
from hopecli.data.store import ClipStore, Sample
from hopecli.errors import DataError
from tests.clips import (
    ACTION_DIM,
    DIM,
    FRAMES,
    GRID,
    PATCHES,
    action_file,
    count_rows,
    data_settings,
    feature_file,
    make_features,
    write_clip,
    write_clips,
)


def store(folder: Path, changes: dict[str, Any] | None = None, *, use_extrinsics: bool = False) -> ClipStore:
    return ClipStore(folder, data_settings(changes), use_extrinsics=use_extrinsics)


def problem(folder: Path, changes: dict[str, Any] | None = None, *, use_extrinsics: bool = False) -> ClipProblem:
    """The error of reading clip 1, which names the clip and has the exit code of data errors."""
    with pytest.raises(ClipProblem) as raised:
        store(folder, changes, use_extrinsics=use_extrinsics).read("clip_00001")
    assert str(raised.value).startswith("clip_00001: ")
    assert raised.value.exit_code == 3
    return raised.value


def read(folder: Path, changes: dict[str, Any] | None = None, *, use_extrinsics: bool = False) -> Sample:
    return store(folder, changes, use_extrinsics=use_extrinsics).read("clip_00001")


LAYOUTS = {"flat": (-1, DIM), "tokens": (FRAMES, PATCHES, DIM), "grid": (FRAMES, GRID, GRID, DIM)}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes_give_the_same_clip(layout: str, dtype: str, tmp_path: Path) -> None:
    features = make_features(5, dtype=dtype)
    write_clip(tmp_path, 1, features=features.reshape(LAYOUTS[layout]))
    sample = read(tmp_path)
    assert sample.features.dtype == getattr(torch, dtype)  # the stored dtype, half the bytes for float16
    assert torch.equal(sample.features, torch.from_numpy(features))
    assert sample.actions.shape == (FRAMES - 1, ACTION_DIM)


def test_fortran_order_and_later_header_versions(tmp_path: Path) -> None:
    features = make_features(5)
    write_clip(tmp_path, 1, features=np.asfortranarray(features))
    assert torch.equal(read(tmp_path).features, torch.from_numpy(features))
    with open(feature_file(tmp_path, "clip_00001"), "wb") as file:
        np.lib.format.write_array(file, features, version=(2, 0))
    assert torch.equal(read(tmp_path).features, torch.from_numpy(features))


@pytest.mark.parametrize("layout", ["flat", "tokens"])
def test_longer_clip_is_cut_to_its_first_frames(layout: str, tmp_path: Path) -> None:
    features = make_features(5, frames=9)
    write_clip(
        tmp_path, 1, features=features.reshape(-1, DIM) if layout == "flat" else features, actions=count_rows(18)
    )
    assert torch.equal(read(tmp_path).features, torch.from_numpy(features[:FRAMES]))


def test_only_the_frames_used_are_read(tmp_path: Path) -> None:
    # 8 GiB on paper, a hole on disk: reading it all would take minutes and memory that is not there.
    frames = 2**33 // (PATCHES * DIM * 4)
    write_clip(tmp_path, 1, actions=count_rows(FRAMES - 1))
    features = make_features(5)
    with open(feature_file(tmp_path, "clip_00001"), "wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (frames, PATCHES, DIM)}
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        file.write(features.tobytes())
        file.truncate(start + 2**33)
    action_rows = np.lib.format.open_memmap(
        action_file(tmp_path, "clip_00001"), mode="w+", dtype=np.float32, shape=(frames, ACTION_DIM)
    )
    action_rows[:FRAMES] = 7.0
    action_rows.flush()
    sample = read(tmp_path, {"action_alignment": "as_is"})
    assert torch.equal(sample.features, torch.from_numpy(features))
    assert sample.actions.tolist() == [[7.0, 7.0]] * (FRAMES - 1)


def test_absent_states_are_zeros_and_present_ones_are_aligned(tmp_path: Path) -> None:
    write_clip(tmp_path, 1)
    assert torch.equal(read(tmp_path).states, torch.zeros(FRAMES - 1, ACTION_DIM))
    write_clip(tmp_path, 1, states=count_rows(2 * FRAMES))
    assert read(tmp_path).states.tolist() == [[1.0, 1.5], [3.0, 3.5]]


@pytest.mark.parametrize(("rows", "expected"), [(2 * FRAMES, [[1.0], [3.0]]), (FRAMES, [[0.0], [1.0]])])
def test_extrinsics_are_read_when_on(rows: int, expected: list[list[float]], tmp_path: Path) -> None:
    write_clip(tmp_path, 1, extrinsics=count_rows(rows, width=ACTION_DIM - 1))
    found = read(tmp_path, use_extrinsics=True).extrinsics
    assert found is not None
    assert found.tolist() == expected
    assert read(tmp_path).extrinsics is None


@pytest.mark.parametrize(
    ("alignment", "reduce", "rows", "expected"),
    [
        ("impulse", "last", 6, [[1.0, 1.5], [0.0, 0.0]]),
        ("per_timestep", "mean", 7, [[0.5, 1.0], [2.5, 3.0]]),
        ("as_is", "last", 2, [[0.0, 0.5], [1.0, 1.5]]),
        ("as_is", "last", 3, [[0.0, 0.5], [1.0, 1.5]]),
    ],
)
def test_action_alignment(alignment: str, reduce: str, rows: int, expected: list[list[float]], tmp_path: Path) -> None:
    write_clip(tmp_path, 1, actions=count_rows(rows).astype(np.float64))
    changes = {"action_alignment": alignment, "action_reduce": reduce}
    sample = read(tmp_path, changes)
    assert sample.actions.dtype == torch.float32
    assert sample.actions.tolist() == expected
    assert torch.equal(store(tmp_path, changes).read_actions("clip_00001"), sample.actions)


@pytest.mark.parametrize(
    ("alignment", "rows", "accepted"),
    [
        ("impulse", 5, "[6, 2] or [7, 2]"),
        ("impulse", 8, "[6, 2] or [7, 2]"),
        ("per_timestep", 3, "[6, 2] or [7, 2]"),
        ("as_is", 6, "[2, 2] or [3, 2]"),
    ],
)
def test_action_rows_that_fit_no_rule(alignment: str, rows: int, accepted: str, tmp_path: Path) -> None:
    write_clip(tmp_path, 1, actions=count_rows(rows))
    message = str(problem(tmp_path, {"action_alignment": alignment}))
    assert f"actions have shape [{rows}, 2]" in message
    assert accepted in message


@pytest.mark.parametrize(
    ("features", "code", "part"),
    [
        (make_features(0, frames=2), "too_few_frames", "2 encoded frames, fewer than data.num_timesteps = 3. Put"),
        (
            make_features(0, frames=2).reshape(-1, DIM),  # a wrong data.grid would look the same
            "too_few_frames",
            "2 encoded frames (8 feature rows / 4 patches, data.grid = 2), fewer than data.num_timesteps = 3. Put",
        ),
        (make_features(0, frames=5)[..., :3], "feature_width", "width 3, but data.embed_dim = 4 (got [5, 4, 3])"),
        (make_features(0)[:, :1], "grid", "1 patches, but data.grid = 2 means 4 (got [3, 1, 4]). Give clips of"),
        (make_features(0)[:, :3], "grid", "features have 3 patches, but predictors need a square grid (gh = gw)"),
        (
            make_features(0).reshape(3, 1, 4, DIM),
            "grid",
            "features have 1x4 patches, but predictors need a square grid (gh = gw) (got [3, 1, 4, 4]). Encode square",
        ),
        (np.zeros((3, 3, 3, DIM), np.float32), "grid", "3x3 patches, but data.grid = 2 means 4 (got [3, 3, 3, 4])."),
        (make_features(0).reshape(-1, DIM)[:11], "not_divisible", "11 feature rows are not a multiple of N = 4"),
        (make_features(0).reshape(-1), "odd_shape", "[T*N, D], [T, N, D] or [T, gh, gw, D]"),
        (make_features(0).astype(np.float64), "float64", "float16 or float32 (got 'float64')"),
        (make_features(0).astype(np.int32), "odd_dtype", "float16 or float32 (got 'int32')"),
        (np.array([{"a": 1}], dtype=object), "pickled", "pickled objects, which are never loaded"),
    ],
)
def test_features_that_break_the_contract(features: np.ndarray, code: str, part: str, tmp_path: Path) -> None:
    write_clip(tmp_path, 1, features=features)
    found = problem(tmp_path)
    assert found.code == code
    assert part in str(found)


@pytest.mark.parametrize("where", ["features", "actions", "states", "extrinsics"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(where: str, value: float, tmp_path: Path) -> None:
    arrays = {
        "features": make_features(1, dtype="float16"),
        "actions": count_rows(6),
        "states": count_rows(6),
        "extrinsics": count_rows(6, width=ACTION_DIM - 1),
    }
    arrays[where].flat[arrays[where].shape[-1]] = value  # row 1: inside the frames used
    write_clip(tmp_path, 1, **arrays)
    found = problem(tmp_path, use_extrinsics=True)
    assert found.code == "not_finite"
    assert f"{where} hold NaN or infinite values" in str(found)


def test_truncated_foreign_and_missing_files(tmp_path: Path) -> None:
    name = write_clip(tmp_path, 1)
    path = feature_file(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    truncated = problem(tmp_path)
    assert truncated.code == "truncated"
    assert f"{len(whole) - 1} bytes where its header announces {len(whole)}" in str(truncated)
    for content in (whole[:20], b"", b"\x89PNG", pickle.dumps([1.0])):
        path.write_bytes(content)
        assert problem(tmp_path).code == "unreadable"
    path.unlink()
    assert problem(tmp_path).code == "missing_features"
    np.save(path.with_stem("dinov3"), make_features(1))
    assert str(problem(tmp_path)).endswith("is missing (got 'dinov3'). Set data.feature_map=dinov3")
    write_clip(tmp_path, 1)
    action_file(tmp_path, name).unlink()
    assert problem(tmp_path).code == "missing_actions"
    write_clip(tmp_path, 1)
    assert problem(tmp_path, use_extrinsics=True).code == "missing_extrinsics"


def test_a_damaged_header_is_a_problem_of_its_clip(tmp_path: Path) -> None:
    """numpy reads headers as Python text: damage raises SyntaxError, TokenError, OverflowError, TypeError, ..."""
    name = write_clip(tmp_path, 1)
    path = feature_file(tmp_path, name)
    whole = path.read_bytes()
    start, stop = whole.index(b"{"), whole.index(b"}") + 1
    headers = [
        whole[start:stop].replace(b"<f4", b"<,2").replace(b"<f2", b"<,2"),
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1180591620717411303424, 8)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (16, 1152921504606846976)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}",
    ]
    for header in headers:
        path.write_bytes(whole[:start] + header.ljust(stop - start) + whole[start + max(len(header), stop - start) :])
        assert problem(tmp_path).code in ("unreadable", "truncated", "odd_shape"), header
    for position in range(start, stop):
        for value in (0, ord("("), ord("'"), ord("9"), 255):
            path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
            with contextlib.suppress(ClipProblem):  # some damage leaves a header that can be used
                store(tmp_path).check(name)


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    name = write_clip(tmp_path, 1)
    action_file(tmp_path, name).with_name("states.npy").symlink_to("nowhere.npy")
    assert "states.npy is a link that leads nowhere" in str(problem(tmp_path))
    with pytest.raises(ClipProblem, match=r"states\.npy is a link that leads nowhere"):
        store(tmp_path).check(name)
    (tmp_path / "clip_00002").symlink_to("nowhere", target_is_directory=True)
    assert list(store(tmp_path).select()) == [1, 2]


def test_large_float16_features_are_finite(tmp_path: Path) -> None:
    """Their sum is not, where it is taken in float16."""
    write_clip(tmp_path, 1, features=np.full((FRAMES, PATCHES, DIM), 2000.0, np.float16))
    assert (read(tmp_path).features == 2000).all()


def test_actions_too_large_for_float32_are_not_finite(tmp_path: Path) -> None:
    write_clip(tmp_path, 1, actions=np.full((6, 2), 1e300))
    with pytest.raises(ClipProblem, match=r"actions hold NaN or infinite.*Correct actions\.npy"):
        store(tmp_path).read("clip_00001")


def test_states_of_the_wrong_shape(tmp_path: Path) -> None:
    write_clip(tmp_path, 1, states=count_rows(6, width=3))
    found = problem(tmp_path)
    assert found.code == "states_shape"
    assert "states have shape [6, 3]" in str(found)
    assert "[6, 2]" in str(found)


def test_selection_by_numeric_id(tmp_path: Path) -> None:
    write_clips(tmp_path, [100000, 3, 10, 2])
    for other in ("clip_notes", "clip_00007_old", "old_clip_00007"):
        (tmp_path / other).mkdir()
    (tmp_path / "clip_00099").write_text("a file, not a clip")
    assert list(store(tmp_path).select()) == [2, 3, 10, 100000]
    assert list(store(tmp_path, {"clip_start": 3, "clip_end": 10}).select()) == [3]
    assert list(store(tmp_path, {"clip_end": 11}).select()) == [2, 3, 10]
    with pytest.raises(
        DataError, match=r"no clip has an id within data.clip_start=20 data.clip_end=30 .*ids 2 to 100000"
    ):
        store(tmp_path, {"clip_start": 20, "clip_end": 30}).select()
    (tmp_path / "clip_3").mkdir()
    with pytest.raises(DataError, match=r"the same id.*clip_00003"):
        store(tmp_path).select()


def test_missing_and_empty_folders_show_the_expected_tree(tmp_path: Path) -> None:
    for folder, what in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no clip_NNNNN folders")):
        with pytest.raises(DataError, match=rf"{what}.*clip_00001/feature_maps") as raised:
            store(folder).select()
        assert str(folder) in str(raised.value)
    with pytest.raises(DataError, match=r"HOPE_DATA_DIR.*clip_00001/feature_maps"):
        clips_folder(data_settings(), say=lambda line: None)
