"""What `hope tta` shows people: lines, per_clip.csv and tables against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hopecli.engine.results import Interval
from hopecli.engine.tta_results import SourceRecord
from hopecli.report.tta import ConsoleStream, csv_row, progress_line, tta_tables
from tests.report.examples import CLIP, FORGETTING, PROGRESS, TTA, cells, pairs, title


def test_progress_line() -> None:
    numbers = "online 0.5000  frozen 0.6250  gain +20.00 %  drift 3.46e-02"
    assert progress_line(PROGRESS) == f"mean of last 3: {numbers}"
    assert progress_line(replace(PROGRESS, window=1)) == numbers
    worse = replace(PROGRESS, window=1, online=0.75, drift=None, steps_skipped=4, clips_skipped=3)
    assert progress_line(worse) == ("online 0.7500  frozen 0.6250  gain -20.00 %  drift -  skipped 4 steps, 3 clips")
    assert "gain -  " in progress_line(replace(PROGRESS, frozen=0.0))


def test_off_a_terminal_a_line_every_few_clips_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    sink = ConsoleStream(every=4)
    sink.begin(done=2, total=10)
    for done in range(3, 11):
        sink.clip(CLIP, replace(PROGRESS, done=done))
    sink.source(SourceRecord(order=1, clips=5, loss=0.44556))
    sink.close()
    shown = progress_line(PROGRESS)
    assert capsys.readouterr().err.splitlines() == [
        f"clip 4/10  {shown}",
        f"clip 8/10  {shown}",
        f"clip 10/10  {shown}",
        "source loss after 5 clips (order 2): 0.4456",
    ]


def test_csv_row() -> None:
    assert csv_row(CLIP) == {
        "order": 1,
        "position": 4,
        "clip": "clip_00007",
        "online": 0.51,
        "frozen": 0.62,
        "after_update": 0.44,
        "gain": 0.11,
        "copy_last": 0.73,
        "periodic_reset": 0.55,
        "grad_norm": 1.2,
        "grad_norm_clipped": 0.9,
        "drift": 0.034,
        "ms": 12.346,
        "ms_frozen": 5.679,
        "steps_done": 2,
        "steps_skipped": 3,
    }


def test_losses() -> None:
    losses = tta_tables(TTA)[0]
    assert title(losses) == "Test-time adaptation, 3 clips (all), 2 orders, 3 context frames, 2 predicted frames"
    assert [(label, *row.values()) for label, row in cells(losses).items()] == [
        ("adapted, online", "0.5100 [0.5070, 0.5150]", "-0.1100 [-0.1130, -0.1050]", "12.3"),
        ("periodic reset, online", "0.5500 [0.5470, 0.5550]", "-0.0700 [-0.0730, -0.0650]", ""),
        ("frozen", "0.6200 [0.6170, 0.6250]", "", "5.7"),
        ("copy-last", "0.7300 [0.7270, 0.7350]", "", ""),
        ("after update (saw its targets)", "0.4400 [0.4370, 0.4450]", "", ""),
    ]
    assert list(cells(losses)["frozen"]) == ["L1 [95 %]", "- frozen [95 %]", "ms/clip"]


def test_losses_of_an_unfinished_stream_without_diagnostics() -> None:
    losses = tta_tables(replace(TTA, complete=False, periodic_reset=None, loss_after_update=None))[0]
    assert title(losses).endswith("2 predicted frames, INCOMPLETE")
    assert list(cells(losses)) == ["adapted, online", "frozen", "copy-last"]


def test_facts() -> None:
    assert pairs(tta_tables(TTA)[1]) == {
        "protocol": "batch, layernorm, sgd lr 0.02, 2 steps, memory carry",
        "adapted parameters": "345,678 of 12,345,678 (2.80 %)",
        "relative to frozen": "-17.74 %",
        "clips made worse": "23 %",
        "steps": "6 done, 1 skipped",
        "loss before each update": "0.6600  0.6500",
        "gradient norm": "1.2000, 0.9000 after clipping",
        "drift": "3.457e-02",
        "peak memory of a clip": "2.5 MiB adapted, 1.5 MiB frozen",
        "source loss": "0.4000 before, 0.5000 after (+25.00 %), difference 0.1000 [0.0970, 0.1050]; "
        "19 clips, held-out clips",
        "per order": "-0.1200  -0.1000",
    }


def test_facts_that_are_shown_only_where_there_are_any() -> None:
    facts = pairs(
        tta_tables(
            replace(
                TTA,
                protocol={**TTA.protocol, "reset_per_clip": True},
                relative_difference=None,
                restarts=4,
                periodic_reset_restarts=5,
                skipped_clips={"a": "torn", "b": "torn"},
                overlap_with_training=6,
            )
        )[1]
    )
    assert facts["protocol"].endswith("memory carry, reset per clip")
    assert facts["relative to frozen"] == "not measured"
    assert facts["restarts from the checkpoint"] == "4"
    assert facts["restarts of periodic reset"] == "5"
    assert facts["clips left out"] == "2"
    assert facts["WARNING"] == "6 of these clips were seen in training or adaptation"


def test_facts_without_updates_memory_or_source() -> None:
    less = replace(TTA, per_step=[], bytes_adapted=None, forgetting=None, orders=TTA.orders[:1])
    assert list(pairs(tta_tables(less)[1])) == [
        "protocol",
        "adapted parameters",
        "relative to frozen",
        "clips made worse",
        "steps",
    ]


def test_the_losses_before_the_first_eight_updates() -> None:
    many = replace(TTA, per_step=[step / 10 for step in range(12)])
    eight = "  ".join(f"0.{step}000" for step in range(8))
    assert pairs(tta_tables(many)[1])["loss before each update"] == f"{eight}  (4 more in results.json)"
    assert pairs(tta_tables(replace(many, per_step=many.per_step[:8]))[1])["loss before each update"] == eight
    assert "loss before each update (|x|^p / p)" in pairs(tta_tables(replace(many, loss_exp=2.0))[1])
    walk = replace(many, protocol={**many.protocol, "mode": "sequential"})  # frame 1's steps, then frame 2's
    assert "loss before each update, frame by frame" in pairs(tta_tables(walk)[1])


def test_forgetting_may_be_a_gain_be_unfinished_or_lack_clips() -> None:
    better = replace(FORGETTING, after=0.3, difference=Interval(-0.1, None, None), ratio=0.75, left_out=2)
    assert pairs(tta_tables(replace(TTA, forgetting=better))[1])["source loss"] == (
        "0.4000 before, 0.3000 after (-25.00 %), difference -0.1000; "
        "19 clips (2 more not readable or not finite), held-out clips"
    )
    from_nothing = replace(FORGETTING, before=0.0, after=0.3, difference=Interval(0.3, None, None), ratio=None)
    assert pairs(tta_tables(replace(TTA, forgetting=from_nothing))[1])["source loss"] == (
        "0.0000 before, 0.3000 after, difference 0.3000; 19 clips, held-out clips"
    )
    unfinished = replace(FORGETTING, after=None, difference=None, ratio=None)
    assert pairs(tta_tables(replace(TTA, forgetting=unfinished))[1])["source loss"] == (
        "0.4000 before; 19 clips, held-out clips"
    )


def test_no_warning_of_no_clips() -> None:
    assert "WARNING" not in pairs(tta_tables(replace(TTA, overlap_with_training=0))[-1])
    assert "WARNING" in pairs(tta_tables(replace(TTA, overlap_with_training=1))[-1])
