"""One process at a time in a folder: two would overwrite each other's checkpoints, state and results."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hopecli.engine.sink import NullSink
from hopecli.errors import CheckpointError, written

_TRAINS = "another process is training in it"
_held: set[int] = set()  # descriptors of this process's locks


def _let_go() -> None:
    """In a forked process: its copies of the descriptors would hold the locks for as long as it lives."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class RunLock(NullSink):
    """Holds a run directory for a training, from construction to `close` or the end of the process however it ends.

    The system's lock on the run's config.yaml, so that nothing is left behind; none on Windows, nor on a file system
    without locks. On NFS it holds for all machines (a folder's, as of `stream_lock`, for the processes of one).
    Processes forked meanwhile (those that read clips) do not share it: they may outlive this one.
    """

    def __init__(self, run_dir: Path):
        """CheckpointError when another process trains there."""
        self.descriptor = _locked(run_dir / "config.yaml", str(run_dir), _TRAINS)
        if self.descriptor is not None:
            _held.add(self.descriptor)

    def close(self) -> None:
        """Release the run."""
        if self.descriptor is not None:
            _held.discard(self.descriptor)
            os.close(self.descriptor)
            self.descriptor = None


@contextmanager
def naming_another_training(run_dir: Path) -> Iterator[None]:
    """A CheckpointError of the body becomes RunLock's while another process trains in `run_dir`: that one replaces
    the files which the body reads."""
    try:
        yield
    except CheckpointError:
        descriptor = _locked(run_dir / "config.yaml", str(run_dir), _TRAINS, shared=True)
        if descriptor is not None:
            os.close(descriptor)
        raise


@contextmanager
def stream_lock(folder: Path) -> Iterator[None]:
    """Holds the results folder of hope tta, made for it; CheckpointError when another process streams into it."""
    with _held_folder(folder, "another process is adapting into it (--name NAME keeps both apart)", wait=False):
        try:
            yield
        finally:
            with suppress(OSError):  # only where nothing was written
                folder.rmdir()


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Holds a folder, made for it, while files that belong together are written, so that they stay those of one
    process; waits while another one does so."""
    with _held_folder(folder, "another process writes into it", wait=True):
        yield


@contextmanager
def _held_folder(folder: Path, what: str, *, wait: bool) -> Iterator[None]:
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
    descriptor = _locked(folder, str(folder), what, wait=wait)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _locked(path: Path, where: str, what: str, *, shared: bool = False, wait: bool = False) -> int | None:
    """A descriptor that holds the lock on a file or folder; None where there are no locks, or it cannot be read.

    CheckpointError, of which `what` is the message, when another process holds it and this one is not to `wait`.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = _opened(path)
    except OSError:  # a folder may be written without being readable: go on as without locks
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        os.close(descriptor)
        raise CheckpointError(what, where=where, fix="wait for it, or stop it first") from error
    except OSError:  # locks are not supported there: go on as without
        pass
    return descriptor


def _opened(path: Path) -> int:
    """A descriptor that can hold an exclusive lock: on NFS only one that may write can."""
    with suppress(OSError):  # a folder, or a file of somebody else's
        return os.open(path, os.O_RDWR)
    return os.open(path, os.O_RDONLY)
