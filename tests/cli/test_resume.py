"""A stopped and resumed run is the run that was never stopped; signals and several processes are real ones."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopecli.engine.signals import ONE_PRESS_SECONDS
from tests.cli.runner import ROOT, TINY, environment, hope, hope_on_two, one_line, only_run

LONG = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=6", "logging.log_every=1"]
LONG += ["model.drop_path=0.3", "model.depth=2"]  # random numbers in every step


def start(arguments: list[str], folder: Path, *, start_new_session: bool = False) -> subprocess.Popen[str]:
    variables = {**environment(folder), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "hopecli.cli.main", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it for all
    )


def wait_for_steps(folder: Path, count: int) -> None:
    for _ in range(6000):
        files = list((folder / "runs").glob("*/*/metrics.jsonl"))
        if files and len(files[0].read_text().splitlines()) >= count:
            return
        time.sleep(0.05)
    raise AssertionError("the run never got that far")


def records(run: Path) -> list[tuple[object, ...]]:
    """What must not depend on an interruption: everything but times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    keys = ("type", "step", "epoch", "loss", "loss_teacher", "loss_rollout", "lr", "grad_norm", "rollout_per_horizon")
    return [tuple(str(line.get(key)) for key in keys) for line in lines]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert hope(LONG, folder).code == 0
    return only_run(folder)


