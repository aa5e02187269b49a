"""The processes that read clips: how many there may be, and how they hand batches over."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence

import torch

from hopecli.config.schema import DataSettings
from hopecli.data.headers import read_header
from hopecli.data.store import ClipStore
from hopecli.errors import DataError

SHARED_MEMORY = "/dev/shm"  # where readers leave batches for the process that started them (Linux)
# Reading is numpy on files: fork is safe, and spares a second import of torch per reader and epoch.
STARTED_BY = "fork" if sys.platform == "linux" else None  # None: the system's default
# What a terminal, `timeout` or a batch system sends to a whole process group.
_GROUP_SIGNALS = {
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    if hasattr(signal, name)
}
SHORT_FOLDERS = ("/tmp", "/var/tmp", SHARED_MEMORY)  # for sockets, when the temporary folder takes none


def reader_processes(settings: DataSettings, batch_bytes: int = 0) -> int:
    """How many processes read: `data.workers`, but no more than the cores that this process may run on, nor than
    its share of shared memory has room for a batch of each and the one in use, and none where the system lacks what
    they hand batches over with (0: this process reads)."""
    workers = _wanted(settings)
    if workers and handing_over_problem() is not None:
        return 0
    if batch_bytes and os.path.isdir(SHARED_MEMORY):
        sharing = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))  # processes of torchrun on this machine
        workers = min(workers, max(0, shutil.disk_usage(SHARED_MEMORY).free // (batch_bytes * sharing) - 1))
    return workers


def _wanted(settings: DataSettings) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(settings.workers, cores)


def batch_bytes(store: ClipStore, names: Sequence[str], clips: int) -> int:
    """What the tensors of a batch of so many clips take: features as the first clip's file stores them, rows in
    float32; 0 where there is no such file."""
    try:
        stored = read_header(store.paths(names[0])[0], clip=names[0]).dtype.itemsize
    except (DataError, IndexError):
        return 0
    d = store.settings
    rows = 2 * d.action_dim + (d.action_dim - 1 if store.use_extrinsics else 0)  # actions, states, extrinsics
    features = d.num_timesteps * d.grid * d.grid * d.embed_dim * stored
    return clips * (features + (d.num_timesteps - 1) * rows * torch.float32.itemsize)


def readers_note(store: ClipStore, names: Sequence[str], clips: int) -> str | None:
    """A line for the user when there is no room for all readers of batches of so many clips."""
    size, wanted = batch_bytes(store, names, clips), _wanted(store.settings)
    fitting = reader_processes(store.settings, size)
    if fitting == wanted:
        return None
    start = f"note: {fitting} of {wanted} processes read clips: "
    if (problem := handing_over_problem()) is not None:
        return start + problem
    free = shutil.disk_usage(SHARED_MEMORY).free / 2**20
    return (
        f"{start}{SHARED_MEMORY} has {free:,.0f} MiB free, a batch takes "
        f"{size / 2**20:,.0f} (docker run --shm-size; or a smaller data.batch_size, more training.accumulate)"
    )


def handing_over_problem() -> str | None:
    """Why no reader could hand a batch over; None when it can."""
    try:
        multiprocessing.get_context(STARTED_BY).Lock()
    except (OSError, ImportError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"no semaphores for them: {reason} (where there is {SHARED_MEMORY}, it must be writable)"
    if socket_folder() is None:
        return "no folder for temporary files takes their sockets (set TMPDIR to a short path on a local disk)"
    return None


def socket_folder() -> str | None:
    """A folder in which a reader can listen; None when there is none.

    The folder for temporary files, unless its path is too long (a socket's has at most 107 bytes on Linux, and
    clusters give each job a TMPDIR of its own), its file system has no sockets, or it cannot be written.
    """
    folders = [*SHORT_FOLDERS]
    with contextlib.suppress(OSError):  # no folder for temporary files at all
        folders.insert(0, tempfile.gettempdir())
    if sys.platform == "win32":  # named pipes there
        return folders[0]
    return next((folder for folder in folders if _takes_sockets(folder)), None)


def _takes_sockets(folder: str) -> bool:
    """Whether a socket of multiprocessing, two names below the folder, can be made."""
    with contextlib.suppress(OSError):
        with (
            tempfile.TemporaryDirectory(prefix="pymp-", dir=folder) as inner,
            socket.socket(socket.AF_UNIX) as listener,
        ):
            listener.bind(os.path.join(inner, "listener-12345678"))
        return True
    return False


@contextlib.contextmanager
def starting_readers() -> Iterator[None]:
    """Signals wait while the body starts readers, and in these until `begin_reading`: where one begins with a new
    Python (macOS), it is in the process group, with no handler, for the seconds that importing torch takes."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _GROUP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_reading(folder: str | None, worker: int) -> None:
    """What a reader does first; `folder` is where it is to listen.

    Ctrl-C, `timeout` and torchrun signal the whole process group; a reader that dies of it would end a run that is
    about to save, so it leaves the group (and ignores Ctrl-C where there are none). It still ends when its parent tells
    it to, or is gone.
    """
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        for number in signal.sigpending() & _GROUP_SIGNALS:  # they came before it had left the group
            signal.sigwait({number})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _GROUP_SIGNALS)
    if folder is not None:
        tempfile.tempdir = os.environ["TMPDIR"] = folder  # the second for torch's own process on macOS
    # By default an error of handing over is printed, and whoever waits for the batch waits for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_reading)  # type: ignore[attr-defined]


def _end_reading(error: Exception, batch: object) -> None:
    """End this reader, which cannot hand a batch over: the process that started it finds out."""
    if not isinstance(error, BrokenPipeError):  # nobody is there to be handed anything
        os.write(2, f"a process that reads clips could not hand a batch over: {error}\n".encode())
    os._exit(1)
