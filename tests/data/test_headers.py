"""Reading .npy files that change or fail while they are read."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

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


def test_a_header_written_by_python_2_is_read_without_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "actions.npy"
    np.save(path, np.arange(12.0, dtype=np.float32).reshape(6, 2))
    path.write_bytes(path.read_bytes().replace(b"(6, 2), }  ", b"(6L, 2L), }"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = read_header(path, clip="clip_00001")
    assert header.shape == (6, 2)
    np.testing.assert_array_equal(read_array(path, header), np.arange(12.0).reshape(6, 2))
