"""When a run saves, and what its checkpoints say of themselves."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from hopecli.data.store import ClipStore, Sample
from hopecli.engine.checkpoint import load_checkpoint, load_trainer
from hopecli.engine.train import train
from hopecli.engine.train_run import TrainRun
from hopecli.errors import StoppedError
from tests.engine.runs import Kept, run, write_random_clips


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_clips(tmp_path_factory.mktemp("clips"))


class Watch(Kept):
    """A clock that only steps move, by the seconds given, and the step of the last checkpoint before each of them."""

    def __init__(self, run_dir: Path, seconds: list[float]):
        super().__init__()
        self.run_dir, self.seconds, self.now = run_dir, seconds, 0.0
        self.saved: list[int] = []

    def tick(self, step: int) -> None:
        last = self.run_dir / "checkpoints" / "last"
        self.saved.append(load_checkpoint(str(last)).info["step"] if last.exists() else 0)
        self.now += self.seconds[step - 1]


@pytest.mark.parametrize("log_every", [1, 100])
def test_the_last_checkpoint_is_saved_again_after_the_minutes_of_the_settings(
    log_every: int, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(tmp_path, [59.0, 1.0, 59.0, 1.0])
    monkeypatch.setattr("time.perf_counter", lambda: watch.now)
    training = {"save_minutes": 1.0, "save_every": 0}
    run(clips, tmp_path, kept=watch, data={"batch_size": 1}, training=training, logging={"log_every": log_every})
    # Not after 59 s but after 60 s, and not 59 s after that.
    assert watch.saved == [0, 0, 2, 2]
    assert load_checkpoint(str(tmp_path)).info["step"] == 4


def test_a_finished_run_that_is_resumed_took_no_longer(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(tmp_path, [3.0, 4.0])
    monkeypatch.setattr("time.perf_counter", lambda: watch.now)
    job = run(clips, tmp_path, kept=watch).job
    job.resumed = load_trainer(tmp_path / "checkpoints" / "last")

    def begin(**sizes: int) -> None:
        watch.now += 100.0  # what a start takes

    monkeypatch.setattr(watch, "begin", begin)
    assert train(job).seconds == 7.0


def test_checkpoints_say_how_far_they_went(clips: Path, tmp_path: Path) -> None:
    done = run(clips, tmp_path, training={"epochs": 2, "save_every": 1})
    for name, step, epoch in (("epoch_0001", 2, 0), ("epoch_0002", 4, 1), ("last", 4, 1)):
        info = load_checkpoint(str(tmp_path / "checkpoints" / name)).info
        assert (info["step"], info["epoch"]) == (step, epoch)
        assert (info["preset"], info["split"]) == ("test", done.job.split.hash)


def test_the_loss_scaler_goes_on_where_it_was(clips: Path, tmp_path: Path) -> None:
    """Of fp16, which only a GPU trains in: here a scaler is put beside the state of an fp32 run."""
    job = run(clips, tmp_path).job
    accelerator = job.runtime.accelerator
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    accelerator.scaler.scale(torch.ones(()))  # it has a scale from its first use on
    TrainRun(job).save(0, keep=False, validation=None)
    state = load_trainer(tmp_path / "checkpoints" / "last")
    assert state["scaler"]["scale"] == 8.0
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    job.resumed = state
    TrainRun(job)
    assert accelerator.scaler.get_scale() == 8.0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="readers are not forked")
def test_a_reader_that_dies_of_the_signal_is_a_stop(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows Ctrl-C comes to every process of the console. Here a reader sends it, and dies while it is waited
    for."""
    read, before = ClipStore.read, os.getpid()
    count = iter(range(100))

    def dies(store: ClipStore, name: str) -> Sample:
        if os.getpid() != before and next(count) == 3:
            time.sleep(3.0)  # the step before is done by then
            os.kill(before, signal.SIGINT)
            os.kill(os.getpid(), signal.SIGKILL)
        return read(store, name)

    monkeypatch.setattr(ClipStore, "read", dies)
    data = {"batch_size": 1, "workers": 1}
    with pytest.raises(StoppedError, match=r"stopped by SIGINT after step 3 of \d+; the checkpoint is saved"):
        run(clips, tmp_path, data=data, training={"epochs": 1})
    assert load_checkpoint(str(tmp_path)).info["step"] == 3
