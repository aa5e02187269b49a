"""Root reads and writes whatever it likes; here it does not, so that tests of permissions run for every user."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# capget(2): this version has two words of 32 capabilities, each word as effective, permitted and inheritable ones.
_VERSION_3 = 0x20080522
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2
_Header = ctypes.c_uint32 * 2
_Words = ctypes.c_uint32 * 6


@contextmanager
def obeyed() -> Iterator[None]:
    """While the block runs, this thread and those it starts obey file permissions; skips the test where root cannot."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no such permissions")
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("root reads and writes everything")
    try:
        before = _capabilities()
        _set((before[0] & ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH), *before[1:]))
    except OSError as error:
        pytest.skip(f"root reads and writes everything: {error}")
    try:
        yield
    finally:
        _set(before)


def _capabilities() -> tuple[int, ...]:
    words = _Words()
    _call("capget", words)
    return tuple(words)


def _set(words: tuple[int, ...]) -> None:
    _call("capset", _Words(*words))


def _call(name: str, words: ctypes.Array[ctypes.c_uint32]) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(_Header(_VERSION_3, 0), words) != 0:
        raise OSError(ctypes.get_errno(), f"{name} failed")
