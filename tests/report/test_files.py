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
