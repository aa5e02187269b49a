"""The passes of test-time adaptation over one clip: score it, adapt on it, observe it.

Shapes: B = 1 clip, T frames, N patches, D feature width, C context frames, H scored frames C..C+H-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hopecli.config.schema import AdaptationSettings, ObjectiveSettings
from hopecli.data.clip import ClipBatch
from hopecli.engine.adapt import Adapter, StepOutcome
from hopecli.engine.runtime import Runtime
from hopecli.engine.scores import frame_errors
from hopecli.models.protocol import Memory, PredictorModule
from hopecli.objectives.losses import distance
from hopecli.objectives.rollout import next_frame, normalise, observe, rollout, steps


@dataclass(frozen=True)
class AdaptationPlan:
    """How a clip is scored and learned; H is `horizon`, the rest as in AdaptationSettings."""

    sequential: bool
    steps: int
    context_frames: int
    horizon: int
    normalize_reps: bool
    loss_exp: float
    backprop_through_time: bool
    carry: bool


def make_plan(settings: AdaptationSettings, objective: ObjectiveSettings, frames: int) -> AdaptationPlan:
    """The plan for clips of `frames` frames, in the loss space of the checkpoint."""
    return AdaptationPlan(
        sequential=settings.mode == "sequential",
        steps=0 if settings.adapt == "none" else settings.steps,
        context_frames=settings.context_frames,
        horizon=settings.T_rollout or frames - settings.context_frames,
        normalize_reps=objective.normalize_reps,
        loss_exp=objective.loss_exp,
        backprop_through_time=settings.backprop_through_time,
        carry=settings.memory == "carry",
    )


@dataclass(frozen=True)
class StreamClip:
    """A clip with normalised features, its targets [1, H, N, D], and the mean L1 of predicting no change."""

    clip: ClipBatch
    target: Tensor
    copy_last: float


def prepare(raw: ClipBatch, plan: AdaptationPlan, runtime: Runtime) -> StreamClip:
    """Move a raw clip to the device and normalise it."""
    raw = raw.to(runtime.device)
    h = normalise(raw.features, enabled=plan.normalize_reps)
    first, last = plan.context_frames, plan.context_frames + plan.horizon
    target = h[:, first:last].float()
    # In sequential mode the last known true frame is the one before each target.
    known = h[:, first - 1 : last - 1] if plan.sequential else h[:, first - 1 : first].expand_as(target)
    clip = raw.with_features(h)
    return StreamClip(clip, target, mean(_errors(known.float(), target)))


@torch.no_grad()
def score(model: PredictorModule, given: StreamClip, plan: AdaptationPlan, runtime: Runtime, memory: Memory) -> float:
    """Mean L1 over the scored frames: of a rollout, or of next-frame predictions from true frames (sequential)."""
    first, horizon, reps = plan.context_frames, plan.horizon, plan.normalize_reps
    with runtime.autocast():
        if plan.sequential:
            walk = steps(
                model, given.clip, context_frames=first + horizon - 1, horizon=1, normalize_reps=reps, memory=memory
            )
            prediction = torch.stack([p for t, p, _ in walk if t >= first - 1], dim=1)
        else:
            prediction = rollout(
                model, given.clip, context_frames=first, horizon=horizon, normalize_reps=reps, memory=memory
            )
    return mean(_errors(prediction.float(), given.target))


@dataclass
class Updates:
    """The updates of one clip in order; at most `planned`, since a skipped update ends a series of equal ones."""

    planned: int = 0
    outcomes: list[StepOutcome] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Updates that moved the weights (or held a gradient back for its period)."""
        return sum(outcome.done for outcome in self.outcomes)

    @property
    def skipped(self) -> int:
        """Planned updates that did not happen."""
        return self.planned - self.done

    def add(self, outcome: StepOutcome) -> None:
        """The next update, which may have taken back the one before it."""
        if outcome.undid:
            self.take_back()
        self.outcomes.append(outcome)

    def take_back(self) -> None:
        """The last update done was undone: it counts as skipped."""
        for i in reversed(range(len(self.outcomes))):
            if self.outcomes[i].done:
                self.outcomes[i] = replace(self.outcomes[i], done=False)
                return

    def mean_norm(self, *, clipped: bool) -> float | None:
        """Mean gradient norm of the updates done."""
        norms = [o.clipped_norm if clipped else o.norm for o in self.outcomes if o.done]
        return mean(norms) if norms else None


