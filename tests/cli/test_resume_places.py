"""What `--resume` takes: one checkpoint of a run, and no run that is being trained."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopecli.errors import CheckpointError
from hopecli.report.lock import RunLock
from tests.cli.runner import TINY, hope, only_run
from tests.cli.test_resume import start

COMMAND = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


def test_resume_from_an_earlier_checkpoint(tmp_path: Path) -> None:
    """The newest one is damaged, and the error's advice is to take another."""
    assert hope([*COMMAND, "training.epochs=3"], tmp_path).code == 0
    run = only_run(tmp_path)
    whole = load_file(run / "checkpoints/last/model.safetensors")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "checkpoints/last/trainer.pt").write_bytes(b"xx")
    outcome = hope(["train", "--resume", str(run)], tmp_path)
    assert outcome.code == 4
    assert "another checkpoint" in outcome.err
    outcome = hope(["train", "--resume", str(run / "checkpoints/epoch_0002"), "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["run_dir"] == str(run)
    again = load_file(run / "checkpoints/last/model.safetensors")
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert len((run / "metrics.jsonl").read_text().splitlines()) == len(lines)
    loose = tmp_path / "loose"
    shutil.copytree(run / "checkpoints/epoch_0002", loose)
    outcome = hope(["train", "--resume", str(loose)], tmp_path)
    assert outcome.code == 4
    assert "not a run directory" in outcome.err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no file locks on Windows")
def test_a_run_that_is_being_trained_cannot_be_resumed(tmp_path: Path) -> None:
    process = start([*COMMAND, "training.epochs=100000", "training.save_every=1"], tmp_path)
    assert process.stderr is not None
    for line in process.stderr:
        if "validation after epoch 2" in line:
            break
    run = only_run(tmp_path)
    outcome = hope(["train", "--resume", str(run)], tmp_path)
    assert outcome.code == 4
    assert f"{run}: another process is training in it. Wait for it, or stop it first" in outcome.err
    process.kill()  # the lock ends with the process, however that ends
    process.communicate(timeout=120)
    lock = RunLock(run)
    with pytest.raises(CheckpointError, match="another process is training in it"):
        RunLock(run)
    lock.close()
    RunLock(run).close()
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line["step"] for line in steps if line["type"] == "train"]
    assert trained == list(range(1, len(trained) + 1))
