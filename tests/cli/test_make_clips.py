"""hope make-clips through the real command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, environment, hope, one_line

SMALL = ["--clips", "2", "--grid", "2", "--dim", "4"]


def test_square_brackets_in_paths_are_no_markup(tmp_path: Path) -> None:
    for name in ("x[/red]y", "[bold]z"):
        outcome = hope(["make-clips", name, *SMALL], tmp_path)
        assert outcome.code == 0, outcome.err
        assert f"2 clips in {name}" in outcome.out
        inspected = hope(["inspect-data", name], tmp_path)
        assert inspected.code == 0, inspected.err
        assert f"Clips in {name}" in inspected.out


def test_the_working_directory_may_be_filled(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    before = here.stat().st_ino
    outcome = hope(["make-clips", ".", *SMALL], here)
    assert outcome.code == 0, outcome.err
    assert here.stat().st_ino == before
    assert sorted(path.name for path in here.iterdir()) == ["clip_00000", "clip_00001", "clips.json"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    """A limit on the size of files makes numpy's writes fall short, as a full disk does."""
    resource = pytest.importorskip("resource")
    if exists:
        (tmp_path / "out").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        outcome = hope(["make-clips", "out", "--clips", "2", "--grid", "4", "--dim", "16"], tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 3, outcome.err
    line = one_line(outcome)
    assert "the disk may be full" in line
    assert "free space" in line
    assert [path.name for path in tmp_path.rglob("*")] == (["out"] if exists else [])


@pytest.mark.parametrize(
    ("option", "value", "limit"), [("clips", "100001", "100000"), ("grid", "65", "64"), ("dim", "102400", "16384")]
)
def test_a_size_that_must_be_a_slip_is_refused(tmp_path: Path, option: str, value: str, limit: str) -> None:
    outcome = hope(["make-clips", "out", *SMALL, f"--{option}", value], tmp_path)
    assert outcome.code == 2
    line = one_line(outcome)
    for word in (option, f"at most {limit}", value):
        assert word in line
    assert list(tmp_path.iterdir()) == []


def test_clips_that_no_disk_holds_are_refused_before_work_starts(tmp_path: Path) -> None:
    sizes = ["--clips", "100000", "--grid", "64", "--dim", "16384", "--dtype", "float32"]
    if shutil.disk_usage(tmp_path).free > 2e14:
        pytest.skip("this disk would hold them")
    outcome = hope(["make-clips", "out", *sizes], tmp_path)
    assert outcome.code == 3
    assert "the features need 200,000.0 GiB" in one_line(outcome)
    assert list(tmp_path.iterdir()) == []


def test_the_clips_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    """Sums in another order must round to the same stored features: they are how training clips are recognised."""
    features = []
    for threads in ("1", "2"):
        command = [sys.executable, "-m", "hopecli.cli.main", "make-clips", threads, "--clips", "6", "--grid", "4"]
        variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), threads)
        subprocess.run(
            [*command, "--dim", "64", "--dtype", "float16"],
            cwd=tmp_path,
            env={**environment(tmp_path), **variables, "PYTHONPATH": str(ROOT)},
            check=True,
            timeout=100,
        )
        features.append([file.read_bytes() for file in sorted((tmp_path / threads).glob("*/feature_maps/*.npy"))])
    assert len(features[0]) == 6
    assert features[0] == features[1]


def test_a_home_folder_and_no_folder(tmp_path: Path) -> None:
    """As every other command takes a path that a shell has not put in full."""
    small = ["--clips", "2", "--grid", "2", "--dim", "8"]
    outcome = hope(["make-clips", "~/made", *small], tmp_path)  # HOME is this folder
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "made" / "clip_00001").is_dir()
    assert not (tmp_path / "~").exists()
    refused = hope(["make-clips", "", *small], tmp_path)
    assert refused.code == 2
    assert "OUT: is empty" in one_line(refused)


def test_what_macos_leaves_in_a_folder_is_no_content(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for name in (".DS_Store", "._new"):
        (tmp_path / "new" / name).touch()
    assert hope(["make-clips", "new", *SMALL], tmp_path).code == 0
    assert (tmp_path / "new" / "clips.json").is_file()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".git").touch()
    assert hope(["make-clips", "old", *SMALL], tmp_path).code == 3
