"""The lines of a training run on stderr and in train.log, against numbers worked out by hand."""

from __future__ import annotations

import datetime
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hopecli.report.console import ConsoleSink, counted, make_console
from hopecli.report.progress import StageProgress
from hopecli.report.tta import ConsoleStream, progress_line
from tests.report.examples import CLIP, PROGRESS, VALIDATION, step_record

# 20 of 100 steps are done and each takes 1.5 s on average, 0.125 s of it waiting for data: 80 are left, 2 minutes.
STEPS = [
    replace(step_record(19), data_seconds=0.05, step_seconds=1.25),
    replace(step_record(20), data_seconds=0.2, step_seconds=1.5),
]
STEP_LINE = "step 20/100  epoch 2  loss 20.1111  lr 2.47e-03  56.8 clips/s  data 125 ms  step 1375 ms  ETA 0:02:00"
VALIDATION_LINE = (
    "validation after epoch 3: rollout 0.3000 (copy-last 0.5000, ratio 0.600), teacher-forced 0.1500, 17 clips in 6.5 s"
)


def logged(file: Path) -> list[str]:
    """The lines of a log without their time stamps, which must be there."""
    stamps, texts = zip(*(line.split(" ", 1) for line in file.read_text(encoding="utf-8").splitlines()), strict=True)
    for stamp in stamps:
        datetime.datetime.fromisoformat(stamp)
    return list(texts)


def test_lines_off_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleSink(tmp_path / "train.log")
    sink.begin(first_step=0, total_steps=100, steps_per_epoch=10)
    sink.steps([])
    sink.steps(STEPS)
    sink.validation(VALIDATION)
    sink.close()
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [STEP_LINE, VALIDATION_LINE]
    assert captured.out == ""
    assert logged(tmp_path / "train.log") == [STEP_LINE, VALIDATION_LINE]


def test_no_ratio_to_a_copy_last_of_zero(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleSink(None).validation(replace(VALIDATION, copy_last=0.0))
    assert "rollout 0.3000 (copy-last 0.0000), teacher-forced" in capsys.readouterr().err


def test_bar_on_a_terminal_and_the_same_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    sink = ConsoleSink(tmp_path / "train.log")
    sink.begin(first_step=7, total_steps=100, steps_per_epoch=10)
    assert sink.progress is not None
    (bar,) = sink.progress.tasks
    assert (bar.completed, bar.total) == (7, 100)
    sink.tick(20)
    sink.steps(STEPS)
    assert bar.completed == 20
    assert bar.description == "loss 20.1111 lr 2.5e-03 56.8 clips/s data/step 125/1375 ms"
    sink.close()
    assert logged(tmp_path / "train.log") == [STEP_LINE]
    assert "step 20/100" not in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE"])
def test_plain_lines_off_a_terminal_whatever_ci_sets(
    variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "1")
    sink = ConsoleSink(None)
    sink.begin(first_step=0, total_steps=100, steps_per_epoch=10)
    sink.steps(STEPS)
    sink.close()
    stream = ConsoleStream(every=1)
    stream.begin(done=7, total=10)
    stream.clip(CLIP, PROGRESS)
    stream.close()
    with StageProgress() as survey:
        survey("reading", 1, 2)
    assert capsys.readouterr().err.splitlines() == [STEP_LINE, f"clip 8/10  {progress_line(PROGRESS)}"]


def test_no_color_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert make_console(stderr=True).no_color


@pytest.mark.parametrize(
    ("number", "expected"), [(0, "0 processes"), (1, "1 process"), (2, "2 processes"), (1000, "1000 processes")]
)
def test_counted(number: int, expected: str) -> None:
    assert counted(number, "process", "processes") == expected
    assert counted(number, "clip") == f"{number} clip{'' if number == 1 else 's'}"
