"""From the rows of a stream to its results: paired intervals, curves, forgetting."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from hopecli.engine.reading import reading
from hopecli.engine.results import Interval
from hopecli.engine.scores import bootstrap_weights, interval
from hopecli.engine.tta_clip import make_plan
from hopecli.engine.tta_job import ROLLING, StreamRecord, TtaJob, order_seeds
from hopecli.engine.tta_results import AFTER_UPDATE_NOTE, Forgetting, OrderSummary, TtaClip, TtaResults
from hopecli.engine.tta_source import finite_mean
from hopecli.errors import DataError
from hopecli.models.build import count_parameters


@dataclass(frozen=True)
class StreamFacts:
    """Where checkpoint and clips come from, for the record; fingerprints: content hash per clip name of the stream;
    seen: clips trained or adapted on, None when that is not known; source_unreadable: source clips that could not
    be read before the stream."""

    checkpoint: str
    data: str
    clips_from: str
    seen: Set[str] | None
    unreadable: dict[str, str]
    source_label: str | None
    adapted_parameters: int
    fingerprints: dict[str, str] = field(default_factory=dict)
    training_seed: int | None = None
    source_unreadable: int = 0


def summarise_stream(job: TtaJob, record: StreamRecord, facts: StreamFacts) -> TtaResults:
    """Results of a stream, complete or not; DataError when not one clip was scored."""
    rows, a = record.rows, job.settings.adaptation
    if not rows:
        reasons = "; ".join(list(record.skipped.values())[:3])
        raise DataError("none of the clips could be scored", value=reasons or f"{len(job.names)} clips")
    names = list(dict.fromkeys(row.clip for row in rows))
    weights = bootstrap_weights(len(names), samples=a.bootstrap_samples, seed=a.seed)
    online, frozen = _per_clip(rows, names, "online"), _per_clip(rows, names, "frozen")
    plan = make_plan(a, job.settings.objective, job.settings.data.num_timesteps)
    periodic = _per_clip(rows, names, "periodic_reset") if rows[0].periodic_reset is not None else None
    learned = all(row.after_update is not None for row in rows)
    difference = interval(online - frozen, weights)
    total = count_parameters(job.model)
    first = [row for row in rows if row.order == 0]
    norms = [(row.grad_norm, row.grad_norm_clipped) for row in rows if row.grad_norm is not None]
    drifts = [row.drift for row in rows if row.drift is not None]
    return TtaResults(
        checkpoint=facts.checkpoint,
        data=facts.data,
        model=job.settings.model.kind,
        parameters=total,
        adapted_parameters=facts.adapted_parameters,
        adapted_share=facts.adapted_parameters / total if total else None,
        protocol=a.model_dump(mode="json"),
        context_frames=plan.context_frames,
        T_rollout=plan.horizon,
        normalize_reps=plan.normalize_reps,
        loss_exp=plan.loss_exp,
        read_as=reading(job.settings),
        clips=len(names),
        clips_from=facts.clips_from,
        overlap_with_training=None if facts.seen is None else len(facts.seen & {row.clip for row in rows}),
        complete=record.order == len(order_seeds(job.settings)),
        loss_online=interval(online, weights),
        loss_frozen=interval(frozen, weights),
        difference=difference,
        relative_difference=float(difference.mean / frozen.mean()) if frozen.mean() > 0 else None,
        copy_last=interval(_per_clip(rows, names, "copy_last"), weights),
        periodic_reset=None if periodic is None else interval(periodic, weights),
        periodic_reset_difference=None if periodic is None else interval(periodic - frozen, weights),
        loss_after_update=interval(_per_clip(rows, names, "after_update"), weights) if learned else None,
        after_update_note=AFTER_UPDATE_NOTE,
        per_step=_per_step(rows),
        rolling_online=_rolling([row.online for row in first]),
        rolling_frozen=_rolling([row.frozen for row in first]),
        share_worse=sum(row.online > row.frozen for row in rows) / len(rows),
        steps_done=sum(row.steps_done for row in rows),
        steps_skipped=sum(row.steps_skipped for row in rows),
        restarts=record.restarts,
        periodic_reset_restarts=record.periodic_restarts,
        grad_norm=float(np.mean([before for before, _ in norms])) if norms else None,
        grad_norm_clipped=float(np.mean([after for _, after in norms if after is not None])) if norms else None,
        drift=drifts[-1] if drifts else None,
        ms_adapted=median(row.ms for row in rows),
        ms_frozen=median(row.ms_frozen for row in rows),
        bytes_adapted=record.bytes_adapted,
        bytes_frozen=record.bytes_frozen,
        forgetting=_forgetting(record, facts, a.bootstrap_samples, a.seed),
        orders=_orders(job, record),
        device=job.runtime.choice.device,
        precision=job.runtime.choice.precision,
        seconds=record.seconds,
        stopped_by=record.stopped_by,
        skipped_clips={**facts.unreadable, **record.skipped},
        bootstrap_samples=None if weights is None else len(weights),
        training_seed=facts.training_seed,
    )


def _per_clip(rows: Sequence[TtaClip], names: Sequence[str], column: str) -> np.ndarray:
    """Mean over orders of one column, per clip [n]."""
    values: dict[str, list[float]] = {name: [] for name in names}
    for row in rows:
        values[row.clip].append(getattr(row, column))
    return np.array([np.mean(values[name]) for name in names], dtype=np.float64)


def _per_step(rows: Sequence[TtaClip]) -> list[float]:
    """Mean loss before update 1, 2, ..., over the clips that got so far with a finite loss."""
    longest = max(len(row.step_losses) for row in rows)
    columns = [[row.step_losses[k] for row in rows if len(row.step_losses) > k] for k in range(longest)]
    means = [finite_mean(column) for column in columns]
    return [value for value in means if math.isfinite(value)]


def _rolling(values: Sequence[float]) -> list[float]:
    """Trailing means over at most ROLLING values."""
    return [float(np.mean(values[max(0, i + 1 - ROLLING) : i + 1])) for i in range(len(values))]


def _forgetting(record: StreamRecord, facts: StreamFacts, samples: int, seed: int) -> Forgetting | None:
    if not record.source_before or facts.source_label is None:
        return None
    before = np.array(record.source_before)
    kept = np.isfinite(np.array([record.source_before, *record.source_after])).all(axis=0)
    after: float | None = None
    difference: Interval | None = None
    if record.source_after and kept.any():
        before = before[kept]
        losses = np.mean(record.source_after, axis=0)[kept]
        after = float(losses.mean())
        difference = interval(losses - before, bootstrap_weights(len(before), samples=samples, seed=seed))
    start = finite_mean(before.tolist())
    return Forgetting(
        source=facts.source_label,
        clips=int(kept.sum()),
        left_out=facts.source_unreadable + int((~kept).sum()),
        before=start,
        after=after,
        difference=difference,
        ratio=after / start if after is not None and start > 0 else None,
        trace=record.source,
    )


def _orders(job: TtaJob, record: StreamRecord) -> list[OrderSummary]:
    summaries = []
    for order, seed in enumerate(order_seeds(job.settings)):
        rows = [row for row in record.rows if row.order == order]
        if rows:
            online = float(np.mean([row.online for row in rows]))
            frozen = float(np.mean([row.frozen for row in rows]))
            summaries.append(OrderSummary(order, seed, len(rows), online, online - frozen, rows[-1].drift))
    return summaries
