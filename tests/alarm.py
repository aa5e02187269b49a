"""An end for tests of what might wait for ever."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def within(seconds: int, failure: str) -> Iterator[None]:
    """AssertionError(failure) in the main thread when the block takes longer. Needs SIGALRM, which Windows lacks."""

    def late(*_: object) -> None:
        raise AssertionError(failure)

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
