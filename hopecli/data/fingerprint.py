"""What recognises a clip in any folder, under any name: hashes of its numbers, not of its files.

Features are compared as float16 and action rows as float32, so that a clip saved again with another dtype, byte order
or layout of the same values is still the same clip.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterable

import numpy as np

from hopecli.data.store import ClipStore
from hopecli.errors import DataError, accessed

MARK_BYTES = 12  # counts up with the recipe, so that marks of an earlier one are told apart
_WHOLE = 1 << 18  # values: reading so many takes about as long as a few seeks
_PIECES, _PIECE = 16, 1024
_CHUNK = 1 << 19


def fingerprints(store: ClipStore, names: Iterable[str]) -> dict[str, str]:
    """Content hash of each clip: its number of features, all of a small clip or 16 pieces of 1024 over a large
    one, and all action rows. DataError for a clip that does not fit the settings."""
    return {name: _fingerprint(store, name) for name in names}


def _fingerprint(store: ClipStore, name: str) -> str:
    digest = hashlib.blake2b(digest_size=MARK_BYTES)
    with accessed(store.folder / name, kind=DataError):
        features, actions = store.stored(name)
        values = features.reshape(-1)
        if values.size > _WHOLE:
            _read_only_what_is_touched(features)
        digest.update(str(values.size).encode())
        for start, stop in _sampled(values.size):
            digest.update(_as(np.float16, values[start:stop]))
        digest.update(_as(np.float32, actions))
    return digest.hexdigest()


def _read_only_what_is_touched(mapped: np.ndarray) -> None:
    """Keep the system from reading ahead: between two of the pieces that would be most of the file."""
    owner: object = mapped
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
        owner.madvise(mmap.MADV_RANDOM)


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
        features, actions = store.stored(name)
        values = features.reshape(-1)
        for start in range(0, values.size, _CHUNK):
            digest.update(_as(np.float16, values[start : start + _CHUNK]))
        digest.update(_as(np.float32, actions))
    return digest.digest()


def _as(kind: type[np.floating], values: np.ndarray) -> bytes:
    """The bytes of `values` in that precision, little-endian; too large ones become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.dtype(kind).newbyteorder("<")).tobytes()
