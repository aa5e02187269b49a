"""Milliseconds, seconds and bytes of a stream, under a clock that only the work itself moves."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hopecli.data.store import Sample
from hopecli.engine import tta, tta_timing
from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_job import TtaJob
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.engine.tta_timing import larger, timed
from tests.engine.streams import FRAMES, Clips, make_job, noise_clips, settings


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, now: float = 1000.0):
        self.now = now
        for module in (tta, tta_timing):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def work(self, seconds: float) -> str:
        self.now += seconds
        return "done"


class SlowClips(Clips):
    """Clips that take ten seconds to read."""

    def __init__(self, samples: Mapping[str, Sample | None], clock: Clock):
        super().__init__(samples)
        self.clock = clock

    def read(self, name: str) -> Sample:
        self.clock.work(10.0)
        return super().read(name)


class StopAfter(NullStreamSink):
    """Sends this process a real signal at that clip."""

    def __init__(self, done: int):
        self.done = done

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        if progress.done == self.done:
            os.kill(os.getpid(), signal.SIGTERM)


def test_milliseconds_of_a_piece_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert timed(lambda: clock.work(0.25), torch.device("cpu"), probe=False) == ("done", 250.0, None)


def test_the_larger_of_two_sizes_ignores_what_was_not_measured() -> None:
    assert [larger(a, b) for a, b in ((None, None), (3, None), (None, 4), (3, 4), (4, 3))] == [None, 3, 4, 4, 4]


def job_under(clock: Clock, folder: Path, **options: Any) -> TtaJob:
    """Three clips; each takes ten seconds to read, and each frame that the model walks one more."""
    s = settings("convlstm", adapt="bias", memory="carry", steps=2)
    job = make_job(s, noise_clips(3), folder, **options)
    job.clips = SlowClips(noise_clips(3), clock)
    job.model.get_submodule("encoder").register_forward_hook(lambda *_: clock.work(1.0) and None)
    return job


def test_a_clip_costs_predicting_adapting_and_observing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The score after the update is a diagnostic, and reading is the disk's: neither counts."""
    record = stream(job_under(Clock(monkeypatch), tmp_path))
    walk = 1e3 * (FRAMES - 1)
    assert [row.ms_frozen for row in record.rows] == [walk] * 3
    assert [row.ms for row in record.rows] == [walk * (1 + 2 + 1)] * 3
    walks = 1 + 1 + 2 + 1 + 1  # frozen, online, two steps, after the update, observed
    assert record.seconds == 3 * (10.0 + walks * (FRAMES - 1))


def test_seconds_add_up_over_an_interruption(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that goes on has another clock; the time between the two does not count."""
    whole = stream(job_under(Clock(monkeypatch), tmp_path / "whole")).seconds
    stopped = stream(job_under(Clock(monkeypatch), tmp_path / "part", sink=StopAfter(2)))
    assert stopped.stopped_by == "SIGTERM"
    assert stopped.seconds == pytest.approx(whole * 2 / 3)
    resumed = stream(job_under(Clock(monkeypatch, now=5e4), tmp_path / "part", resume=True))
    assert resumed.seconds == pytest.approx(whole)


@pytest.mark.parametrize(
    ("every", "seconds", "saved"),
    [
        (1, 0.0, [1, 2, 3, 4, 5, 6]),
        (2, 0.0, [2, 4, 6]),
        (0, 0.0, []),
        (1, 0.9, [1, 3, 5]),  # of ten seconds per clip: more than 5 % each time, less every other time
    ],
)
def test_the_state_is_saved_every_so_many_clips_and_takes_a_small_share_of_the_time(
    every: int, seconds: float, saved: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clock, write, found = Clock(monkeypatch), tta.write_state, []

    def slow(folder: Path, state: dict[str, Any]) -> None:
        clock.work(seconds)
        found.append(state["record"]["position"])
        write(folder, state)

    monkeypatch.setattr(tta, "write_state", slow)
    job = make_job(settings("convlstm", adapt="bias", steps=1, save_every=every), noise_clips(6), tmp_path)
    job.clips = SlowClips(noise_clips(6), clock)
    stream(job)
    assert found == saved


def test_the_peaks_of_the_first_clips_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Later clips are not probed: they say nothing."""
    monkeypatch.setattr(tta, "timed", lambda work, device, *, probe: (work(), 1.0, 7 if probe else None))
    record = stream(make_job(settings(), noise_clips(tta.MEMORY_PROBES + 1), tmp_path))
    assert (record.bytes_adapted, record.bytes_frozen) == (7, 7)
