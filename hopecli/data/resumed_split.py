"""The split of a run that goes on: its own, whatever has become of the clips since."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from hopecli.data.each import Progress, each
from hopecli.data.fingerprint import fingerprints, fingerprints_or_errors
from hopecli.data.split import Split, check_skipped, count_defects, reason_of, too_few, usable_clips
from hopecli.data.store import ClipStore
from hopecli.errors import DataError


def resumed_split(
    store: ClipStore, before: Split, progress: Callable[[str, int, int], None] | None = None
) -> tuple[Split, dict[str, str]]:
    """The split `before` as the folder's clips make it now, and clips of its sides to skip, with reasons.

    A clip that was left out when the run was started stays left out. With data.on_error "skip" a clip that cannot be
    used any more keeps its side (and fingerprint) and is one to skip, as is one that training skipped and that still
    cannot be read; without, it is missing from its side. DataError as of `make_split`.
    """

    def stage(name: str) -> Progress | None:
        return None if progress is None else partial(progress, name)

    sides = dict.fromkeys((*before.train, *before.held_out))
    left_out = {name: reason for name, reason in before.skipped.items() if name not in sides}
    present = [name for name in store.select().values() if name not in left_out]
    usable, problems = usable_clips(
        store, among=present, progress=stage("checking clips"), any_share=True, of_run=sides
    )
    here = set(usable.values())
    lost = {name: problems.get(name, "missing: not in the folder") for name in sides if name not in here}
    marking = stage("fingerprints of training clips")
    readable = [name for name in before.train if name in here]
    skipping = store.settings.on_error == "skip"
    if skipping:
        marks, errors = fingerprints_or_errors(store, readable, marking)
        if before.comparable:
            errors |= spoilt(store, marks, before.fingerprints)
        lost |= {name: reason_of(error) for name, error in errors.items()}
        marks = {name: mark for name, mark in marks.items() if name not in lost}
    else:
        marks = fingerprints(store, readable, marking)
        for error in (spoilt(store, marks, before.fingerprints) if before.comparable else {}).values():
            raise error  # before it is found to have other content, which tells less
    kept = set(sides) if skipping else here
    split = replace(
        before,
        train=tuple(name for name in before.train if name in kept)
        + tuple(n for n in usable.values() if n not in sides),
        held_out=tuple(name for name in before.held_out if name in kept),
        skipped=left_out if skipping else {**left_out, **problems},
        fingerprints={name: mark for name, mark in (before.fingerprints | marks).items() if name in kept},
    ).following(before)
    if not skipping:
        return split, _still_unreadable(store, before, here)
    to_skip = lost | _still_unreadable(store, before, here - lost.keys())
    total = len(sides) + len(left_out)
    check_skipped(count_defects(left_out) + len(to_skip), total, store.settings.max_skipped, str(store.folder))
    for side in (before.train, before.held_out):
        if all(name in to_skip for name in side):
            raise too_few(
                store.folder, len(sides) - len(to_skip), "put clips of the run back that have gone or changed"
            )
    return split, to_skip


def spoilt(store: ClipStore, marks: Mapping[str, str], before: Mapping[str, str]) -> dict[str, DataError]:
    """The errors of clips whose fingerprint was another `before` and which cannot be read as a whole."""
    changed = [name for name, mark in marks.items() if mark != before.get(name, mark)]
    return unreadable(store, changed)


def _still_unreadable(store: ClipStore, before: Split, here: set[str]) -> dict[str, str]:
    """Those of the clips `here` that training has skipped and that can still not be read, with the reason it gave."""
    return {name: before.skipped[name] for name in unreadable(store, [name for name in before.skipped if name in here])}


def unreadable(store: ClipStore, names: Sequence[str]) -> dict[str, DataError]:
    """The errors of those of the clips that cannot be read as a whole."""

    def error_of(name: str) -> DataError | None:
        try:
            store.read(name)
        except DataError as error:
            return error
        return None

    return {name: error for name, error in zip(names, each(error_of, names), strict=True) if error is not None}
