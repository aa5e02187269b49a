"""Reading .npy files that change or fail while they are read."""

from __future__ import annotations

import shlex
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from hopecli.config.load import load_preset
from hopecli.data.headers import ClipProblem, read_array, read_header, read_pieces


def test_a_file_cut_short_after_its_header_was_read(tmp_path: Path) -> None:
    path = tmp_path / "actions.npy"
    np.save(path, np.arange(12.0).reshape(6, 2))
    header = read_header(path, clip="clip_00001")
    np.testing.assert_array_equal(read_array(path, header), np.arange(12.0).reshape(6, 2))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(OSError, match="has become shorter"):
        read_array(path, header)
    pieces = read_pieces(path, header, [(2, 4), (10, 12)])
    assert next(pieces).tolist() == [2.0, 3.0]
    with pytest.raises(OSError, match="has become shorter"):
        next(pieces)


def test_the_first_of_other_feature_maps_is_offered(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    with pytest.raises(ClipProblem, match=r"a; b; c.*Set data\.feature_map=a$") as raised:
        read_header(tmp_path / "vjepa2_vitl16.npy", clip="clip_00001")
    assert raised.value.code == "missing_features"


@pytest.mark.parametrize("name", ["my map", "123", "1e5", "null", "it's", "[x]", "𠮷"])
def test_another_feature_map_is_offered_as_it_is_typed(name: str, tmp_path: Path) -> None:
    np.save(tmp_path / f"{name}.npy", np.zeros(3))
    with pytest.raises(ClipProblem) as raised:
        read_header(tmp_path / "vjepa2_vitl16.npy", clip="clip_00001")
    (typed,) = shlex.split(str(raised.value).partition(". Set ")[2])
    assert load_preset("quickstart", ["data.source=folder", typed]).settings.data.feature_map == name


def test_a_header_written_by_python_2_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "actions.npy"
    np.save(path, np.arange(12.0, dtype=np.float32).reshape(6, 2))
    path.write_bytes(path.read_bytes().replace(b"(6, 2), }  ", b"(6L, 2L), }"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_header(path, clip="clip_00001")
    assert header.shape == (6, 2)
    np.testing.assert_array_equal(read_array(path, header), np.arange(12.0).reshape(6, 2))


def test_threads_that_read_such_headers_at_once_leave_the_filters_of_warnings_alone(
    tmp_path: Path,
) -> None:
    paths = [tmp_path / f"{rows}.npy" for rows in range(1001, 1201)]  # each header is another: none is remembered
    for path in paths:
        np.save(path, np.zeros((int(path.stem), 2), np.float32))
        old, new = (f"({path.stem}{long}, 2{long}), }}".encode() for long in ("", "L"))
        path.write_bytes(path.read_bytes().replace(old + b"  ", new))
    interval = sys.getswitchinterval()
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        sys.setswitchinterval(1e-6)  # threads take turns within a header
        try:
            with ThreadPoolExecutor(16) as readers:
                shapes = [header.shape for header in readers.map(lambda p: read_header(p, clip="clip"), paths)]
        finally:
            sys.setswitchinterval(interval)
        assert warnings.filters == before
    assert shapes == [(int(path.stem), 2) for path in paths]
    assert not shown


def test_hidden_files_are_no_feature_maps(tmp_path: Path) -> None:
    """macOS puts a `._NAME` beside every file on disks of other systems, and into its archives."""
    for name in ("dinov2", "._dinov2"):
        np.save(tmp_path / f"{name}.npy", np.zeros(3))
    with pytest.raises(ClipProblem, match=r"\(got 'dinov2'\). Set data\.feature_map=dinov2$"):
        read_header(tmp_path / "vjepa2_vitl16.npy", clip="clip_00001")


@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ("(2, -3)", r" \(got \[2, -3\]\)$"),
        (f"({'9' * 4200}, {'9' * 4200})", "$"),
        (f"({'9' * 19},)", "$"),
        (f"(0, {'9' * 4200})", "$"),
        ("(" + "9000000000, " * 300 + ")", "$"),
    ],
)
def test_lengths_that_no_file_has(shape: str, shown: str, tmp_path: Path) -> None:
    """Python refuses to print numbers of more than 4300 digits."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    path = tmp_path / "actions.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64))
    with pytest.raises(ClipProblem, match=f"actions.npy announces an impossible length{shown}") as raised:
        read_header(path, clip="clip_00001")
    assert raised.value.code == "odd_shape"
