"""Rates of the device alone: matrix products and memory, and how timings are taken.

Units: seconds, FLOP/s (a multiply and an add are two), bytes/s.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from hopecli.engine.memory import synchronise

# A pass this slow needs no warm-up: what the first call does once is small beside it.
SLOW_SECONDS = 2.0
# A pass this slow is timed once, so that a full-size model on a small CPU is measured in minutes.
VERY_SLOW_SECONDS = 8.0
REPETITIONS = 5
MATMUL_SIDE = {"cuda": 8192, "mps": 4096, "cpu": 1024}
COPY_BYTES = {"cuda": 1 << 30, "mps": 1 << 28, "cpu": 1 << 28}


@dataclass(frozen=True)
class Measured:
    """Median seconds of `runs` calls, and the FLOPs of one."""

    seconds: float
    runs: int
    flops: int | None


def timed(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


@functools.cache
def _load_counter() -> None:
    """The counter imports what it needs, seconds' worth, when it sees its first operation."""
    with FlopCounterMode(display=False):
        torch.ones(2, 2) @ torch.ones(2, 2)


def timed_and_counted(call: Callable[[], Any], device: torch.device) -> tuple[float, int | None]:
    """Seconds and FLOPs of one call; counting slows small operations down. None when nothing was counted."""
    _load_counter()
    with FlopCounterMode(display=False) as counter:
        seconds = timed(call, device)
    return seconds, counter.get_total_flops() or None


def measure_in_turn(
    calls: dict[str, Callable[[], Any]], device: torch.device, *, until: float = math.inf
) -> dict[str, Measured]:
    """Time calls A B A B ..., so that a machine that slows down slows all of them.

    The first round counts FLOPs and warms up; it is a measurement as well when it was slow, since counting then costs
    nothing beside it. Slow calls run twice in all, a very slow one alone once, fast ones are the median of five.
    A round that would end after `until` (on time.perf_counter's clock) is left out where every call has a measurement.
    """
    flops: dict[str, int | None] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    slowest = 0.0
    for name, call in calls.items():
        seconds, flops[name] = timed_and_counted(call, device)
        slowest = max(slowest, seconds)
        if seconds >= SLOW_SECONDS:
            times[name].append(seconds)
    rounds = REPETITIONS if slowest < SLOW_SECONDS else 1
    if len(calls) == 1 and slowest >= VERY_SLOW_SECONDS:
        rounds = 0
    for _ in range(rounds):
        if all(times.values()) and time.perf_counter() + sum(map(statistics.median, times.values())) > until:
            break
        for name, call in calls.items():
            times[name].append(timed(call, device))
    return {name: Measured(statistics.median(times[name]), len(times[name]), flops[name]) for name in calls}


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int) -> float:
    """FLOP/s of square matrix products, the median of five after one."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    timed(lambda: a @ b, device)
    return 2.0 * side**3 / statistics.median(timed(lambda: a @ b, device) for _ in range(REPETITIONS))


def memory_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by copying a tensor much larger than any cache."""
    count = COPY_BYTES[device.type]
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    timed(lambda: target.copy_(source), device)
    return 2.0 * count / statistics.median(timed(lambda: target.copy_(source), device) for _ in range(REPETITIONS))