def test_sigterm_saves_and_resume_ends_bit_identical(uninterrupted: Path, tmp_path: Path) -> None:
    process = start([*LONG, "data.workers=1"], tmp_path)
    wait_for_steps(tmp_path, 6)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Go on with: hope train --resume" in err
    assert "Traceback" not in err
    run = only_run(tmp_path)
    stopped_at = len([r for r in records(run) if r[0] == "train"])
    assert 6 <= stopped_at < 24
    outcome = hope(["train", "--resume", "last", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["steps"] == 24
    assert records(run) == records(uninterrupted)
    whole = load_file(uninterrupted / "checkpoints/last/model.safetensors")
    resumed = load_file(run / "checkpoints/last/model.safetensors")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    a = torch.load(uninterrupted / "checkpoints/last/trainer.pt", weights_only=True)["optimizer"]["state"]
    b = torch.load(run / "checkpoints/last/trainer.pt", weights_only=True)["optimizer"]["state"]
    assert all(torch.equal(a[i][key], b[i][key]) for i in a for key in a[i])


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_too(tmp_path: Path) -> None:
    """`timeout`, torchrun and schedulers signal every process, the clip readers included."""
    process = start([*LONG, "data.workers=2", "training.epochs=500"], tmp_path, start_new_session=True)
    wait_for_steps(tmp_path, 6)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert (only_run(tmp_path) / "checkpoints/last/model.safetensors").is_file()


def test_a_finished_run_resumed_reports_what_it_came_to(uninterrupted: Path, tmp_path: Path) -> None:
    outcome = hope(["train", "--resume", str(uninterrupted), "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    summary = json.loads(outcome.out)
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert summary["loss"] == [line for line in lines if line["type"] == "train"][-1]["loss"]
    validation = [line for line in lines if line["type"] == "validation"][-1]
    assert summary["validation"]["loss_rollout"] == validation["loss_rollout"]


def test_a_damaged_trainer_state_leaves_the_record_alone(uninterrupted: Path, tmp_path: Path) -> None:
    run = tmp_path / "copy"
    shutil.copytree(uninterrupted, run)
    shutil.rmtree(run / "checkpoints/last")
    shutil.copytree(min((run / "checkpoints").glob("epoch_*")), run / "checkpoints/last")
    (run / "checkpoints/last/trainer.pt").write_bytes(b"xx")
    before = (run / "metrics.jsonl").read_bytes()
    cache = str(uninterrupted.parents[2] / "cache")
    outcome = hope(["train", "--resume", str(run)], tmp_path, HOPE_CACHE_DIR=cache)
    assert outcome.code == 4
    assert "trainer.pt cannot be read" in one_line(outcome)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_resume_that_is_refused_leaves_the_record_alone(uninterrupted: Path, tmp_path: Path) -> None:
    """The state of an earlier checkpoint of another optimizer: found out after the run's files are open."""
    run = tmp_path / "copy"
    shutil.copytree(uninterrupted, run)
    earlier = min((run / "checkpoints").glob("epoch_*"))
    state = torch.load(earlier / "trainer.pt", weights_only=True)
    state["optimizer"]["param_groups"][0]["eps"] = 1.0
    torch.save(state, earlier / "trainer.pt")
    before = (run / "metrics.jsonl").read_bytes()
    cache = str(uninterrupted.parents[2] / "cache")
    outcome = hope(["train", "--resume", str(earlier)], tmp_path, HOPE_CACHE_DIR=cache)
    assert outcome.code == 4
    assert "trainer.pt does not fit this run" in outcome.err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_killed_between_the_two_checkpoints_of_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [*LONG, "training.epochs=2"]

    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hopecli.engine.train_run.duplicate_checkpoint", killed)
        assert hope(command, tmp_path).code == 130
    run = only_run(tmp_path)
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["epoch_0001"]
    assert hope(command, tmp_path).code == 0
    shutil.rmtree(run)
    run = only_run(tmp_path)
    shutil.rmtree(run / "checkpoints/epoch_0002")  # as if killed in the second epoch, with its first saved
    shutil.rmtree(run / "checkpoints/last")
    shutil.copytree(run / "checkpoints/epoch_0001", run / "checkpoints/last")
    assert hope(["train", "--resume", "last"], tmp_path).code == 0
    names = sorted(p.name for p in (run / "checkpoints").iterdir())
    assert names == ["epoch_0001", "epoch_0002", "last"]


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=9",
        "training.seed=1",
        "training.accumulate=2",
        "training.precision=bf16",
        "data.batch_size=2",
        "data.val_split=0.5",
        "data.clip_end=9",
        "data.num_timesteps=4",
        "model.width=32",
        "objective.loss_exp=2.0",
    ],
)
def test_a_resumed_run_keeps_what_it_trains_on(override: str, uninterrupted: Path, tmp_path: Path) -> None:
    outcome = hope(["train", "--resume", str(uninterrupted), override], tmp_path)
    assert outcome.code == 2
    assert f"{override.split('=')[0]}: cannot change in a resumed run" in one_line(outcome)


def test_a_resumed_run_may_read_and_log_otherwise(uninterrupted: Path, tmp_path: Path) -> None:
    changes = ["data.workers=3", "training.device=cpu", "logging.log_every=7"]
    outcome = hope(["train", "--resume", str(uninterrupted), *changes, "--print-config", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    settings = json.loads(outcome.out)
    found = (settings["data"]["workers"], settings["training"]["device"], settings["logging"]["log_every"])
    assert found == (3, "cpu", 7)


@pytest.mark.slow
def test_lines_after_the_last_checkpoint_are_dropped(uninterrupted: Path, tmp_path: Path) -> None:
    process = start(LONG, tmp_path)
    wait_for_steps(tmp_path, 7)  # past the checkpoint of epoch 1 (step 4)
    process.kill()
    process.communicate(timeout=60)
    with open(only_run(tmp_path) / "metrics.jsonl", "ab") as record:
        record.write(b'{"type": "tr\xff\xfe')  # torn by the crash, and not even text
    outcome = hope(["train", "--resume", str(only_run(tmp_path).relative_to(tmp_path))], tmp_path)
    assert outcome.code == 0, outcome.err
    assert records(only_run(tmp_path)) == records(uninterrupted)


@pytest.mark.slow
def test_ctrl_c_twice_ends_without_a_traceback(tmp_path: Path) -> None:
    """The second press lands in training, in saving or after the end; tests/engine/test_signals.py is exact."""
    process = start([*LONG, "training.epochs=500", "training.evaluate_every=0", "data.batch_size=18"], tmp_path)
    wait_for_steps(tmp_path, 2)
    process.send_signal(signal.SIGINT)
    time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # held while it saves, most likely
    time.sleep(1.1 * ONE_PRESS_SECONDS)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)  # nothing where it has ended
    _, err = process.communicate(timeout=120)
    assert process.returncode in (75, 130), err
    assert "Traceback" not in err


def test_ctrl_c_elsewhere_ends_in_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    process = start(["make-clips", "clips", "--clips", "5000", "--grid", "8", "--dim", "256"], tmp_path)
    for _ in range(6000):
        if any(tmp_path.rglob("clip_*")):  # not earlier: while modules are imported Python may drop an interrupt
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "stopped: interrupted; only complete files are kept"
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--resume", "nowhere"], 4, "not a run directory"),
        (["--resume", "last"], 4, "no run of hope train"),
        (["--resume", "last", "--preset", "quickstart"], 2, "cannot be combined"),
        (["--resume", "last", "optimizer.lr=1"], 2, "cannot change in a resumed run"),
    ],
)
def test_resume_mistakes(arguments: list[str], code: int, words: str, tmp_path: Path) -> None:
    outcome = hope(["train", *arguments], tmp_path)
    assert outcome.code == code
    assert words in outcome.err
    assert outcome.err.count("\n") == 1


def test_changed_clips_are_refused(tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]
    assert hope(command, tmp_path).code == 0
    (clips,) = (tmp_path / "cache" / "physics").iterdir()
    (clips / "clip_00011").rename(clips / "clip_77777")
    outcome = hope(["train", "--resume", "last"], tmp_path)
    assert outcome.code == 4
    assert "clip_00011 is gone" in outcome.err


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """torchrun with gloo: same global batches, so the same losses up to the order of sums (float32).

    Each share comes in two micro-batches, of which the last one exchanges the gradients of both.
    """
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "logging.log_every=1"]
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert hope(command, tmp_path / "one").code == 0
    done = hope_on_two([*command, "training.accumulate=2", "--json"], tmp_path / "two")
    assert done.code == 0, done.err
    assert json.loads(done.out)["steps"] == 8
    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "two")
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    for a, b in zip(records(one), records(two), strict=True):
        assert a[:3] == b[:3]
        if a[0] == "train":
            # 1e-3: float32 sums in another order, grown over 8 Adam steps.
            assert float(str(b[3])) == pytest.approx(float(str(a[3])), rel=1e-3)
            assert float(str(b[7])) == pytest.approx(float(str(a[7])), rel=1e-2)
