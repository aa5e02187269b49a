"""How long a piece of work takes on a device, and how much memory it needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import torch

from hopecli.engine.memory import peak_memory, reset_peak_memory, synchronise

T = TypeVar("T")


def timed(work: Callable[[], T], device: torch.device, *, probe: bool) -> tuple[T, float, int | None]:
    """The result, milliseconds, and with `probe` the growth of the memory peak in bytes.

    Not measured on a CPU, where the process's resident set says nothing about work this small.
    """
    size = None
    before = reset_peak_memory(device) if probe and device.type != "cpu" else None
    synchronise(device)
    started = time.perf_counter()
    result = work()
    synchronise(device)
    ms = 1e3 * (time.perf_counter() - started)
    if before is not None:
        peak = peak_memory(device)
        size = None if peak is None else max(0, peak - before)
    return result, ms, size


def larger(a: int | None, b: int | None) -> int | None:
    """The larger of two sizes; one that was not measured does not count."""
    return a if b is None else b if a is None else max(a, b)
