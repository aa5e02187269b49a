"""Forgetting: the loss on clips of the training domain under the weights of a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hopecli.data.loader import collate
from hopecli.engine.adapt import Adapter
from hopecli.engine.tta_clip import AdaptationPlan, mean, prepare, score
from hopecli.engine.tta_job import TtaJob
from hopecli.errors import DataError


def source_losses(job: TtaJob, adapter: Adapter, plan: AdaptationPlan) -> list[float]:
    """Loss of every source clip from the adapter's weights and memory, in order; NaN for one that cannot be read, so
    that measurements stay paired."""
    assert job.source is not None
    reader, names = job.source
    losses = []
    for name in names:
        try:
            loaded = collate([reader.read(name)]).clips
        except DataError:
            losses.append(math.nan)
            continue
        assert loaded is not None
        given = prepare(loaded, plan, job.runtime)
        losses.append(score(adapter.model, given, plan, job.runtime, adapter.memory))
    return losses


def finite_mean(losses: Sequence[float]) -> float:
    """Mean of the finite ones; NaN when there are none."""
    finite = [loss for loss in losses if math.isfinite(loss)]
    return mean(finite) if finite else math.nan
