"""A lost stderr (its reader has gone, the disk is full) hides messages and changes nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, TINY, environment, hope, only_run
from tests.cli.test_resume import wait_for_steps
from tests.cli.test_system import HOPE, in_shell

pytestmark = pytest.mark.slow

TRAIN = ["train", "-p", "quickstart", "--device", "cpu", *TINY, "logging.log_every=1"]
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")


def log_lines(folder: Path) -> list[str]:
    return [line.split(" ", 1)[1] for line in (only_run(folder) / "train.log").read_text().splitlines()]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param('exec "$@" 2>/dev/full', marks=needs_full),
        '{ { "$@" 2>&1 >&3 3>&-; echo $? >code; } | head -n 1 >/dev/null; } 3>&1; exit "$(cat code)"',
    ],
    ids=["full", "reader gone"],
)
def test_a_run_ends_as_any_other(script: str, tmp_path: Path) -> None:
    outcome = in_shell(script, tmp_path, *TRAIN, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out)["steps"] == 8
    assert len([line for line in log_lines(tmp_path) if line.startswith("step ")]) == 8


@needs_full
@pytest.mark.parametrize(
    ("arguments", "code"), [(["presets", "absent"], 2), ([], 2), (["train", "--resume", "nowhere"], 4)]
)
@pytest.mark.parametrize("buffer", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_the_exit_code_of_an_error_stays(
    arguments: list[str], code: int, buffer: dict[str, str], tmp_path: Path
) -> None:
    outcome = in_shell('exec "$@" 2>/dev/full', tmp_path, *arguments, **buffer)
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "")


def test_ctrl_c_that_ends_the_reader_first_still_saves(tmp_path: Path) -> None:
    """As with `2>&1 | tee log`: both get the signal, and tee dies of it at once."""
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [*HOPE, *TRAIN, "training.epochs=5000"],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it for all
    )
    os.close(theirs)
    try:
        wait_for_steps(tmp_path, 3)
        os.close(ours)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 75
    finally:
        process.kill()
    run = only_run(tmp_path)
    assert (run / "checkpoints/last/model.safetensors").is_file()
    steps = [line for line in log_lines(tmp_path) if line.startswith("step ")]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == len([record for record in records if record["type"] == "train"])


def test_ctrl_c_of_a_stream_that_ends_the_reader_first(tmp_path: Path) -> None:
    """The same for `hope tta ... 2>&1 | tee log`, whose table has nowhere to go."""
    assert hope([*TRAIN, "training.epochs=1"], tmp_path).code == 0
    run = only_run(tmp_path)
    stream = ["data.source=physics", "data.physics.domain=ice", "data.physics.clips=60", "adaptation.steps=1"]
    command = ["tta", "--ckpt", str(run), "--device", "cpu", *stream, "adaptation.orders=50", "--name", "part"]
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [*HOPE, *command, "adaptation.save_every=1"],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    try:
        for _ in range(6000):
            if (run / "tta/part/stream.pt").exists():
                break
            time.sleep(0.05)
        os.close(ours)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 75
    finally:
        process.kill()
    assert json.loads((run / "tta/part/results.json").read_text())["complete"] is False
