"""Checkpoints and states where the system refuses something, or another process reads what is being replaced."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from hopecli.engine.checkpoint import duplicate_checkpoint, load_checkpoint, load_trainer, remove_old, write_weights
from hopecli.engine.tta_state import STATE_FILE, write_state
from hopecli.errors import CheckpointError
from tests.engine.test_checkpoint import hidden, save, weights


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")  # as exFAT and some network disks have it

    monkeypatch.setattr(os, "link", link)
    kept = save(tmp_path / "epoch_0001")
    duplicate_checkpoint(kept, tmp_path / "last")
    assert load_checkpoint(str(tmp_path / "last")).info == {"step": 7}
    assert load_trainer(tmp_path / "last")["step"] == 7
    files = {path.stat().st_ino for folder in (kept, tmp_path / "last") for path in folder.iterdir()}
    assert len(files) == 4
    assert hidden(tmp_path) == []


def test_a_file_that_a_network_disk_keeps_for_its_reader_is_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and FUSE give a removed file that is still open a hidden name, and its folder stays until it is closed."""
    removed, opened = shutil.rmtree, True

    def rmtree(folder: Path, ignore_errors: bool) -> None:
        there = Path(folder).exists()
        removed(folder, ignore_errors=ignore_errors)
        if there and opened:
            Path(folder).mkdir()
            (Path(folder) / ".nfs0000000000000001").write_bytes(b"still read")

    for step in (1, 2):
        save(tmp_path / "last", step=step)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    for step in (3, 4, 5):
        save(tmp_path / "last", step=step)
        assert load_checkpoint(str(tmp_path / "last")).info == {"step": step}
    assert hidden(tmp_path) != []
    opened = False
    save(tmp_path / "last", step=6)
    assert load_checkpoint(str(tmp_path / "last")).info == {"step": 6}
    assert hidden(tmp_path) == []


def test_what_a_crash_has_left_stays_until_the_next_checkpoint_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = tmp_path / "checkpoints"
    save(checkpoints / "last").rename(checkpoints / ".last.old")  # all there is

    def replace(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            raise OSError(errno.EIO, "Input/output error")
        Path(source).rename(target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(checkpoints / "last", step=8)
    assert load_checkpoint(str(tmp_path)).info == {"step": 7}


def test_who_reads_a_file_that_is_replaced_goes_on_reading_the_old_one(tmp_path: Path) -> None:
    """The stream's state and adapted weights take their name in one step: no moment has half of them."""

    def put(value: float) -> None:
        write_state(tmp_path, {"value": value})
        write_weights(tmp_path / "adapted.safetensors", weights(value), {}, {})

    put(1.0)
    for name in (STATE_FILE, "adapted.safetensors"):
        before = (tmp_path / name).read_bytes()
        with open(tmp_path / name, "rb", buffering=0) as reader:
            put(2.0)
            assert reader.read() == before
        assert (tmp_path / name).read_bytes() != before
        put(1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapted.safetensors", STATE_FILE]


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_read_only_checkpoint_is_replaced_again_and_again_but_not_removed_as_old(tmp_path: Path) -> None:
    for step in range(3):  # the first replacement would leave the read-only folder in the way of the second
        save(tmp_path / "last", step=step).chmod(0o500)
        save(tmp_path / f"epoch_000{step}", step=step).chmod(0o500)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_0000", "epoch_0001", "epoch_0002", "last"]
    assert load_checkpoint(str(tmp_path / "last")).info == {"step": 2}
    remove_old(tmp_path, 1)
    assert load_checkpoint(str(tmp_path / "epoch_0000")).info == {"step": 0}
    for path in tmp_path.iterdir():
        path.chmod(0o700)


def test_a_link_in_the_place_of_a_checkpoint_is_replaced_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    kept = save(tmp_path / "kept", step=1)
    kept.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last").symlink_to(kept)
    for step in (2, 3):  # the link would be in the way of the second replacement
        save(tmp_path / "run/last", step=step)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last"]
    assert load_checkpoint(str(tmp_path / "run/last")).info == {"step": 3}
    assert load_checkpoint(str(kept)).info == {"step": 1}
    assert kept.stat().st_mode & 0o777 == 0o755


def test_a_copy_beside_the_checkpoints_is_no_newer_one(tmp_path: Path) -> None:
    """What the Finder's Duplicate makes, and a user's own backup: they take no place of `keep_last`, and stay."""
    checkpoints = tmp_path / "checkpoints"
    for step in range(1, 4):
        save(checkpoints / f"epoch_000{step}", step=step)
    for name in ("epoch_0001 copy", "epoch_0001_best"):
        shutil.copytree(checkpoints / "epoch_0001", checkpoints / name)
    remove_old(checkpoints, 2)
    left = ["epoch_0001 copy", "epoch_0001_best", "epoch_0002", "epoch_0003"]
    assert sorted(path.name for path in checkpoints.iterdir()) == left
    assert load_checkpoint(str(tmp_path)).info == {"step": 3}  # without `last`: of the newest epoch
