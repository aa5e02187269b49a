"""Commands for the user to type."""

from __future__ import annotations

import shlex

import pytest

from hopecli.engine.shell import command_line

WORDS = ["hope", "train", r"C:\Users\me\my runs", "data.grid=2"]


@pytest.mark.parametrize(
    ("platform", "line"),
    [("linux", shlex.join(WORDS)), ("win32", r'hope train "C:\Users\me\my runs" data.grid=2')],
)
def test_words_are_quoted_for_the_shell_of_the_system(
    platform: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    assert command_line(WORDS) == line
