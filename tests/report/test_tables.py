"""Tables: nothing that a user named is taken for markup, and no number is lost on a narrow terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from hopecli.report.console import ConsoleSink, make_console
from hopecli.report.tables import difference_table, pairs_table, plain_table
from tests.report.examples import cells

HORIZONS = [f"+{h}" for h in range(1, 8)]
LABELS = ["model", "still", "shuffled action"]


def lines(table: RenderableType, width: int) -> list[str]:
    file = io.StringIO()
    Console(file=file, width=width, highlight=False).print(table)
    return file.getvalue().splitlines()


@pytest.mark.parametrize("name", ["x[/red]y", "[bold]x", "[/]", "a:smile:b", "back\\[bold]slash"])
def test_square_brackets_are_shown_as_they_are(name: str) -> None:
    for table in (pairs_table(name, {name: name}), plain_table(name, [name, name], [[name, name]])):
        assert " ".join(lines(table, 160)).count(name) >= 3


def test_messages_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "runs/[bold]x/a:smile:b[/]"
    sink = ConsoleSink(None)
    sink.message(text)
    sink.close()
    make_console(stderr=False).print(text)
    captured = capsys.readouterr()
    assert (captured.err, captured.out) == (f"{text}\n", f"{text}\n")


def numbers(row: int) -> list[str]:
    return [f"{row}.{column:04d}" for column in range(8)]


@pytest.mark.parametrize(("width", "parts"), [(160, 1), (80, 1), (60, 2), (40, 3), (20, 8)])
def test_every_number_stands_in_a_line_of_its_label(width: int, parts: int) -> None:
    table = plain_table("L1", ["", "mean", *HORIZONS], ([label, *numbers(i)] for i, label in enumerate(LABELS)))
    shown = [line.strip() for line in lines(table, width)]
    assert max(map(len, shown)) <= width
    for i, label in enumerate(LABELS):
        word = label.split()[0]
        rows = [line.removeprefix(label).removeprefix(word).split() for line in shown if line.startswith(word)]
        assert len(rows) == parts
        assert [number for row in rows for number in row] == numbers(i)
    heads = [word for line in shown for word in line.split() if word in ("mean", *HORIZONS)]
    assert heads == ["mean", *HORIZONS]


def test_what_does_not_fit_anywhere_is_folded_not_cut() -> None:
    shown = "".join(lines(plain_table("", ["", "mean"], [["model", "0.1234567"]]), 9))
    assert sorted(shown.replace("─", "").replace(" ", "")) == sorted("meanmodel0.1234567")


def test_each_value_of_two_presets_stands_under_its_own() -> None:
    table = difference_table("one", "two", {"data.grid": ("4", "8"), "model.depth": ("6", None)})
    assert cells(table) == {"data.grid": {"one": "4", "two": "8"}, "model.depth": {"one": "6", "two": "-"}}
