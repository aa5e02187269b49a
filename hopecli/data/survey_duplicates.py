"""Clips with the same content: a cheap fingerprint of every clip, then full hashes among those that agree."""

from __future__ import annotations

from dataclasses import dataclass

from hopecli.data.fingerprint import fingerprints, whole_hash
from hopecli.data.store import ClipStore
from hopecli.errors import DataError, accessed

# Hashing whole files is reading them: more than this only when everything is read anyway.
HASH_BUDGET = 1 << 30


@dataclass(frozen=True)
class DuplicateFacts:
    """clips: copies of an earlier clip by full hash of features and actions. alike: clips that agree with
    another in size, samples of the features and all actions; --deep compares their whole content."""

    clips: int
    alike: int


@dataclass(frozen=True)
class Duplicates:
    """The facts, (clip, earlier clip with the same content) in order, and the errors of clips that could not be read
    to compare them."""

    facts: DuplicateFacts
    pairs: tuple[tuple[str, str], ...]
    unreadable: dict[str, DataError]


def fingerprint_of(store: ClipStore, name: str) -> bytes:
    """That of a clip whose headers are sound; DataError when its content cannot be read."""
    return bytes.fromhex(fingerprints(store, [name])[name])


class Fingerprints:
    """A few bytes per clip."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._same: dict[bytes, list[str]] = {}

    def add(self, name: str, mark: bytes) -> None:
        """Remember a clip's fingerprint."""
        if mark in self._first:
            self._same.setdefault(mark, [self._first[mark]]).append(name)
        else:
            self._first[mark] = name

    def settle(self, store: ClipStore, *, everything: bool) -> Duplicates:
        """Compare whole contents among clips with the same fingerprint, up to HASH_BUDGET bytes unless `everything`."""
        budget, alike = HASH_BUDGET, 0
        pairs: list[tuple[str, str]] = []
        unreadable: dict[str, DataError] = {}
        for names in self._same.values():
            seen: dict[bytes, str] = {}
            for name in names:
                try:
                    with accessed(store.folder / name, kind=DataError):
                        budget -= sum(path.stat().st_size for path in store.paths(name)[:2])
                    if budget < 0 and not everything:
                        alike += name != names[0]
                        continue
                    earlier = seen.setdefault(whole_hash(store, name), name)
                except DataError as error:
                    unreadable[name] = error
                    continue
                if earlier != name:
                    pairs.append((name, earlier))
        return Duplicates(DuplicateFacts(len(pairs), alike), tuple(sorted(pairs)), unreadable)