def adapt_on_rollout(adapter: Adapter, given: StreamClip, plan: AdaptationPlan, runtime: Runtime) -> Updates:
    """`steps` updates on the rollout from the adapter's memory, against the observed frames."""
    updates = Updates(plan.steps)
    for _ in range(plan.steps):
        with runtime.autocast():
            prediction = rollout(
                adapter.model,
                given.clip,
                context_frames=plan.context_frames,
                horizon=plan.horizon,
                normalize_reps=plan.normalize_reps,
                detach=not plan.backprop_through_time,
                memory=adapter.memory,
            )
            loss = distance(prediction.float(), given.target, plan.loss_exp)
        updates.add(adapter.step(loss))
        if not updates.outcomes[-1].done:  # the same weights would only fail again
            break
    return updates


def walk_sequentially(
    adapter: Adapter, given: StreamClip, plan: AdaptationPlan, runtime: Runtime
) -> tuple[float, Updates]:
    """Predict frame t+1 from the true frames, score it, take `steps` updates on it, go on; the mean L1 of the scores.

    The memory of the frames before t is the one computed when they were predicted; gradients stay within a frame. An
    update after which the next prediction is not finite is taken back.
    """
    model, clip, first = adapter.model, given.clip, plan.context_frames
    updates, errors = Updates(plan.steps * plan.horizon), []
    memory = model.initial_state(len(clip)) if adapter.memory is None else adapter.memory
    for t in range(first + plan.horizon - 1):
        prediction, after = _seen(adapter, given, plan, runtime, t, memory)
        if t >= first - 1:
            target = given.target[:, t - first + 1]  # [1, N, D]
            error = _errors(prediction[:, None].float(), target[:, None])
            if not math.isfinite(error[0]) and adapter.undo():
                updates.take_back()
                prediction, after = _seen(adapter, given, plan, runtime, t, memory)
                error = _errors(prediction[:, None].float(), target[:, None])
            if math.isfinite(error[0]):
                adapter.prove()
            errors += error
            for _ in range(plan.steps):
                with runtime.autocast():
                    out, _ = next_frame(model, clip, t=t, memory=memory, normalize_reps=plan.normalize_reps)
                    loss = distance(out.float(), target, plan.loss_exp)
                updates.add(adapter.step(loss))
                if not updates.outcomes[-1].done:
                    break
        memory = after
    return mean(errors), updates


@torch.no_grad()
def _seen(
    adapter: Adapter, given: StreamClip, plan: AdaptationPlan, runtime: Runtime, t: int, memory: Memory
) -> tuple[Tensor, Memory]:
    """The prediction of frame t+1 [1, N, D] without a graph, and the memory after frame t."""
    with runtime.autocast():
        return next_frame(adapter.model, given.clip, t=t, memory=memory, normalize_reps=plan.normalize_reps)


@torch.no_grad()
def memory_after(adapter: Adapter, given: StreamClip, plan: AdaptationPlan, runtime: Runtime) -> Memory:
    """The memory after the clip's true frames, for the next clip; frames past the scored ones are not used."""
    with runtime.autocast():
        frames = plan.context_frames + plan.horizon - 1
        return observe(adapter.model, given.clip, frames=frames, memory=adapter.memory)


def _errors(prediction: Tensor, target: Tensor) -> list[float]:
    """L1 per frame of one clip, by the same formula as `hope eval`."""
    errors: list[float] = frame_errors(prediction, target)[0][0].tolist()
    return errors


def mean(values: list[float]) -> float:
    """Arithmetic mean, summed in order as per_clip.csv of `hope eval` does."""
    return sum(values) / len(values)
