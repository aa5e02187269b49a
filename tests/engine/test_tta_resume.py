"""An interrupted and resumed stream is the stream that was never interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.engine.tta_state import STATE_FILE
from hopecli.engine.tta_summary import summarise_stream
from hopecli.errors import CheckpointError
from tests.engine.streams import CONTINUAL, FACTS, equal, make_job, measured, noise_clips, settings


class StopAfter(NullStreamSink):
    """Sends this process a real signal once `count` clips are done."""

    def __init__(self, count: int):
        self.count = count

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        if progress.done == self.count:
            os.kill(os.getpid(), signal.SIGTERM)


OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [("vit_ac", {"optimizer": kind}) for kind in ("adam", "sgd")]
CARRIED = CONTINUAL[3]
ONCE = [case for case in CONTINUAL[1:] if case != CARRIED]  # the suite runs with two sets of versions


@pytest.mark.parametrize(
    ("kind", "changes", "count"),
    [
        *((*case, 3) for case in (CONTINUAL[0], CARRIED, *OPTIMIZERS)),
        *((*CONTINUAL[0], count) for count in (4, 6)),
        *(pytest.param(*case, 3, marks=pytest.mark.slow) for case in ONCE),
    ],
)
def test_interrupted_and_resumed_is_uninterrupted(
    kind: str, changes: dict[str, Any], count: int, tmp_path: Path
) -> None:
    s = settings(kind, **changes, orders=2, source_every=2, reset_every=2)
    clips, source = noise_clips(4), noise_clips(2)
    both = ("frozen", "periodic_reset")

    def job(folder: str, *, stop: int = 0, resume: bool = False) -> Any:
        sink = StopAfter(stop)
        return make_job(s, clips, tmp_path / folder, sink=sink, source=source, baselines=both, resume=resume)

    uninterrupted = job("whole")
    whole = stream(uninterrupted)
    stopped = stream(job("part", stop=count))
    assert stopped.stopped_by == "SIGTERM"
    assert len(stopped.rows) == count
    assert measured(stopped) == measured(whole)[:count]
    assert not summarise_stream(job("part"), stopped, FACTS).complete
    again = job("part", resume=True)
    resumed = stream(again)
    assert measured(resumed) == measured(whole)
    assert resumed.stopped_by is None
    assert resumed.source == whole.source
    assert resumed.source_after == whole.source_after
    assert equal(dict(again.model.state_dict()), dict(uninterrupted.model.state_dict()))


def test_resume_refuses_what_is_not_the_same_stream(tmp_path: Path) -> None:
    job = make_job(settings(), noise_clips(3), tmp_path, sink=StopAfter(1))
    job.identity = {"adaptation.lr": 0.01}
    stream(job)
    assert (tmp_path / STATE_FILE).is_file()
    other = make_job(settings(), noise_clips(3), tmp_path, resume=True)
    other.identity = {"adaptation.lr": 0.02}
    with pytest.raises(CheckpointError, match=r"another adaptation\.lr \(got '0\.02, it had 0\.01'\)"):
        stream(other)
    with pytest.raises(CheckpointError, match="no interrupted stream"):
        stream(make_job(settings(), noise_clips(3), tmp_path / "elsewhere", resume=True))


def test_a_stream_that_ends_with_its_signal_is_complete(tmp_path: Path) -> None:
    record = stream(make_job(settings(), noise_clips(2), tmp_path, sink=StopAfter(2)))
    assert record.stopped_by is None
    assert record.order == 1
