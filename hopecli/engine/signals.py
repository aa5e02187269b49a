"""Stopping politely: the first SIGINT or SIGTERM asks, the second SIGINT aborts."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hopecli.errors import AbortedError


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a flag while the block runs; a second SIGINT raises AbortedError at once."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and request.signal_name == "SIGINT":
            raise AbortedError("aborted: Ctrl-C was pressed twice")
        request.signal_name = signal.Signals(number).name

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
