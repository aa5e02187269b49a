"""What is reported of a stream, recomputed from its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hopecli.engine import tta_summary
from hopecli.engine.tta import stream
from hopecli.engine.tta_job import order_seeds
from hopecli.engine.tta_summary import summarise_stream
from tests.engine.streams import FACTS, make_job, measured, noise_clips, settings


def test_orders_start_from_the_checkpoint_each(tmp_path: Path) -> None:
    clips = noise_clips(5)
    job = make_job(settings(orders=3, order_seed=4), clips, tmp_path)
    record = stream(job)
    assert order_seeds(job.settings) == [4, 5, 6]
    for i, seed in enumerate((4, 5, 6)):
        alone = stream(make_job(settings(order_seed=seed), clips, tmp_path))
        mine = [{**row, "order": 0} for row in measured(record) if row["order"] == i]
        assert mine == measured(alone)
        assert mine[0]["online"] == mine[0]["frozen"]
    results = summarise_stream(job, record, FACTS)
    assert [order.order_seed for order in results.orders] == [4, 5, 6]
    assert results.clips == 5
    by_clip = [np.mean([row.online for row in record.rows if row.clip == name]) for name in clips]
    assert results.loss_online.mean == pytest.approx(float(np.mean(by_clip)))


def test_summary_by_hand(tmp_path: Path) -> None:
    job = make_job(settings("vit_ac"), noise_clips(6), tmp_path)
    record = stream(job)
    r = summarise_stream(job, record, FACTS)
    rows = record.rows
    assert r.complete
    assert r.difference.mean == pytest.approx(float(np.mean([row.online - row.frozen for row in rows])))
    assert r.difference.low is not None
    assert r.difference.high is not None
    assert r.difference.low < r.difference.mean < r.difference.high
    assert r.share_worse == np.mean([row.online > row.frozen for row in rows])
    assert r.steps_done == 12
    assert r.per_step == [pytest.approx(float(np.mean([row.step_losses[k] for row in rows]))) for k in (0, 1)]
    assert r.rolling_online[2] == pytest.approx(float(np.mean([row.online for row in rows[:3]])))
    assert r.drift == rows[-1].drift
    assert r.adapted_share == 10 / r.parameters


def test_resamples_are_those_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than asked for, as with very many clips; none with a single clip."""
    job = make_job(settings(bootstrap_samples=150), noise_clips(2), tmp_path)
    record, drawn = stream(job), tta_summary.bootstrap_weights
    assert summarise_stream(job, record, FACTS).bootstrap_samples == 150

    def fewer(clips: int, *, samples: int, seed: int) -> np.ndarray | None:
        weights = drawn(clips, samples=samples, seed=seed)
        return None if weights is None else weights[:120]

    monkeypatch.setattr(tta_summary, "bootstrap_weights", fewer)
    assert summarise_stream(job, record, FACTS).bootstrap_samples == 120
    record.rows = record.rows[:1]
    assert summarise_stream(job, record, FACTS).bootstrap_samples is None


def test_a_source_loss_of_zero_has_no_ratio(tmp_path: Path) -> None:
    """Of clips that do not move, under a model that starts as copy-last."""
    job = make_job(settings(), noise_clips(2), tmp_path)
    record = stream(job)
    record.source_before, record.source_after = [0.0, 0.0], [[0.1, 0.3]]
    forgetting = summarise_stream(job, record, FACTS).forgetting
    assert forgetting is not None
    assert (forgetting.before, forgetting.after, forgetting.ratio) == (0.0, pytest.approx(0.2), None)
