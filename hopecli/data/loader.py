"""Batches in a reproducible order: a permutation from seed and epoch that a resumed run can re-enter anywhere."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from hopecli.data.clip import ClipBatch
from hopecli.data.readers import (
    STARTED_BY,
    batch_bytes,
    begin_reading,
    reader_processes,
    socket_folder,
    starting_readers,
)
from hopecli.data.store import ClipStore, Sample
from hopecli.errors import DataError

# How torch says that a reader has died; the second where a thread that page-locks batches was just taking one over.
_LOST_READER = ("DataLoader worker", "Pin memory thread exited")


class _Clips(Dataset):
    """Reads by position; a clip that cannot be read comes back as its error, for the main process to judge."""

    def __init__(self, store: ClipStore, names: Sequence[str]):
        self.store, self.names = store, tuple(names)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample | DataError:
        try:
            return self.store.read(self.names[index])
        except DataError as error:
            # A plain DataError survives the way back from a worker process.
            return DataError(str(error)[len(self.names[index]) + 2 :], where=self.names[index])


@dataclass(frozen=True)
class LoadedBatch:
    """A batch of the clips that could be read (None when none could), and the errors of the others."""

    clips: ClipBatch | None
    errors: tuple[DataError, ...] = ()

    def pin_memory(self) -> LoadedBatch:
        """The batch in page-locked memory, which a device copies from while the host goes on."""
        return LoadedBatch(None if self.clips is None else self.clips.pin_memory(), self.errors)


def collate(samples: Sequence[Sample | DataError]) -> LoadedBatch:
    """Stack samples; the batch keeps the stored feature dtype unless files differ."""
    good = [s for s in samples if isinstance(s, Sample)]
    errors = tuple(s for s in samples if isinstance(s, DataError))
    if not good:
        return LoadedBatch(None, errors)
    dtypes = {s.features.dtype for s in good}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    extrinsics = [s.extrinsics for s in good if s.extrinsics is not None]
    batch = ClipBatch(
        features=torch.stack([s.features.to(dtype) for s in good]),
        actions=torch.stack([s.actions for s in good]),
        states=torch.stack([s.states for s in good]),
        extrinsics=torch.stack(extrinsics) if extrinsics else None,
        names=tuple(s.name for s in good),
    )
    return LoadedBatch(batch, errors)


class EpochBatches(Sampler[list[int]]):
    """Micro-batches of one epoch for one process, from global step `first_step` of the epoch on.

    Every process walks the same permutation and takes its own slice of each global batch, so no clip is repeated.
    The last incomplete global batch is dropped.
    """

    def __init__(
        self,
        *,
        clips: int,
        global_batch: int,
        seed: int,
        epoch: int,
        first_step: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ):
        if global_batch % (world * accumulate):
            raise ValueError(
                f"batch {global_batch} is not a multiple of {world} processes x {accumulate} micro-batches"
            )
        self.steps, self.first_step = clips // global_batch, first_step
        self.global_batch, self.accumulate, self.rank, self.world = global_batch, accumulate, rank, world
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        self.order = torch.randperm(clips, generator=generator).tolist()

    def __len__(self) -> int:
        return max(0, self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        share = self.global_batch // self.world
        micro = share // self.accumulate
        for step in range(self.first_step, self.steps):
            start = step * self.global_batch + self.rank * share
            for part in range(self.accumulate):
                yield self.order[start + part * micro : start + (part + 1) * micro]


class InOrder(Sampler[list[int]]):
    """Clips in order for evaluation: process r takes batches r, r + world, ...; nothing repeated or dropped."""

    def __init__(self, *, clips: int, batch: int, rank: int = 0, world: int = 1):
        every = [list(range(i, min(i + batch, clips))) for i in range(0, clips, batch)]
        self.batches = every[rank::world]
        self.rounds = -(-len(every) // world)  # batches of the process that has most

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


def load_batches(
    store: ClipStore, names: Sequence[str], batches: Sampler[list[int]], *, pin_memory: bool
) -> Iterator[LoadedBatch]:
    """Read batches with `reader_processes` processes, each holding at most one batch.

    DataError when the system starts no more processes.
    """
    size = batch_bytes(store, names, len(next(iter(batches), ())))
    workers = reader_processes(store.settings, size)
    loader = DataLoader(
        _Clips(store, names),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        prefetch_factor=1 if workers else None,
        worker_init_fn=functools.partial(begin_reading, socket_folder()) if workers else None,
        multiprocessing_context=STARTED_BY if workers else None,
    )
    with _no_handler_of_dead_readers(), starting_readers():
        try:
            return _reading(iter(loader))
        except OSError as error:
            fix = "raise the limit of processes or memory, or lower data.workers (0: this process reads)"
            problem = f"a process that reads clips cannot be started: {error.strerror or error}"
            raise DataError(problem, where="data.workers", fix=fix) from error


@contextmanager
def _no_handler_of_dead_readers() -> Iterator[None]:
    """Keep torch from raising wherever the main process is when a reader dies: in the middle of an optimizer step it
    would leave half of one behind. Waiting for the reader's next batch finds it out as well."""
    before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


def _reading(batches: Iterator[LoadedBatch]) -> Iterator[LoadedBatch]:
    """The batches; DataError when a reader dies: the system ends one when memory is short, and one that
    cannot hand a batch over ends itself."""
    try:
        yield from batches
    except (RuntimeError, OSError, EOFError) as error:  # the last two: it died while it handed a batch over
        if isinstance(error, RuntimeError) and not any(what in str(error) for what in _LOST_READER):
            raise
        fix = "memory may have been short (lower data.workers or data.batch_size), or the disk failed"
        raise DataError("a process that reads clips died", where="data.workers", fix=fix) from error


def require_all(loaded: LoadedBatch) -> ClipBatch:
    """The batch when every clip was read; otherwise the first clip's error."""
    if loaded.errors:
        raise loaded.errors[0]
    assert loaded.clips is not None
    return loaded.clips


def stand_in(store: ClipStore, names: Sequence[str], missing: str) -> ClipBatch:
    """A batch of one clip, features [1, T, N, D], for a share of which none could be read: the next after `missing`.

    Raises DataError when no other clip can be read either.
    """
    place = names.index(missing)
    for name in (*names[place + 1 :], *names[:place]):
        try:
            return require_all(collate([store.read(name)]))
        except DataError:
            continue
    raise DataError("no training clip can be read", where=str(store.folder))
