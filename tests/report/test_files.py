"""Result files: JSON without NaN, and a record that is on the disk after every report."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from hopecli.report.files import MetricsFile, as_json, write_json
from tests.report.examples import SUMMARY, step_record


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
