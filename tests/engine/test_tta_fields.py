"""Every field of a stream's results, from a record written by hand: no two columns could be swapped unnoticed."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.engine.results import Interval
from hopecli.engine.scores import bootstrap_weights
from hopecli.engine.tta import stream
from hopecli.engine.tta_job import StreamRecord, TtaJob
from hopecli.engine.tta_results import SourceRecord, TtaClip
from hopecli.engine.tta_summary import StreamFacts, summarise_stream
from tests.engine.streams import ACTIONS, FRAMES, WIDTH, make_job, noise_clips, settings

CLIPS, ORDERS, SAMPLES, SEED = 60, 2, 100, 5
NAMES = [f"clip_{i:05d}" for i in range(CLIPS)]
# Each column has its own range, so that a value tells where it comes from.
COLUMNS = {"online": 1.0, "frozen": 1.2, "copy_last": 3.0, "after_update": 0.5, "periodic_reset": 4.0}
COLUMNS |= {"gain": 5.0, "grad_norm": 7.0, "grad_norm_clipped": 6.0, "drift": 8.0, "ms": 90.0, "ms_frozen": 10.0}
SEEN = {*NAMES[:4], "clip_00098", "clip_00099"}  # the last two were not scored
FACTS = StreamFacts(
    "the checkpoint", "the folder", "all of it", SEEN, {"clip_00098": "short"}, "the source", 10, {}, 43
)
# The last two were not measured every time.
SOURCE_BEFORE = [0.5, 0.7, 0.9, 0.4, 0.8, 0.6, math.nan, 0.9]
SOURCE_AFTER = [[0.6, 0.9, 0.9, 0.9, 1.5, 0.3, 0.1, 1.0], [0.8, 1.2, 0.7, 1.0, 1.3, 0.2, 0.2, math.nan]]


def row(order: int, position: int, rng: np.random.Generator) -> TtaClip:
    """A row with random values; the second order takes the clips backwards."""
    values: dict[str, Any] = {name: base + float(rng.uniform(0, 0.4)) for name, base in COLUMNS.items()}
    return TtaClip(
        order=order,
        position=position,
        clip=NAMES[position if order == 0 else CLIPS - 1 - position],
        steps_done=3,
        steps_skipped=position % 2,
        step_losses=[1.0 + position, 2.0 * position, *([7.0] if position == 3 else [])],
        **values,
    )


@pytest.fixture
def record() -> StreamRecord:
    rng = np.random.default_rng(11)
    return StreamRecord(
        order=ORDERS,
        position=CLIPS,
        rows=[row(order, i, rng) for order in range(ORDERS) for i in range(CLIPS)],
        source=[SourceRecord(0, 0, 0.25)],
        source_before=SOURCE_BEFORE,
        source_after=SOURCE_AFTER,
        skipped={"clip_00099": "broken"},
        restarts=11,
        periodic_restarts=12,
        bytes_adapted=2000,
        bytes_frozen=300,
        seconds=77.0,
    )


def job_in(folder: Path, **adaptation: Any) -> TtaJob:
    a = {"orders": ORDERS, "order_seed": 3, "bootstrap_samples": SAMPLES, "seed": SEED, "T_rollout": 2, **adaptation}
    return make_job(settings("vit_ac", **a), noise_clips(2), folder)


def column(rows: list[TtaClip], name: str) -> np.ndarray:
    """A column [orders, clips], the clips of every order by name."""
    ordered = sorted(rows, key=lambda found: (found.order, found.clip))
    return np.array([getattr(found, name) for found in ordered]).reshape(ORDERS, CLIPS)


def over_clips(values: np.ndarray, seed: int = SEED) -> Any:
    """Mean and percentile interval over clips, of values [clips]."""
    weights = bootstrap_weights(len(values), samples=SAMPLES, seed=seed)
    assert weights is not None
    low, high = np.percentile(weights @ values, [2.5, 97.5])
    return pytest.approx([values.mean(), low, high], rel=1e-6)  # weights are float32


def parts(found: Interval | None) -> list[float | None]:
    assert found is not None
    return [found.mean, found.low, found.high]


def test_losses_are_paired_means_over_clips(record: StreamRecord, tmp_path: Path) -> None:
    r = summarise_stream(job_in(tmp_path), record, FACTS)
    per_clip = {name: column(record.rows, name).mean(axis=0) for name in COLUMNS}
    online, frozen, periodic = per_clip["online"], per_clip["frozen"], per_clip["periodic_reset"]
    assert parts(r.loss_online) == over_clips(online)
    assert parts(r.loss_online) != over_clips(online, seed=0)  # the interval does tell seeds apart
    assert parts(r.loss_frozen) == over_clips(frozen)
    assert parts(r.difference) == over_clips(online - frozen)
    assert r.relative_difference == pytest.approx((online - frozen).mean() / frozen.mean(), rel=1e-9)
    assert parts(r.copy_last) == over_clips(per_clip["copy_last"])
    assert parts(r.periodic_reset) == over_clips(periodic)
    assert parts(r.periodic_reset_difference) == over_clips(periodic - frozen)
    assert parts(r.loss_after_update) == over_clips(per_clip["after_update"])
    assert r.clips == CLIPS


def test_curves_counts_norms_and_times(record: StreamRecord, tmp_path: Path) -> None:
    r, rows = summarise_stream(job_in(tmp_path), record, FACTS), record.rows
    for found, name in ((r.rolling_online, "online"), (r.rolling_frozen, "frozen")):
        first = column(rows, name)[0]
        expected = [first[max(0, i - 49) : i + 1].mean() for i in range(CLIPS)]  # 50 clips of the first order
        assert found == pytest.approx(expected, rel=1e-9)
    numbers = np.arange(CLIPS)
    assert r.per_step == pytest.approx([(1.0 + numbers).mean(), (2.0 * numbers).mean(), 7.0])
    assert r.share_worse == (column(rows, "online") > column(rows, "frozen")).mean()
    assert 0.0 < r.share_worse < 1.0
    assert (r.steps_done, r.steps_skipped) == (3 * ORDERS * CLIPS, ORDERS * CLIPS // 2)
    assert (r.restarts, r.periodic_reset_restarts) == (11, 12)
    assert r.grad_norm == pytest.approx(column(rows, "grad_norm").mean(), rel=1e-9)
    assert r.grad_norm_clipped == pytest.approx(column(rows, "grad_norm_clipped").mean(), rel=1e-9)
    assert r.drift == rows[-1].drift
    assert r.ms_adapted == pytest.approx(np.median(column(rows, "ms")), rel=1e-9)
    assert r.ms_frozen == pytest.approx(np.median(column(rows, "ms_frozen")), rel=1e-9)
    assert (r.bytes_adapted, r.bytes_frozen, r.seconds) == (2000, 300, 77.0)


def test_every_order_has_its_own_row(record: StreamRecord, tmp_path: Path) -> None:
    r = summarise_stream(job_in(tmp_path), record, FACTS)
    online, frozen = column(record.rows, "online"), column(record.rows, "frozen")
    assert [(found.order, found.order_seed, found.clips) for found in r.orders] == [(0, 3, CLIPS), (1, 4, CLIPS)]
    assert [found.loss_online for found in r.orders] == pytest.approx(online.mean(axis=1), rel=1e-9)
    assert [found.difference for found in r.orders] == pytest.approx((online - frozen).mean(axis=1), rel=1e-9)
    assert [found.drift for found in r.orders] == [record.rows[CLIPS - 1].drift, record.rows[-1].drift]


def test_forgetting_takes_the_source_clips_measured_every_time(record: StreamRecord, tmp_path: Path) -> None:
    f = summarise_stream(job_in(tmp_path), record, FACTS).forgetting
    assert f is not None
    before, after = np.array(SOURCE_BEFORE[:6]), np.array(SOURCE_AFTER)[:, :6].mean(axis=0)
    assert (f.source, f.clips, f.left_out, f.trace) == ("the source", 6, 2, record.source)
    assert f.before == pytest.approx(before.mean(), rel=1e-9)
    assert f.after == pytest.approx(after.mean(), rel=1e-9)
    assert f.ratio == pytest.approx(after.mean() / before.mean(), rel=1e-9)
    assert parts(f.difference) == over_clips(after - before)
    assert parts(f.difference) != over_clips(after - before, seed=0)


def test_facts_and_settings_reach_the_results(record: StreamRecord, tmp_path: Path) -> None:
    job = job_in(tmp_path)
    r = asdict(summarise_stream(job, replace(record, stopped_by="SIGTERM"), FACTS))
    parameters = sum(p.numel() for p in job.model.parameters())
    expected = {
        "checkpoint": "the checkpoint",
        "data": "the folder",
        "model": "vit_ac",
        "parameters": parameters,
        "adapted_parameters": 10,
        "adapted_share": 10 / parameters,
        "protocol": job.settings.adaptation.model_dump(mode="json"),
        "context_frames": 1,
        "T_rollout": 2,
        "normalize_reps": True,
        "loss_exp": 1.0,
        "read_as": {
            "feature_map": "vjepa2_vitl16",
            "num_timesteps": FRAMES,
            "grid": 2,
            "embed_dim": WIDTH,
            "action_dim": ACTIONS,
            "action_alignment": "impulse",
            "action_reduce": job.settings.data.action_reduce,
        },
        "bootstrap_samples": SAMPLES,
        "training_seed": 43,
        "clips_from": "all of it",
        "overlap_with_training": 4,
        "complete": True,
        "device": "cpu",
        "precision": "fp32",
        "stopped_by": "SIGTERM",
        "skipped_clips": {"clip_00098": "short", "clip_00099": "broken"},
    }
    assert {key: r[key] for key in expected} == expected


def test_what_was_not_measured_is_none(record: StreamRecord, tmp_path: Path) -> None:
    """Never a zero that looks like a measurement; an order that did not end makes the stream incomplete."""
    nothing: dict[str, Any] = dict.fromkeys(
        ("after_update", "periodic_reset", "grad_norm", "grad_norm_clipped", "drift"), None
    )
    bare = [replace(found, **nothing, step_losses=[]) for found in record.rows[:CLIPS]]
    started = replace(record, rows=bare, order=1, bytes_adapted=None, source_before=[], source_after=[])
    r = summarise_stream(job_in(tmp_path), started, FACTS)
    absent = (r.loss_after_update, r.periodic_reset, r.periodic_reset_difference, r.grad_norm, r.grad_norm_clipped)
    assert {*absent, r.drift, r.bytes_adapted, r.forgetting} == {None}
    assert r.per_step == []
    assert not r.complete
    assert len(r.orders) == 1
    perfect = [replace(found, frozen=0.0) for found in bare]
    assert summarise_stream(job_in(tmp_path), replace(started, rows=perfect), FACTS).relative_difference is None


def test_where_nothing_is_adapted_nothing_of_it_is_measured(tmp_path: Path) -> None:
    record = stream(make_job(settings("hope", adapt="none", memory="carry"), noise_clips(2), tmp_path))
    for row in record.rows:
        assert (row.after_update, row.grad_norm, row.grad_norm_clipped, row.drift) == (None,) * 4
        assert (row.steps_done, row.steps_skipped, row.step_losses) == (0, 0, [])
