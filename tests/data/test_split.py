"""Which clips train and which are held out: the rule, what is left out, the hash and the fingerprints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.fingerprint import MARK_BYTES
from hopecli.data.split import Split, check_skipped, make_split, read_split, split_ids, usable_clips
from hopecli.data.store import ClipStore
from hopecli.errors import CheckpointError, DataError
from tests.clips import action_file, count_rows, data_settings, feature_file, make_features, write_clip, write_clips


def store(folder: Path, changes: dict[str, Any] | None = None) -> ClipStore:
    return ClipStore(folder, data_settings(changes), use_extrinsics=False)


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(10, 0.1, 1), (10, 0.3, 3), (2, 0.01, 1), (2, 0.99, 1), (5, 0.99, 4), (20, 0.1, 2), (5, 0.35, 2), (7, 0.25, 2)],
)
def test_the_last_share_is_held_out_with_at_least_one_on_each_side(count: int, share: float, held: int) -> None:
    ids = list(range(count))
    assert split_ids(ids, share) == (ids[: count - held], ids[count - held :])


def test_the_share_is_of_existing_ids_not_of_numbers() -> None:
    assert split_ids([1, 2, 3, 1000], 0.25) == ([1, 2, 3], [1000])


def test_split_of_a_folder_with_gaps(tmp_path: Path) -> None:
    write_clips(tmp_path, [1, 2, 10, 20, 300])
    split = make_split(store(tmp_path, {"val_split": 0.4}))
    assert split.train == ("clip_00001", "clip_00002", "clip_00010")
    assert split.held_out == ("clip_00020", "clip_00300")
    assert set(split.fingerprints) == set(split.train)
    within = make_split(store(tmp_path, {"val_split": 0.4, "clip_start": 2, "clip_end": 300}))
    assert (within.train, within.held_out) == (("clip_00002", "clip_00010"), ("clip_00020",))


def test_training_needs_two_clips(tmp_path: Path) -> None:
    write_clips(tmp_path, [1])
    with pytest.raises(DataError, match=r"at least 2 clips.*1 usable"):
        make_split(store(tmp_path))


def test_short_clips_are_an_error_or_skipped(tmp_path: Path) -> None:
    write_clips(tmp_path, [1, 2, 3])
    write_clip(tmp_path, 4, features=make_features(4, frames=2), actions=count_rows(4))
    with pytest.raises(DataError, match=r"clip_00004.*2 encoded frames.*on_short=skip"):
        make_split(store(tmp_path))
    # A short clip is no defect: max_skipped does not count it.
    split = make_split(store(tmp_path, {"on_short": "skip", "max_skipped": 0.0}))
    assert (split.train, split.held_out) == (("clip_00001", "clip_00002"), ("clip_00003",))
    assert list(split.skipped) == ["clip_00004"]
    assert split.skipped["clip_00004"].startswith("too_few_frames: has 2 encoded frames")


def test_broken_clips_are_an_error_or_skipped_up_to_a_share(tmp_path: Path) -> None:
    write_clips(tmp_path, range(1, 5))
    feature_file(tmp_path, "clip_00002").write_bytes(b"")
    action_file(tmp_path, "clip_00003").unlink()
    with pytest.raises(DataError, match=r"clip_00002.*vjepa2_vitl16\.npy is not a readable.*1 more of 4 clips"):
        usable_clips(store(tmp_path))
    usable, skipped = usable_clips(store(tmp_path, {"on_error": "skip", "max_skipped": 0.5}))
    assert list(usable) == [1, 4]
    assert [reason.split(":")[0] for reason in skipped.values()] == ["unreadable", "missing_actions"]
    with pytest.raises(DataError, match=r"2 of 4 clips cannot be used, more than data\.max_skipped.*0\.49"):
        usable_clips(store(tmp_path, {"on_error": "skip", "max_skipped": 0.49}))


def test_one_clip_that_differs_from_the_others_is_to_be_mended(tmp_path: Path) -> None:
    """Advice to change the settings would make the others unusable; where most differ it is right."""
    write_clips(tmp_path, range(1, 5))
    for number in range(1, 5):
        wide = feature_file(tmp_path, f"clip_{number:05d}")
        np.save(wide, np.load(wide).repeat(2, axis=-1))
        with pytest.raises(DataError, match="clip_00001: features have width 8") as raised:
            usable_clips(store(tmp_path))
        assert ("Mend it, or leave it out with data.on_error=skip" in str(raised.value)) == (number <= 2)
        assert ("train a model with data.embed_dim=8" in str(raised.value)) == (number > 2)


def test_no_usable_clip(tmp_path: Path) -> None:
    write_clip(tmp_path, 1, features=make_features(4, frames=2), actions=count_rows(4))
    with pytest.raises(DataError, match=r"no usable clip is left.*1 skipped, the first clip_00001: .*has 2 enc"):
        usable_clips(store(tmp_path, {"on_short": "skip"}))


def test_hash_changes_with_sides_members_and_content(tmp_path: Path) -> None:
    write_clips(tmp_path, range(1, 7))
    base = make_split(store(tmp_path)).hash
    assert make_split(store(tmp_path)).hash == base
    hashes = {
        base,
        make_split(store(tmp_path, {"val_split": 0.4})).hash,
        make_split(store(tmp_path, {"clip_end": 6})).hash,
    }
    write_clip(tmp_path, 2, features=make_features(99))
    hashes.add(make_split(store(tmp_path)).hash)
    write_clip(tmp_path, 7)
    hashes.add(make_split(store(tmp_path)).hash)
    assert len(hashes) == 5


def test_marks_of_an_earlier_recipe_are_not_compared() -> None:
    assert Split(("a",), ("b",), {}, {"a": "0" * 2 * MARK_BYTES}).comparable
    assert not Split(("a",), ("b",), {}, {"a": "0" * 20}).comparable


def test_a_run_with_marks_of_an_earlier_recipe_knows_its_clips_by_name() -> None:
    now = Split(("a", "b"), ("c",), {}, {"a": "1" * 2 * MARK_BYTES, "b": "2" * 2 * MARK_BYTES})
    assert now.same_clips(now)
    assert not now.same_clips(Split(now.train, now.held_out, {}, {**now.fingerprints, "b": "3" * 2 * MARK_BYTES}))
    assert now.same_clips(Split(now.train, now.held_out, {}, {"a": "0" * 20, "b": "0" * 20}))
    assert not now.same_clips(Split(("a",), ("b", "c"), {}, {"a": "0" * 20}))


def test_a_clip_that_was_unreadable_may_have_come_back_otherwise() -> None:
    before = Split(("a", "b"), ("c",), {}, {"a": "1" * 2 * MARK_BYTES}, unreadable=("b",))
    mended = {"a": "1" * 2 * MARK_BYTES, "b": "2" * 2 * MARK_BYTES}
    assert Split(("a", "b"), ("c",), {}, mended).same_clips(before)
    assert not Split(("a", "b"), ("c",), {}, {**mended, "a": "3" * 2 * MARK_BYTES}).same_clips(before)


def test_split_file_reads_back_and_damage_is_noticed(tmp_path: Path) -> None:
    split = Split(("a", "b"), ("c",), {"d": "truncated: short"}, {"a": "1", "b": "2"})
    path = tmp_path / "split.json"
    path.write_text(split.to_json(), encoding="utf-8")
    assert read_split(path) == split
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["hash"] == split.hash
    tree["train"], tree["held_out"] = ["a"], ["b", "c"]
    path.write_text(json.dumps(tree), encoding="utf-8")
    with pytest.raises(CheckpointError, match="hash does not match"):
        read_split(path)
    for text in ("{", "[]", "{}"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(CheckpointError, match=r"not a readable split\.json"):
            read_split(path)
    path.unlink()
    with pytest.raises(CheckpointError):
        read_split(path)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (Split(("a", "c"), ("d",), {}, {"a": "1", "c": "3"}), "b is gone"),
        (Split(("a", "b", "c"), ("d", "e"), {}, {"a": "1", "b": "2", "c": "3"}), "e is new"),
        (Split(("a", "b"), ("c", "d"), {}, {"a": "1", "b": "2"}), "c is now held out"),
        (Split(("a", "b", "c"), ("d",), {}, {"a": "1", "b": "4", "c": "3"}), "b has other content"),
    ],
)
def test_what_changed_is_named(now: Split, difference: str) -> None:
    before = Split(("a", "b", "c"), ("d",), {}, {"a": "1", "b": "2", "c": "3"})
    assert now.hash != before.hash
    assert now.difference(before) == difference


def test_a_share_is_enough_for_what_it_was_the_share_of() -> None:
    """As inspect-data prints it: 0.29 * 100 is less than 29 in floating point."""
    for total in range(1, 300):
        for bad in range(total + 1):
            check_skipped(bad, total, bad / total, "clips")
            if bad:
                with pytest.raises(DataError):
                    check_skipped(bad, total, (bad - 0.5) / total, "clips")


def test_a_run_remembers_the_hashes_its_split_had() -> None:
    first = Split(("a", "b"), ("c",), {}, {"a": "1", "b": "2"})
    mended = replace(first, fingerprints={"a": "1", "b": "3"})
    second = mended.following(first)
    assert second.earlier == (first.hash,)
    assert second.hash == mended.hash
    assert second.following(second).earlier == (first.hash,)
    third = replace(first, fingerprints={"a": "4", "b": "3"}).following(second)
    assert third.earlier == (first.hash, second.hash)


@pytest.mark.parametrize(("bad", "advised"), [(3, True), (4, False)])
def test_a_larger_share_is_advised_where_it_helps(bad: int, advised: bool) -> None:
    with pytest.raises(DataError, match=f"{bad} of 4 clips") as caught:
        check_skipped(bad, 4, 0.5, "clips")
    assert ("or raise data.max_skipped" in str(caught.value)) == advised
