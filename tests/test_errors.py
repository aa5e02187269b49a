"""Messages and exit codes of user errors."""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hopecli import errors
from hopecli.errors import (
    AbortedError,
    CheckpointError,
    DataError,
    HopeError,
    command_line,
    exists,
    is_dir,
    is_file,
    nearest_existing,
    written,
)

WORDS = ["hope", "train", r"C:\Users\me\my runs", "data.grid=2"]


def test_exit_codes_are_the_documented_ones() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, HopeError)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    assert codes == {
        "HopeError": 1,
        "SettingsError": 2,
        "DataError": 3,
        "CheckpointError": 4,
        "DeviceError": 5,
        "DivergedError": 6,
        "StoppedError": 75,
        "AbortedError": 130,
    }


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (HopeError("is broken"), "is broken"),
        (DataError("is broken", where="clip_00001"), "clip_00001: is broken"),
        (DataError("is broken", where="a\nb"), r"a\nb: is broken"),
        (DataError("is \x1b[2Jbroken", where="a\rb", fix="set \x9bx"), r"a\rb: is \x1b[2Jbroken. Set \x9bx"),
        (DataError("is wrong", where="a", value="x y"), "a: is wrong (got 'x y')"),
        (DataError("is wrong", value=[1, 2]), "is wrong (got [1, 2])"),
        (DataError("is wrong", value=0, fix="use 1"), "is wrong (got 0). Use 1"),
        (DataError("No 'tain'. Did you mean 'train'?", fix="see help"), "No 'tain'. Did you mean 'train'? See help"),
        (DataError("Is wrong.", fix="see help"), "Is wrong. See help"),
    ],
)
def test_messages(error: HopeError, text: str) -> None:
    assert str(error) == text


class _Raises(io.BytesIO):
    """A file whose `at`-th write raises what `make` makes."""

    def __init__(self, make: Callable[[], BaseException], at: int):
        super().__init__()
        self.make, self.at, self.writes = make, at, 0

    def write(self, data: object) -> int:
        self.writes += 1
        if self.writes == self.at:
            raise self.make()
        return super().write(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: AbortedError("aborted: Ctrl-C was pressed twice"), AbortedError),
        (KeyboardInterrupt, KeyboardInterrupt),
        (lambda: OSError(28, "No space left on device"), CheckpointError),
    ],
)
def test_an_interrupt_within_torch_save_is_no_write_error(
    make: Callable[[], BaseException], kind: type[BaseException]
) -> None:
    """At most of these writes torch raises a RuntimeError of its own on top."""
    state = {"weights": torch.zeros(100, 100), "step": 3}
    whole = _Raises(make, 0)
    torch.save(state, whole)
    assert whole.writes > 9
    for at in range(1, whole.writes + 1):
        with pytest.raises(kind) as raised, written("trainer.pt", also=(RuntimeError,)):
            torch.save(state, _Raises(make, at))
        assert raised.type is kind


def test_what_is_at_a_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, leads_to in {"to_file": "file", "to_folder": ".", "to_nothing": "none", "to_itself": "to_itself"}.items():
        (tmp_path / name).symlink_to(leads_to)
    found = {
        name: (exists(path), is_file(path), is_dir(path))
        for name in (".", "file", "to_file", "to_folder", "none", "file/none", "to_nothing", "to_itself", "a\0b")
        for path in [tmp_path / name]
    }
    nothing = (False, False, False)
    assert found == {
        ".": (True, False, True),
        "file": (True, True, False),
        "to_file": (True, True, False),
        "to_folder": (True, False, True),
        "none": nothing,
        "file/none": nothing,
        "to_nothing": nothing,
        "to_itself": nothing,
        "a\0b": nothing,
    }
    assert not is_file(os.devnull)
    assert exists(os.devnull)


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize("look", [exists, is_file, is_dir])
def test_what_may_not_be_looked_at_is_not_missing(look: Callable[[Path], bool], tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(PermissionError):
            look(closed / "file")
    finally:
        closed.chmod(0o700)


@pytest.mark.parametrize(
    ("platform", "line"),
    [("linux", shlex.join(WORDS)), ("win32", r'hope train "C:\Users\me\my runs" data.grid=2')],
)
def test_words_are_quoted_for_the_shell_of_the_system(
    platform: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert command_line(WORDS) == line


def test_the_nearest_place_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nearest_existing(tmp_path) == tmp_path
    assert nearest_existing(tmp_path / "a/b/c") == tmp_path
    monkeypatch.chdir(tmp_path)
    assert nearest_existing(Path("a/b")) == tmp_path
