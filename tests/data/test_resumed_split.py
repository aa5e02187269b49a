"""The split of a run that goes on: lost, spoilt, mended and new clips, with and without leave to skip them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.resumed_split import resumed_split
from hopecli.data.split import Split, make_split
from hopecli.data.store import ClipStore
from hopecli.errors import DataError
from tests.clips import count_rows, data_settings, feature_file, make_features, write_clip, write_clips

NAMES = [f"clip_{number:05d}" for number in range(10)]
SKIP = {"on_error": "skip", "max_skipped": 0.1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten clips, of which 8 and 9 are held out."""
    return write_clips(tmp_path, range(10))


def store(folder: Path, **changes: Any) -> ClipStore:
    return ClipStore(folder, data_settings({"val_split": 0.2, **changes}), use_extrinsics=False)


def start(folder: Path, **changes: Any) -> Split:
    return make_split(store(folder, **changes))


def spoil(folder: Path, number: int) -> None:
    """Values that are not finite: the header is sound, the clip cannot be read as a whole."""
    features = make_features(number)
    features[1] = np.nan
    write_clip(folder, number, features=features)


@pytest.mark.parametrize("changes", [{}, SKIP])
def test_nothing_has_changed(changes: dict[str, Any], folder: Path) -> None:
    before = start(folder)
    assert (len(before.train), before.held_out) == (8, ("clip_00008", "clip_00009"))
    assert resumed_split(store(folder, **changes), before) == (before, {})


def test_a_lost_clip_is_missing_from_its_side_or_one_to_skip(folder: Path) -> None:
    before = start(folder)
    shutil.rmtree(folder / NAMES[3])
    without, to_skip = resumed_split(store(folder), before)
    assert without.train == tuple(NAMES[:3] + NAMES[4:8])
    assert NAMES[3] not in without.fingerprints
    assert (without.earlier, to_skip) == ((before.hash,), {})
    kept, to_skip = resumed_split(store(folder, **SKIP), before)
    assert (kept, to_skip) == (before, {NAMES[3]: "missing: not in the folder"})


def test_what_was_left_out_stays_out_and_counts(folder: Path) -> None:
    whole = feature_file(folder, NAMES[2]).read_bytes()
    feature_file(folder, NAMES[2]).write_bytes(b"")
    before = start(folder, **SKIP)
    assert list(before.skipped) == [NAMES[2]]
    feature_file(folder, NAMES[2]).write_bytes(whole)
    for changes in ({}, SKIP):
        assert resumed_split(store(folder, **changes), before) == (before, {})
    shutil.rmtree(folder / NAMES[5])  # the second of ten
    with pytest.raises(DataError, match="2 of 10 clips cannot be used"):
        resumed_split(store(folder, **{**SKIP, "max_skipped": 0.19}), before)
    split, to_skip = resumed_split(store(folder, **{**SKIP, "max_skipped": 0.2}), before)
    assert (split, list(to_skip)) == (before, [NAMES[5]])


def test_a_short_clip_left_out_is_one_of_the_clips_but_no_defect(folder: Path) -> None:
    write_clip(folder, 1, features=make_features(1, frames=2), actions=count_rows(4))
    before = start(folder, on_short="skip")
    assert list(before.skipped) == [NAMES[1]]
    feature_file(folder, NAMES[4]).write_bytes(b"")
    split, to_skip = resumed_split(store(folder, **SKIP, on_short="skip"), before)  # one of ten, not of nine
    assert split == before
    assert to_skip[NAMES[4]].startswith("unreadable: ")


def test_a_clip_that_has_become_short_is_damaged(folder: Path) -> None:
    """data.on_short is of clips that the run never had."""
    before = start(folder)
    write_clip(folder, 6, features=make_features(6, frames=2), actions=count_rows(4))
    for changes in ({}, {"on_short": "skip"}):
        with pytest.raises(DataError, match=r"clip_00006.*2 encoded frames.*Put it back.*data\.on_error=skip"):
            resumed_split(store(folder, **changes), before)
        split, to_skip = resumed_split(store(folder, **changes, **SKIP), before)
        assert (split.train, list(to_skip)) == (before.train, [NAMES[6]])
        assert to_skip[NAMES[6]].startswith("too_few_frames: ")


def test_new_clips_train(folder: Path) -> None:
    before = start(folder)
    write_clip(folder, 20)
    for changes in ({}, SKIP):
        split, to_skip = resumed_split(store(folder, **changes), before)
        assert (split.train, split.held_out, to_skip) == ((*before.train, "clip_00020"), before.held_out, {})


def test_other_content_is_new_content_unless_it_cannot_be_read(folder: Path) -> None:
    before = start(folder)
    write_clip(folder, 4, features=make_features(99))
    changed, to_skip = resumed_split(store(folder, **SKIP), before)
    assert changed.train == before.train
    assert [name for name in NAMES[:8] if changed.fingerprints[name] != before.fingerprints[name]] == [NAMES[4]]
    assert (changed.earlier, to_skip) == ((before.hash,), {})
    spoil(folder, 4)
    split, to_skip = resumed_split(store(folder, **SKIP), before)
    assert split == before  # with the fingerprint it had
    assert to_skip == {NAMES[4]: "not_finite: features hold NaN or infinite values"}


def test_marks_of_an_earlier_recipe_tell_no_change(folder: Path) -> None:
    before = replace(start(folder), fingerprints=dict.fromkeys(NAMES[:8], "0" * 20))
    spoil(folder, 4)
    split, to_skip = resumed_split(store(folder, **SKIP), before)
    assert (split.train, to_skip) == (before.train, {})


@pytest.mark.parametrize("changes", [{}, SKIP])
def test_what_training_skipped_is_used_again_once_it_can_be_read(changes: dict[str, Any], folder: Path) -> None:
    spoil(folder, 4)
    reason = {NAMES[4]: "unreadable: a disk failed"}
    before = replace(start(folder), skipped=reason, unreadable=(NAMES[4],))
    split, to_skip = resumed_split(store(folder, **changes), before)
    assert (split.train, split.skipped, to_skip) == (before.train, {}, reason)
    write_clip(folder, 4)
    split, to_skip = resumed_split(store(folder, **changes), before)
    assert (split.train, split.skipped, to_skip) == (before.train, {}, {})


@pytest.mark.parametrize("side", [range(8), range(8, 10)])
def test_a_side_without_any_clip_is_an_error(side: range, folder: Path) -> None:
    before = start(folder)
    for number in side:
        feature_file(folder, NAMES[number]).write_bytes(b"")
    with pytest.raises(DataError, match=r"at least 2 clips.*Put clips of the run back"):
        resumed_split(store(folder, on_error="skip", max_skipped=0.9), before)
