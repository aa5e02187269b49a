"""How many processes read clips, and that none of them can leave the others waiting."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hopecli.data import readers
from hopecli.data.loader import InOrder, collate, load_batches, require_all
from hopecli.data.readers import batch_bytes, reader_processes, readers_note, socket_folder
from hopecli.data.store import ClipStore
from hopecli.errors import DataError
from tests.alarm import within
from tests.cli.runner import ROOT
from tests.clips import DIM, count_rows, data_settings, feature_file, make_features, write_clip

SOCKETS = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no sockets in the file system")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("extrinsics", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_a_batch_takes_what_is_read_of_longer_clips(dtype: str, extrinsics: bool, flat: bool, tmp_path: Path) -> None:
    """Files of 40 frames, of which 3 are used: the estimate is the size of the tensors."""
    for number in range(2):
        features = make_features(number, frames=40, dtype=dtype)
        rows = {"actions": count_rows(80).astype(np.float64), "extrinsics": count_rows(80, width=1)}
        write_clip(tmp_path, number, features=features.reshape(-1, DIM) if flat else features, **rows)
    store = ClipStore(tmp_path, data_settings(), use_extrinsics=extrinsics)
    names = ["clip_00000", "clip_00001"]
    batch = require_all(collate([store.read(name) for name in names]))
    tensors = [batch.features, batch.actions, batch.states, batch.extrinsics]
    assert batch_bytes(store, names, 2) == sum(x.nbytes for x in tensors if x is not None)
    feature_file(tmp_path, names[0]).unlink()
    assert batch_bytes(store, names, 2) == 0


@pytest.mark.parametrize(("batches_of_room", "workers"), [(100, 2), (3, 2), (2.5, 1), (1.0, 0), (0.5, 0)])
def test_readers_fit_into_shared_memory(
    batches_of_room: float, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for one batch per reader and one in use; a container often has 64 MB."""
    names = [write_clip(tmp_path, 0), write_clip(tmp_path, 1)]
    store = ClipStore(tmp_path, data_settings({"workers": 2}), use_extrinsics=False)
    size = batch_bytes(store, names, 8)
    rows = 2 * 2 * 2 * 4  # actions and states of 2 transitions, width 2, float32
    assert size == 8 * (rows + make_features(0).nbytes)
    monkeypatch.setattr("hopecli.data.readers.SHARED_MEMORY", str(tmp_path))
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1}, raising=False)
    room = SimpleNamespace(free=int(batches_of_room * size))
    monkeypatch.setattr("shutil.disk_usage", lambda path: room)
    assert reader_processes(store.settings, size) == workers
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert reader_processes(store.settings, size // 2) == workers  # two processes with half a batch each
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    note = readers_note(store, names, 8)
    assert (note is None) == (workers == 2)
    assert note is None or note.startswith(f"note: {workers} of 2 processes read clips")
    room.free = 300 * 2**20  # a clip takes 224 bytes
    assert "has 300 MiB free, a batch takes 224 (" in str(readers_note(store, names, 2**20))


def test_there_are_no_more_readers_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert [reader_processes(data_settings({"workers": workers})) for workers in (0, 1, 2, 3, 8)] == [0, 1, 2, 2, 2]


@pytest.fixture
def long_folder(tmp_path: Path) -> Path:
    """A folder whose path is too long for a socket below it, as the TMPDIR of a cluster's job may be."""
    folder = tmp_path / ("job" * 20) / ("step" * 15)
    folder.mkdir(parents=True)
    return folder


@SOCKETS
def test_sockets_go_where_they_can(long_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = socket_folder()
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    assert usual is not None
    assert socket_folder() in readers.SHORT_FOLDERS
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setattr(readers, "SHORT_FOLDERS", (str(tmp_path / "gone"), str(long_folder), short))
        assert socket_folder() == short
    assert list(long_folder.iterdir()) == []  # nothing is left of the trial


@SOCKETS
def test_without_a_place_for_sockets_this_process_reads(long_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [write_clip(long_folder, number) for number in range(3)]
    monkeypatch.setattr(tempfile, "tempdir", str(long_folder))
    monkeypatch.setattr(readers, "SHORT_FOLDERS", (str(long_folder),))
    store = ClipStore(long_folder, data_settings({"workers": 1}), use_extrinsics=False)
    assert reader_processes(store.settings) == 0
    assert readers_note(store, names, 1) == (
        "note: 0 of 1 processes read clips: no folder for temporary files takes their sockets "
        "(set TMPDIR to a short path on a local disk)"
    )
    batches = load_batches(store, names, InOrder(clips=3, batch=2), pin_memory=False)
    assert [require_all(batch).names for batch in batches] == [tuple(names[:2]), (names[2],)]
    none = ClipStore(long_folder, data_settings({"workers": 0}), use_extrinsics=False)
    assert readers_note(none, names, 1) is None  # as asked: nothing to say


def test_without_semaphores_this_process_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose /dev/shm is read-only: not an error of the first file that is written afterwards."""

    def none(*arguments: object, **named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    names = [write_clip(tmp_path, 0)]
    store = ClipStore(tmp_path, data_settings({"workers": 1}), use_extrinsics=False)
    assert readers_note(store, names, 1) is None
    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", none)
    assert reader_processes(store.settings) == 0
    assert readers_note(store, names, 1) == (
        "note: 0 of 1 processes read clips: no semaphores for them: Read-only file system "
        "(where there is /dev/shm, it must be writable)"
    )
    (batch,) = load_batches(store, names, InOrder(clips=1, batch=1), pin_memory=False)
    assert require_all(batch).names == tuple(names)


@pytest.mark.skipif(sys.platform != "linux", reason="readers are not forked")
def test_a_reader_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the limit of processes is reached."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    names = [write_clip(tmp_path, 0)]
    store = ClipStore(tmp_path, data_settings({"workers": 1}), use_extrinsics=False)
    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(DataError) as raised:
        load_batches(store, names, InOrder(clips=1, batch=1), pin_memory=False)
    assert str(raised.value) == (
        "data.workers: a process that reads clips cannot be started: Resource temporarily unavailable. Raise the limit "
        "of processes or memory, or lower data.workers (0: this process reads)"
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="batches are handed over in another way")
def test_a_batch_that_cannot_be_handed_over_ends_its_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The reader is sent where it cannot listen. Python would print the error there, and wait here for ever."""
    names = [write_clip(tmp_path, number) for number in range(2)]
    store = ClipStore(tmp_path, data_settings({"workers": 1}), use_extrinsics=False)
    monkeypatch.setattr("hopecli.data.loader.socket_folder", lambda: str(tmp_path / "gone"))
    batches = load_batches(store, names, InOrder(clips=2, batch=1), pin_memory=False)
    with within(60, "it waits for the batch"), pytest.raises(DataError, match="a process that reads clips died"):
        next(batches)
    line = "a process that reads clips could not hand a batch over: [Errno 2] No such file or directory: "
    assert re.fullmatch(re.escape(line) + r"'\S+/gone/pymp-\w+'\n", capfd.readouterr().err)


SPAWNED = """
import os, signal, sys
from pathlib import Path
from hopecli.data import loader, readers
from hopecli.data.store import ClipStore
from tests.clips import data_settings

if sys.argv[2] == "without groups":  # as on Windows; in the reader too, which runs this file again
    del os.setpgid

if __name__ == "__main__":
    came = []
    signal.signal(signal.SIGINT, lambda *_: came.append("SIGINT"))
    loader.STARTED_BY = readers.STARTED_BY = "spawn"
    store = ClipStore(Path(sys.argv[1]), data_settings({"workers": 1}), use_extrinsics=False)
    names = [f"clip_{number:05d}" for number in range(4)]
    batches = loader.load_batches(store, names, loader.InOrder(clips=4, batch=1), pin_memory=False)
    os.killpg(0, signal.SIGINT)  # while the reader imports torch
    found = [loader.require_all(next(batches)).names]
    os.killpg(0, signal.SIGINT)  # while it reads
    found += [loader.require_all(batch).names for batch in batches]
    assert [name for (name,) in found] == names
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    print(came)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no process groups to signal")
@pytest.mark.parametrize("groups", ["with groups", "without groups"])
def test_ctrl_c_ends_no_reader(groups: str, tmp_path: Path) -> None:
    """Readers that begin with a new Python, as on macOS: Ctrl-C comes to them too, from their first moment on."""
    for number in range(4):
        write_clip(tmp_path, number)
    script = tmp_path / "script.py"
    script.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), groups],
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    # Python's tracker of semaphores may find at the end that one has gone already (seen once, on a busy machine).
    said = [line for line in done.stderr.splitlines() if "resource_tracker" not in line]
    assert (done.stdout, said, done.returncode) == ("['SIGINT', 'SIGINT']\n", [], 0)
