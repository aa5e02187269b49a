"""Work on many clips at once gives what one after another gives, whatever order the clips finish in."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.each import READERS, each
from hopecli.data.headers import read_array, read_header, read_pieces
from hopecli.errors import DataError

NAMES = [f"clip_{i:05d}" for i in range(1000)]


def wait(name: str) -> None:
    """Longer than quick work takes, in the first block of clips: those that follow are shared out."""
    if name in NAMES[:64]:
        time.sleep(0.003)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_results_come_in_order(count: int, waits: bool) -> None:
    def work(name: str) -> str:
        if waits:
            wait(name)
            time.sleep(0.001 * name.endswith("0"))
        return name.upper()

    told: list[tuple[int, int]] = []
    found = list(each(work, NAMES[:count], lambda done, total: told.append((done, total))))
    assert found == [name.upper() for name in NAMES[:count]]
    assert told == sorted(told)
    assert told[-1:] == ([(count, count)] if count >= 64 else [])


def test_many_wait_at_the_same_time() -> None:
    together = threading.Barrier(READERS, timeout=30)  # breaks unless so many are at work at once
    first = set(NAMES[64::16][:READERS])

    def work(name: str) -> None:
        wait(name)
        if name in first:
            together.wait()

    list(each(work, NAMES))


def test_work_that_gets_slow_later_is_shared_out_then() -> None:
    """As with a folder of which some clips lie on another disk."""
    threads: dict[str, str] = {}

    def work(name: str) -> None:
        threads[name] = threading.current_thread().name
        if name in NAMES[128:192]:
            time.sleep(0.003)

    list(each(work, NAMES))
    assert {threads[name] for name in NAMES[:64]} == {threading.current_thread().name}
    assert all(threads[name].startswith("clips") for name in NAMES[192:])


def test_the_first_error_in_order_ends_the_work() -> None:
    done = []

    def work(name: str) -> None:
        done.append(name)
        wait(name)
        if name in (NAMES[70], NAMES[100]):
            time.sleep(0.05 if name == NAMES[70] else 0)  # the later one is found first
            raise DataError("broken", where=name)

    with pytest.raises(DataError, match="clip_00070: broken"):
        list(each(work, NAMES))
    assert len(done) < len(NAMES)


@pytest.mark.parametrize("stored", [np.arange(24.0).reshape(4, 6), np.zeros((0, 3)), np.arange(5, dtype=">i4")])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_read_array_is_what_numpy_reads(stored: np.ndarray, order: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asfortranarray(stored) if order == "F" else stored)
    found = read_array(path, read_header(path, clip="c"))
    assert found.dtype == stored.dtype
    np.testing.assert_array_equal(found, np.load(path))


def test_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.arange(100.0))
    header = read_header(path, clip="c")
    path.write_bytes(path.read_bytes()[:-8])
    pieces = read_pieces(path, header, [(0, 10), (90, 100)])
    np.testing.assert_array_equal(next(pieces), np.arange(10.0))
    with pytest.raises(OSError, match="shorter"):
        next(pieces)
