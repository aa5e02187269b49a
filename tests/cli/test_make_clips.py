"""hope make-clips through the real command line."""

from __future__ import annotations

from pathlib import Path

from tests.cli.runner import hope

SMALL = ["--clips", "2", "--grid", "2", "--dim", "4"]


def test_square_brackets_in_paths_are_no_markup(tmp_path: Path) -> None:
    for name in ("x[/red]y", "[bold]z"):
        outcome = hope(["make-clips", name, *SMALL], tmp_path)
        assert outcome.code == 0, outcome.err
        assert f"2 clips in {name}" in outcome.out
        inspected = hope(["inspect-data", name], tmp_path)
        assert inspected.code == 0, inspected.err
        assert f"Clips in {name}" in inspected.out
