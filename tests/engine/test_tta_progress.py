"""What a stream says of itself while it runs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_results import TtaClip, TtaProgress
from tests.engine.streams import make_job, noise_clips, settings


class Listener(NullStreamSink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[TtaClip, TtaProgress]] = []
        self.begun: tuple[int, int] | None = None

    def begin(self, *, done: int, total: int) -> None:
        self.begun = (done, total)

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        self.heard.append((row, progress))


def test_progress_is_of_the_running_order(tmp_path: Path) -> None:
    """Means over at most 50 clips of this order alone; counts of all orders. One of the 53 clips cannot be read."""
    names = 53
    sink = Listener()
    s = settings("convlstm", adapt="bias", steps=1, T_rollout=1, orders=2)
    record = stream(make_job(s, {**noise_clips(names), "clip_00007": None}, tmp_path, sink=sink))
    assert len(sink.heard) == len(record.rows) == 2 * (names - 1)
    for i, (row, progress) in enumerate(sink.heard):
        recent = [found for found in record.rows[: i + 1] if found.order == row.order][-50:]
        assert progress.online == pytest.approx(float(np.mean([found.online for found in recent])))
        assert progress.frozen == pytest.approx(float(np.mean([found.frozen for found in recent])))
        assert progress.drift == row.drift
        assert progress.done == row.order * names + row.position + 1
        assert progress.total == 2 * names
    assert [progress.clips_skipped for _, progress in sink.heard][-1] == 1


def test_progress_counts_the_steps_that_were_skipped(tmp_path: Path) -> None:
    """A step this long overflows the next loss and is taken back: two steps planned per clip, none done."""
    sink = Listener()
    stream(make_job(settings("vit_ac", adapt="bias", lr=1e25, steps=2), noise_clips(3), tmp_path, sink=sink))
    assert [progress.steps_skipped for _, progress in sink.heard] == [2, 4, 6]


class StopAfter(Listener):
    """Sends this process a real signal once so many clips are done."""

    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        super().clip(row, progress)
        if progress.done == self.count:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("count", [2, 4])  # within the first order, and within the second
def test_a_resumed_stream_goes_on_counting(count: int, tmp_path: Path) -> None:
    s, clips = settings("vit_ac", adapt="bias", lr=1e25, steps=2, orders=2), noise_clips(3)
    first, second = StopAfter(count), Listener()
    assert stream(make_job(s, clips, tmp_path, sink=first)).stopped_by == "SIGTERM"
    stream(make_job(s, clips, tmp_path, sink=second, resume=True))
    found = [(progress.done, progress.steps_skipped) for _, progress in first.heard + second.heard]
    assert found == [(done, 2 * done) for done in range(1, 7)]
    assert (first.begun, second.begun) == ((0, 6), (count, 6))
