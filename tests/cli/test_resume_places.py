"""What `--resume` and `--ckpt` take: a run, one checkpoint of it, the newest; not a run that is being trained."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopecli.cli.common import is_dated, make_run_dir, start_runtime, started
from hopecli.cli.resume import newest_run
from hopecli.config.load import load_preset
from hopecli.errors import CheckpointError, DeviceError
from hopecli.report.lock import RunLock
from tests.cli.runner import TINY, hope, one_line, only_run
from tests.cli.test_resume import start
from tests.engine.test_saved_weights import replacing, two_versions

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
    assert "trainer.pt cannot be read: it is damaged" in one_line(outcome)
    assert "another checkpoint" in outcome.err
    assert "weights_only" not in outcome.err
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


@pytest.mark.slow
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


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no file locks on Windows")
def test_a_checkpoint_that_is_being_replaced_is_not_called_damaged(tmp_path: Path) -> None:
    assert hope([*COMMAND, "training.epochs=1"], tmp_path).code == 0
    run = only_run(tmp_path)
    last = run / "checkpoints/last"
    lock = RunLock(run)
    weights = (last / "model.safetensors").read_bytes()
    (last / "model.safetensors").write_bytes(b"xx")  # not whole yet
    outcome = hope(["train", "--resume", str(run)], tmp_path)
    assert outcome.code == 4
    assert "another process is training in it" in outcome.err
    (last / "model.safetensors").write_bytes(weights)
    (last / "trainer.pt").unlink()
    assert "another process is training in it" in hope(["train", "--resume", str(run)], tmp_path).err
    lock.close()
    assert "trainer.pt cannot be read: No such file" in hope(["train", "--resume", str(run)], tmp_path).err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_reader_that_outlives_the_training_does_not_hold_the_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    lock = RunLock(tmp_path)
    told, tells = os.pipe()
    reader = os.fork()
    if reader == 0:  # as a reader of clips: it shares the open files of the process that trains
        os.write(tells, b"x")
        time.sleep(60)
        os._exit(0)
    try:
        os.read(told, 1)
        with pytest.raises(CheckpointError, match="another process is training in it"):
            RunLock(tmp_path)
        lock.close()  # closes this process's descriptor, as the system does when a process is killed
        RunLock(tmp_path).close()
    finally:
        os.kill(reader, signal.SIGKILL)
        os.waitpid(reader, 0)


def test_resume_last_looks_where_runs_are_written(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    assert hope(command, tmp_path).code == 0
    assert hope([*command, "logging.runs_dir=other"], tmp_path).code == 0
    outcome = hope(["train", "--resume", "last", "logging.runs_dir=other", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["run_dir"].startswith("other")


def test_resume_last_takes_the_newest_run_of_any_preset(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    assert hope(command, tmp_path).code == 0
    newest = only_run(tmp_path)
    for older in ("quickstart/2001-01-01_00-00-00", "another/2002-01-01_00-00-00"):
        shutil.copytree(newest, tmp_path / "runs" / older)  # the copy's files are the newer ones
    (tmp_path / "runs/foreign/2998-01-01_00-00-00").mkdir(parents=True)
    (tmp_path / "runs/foreign/2998-01-01_00-00-00/config.yaml").write_text("no run of hope train")
    outcome = hope(["train", "--resume", "last", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert Path(json.loads(outcome.out)["run_dir"]).name == newest.name
    for number in (2, 9, 10):  # started in one second
        shutil.copytree(newest, newest.with_name(f"2999-01-01_00-00-00-{number}"))
    shutil.copytree(newest, newest.with_name("2999-01-01_00-00-00"))
    outcome = hope(["train", "--resume", "last", "--json"], tmp_path)
    assert Path(json.loads(outcome.out)["run_dir"]).name == "2999-01-01_00-00-00-10"
    for command in (["eval"], ["tta", "--preset", "quickstart_tta"]):
        outcome = hope([*command, "--ckpt", "last", "--device", "cpu"], tmp_path)
        assert outcome.code == 0, outcome.err
        assert "2999-01-01_00-00-00-10" in outcome.err.splitlines()[0]


def test_runs_that_start_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = [make_run_dir(tmp_path / "runs" / "quickstart") for _ in range(12)]
    assert len(set(folders)) == 12
    assert all(is_dated(folder.name) and folder.is_dir() for folder in folders)
    assert sorted(folders, key=lambda folder: started(folder.name)) == folders


def test_ckpt_last_without_a_run(tmp_path: Path) -> None:
    outcome = hope(["eval", "--ckpt", "last"], tmp_path)
    assert outcome.code == 4
    assert one_line(outcome) == "error: runs: no run of hope train. Train one, or give its directory"


def test_last_is_never_an_earlier_run(tmp_path: Path) -> None:
    """The newest run was killed before its first checkpoint: its predecessor must not be taken for it."""
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    assert hope(command, tmp_path).code == 0
    run = only_run(tmp_path)
    newest = run.parent.parent / "another/2999-01-01_00-00-00"
    shutil.copytree(run, newest, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(newest, newest.with_name("zzz"))  # a folder of the user's, which says nothing of when it began
    for look in (["train", "--resume", "last"], ["eval", "--ckpt", "last"]):
        outcome = hope(look, tmp_path)
        assert outcome.code == 4
        assert "another/2999-01-01_00-00-00: the newest run has no checkpoint" in one_line(outcome)


@pytest.mark.slow
def test_last_is_found_while_the_run_replaces_its_checkpoint(tmp_path: Path) -> None:
    """A search by pattern found no checkpoint, or one that had gone, in 96 of 21,766 tries."""
    run = tmp_path / "quickstart/2026-01-01_00-00-00"
    two_versions(run / "checkpoints")
    for name in ("config.yaml", "split.json"):
        (run / name).write_text("{}")
    with replacing(run / "checkpoints"):
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert newest_run([f"logging.runs_dir={tmp_path}"]) == run


def test_seconds_are_those_of_the_whole_run(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1", "--json"]
    first = json.loads(hope(command, tmp_path).out)["seconds"]
    again = json.loads(hope(["train", "--resume", "last", "--json"], tmp_path).out)["seconds"]  # nothing left to do
    # All but the last save, which comes after the time was written down: at least half in so short a run.
    assert 0.5 * first < again < 2 * first + 1


def test_a_precision_that_the_run_has_is_not_to_be_changed() -> None:
    training = load_preset("quickstart").settings.training
    with pytest.raises(DeviceError, match=r"fp16 cannot be used on cpu.* Use --precision auto or fp32"):
        start_runtime(training, "fp16", "cpu")
    with pytest.raises(DeviceError, match=r"fp16 cannot be used on cpu.* Go on with the run on a device that has it"):
        start_runtime(training, "fp16", "cpu", resumed=True)
