"""Made clips appear complete or not at all, whatever ends the process that makes them."""

from __future__ import annotations

import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from hopecli.data.make_clips import make_clips
from hopecli.data.staging import hidden_name, remove_stale, sigterm_as_interrupt, staged
from hopecli.errors import DataError


def make(folder: Path, on_clip: object = None) -> None:
    make_clips(folder, clips=3, grid=2, dim=4, domain="base", seed=0, on_clip=on_clip)  # type: ignore[arg-type]


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("exists", [False, True])
def test_sigterm_cleans_up_as_ctrl_c_does(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    before = signal.getsignal(signal.SIGTERM)

    def stop(done: int, total: int) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", stop)
    assert everything(tmp_path) == (["out"] if exists else [])
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_cut_the_clean_up_short() -> None:
    cleaned: list[bool] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        work()
    assert cleaned


def test_handlers_are_left_alone_in_other_threads_and_where_the_signal_is_ignored(tmp_path: Path) -> None:
    thread = threading.Thread(target=make, args=(tmp_path / "thread",))
    thread.start()
    thread.join()
    assert (tmp_path / "thread" / "clips.json").is_file()
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        make(tmp_path / "ignored", lambda done, total: os.kill(os.getpid(), signal.SIGTERM))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "ignored" / "clips.json").is_file()


@pytest.mark.parametrize("exists", [False, True])
def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path, exists: bool) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    code = (
        "import os, sys; from pathlib import Path; from hopecli.data.make_clips import make_clips\n"
        "make_clips(Path(sys.argv[1]), clips=3, grid=2, dim=4, domain='base', seed=0,"
        " on_clip=lambda done, total: os.kill(os.getpid(), 9))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "out")], check=False).returncode == -9
    assert any(".partial" in name for name in everything(tmp_path))
    make(tmp_path / "out")
    assert not any(".partial" in name for name in everything(tmp_path))
    assert (tmp_path / "out" / "clips.json").is_file()


def test_only_what_no_live_process_owns_is_removed(tmp_path: Path) -> None:
    ours = hidden_name("out")
    place = ours.split(".")[2].split("-")[0]
    other_host = f".out.{'0' * 8 if place != '0' * 8 else '1' * 8}-1-abcdef01.partial"
    old_form, other_folder, other_pattern = ".out.0123456789ab.partial", hidden_name("out.b"), ".out.mine.partial"
    kept = {ours, other_host, old_form, other_folder, other_pattern}
    for name in kept:
        (tmp_path / name).mkdir()
    remove_stale(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == kept
    long_ago = time.time() - 25 * 3600
    for name in kept:
        os.utime(tmp_path / name, (long_ago, long_ago))
    remove_stale(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {other_folder, other_pattern}


def test_an_existing_folder_stays_the_same_directory(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    before = out.stat().st_ino
    seen: list[list[str]] = []
    make(out, lambda done, total: seen.append([path.name for path in out.glob("clip*")]))
    assert out.stat().st_ino == before
    assert seen == [[], [], []]
    names = ["clip_00000", "clip_00001", "clip_00002", "clips.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    make(tmp_path / "new")
    assert everything(out) == everything(tmp_path / "new")


def test_the_last_file_moves_up_after_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its name: a folder that has it is complete."""
    there: list[set[str]] = []
    rename = os.rename

    def seen(source: Path, target: Path) -> None:
        rename(source, target)
        there.append({path.name for path in tmp_path.iterdir() if not path.name.startswith(".")})

    monkeypatch.setattr(os, "rename", seen)
    with staged(tmp_path, last="b") as staging:
        for name in ("a", "b", "c"):
            (staging / name).touch()
    assert there == [{"a"}, {"a", "c"}, {"a", "b", "c"}]


def test_a_process_of_another_user_is_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    (tmp_path / hidden_name("out")).mkdir()
    monkeypatch.setattr(os, "kill", refused)
    remove_stale(tmp_path / "out")
    assert len(list(tmp_path.iterdir())) == 1


def test_clips_that_cannot_be_moved_up_leave_what_stood_there(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()

    def other_process(done: int, total: int) -> None:
        (out / "clip_00001").mkdir(exist_ok=True)
        (out / "clip_00001" / "theirs").write_text("keep")

    with pytest.raises(DataError, match="clips were put into this folder"):
        make(out, other_process)
    assert everything(out) == ["clip_00001", "clip_00001/theirs"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_move_that_stops_half_way_is_undone(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def one(source: Path, target: Path) -> None:
        if Path(target).name == "clip_00001":
            raise error
        rename(source, target)
        assert target.is_dir()

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "rename", one)
    with pytest.raises((DataError, KeyboardInterrupt)):
        make(tmp_path / "out")
    assert everything(tmp_path) == ["out"]


def test_names_as_long_as_a_file_system_takes(tmp_path: Path) -> None:
    make(tmp_path / ("é" * 127))
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def interrupting(at: int, number: signal.Signals) -> Callable[[FrameType, str, object], Any]:
    """A trace function that sends this process a signal at the `at`-th line of zipfile, once."""
    lines = itertools.count()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if "zipfile" not in frame.f_code.co_filename:
            return None
        if event == "line" and next(lines) == at:
            sys.settrace(None)
            signal.raise_signal(number)
        return trace

    return trace


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_in_a_zip_file_stays_one(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zipfile makes another error of it at some places, prints one at others, and loses it at others."""
    unraisable: list[object] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)
    before, handler = sys.gettrace(), signal.getsignal(number)
    for at in itertools.count(step=7):  # of some 1,100 lines, to save time
        sys.settrace(interrupting(at, number))
        try:
            make_clips(tmp_path / "clips", clips=1, grid=2, dim=8, domain="base", seed=1)
            break
        except KeyboardInterrupt:
            assert list(tmp_path.iterdir()) == []
        finally:
            sys.settrace(before)
    assert at > 100
    assert unraisable == []
    assert signal.getsignal(number) is handler
