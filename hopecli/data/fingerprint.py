"""What recognises a clip in any folder, under any name: hashes of its numbers, not of its files.

Features are compared as float16 and action rows as float32, so that a clip saved again with another dtype, byte order
or layout of the same values is still the same clip.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np

from hopecli.data.each import Progress, each
from hopecli.data.headers import ArrayHeader, map_array, read_array, read_pieces
from hopecli.data.store import ClipHeaders, ClipStore
from hopecli.errors import DataError, accessed

MARK_BYTES = 12  # counts up with the recipe, so that marks of an earlier one are told apart
_WHOLE = 1 << 18  # values: reading so many takes about as long as a few seeks
_PIECES, _PIECE = 16, 1024
_CHUNK = 1 << 19


def fingerprints(store: ClipStore, names: Iterable[str], progress: Progress | None = None) -> dict[str, str]:
    """Content hash of each clip: its number of features, all of a small clip or 16 pieces of 1024 over a large
    one, and all action rows. DataError for a clip that does not fit the settings."""
    wanted = list(names)
    return dict(zip(wanted, each(partial(_fingerprint, store), wanted, progress), strict=True))


def fingerprints_or_errors(
    store: ClipStore, names: Iterable[str], progress: Progress | None = None
) -> tuple[dict[str, str], dict[str, DataError]]:
    """`fingerprints` of those of the clips that can be read and fit the settings, and the errors of the others."""

    def attempt(name: str) -> str | DataError:
        try:
            return _fingerprint(store, name)
        except DataError as error:
            return error

    wanted = list(names)
    found = dict(zip(wanted, each(attempt, wanted, progress), strict=True))
    marks = {name: mark for name, mark in found.items() if isinstance(mark, str)}
    return marks, {name: error for name, error in found.items() if isinstance(error, DataError)}


def readable_fingerprints(store: ClipStore, names: Iterable[str]) -> dict[str, str]:
    """`fingerprints` of those of the clips that can be read and fit the settings."""
    return fingerprints_or_errors(store, names)[0]


def _fingerprint(store: ClipStore, name: str) -> str:
    with accessed(store.folder / name, kind=DataError):
        headers = store.headers(name)
        size = math.prod(headers.features.shape)
        digest = hashlib.blake2b(str(size).encode(), digest_size=MARK_BYTES)
        _update(digest, store, name, headers, _sampled(size))
    return digest.hexdigest()


def _update(
    digest: hashlib.blake2b, store: ClipStore, name: str, headers: ClipHeaders, pieces: Sequence[tuple[int, int]]
) -> None:
    """Take in these pieces of the clip's features, and all action rows."""
    for values in _pieces(store, name, headers.features, pieces):
        digest.update(_as(np.float16, values))
    digest.update(_as(np.float32, read_array(store.paths(name)[1], headers.actions)))


def _pieces(
    store: ClipStore, name: str, header: ArrayHeader, pieces: Sequence[tuple[int, int]]
) -> Iterator[np.ndarray]:
    """Values start to stop of the clip's features, counted with the last axis fastest."""
    path = store.paths(name)[0]
    if not header.fortran_order or len(header.shape) < 2:
        return read_pieces(path, header, pieces)
    values = map_array(path, header).reshape(-1)  # reads all: such files are rare
    return (values[start:stop] for start, stop in pieces)


def _sampled(size: int) -> list[tuple[int, int]]:
    """What is read of so many values: each sixteenth at another place within it, since frames begin at equal distances
    and the first patches of a picture may hold nothing but background."""
    if size <= _WHOLE:
        return [(0, size)]
    starts = []
    for piece in range(_PIECES):
        first, end = piece * size // _PIECES, (piece + 1) * size // _PIECES
        starts.append(first + (end - first - _PIECE) * (5 * piece % _PIECES) // (_PIECES - 1))
    return [(start, start + _PIECE) for start in starts]


def whole_hash(store: ClipStore, name: str) -> bytes:
    """Hash of all features and action rows of a clip; DataError when it does not fit the settings."""
    digest = hashlib.blake2b(digest_size=16)
    with accessed(store.folder / name, kind=DataError):
        headers = store.headers(name)
        size = math.prod(headers.features.shape)
        chunks = [(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK)]
        _update(digest, store, name, headers, chunks)
    return digest.digest()


def _as(kind: type[np.floating], values: np.ndarray) -> bytes:
    """The bytes of `values` in that precision, little-endian; too large ones become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.dtype(kind).newbyteorder("<")).tobytes()
