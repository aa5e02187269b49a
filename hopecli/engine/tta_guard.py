"""Learning from a clip so that a score is always finite and the weights left behind predict finite frames.

A step after which something is not finite is taken back; where that does not help, the adapter starts again from the
checkpoint, whose loss on the clip (`frozen`) is known to be finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hopecli.engine.adapt import Adapter
from hopecli.engine.runtime import Runtime
from hopecli.engine.tta_clip import AdaptationPlan, StreamClip, Updates, adapt_on_rollout, score, walk_sequentially


@dataclass
class Learned:
    """A clip's score of record, its updates, and how often the adapter had to start again."""

    online: float
    updates: Updates
    restarts: int = 0


def learn(adapter: Adapter, given: StreamClip, frozen: float, plan: AdaptationPlan, runtime: Runtime) -> Learned:
    """Predict, score, then adapt; again from the checkpoint when the score is not finite."""
    learned = _learn(adapter, given, plan, runtime)
    if math.isfinite(learned.online):
        return learned
    adapter.reset()
    learned = _learn(adapter, given, plan, runtime)
    if not math.isfinite(learned.online):  # steps within the clip broke it again: this one is not learned
        adapter.reset()
        learned = Learned(frozen, Updates(learned.updates.planned))
    learned.restarts = 1
    return learned


def _learn(adapter: Adapter, given: StreamClip, plan: AdaptationPlan, runtime: Runtime) -> Learned:
    if plan.sequential:
        return Learned(*walk_sequentially(adapter, given, plan, runtime))
    online = score(adapter.model, given, plan, runtime, adapter.memory)
    return Learned(online, adapt_on_rollout(adapter, given, plan, runtime))


def score_after_update(
    adapter: Adapter, given: StreamClip, learned: Learned, plan: AdaptationPlan, runtime: Runtime
) -> float | None:
    """The clip's loss under the weights that have seen it, None when none was planned to move; a last step that made
    it not finite is taken back."""
    if not learned.updates.planned:
        return None
    after = score(adapter.model, given, plan, runtime, adapter.memory)
    if not math.isfinite(after) and adapter.undo():
        learned.updates.take_back()
        after = score(adapter.model, given, plan, runtime, adapter.memory)
    if not math.isfinite(after):
        adapter.reset()
        learned.restarts += 1
        after = score(adapter.model, given, plan, runtime, adapter.memory)
    adapter.prove()
    return after
