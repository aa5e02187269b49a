"""Disks that fail while a file is read, although it opens and its header is sound."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.headers import ArrayHeader, read_pieces


def fail_reading(monkeypatch: pytest.MonkeyPatch, *files: Path, after: int = 0) -> None:
    """From the read number `after` of them on, reading the content of these files is an I/O error."""
    reads = 0

    def read(path: Path, header: ArrayHeader, pieces: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
        nonlocal reads
        if path.resolve() in files:
            reads += 1
            if reads > after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_pieces(path, header, pieces)

    monkeypatch.setattr("hopecli.data.headers.read_pieces", read)
    monkeypatch.setattr("hopecli.data.fingerprint.read_pieces", read)
