"""The baseline that starts again from the checkpoint every `reset_every` clips."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.engine.tta import stream
from hopecli.engine.tta_clip import Updates
from hopecli.engine.tta_guard import Learned
from hopecli.engine.tta_job import StreamRecord
from hopecli.errors import SettingsError
from tests.engine.streams import make_job, noise_clips, online, settings


def test_periodic_reset_lies_between_reset_and_never(tmp_path: Path) -> None:
    clips = noise_clips(5)

    def periodic(every: int) -> StreamRecord:
        s = settings("convlstm", adapt="bias", reset_every=every, memory="carry")
        return stream(make_job(s, clips, tmp_path, baselines=("frozen", "periodic_reset")))

    never = periodic(100)
    assert [row.periodic_reset for row in never.rows] == [row.online for row in never.rows]
    always = periodic(1)
    assert [row.periodic_reset for row in always.rows] == [row.frozen for row in always.rows]
    assert online(always) == online(never)  # the baseline does not disturb the stream
    third = periodic(3)
    values = [row.periodic_reset for row in third.rows]
    assert values[:3] == [row.online for row in third.rows[:3]]
    assert values[3] == third.rows[3].frozen
    assert values[4] not in (third.rows[4].frozen, third.rows[4].online)
    with pytest.raises(SettingsError, match="unknown baseline"):
        stream(make_job(settings(), clips, tmp_path, baselines=("rdumb",)))


def test_periods_are_counted_in_clips_that_were_learned(tmp_path: Path) -> None:
    s, clips, both = settings(reset_every=2), noise_clips(4), ("frozen", "periodic_reset")
    first, *others = clips
    broken = {first: clips[first], "clip_00099": None, **{name: clips[name] for name in others}}
    whole, record = (stream(make_job(s, given, tmp_path, baselines=both)) for given in (clips, broken))
    assert list(record.skipped) == ["clip_00099"]
    assert [row.periodic_reset for row in record.rows] == [row.periodic_reset for row in whole.rows]
    assert [row.periodic_reset == row.frozen for row in whole.rows] == [True, False, True, False]


def test_reset_per_clip_holds_for_the_baseline_too(tmp_path: Path) -> None:
    s = settings(reset_per_clip=True, reset_every=100)
    record = stream(make_job(s, noise_clips(3), tmp_path, baselines=("frozen", "periodic_reset")))
    assert [row.periodic_reset for row in record.rows] == [row.frozen for row in record.rows]


def test_restarts_of_the_baseline_add_up_over_the_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hopecli.engine.tta.learn", lambda adapter, given, frozen, *rest: Learned(frozen, Updates(), 1))
    record = stream(make_job(settings(), noise_clips(3), tmp_path, baselines=("frozen", "periodic_reset")))
    assert (record.restarts, record.periodic_restarts) == (3, 3)
