"""What is left of a run that ends without a signal's warning: killed within an epoch, or by the loss of a reader."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.cli.runner import TINY, hope, only_run
from tests.cli.test_resume import records, start, wait_for_steps

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL")]
COMMAND = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1", "logging.log_every=1"]
COMMAND += ["data.physics.clips=800"]  # an epoch of 180 steps


def steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["type"] == "train"]


def test_a_long_epoch_is_saved_on_the_way(tmp_path: Path) -> None:
    process = start([*COMMAND, "training.save_minutes=0.0001"], tmp_path)
    wait_for_steps(tmp_path, 10)
    process.kill()
    process.communicate(timeout=60)
    run = only_run(tmp_path)
    assert (run / "checkpoints/last/trainer.pt").is_file()
    outcome = hope(["train", "--resume", "last"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert steps(run) == list(range(1, 181))


def test_a_run_killed_before_its_first_checkpoint_cannot_be_resumed(tmp_path: Path) -> None:
    process = start(COMMAND, tmp_path)
    wait_for_steps(tmp_path, 2)
    process.kill()
    process.communicate(timeout=60)
    outcome = hope(["train", "--resume", str(only_run(tmp_path))], tmp_path)
    assert outcome.code == 4
    assert "ended before its first checkpoint was written. Start it again" in outcome.err


def test_a_killed_reader_ends_the_run_with_its_steps_saved(tmp_path: Path) -> None:
    process = start([*COMMAND, "data.workers=1", "training.epochs=3"], tmp_path)
    wait_for_steps(tmp_path, 5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("this system does not list a process's children")
    for child in children.read_text().split():
        os.kill(int(child), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    assert err.splitlines()[-1] == (
        "error: data.workers: a process that reads clips died. "
        "Memory may have been short (lower data.workers or data.batch_size), or the disk failed"
    )
    outcome = hope(["train", "--resume", "last", "data.workers=0"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert steps(only_run(tmp_path)) == list(range(1, 541))


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_signal_in_a_long_validation_does_not_wait_for_its_end(epochs: int, tmp_path: Path) -> None:
    """The steps are saved, and the resumed run begins with the validation that the stopped one owes."""
    command = [*COMMAND[:-1], "data.physics.clips=400", "data.val_split=0.95", f"training.epochs={epochs}"]
    command += ["data.batch_size=1", "training.evaluate_every=1"]  # an epoch of 20 steps, then 380 batches of one clip
    process = start(command, tmp_path)
    wait_for_steps(tmp_path, 20)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert f"stopped by SIGTERM after step 20 of {20 * epochs}; the checkpoint is saved" in err
    run = only_run(tmp_path)
    assert [line[0] for line in records(run)] == ["train"] * 20
    outcome = hope(["train", "--resume", "last"], tmp_path)
    assert outcome.code == 0, outcome.err
    outcome = hope([*command, "logging.runs_dir=whole"], tmp_path)
    (whole,) = (tmp_path / "whole").glob("*/*")
    assert records(run) == records(whole)
    assert [line[0] for line in records(run)] == (["train"] * 20 + ["validation"]) * epochs
