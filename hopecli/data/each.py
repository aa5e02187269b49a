"""The same work for many clips, several at a time: opening files is waiting, the more so over a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
Progress = Callable[[int, int], None]

READERS = 16
_CHUNK = 16  # clips per task: handing one over takes about as long as reading a cached header
_FEW = 64  # not worth a thread
_QUICK_SECONDS = 1e-3  # per clip; work that waits less than this is done sooner by one thread, which no other stops


def each(work: Callable[[str], Result], names: Sequence[str], progress: Progress | None = None) -> Iterator[Result]:
    """work(name) of every clip in the order of names; the first error in that order is raised, and ends the rest.

    By one thread as long as it is quick, then by READERS. progress: called with (clips done, all clips) now and then.
    """
    done, quick = 0, True
    while done < len(names) and quick:
        seconds = 0.0
        block = names[done : done + _FEW]
        for name in block:
            started = time.perf_counter()
            result = work(name)
            seconds += time.perf_counter() - started
            yield result
        done += len(block)
        quick = seconds < _QUICK_SECONDS * len(block)
        if progress is not None and len(names) >= _FEW:
            progress(done, len(names))
    if done == len(names):
        return
    chunks = [names[start : start + _CHUNK] for start in range(done, len(names), _CHUNK)]
    with ThreadPoolExecutor(READERS, thread_name_prefix="clips") as readers:
        for results in readers.map(lambda chunk: [work(name) for name in chunk], chunks):
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, len(names))
