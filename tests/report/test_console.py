"""The lines of a training run on stderr and in train.log, against numbers worked out by hand."""

from __future__ import annotations

import datetime
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hopecli.report.console import ConsoleSink, counted, make_console, say, show
from hopecli.report.progress import StageProgress
from hopecli.report.tables import pairs_table, plain_table
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


def test_the_bar_of_a_stream_goes_on_where_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    stream = ConsoleStream(every=4)
    stream.begin(done=7, total=10)
    assert stream.progress is not None
    (bar,) = stream.progress.tasks
    assert (bar.completed, bar.total) == (7, 10)
    stream.clip(CLIP, PROGRESS)
    assert (bar.completed, bar.description) == (8, progress_line(PROGRESS))
    stream.close()


def test_the_log_of_a_resumed_run_goes_on_and_is_there_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in ("first", "second"):
        sink = ConsoleSink(tmp_path / "train.log")
        sink.message(text)
        assert logged(tmp_path / "train.log")[-1] == text
        sink.close()
    sink = ConsoleSink(tmp_path / "train.log")
    sink._keep("runs/\udcff")  # a path that is not UTF-8
    sink.close()
    assert logged(tmp_path / "train.log") == ["first", "second", "runs/\\udcff"]


def test_one_of_several_processes_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        say(f"process {rank}")
    monkeypatch.delenv("WORLD_SIZE")
    say("left over")  # a RANK that is not torchrun's
    monkeypatch.delenv("RANK")
    say("alone")
    assert capsys.readouterr().err == "process 0\nleft over\nalone\n"


def test_stages_say_every_ten_seconds_where_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StageProgress() as progress:
        for now, stage, done in [
            (100.0, "reading", 1),
            (109.0, "reading", 2),
            (112.0, "reading", 3),  # 12 s for 3 of 10: 28 s for the others
            (121.0, "reading", 4),
            (125.0, "reading", 5),
            (130.0, "checking", 1),
            (139.0, "checking", 8),
            (140.0, "checking", 8),
        ]:
            monkeypatch.setattr("time.monotonic", lambda now=now: now)
            progress(stage, done, 10)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 3 of 10, ETA 28 s",
        "reading: 5 of 10, ETA 25 s",
        "checking: 8 of 10, ETA 2 s",
    ]


@pytest.mark.parametrize("stderr", [False, True])
def test_tables_off_a_terminal_are_not_cut(stderr: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert make_console(stderr=stderr).width == 160


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


@pytest.mark.parametrize("bars", [True, False])
def test_a_terminal_that_cannot_draw_bars_gets_lines(
    bars: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TERM=dumb, as in an editor's shell: rich draws a bar there once, at its end."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm" if bars else "dumb")
    sink, stream = ConsoleSink(None), ConsoleStream(every=1)
    sink.begin(first_step=0, total_steps=100, steps_per_epoch=10)
    sink.steps(STEPS)
    sink.close()
    stream.begin(done=7, total=10)
    stream.clip(CLIP, PROGRESS)
    stream.close()
    with StageProgress() as progress:
        assert (progress.bars is not None) == bars
    shown = capsys.readouterr().err.splitlines()
    assert (STEP_LINE in shown) != bars
    assert any(line.startswith("clip 8/") for line in shown) != bars


def test_texts_do_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a\x1b[2Jb\u202ec\u00a0d \u0645\u06cc\u200c\u062e")
    ConsoleSink(None).message("a\x1b]0;t\x07b")
    show(
        {},
        lambda _: [plain_table("t\x1b[31m", ["c\x1b[A"], [["v\x1b[2J"]]), pairs_table("", {"k\r": "v\x1b"})],
        json=False,
    )
    shown = capsys.readouterr()
    assert shown.err == "a\\x1b[2Jb\\u202ec\u00a0d \u0645\u06cc\u200c\u062e\na\\x1b]0;t\\x07b\n"
    for text in ("t\\x1b[31m", "c\\x1b[A", "v\\x1b[2J", "k\\r", "v\\x1b"):
        assert text in shown.out
    assert "\x1b" not in shown.out
