"""The same work for many clips, several at a time: opening files is waiting, the more so over a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
Progress = Callable[[int, int], None]

READERS = 16
_CHUNK = 16  # clips per task: handing one over takes about as long as reading a cached header
_FEW = 64  # not worth a thread


def each(work: Callable[[str], Result], names: Sequence[str], progress: Progress | None = None) -> Iterator[Result]:
    """work(name) of every clip in the order of names; the first error in that order is raised, and ends the rest.

    progress: called with (clips done, all clips) now and then.
    """
    if len(names) < _FEW:
        yield from map(work, names)
        return
    chunks = [names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK)]
    done = 0
    with ThreadPoolExecutor(READERS, thread_name_prefix="clips") as readers:
        for results in readers.map(lambda chunk: [work(name) for name in chunk], chunks):
            yield from results
            done += len(results)
            if progress is not None:
                progress(done, len(names))
