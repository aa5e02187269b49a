"""One process at a time in a folder. A lock belongs to an open file: a second one in this process finds it held too."""

from __future__ import annotations

import errno
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hopecli.errors import CheckpointError
from hopecli.report.lock import RunLock, alone_in, naming_another_training, stream_lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("{}")
    return tmp_path


def test_a_run_is_trained_by_one_process(run_dir: Path) -> None:
    first = RunLock(run_dir)
    with pytest.raises(CheckpointError, match="another process is training in it"):
        RunLock(run_dir)
    first.close()
    first.close()  # twice does no harm
    RunLock(run_dir).close()
    assert [path.name for path in run_dir.iterdir()] == ["config.yaml"]


def test_processes_forked_meanwhile_do_not_hold_it(run_dir: Path) -> None:
    lock = RunLock(run_dir)
    from_parent, to_child = os.pipe()
    from_child, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(to_child)
        os.write(to_parent, b"x")
        os.read(from_parent, 1)  # until the parent is done
        os._exit(0)
    try:
        os.read(from_child, 1)  # the child has begun
        lock.close()
        RunLock(run_dir).close()
    finally:
        for end in (from_parent, to_child, from_child, to_parent):
            os.close(end)
        assert os.waitpid(child, 0)[1] == 0


def unreadable(run_dir: Path) -> None:
    with naming_another_training(run_dir):
        raise CheckpointError("not a readable checkpoint", where="here")


def test_a_damaged_file_is_put_down_to_a_training_that_goes_on(run_dir: Path) -> None:
    lock = RunLock(run_dir)
    with pytest.raises(CheckpointError, match="another process is training in it"):
        unreadable(run_dir)
    lock.close()
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        unreadable(run_dir)
    RunLock(run_dir).close()  # asking has left no lock behind


def test_two_that_read_do_not_take_each_other_for_a_training(run_dir: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    with open(run_dir / "config.yaml") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            unreadable(run_dir)


def test_a_stream_has_its_folder_alone_and_leaves_no_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "tta" / "name"
    with stream_lock(folder):
        assert folder.is_dir()
        with pytest.raises(CheckpointError, match="another process is adapting into it"), stream_lock(folder):
            pass
        assert folder.is_dir()  # who is refused does not take it away
    assert not folder.exists()
    with stream_lock(folder):
        (folder / "results.json").touch()
    assert [path.name for path in folder.iterdir()] == ["results.json"]


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_folder_that_may_be_written_but_not_read_has_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "name"
    folder.mkdir(mode=0o300)
    for holds in (stream_lock, alone_in):
        with holds(folder):
            (folder / holds.__name__).touch()
    folder.chmod(0o700)
    assert len(list(folder.iterdir())) == 2


def test_files_that_belong_together_are_written_by_one_at_a_time(tmp_path: Path) -> None:
    """Five threads write the name of each into three files: all three are of the same one, at any time."""
    files = [tmp_path / "results" / name for name in "abc"]

    def write(name: str) -> list[str]:
        with alone_in(tmp_path / "results"):
            for file in files:
                file.write_text(name)
                time.sleep(0.01)
            return [file.read_text() for file in files]

    with ThreadPoolExecutor(5) as threads:
        assert list(threads.map(write, "vwxyz")) == [[name] * 3 for name in "vwxyz"]


def test_the_lock_of_a_run_holds_on_nfs(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There an exclusive lock is one on the file's bytes, for which it must be open for writing (flock(2))."""
    fcntl = pytest.importorskip("fcntl")
    flock = fcntl.flock

    def of_nfs(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX and fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    first = RunLock(run_dir)
    with pytest.raises(CheckpointError, match="another process is training in it"):
        RunLock(run_dir)
    first.close()


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_run_that_may_only_be_read_is_locked_all_the_same(run_dir: Path) -> None:
    (run_dir / "config.yaml").chmod(0o400)
    first = RunLock(run_dir)
    with pytest.raises(CheckpointError, match="another process is training in it"):
        RunLock(run_dir)
    first.close()
