"""Training clips whose headers are sound and whose content cannot be read: an error, or left out of the split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hopecli.data.split import Split, make_split, usable_clips
from hopecli.data.store import ClipStore
from hopecli.errors import DataError
from tests.clips import action_file, count_rows, data_settings, feature_file, make_features, write_clip, write_clips
from tests.data.io_errors import fail_reading

SKIP = {"on_error": "skip", "max_skipped": 0.2, "val_split": 0.4}


def split_of(folder: Path, changes: dict[str, Any]) -> Split:
    return make_split(ClipStore(folder, data_settings(changes), use_extrinsics=False))


@pytest.mark.parametrize("file", [feature_file, action_file])
@pytest.mark.parametrize("count", [10, 80])  # 80: several at a time
def test_a_training_clip_that_cannot_be_read(
    file: Any, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path, range(count))
    whole = split_of(tmp_path, SKIP)
    assert whole == split_of(tmp_path, {**SKIP, "on_error": "error"})  # nothing to leave out
    fail_reading(monkeypatch, file(tmp_path, "clip_00003"), file(tmp_path, whole.held_out[0]))
    with pytest.raises(DataError, match=r"clip_00003: cannot be read: Input/output error"):
        split_of(tmp_path, {**SKIP, "on_error": "error"})
    found = split_of(tmp_path, SKIP)
    assert found.skipped == {"clip_00003": "unreadable: cannot be read: Input/output error"}
    assert found.held_out == whole.held_out  # its content is read when it is scored
    assert found.train == tuple(name for name in whole.train if name != "clip_00003")
    assert found.fingerprints == {name: whole.fingerprints[name] for name in found.train}
    assert found.difference(whole) == "clip_00003 is left out: unreadable: cannot be read: Input/output error"


def test_it_counts_against_the_share_together_with_defects_of_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clips(tmp_path, range(9))
    write_clip(tmp_path, 9, features=make_features(9, frames=2), actions=count_rows(4))  # short: no defect
    feature_file(tmp_path, "clip_00001").write_bytes(b"")
    fail_reading(monkeypatch, feature_file(tmp_path, "clip_00003"))
    with pytest.raises(DataError, match=r"2 of 10 clips cannot be used, more than data\.max_skipped.*0\.19"):
        split_of(tmp_path, {**SKIP, "on_short": "skip", "max_skipped": 0.19})
    found = split_of(tmp_path, {**SKIP, "on_short": "skip"})
    assert sorted(found.skipped) == ["clip_00001", "clip_00003", "clip_00009"]


def test_no_training_clip_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clips(tmp_path, range(2))
    fail_reading(monkeypatch, feature_file(tmp_path, "clip_00000"))
    with pytest.raises(DataError, match=r"at least 2 clips.*1 usable"):
        split_of(tmp_path, {**SKIP, "max_skipped": 0.5})


def test_names_to_choose_from_are_looked_up_not_searched(tmp_path: Path) -> None:
    """80,000 names of held-out clips come as a list; searching it for every clip took 12 s."""

    class Names(list[str]):
        def __contains__(self, name: object) -> bool:
            raise AssertionError("searched")

    write_clips(tmp_path, range(4))
    store = ClipStore(tmp_path, data_settings(), use_extrinsics=False)
    assert usable_clips(store, among=Names(["clip_00002", "clip_00009"])) == ({2: "clip_00002"}, {})
