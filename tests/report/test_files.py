"""Result files: JSON without NaN, and a record that is on the disk after every report."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hopecli.engine.results import DiagnosticsRecord
from hopecli.report.files import MetricsFile, as_json, replacing, write_csv, write_json, write_text
from tests.report.examples import SUMMARY, VALIDATION, step_record


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_has_no_nan(value: float, tmp_path: Path) -> None:
    """Python would write NaN, which no other reader of JSON takes; the file before stays."""
    path = tmp_path / "results.json"
    write_json(path, {"loss": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"loss": value})
    assert json.loads(path.read_text()) == {"loss": 0.5}
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"loss": value})
    assert json.loads(as_json(replace(SUMMARY, loss=value)))["loss"] is None


def test_metrics_can_be_read_while_the_run_goes_on(tmp_path: Path) -> None:
    """A crash costs no line that was reported, and `tail -f` shows it."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    try:
        for step in (1, 2):
            metrics.steps([step_record(step)])
            lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))
    finally:
        metrics.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_validation_that_is_done_again_stands_there_once(again: bool, tmp_path: Path) -> None:
    """The run was killed after the validation of step 2, before the checkpoint that remembers it."""
    path = tmp_path / "metrics.jsonl"
    lines = [("train", 1), ("validation", 1), ("train", 2), ("validation", 2), ("train", 3)]
    path.write_text("".join(json.dumps({"type": kind, "step": step}) + "\n" for kind, step in lines))
    metrics = MetricsFile(path, keep_until_step=2, validates_again=again)
    metrics.begin(first_step=2, total_steps=4, steps_per_epoch=2)
    metrics.close()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["type"], line["step"]) for line in found] == lines[: 3 if again else 4]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Who has the old file open reads it to its end: the new one is another file that takes its name."""
    path = tmp_path / "made" / "results.json"
    write_text(path, "old")
    with open(path) as reader:
        with replacing(path) as temporary:
            temporary.write_text("new")
            assert temporary.parent == path.parent
            assert str(os.getpid()) in temporary.name  # two processes do not write into one
            assert path.read_text() == "old"
        assert reader.read() == "old"
    assert path.read_text() == "new"

    def interrupted() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_csv(path, [{"clip": "a,b", "l1": 0.5, "relative": None}, {"clip": "\udcff", "l1": 2.0, "relative": 1.0}])
    assert path.read_bytes() == b'clip,l1,relative\n"a,b",0.5,\n\\udcff,2.0,1.0\n'
    write_csv(path, [])
    assert path.read_text().strip() == ""


def test_a_line_that_was_cut_off_is_dropped_and_each_says_its_type(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.steps([step_record(1), step_record(2)])
    metrics.validation(replace(VALIDATION, step=2))
    metrics.diagnostics(DiagnosticsRecord(2, {"x": 0.5}))
    metrics.close()
    whole = path.read_text()
    path.write_text(whole + '{"type": "train", "st')
    again = MetricsFile(path, keep_until_step=2)
    again.begin(first_step=2, total_steps=4, steps_per_epoch=2)
    again.close()
    assert path.read_text() == whole
    lines = [json.loads(line) for line in whole.splitlines()]
    assert [(line["type"], line["step"]) for line in lines] == [
        ("train", 1),
        ("train", 2),
        ("validation", 2),
        ("diagnostics", 2),
    ]
