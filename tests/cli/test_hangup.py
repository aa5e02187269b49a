"""SIGHUP (a closed terminal, a dropped ssh) stops as SIGTERM does, under `nohup` it stops nothing; SIGUSR1 (sent by a
batch system before the time is up) stops what can be resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, TINY, environment, only_run
from tests.cli.test_resume import wait_for_steps
from tests.cli.test_system import HOPE

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP")]

TRAIN = ["train", "-p", "quickstart", "--device", "cpu", "--json", *TINY, "logging.log_every=1"]
CLIPS = ["make-clips", "clips", "--grid", "8", "--dim", "256", "--clips"]


def stop(
    arguments: list[str], folder: Path, ready: Callable[[], None], *, ignored: bool = False, name: str = "SIGHUP"
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `hope ARGUMENTS`, which gets the signal once it is `ready`."""
    process = subprocess.Popen(
        [*HOPE, *arguments],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
    )
    try:
        ready()
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err


def some(folder: Path, pattern: str) -> Callable[[], None]:
    """Waits for such a path below `folder`."""

    def ready() -> None:
        for _ in range(6000):
            if any(folder.rglob(pattern)):
                return
            time.sleep(0.05)
        raise AssertionError(f"no {pattern}")

    return ready


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1"])
def test_training_saves(name: str, tmp_path: Path) -> None:
    code, out, err = stop([*TRAIN, "training.epochs=5000"], tmp_path, lambda: wait_for_steps(tmp_path, 3), name=name)
    assert code == 75, err
    assert out == ""
    assert err.splitlines()[-1].startswith(f"stopped: stopped by {name} after step ")
    assert (only_run(tmp_path) / "checkpoints/last/model.safetensors").is_file()


def test_under_nohup_training_goes_on(tmp_path: Path) -> None:
    code, out, err = stop([*TRAIN, "training.epochs=20"], tmp_path, lambda: wait_for_steps(tmp_path, 3), ignored=True)
    assert code == 0, err
    assert json.loads(out)["steps"] == 80


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_new_clips_leave_nothing(name: str, tmp_path: Path) -> None:
    code, _, err = stop([*CLIPS, "5000"], tmp_path, some(tmp_path, "clip_*"), name=name)
    assert code == 130, err
    assert err.splitlines() == ["stopped: interrupted; only complete files are kept"]
    assert list(tmp_path.iterdir()) == []


def test_under_nohup_new_clips_are_written(tmp_path: Path) -> None:
    code, _, err = stop([*CLIPS, "100"], tmp_path, some(tmp_path, "clip_*"), ignored=True)
    assert code == 0, err
    assert len(list((tmp_path / "clips").glob("clip_*"))) == 100


BEFORE_TRAINING = """
import os, signal
from hopecli.cli import train
from hopecli.cli.main import entry_point
train.run = lambda job: os.kill(os.getpid(), signal.{name})
entry_point()
"""


@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_before_the_first_step_it_is_one_line(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BEFORE_TRAINING.format(name=name), *TRAIN],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
    )
    assert done.returncode == -getattr(signal, name), done.stderr  # as for any process: 128 + the number in a shell
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == f"stopped: {name}; only complete files are kept"
