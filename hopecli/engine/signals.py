"""Stopping politely: the first signal that would end this process asks, the second SIGINT aborts."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from hopecli.errors import AbortedError

# Launchers such as `uv run` pass on the signal that the terminal has sent already: one press then arrives twice.
ONE_PRESS_SECONDS = 0.5
# Sent by batch systems some time before they kill: those that Slurm and Grid Engine can be told to send, and the soft
# limit of CPU time. Windows has none of them.
WARNINGS = ("SIGUSR1", "SIGUSR2", "SIGXCPU")


class StopRequest:
    """Whether a signal has asked this process to stop, and which."""

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.interrupted_at = math.inf

    def __bool__(self) -> bool:
        return self.signal_name is not None


@contextmanager
def stop_on_signal() -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM, SIGHUP and WARNINGS into a flag while the block runs; a second SIGINT raises AbortedError.

    SIGINTs within ONE_PRESS_SECONDS of the first count as the same press. SIGHUP (a closed terminal, a dropped ssh)
    stays ignored where it is: `nohup` asks for that. WARNINGS stay with whoever has taken them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield request
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if now > request.interrupted_at + ONE_PRESS_SECONDS:
                raise AbortedError("aborted: Ctrl-C was pressed twice")
            request.interrupted_at = min(now, request.interrupted_at)
        request.signal_name = signal.Signals(number).name

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    warnings = [getattr(signal, name) for name in WARNINGS if hasattr(signal, name)]
    numbers += [number for number in warnings if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
