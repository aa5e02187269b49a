"""Rollouts on held-out clips beside the baselines that every model must beat.

Rows: `model`; `copy_last`: the last known true frame again; `zero_action`; `shuffled_action`: actions exchanged between
clips with a fixed seed, whose gap to `model` is the action sensitivity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.data.loader import InOrder, LoadedBatch, load_batches
from hopecli.data.store import ClipStore
from hopecli.engine.results import EvalRow, Interval, ValidationRecord
from hopecli.engine.runtime import Runtime
from hopecli.engine.scores import ClipScores, bootstrap_weights, interval, summarise_row, target_spread
from hopecli.engine.skips import Skips
from hopecli.errors import DataError
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.rollout import normalise, rollout, teacher_forced


@dataclass(frozen=True)
class EvalPlan:
    """What to measure: C context frames, H steps, teacher-forced frames, and the rows beside `model`."""

    context_frames: int
    horizon: int
    T_teacher: int
    normalize_reps: bool
    zero_action: bool = False
    shuffled_action: bool = False


@torch.no_grad()
def score_clips(
    model: PredictorModule,
    store: ClipStore,
    names: Sequence[str],
    plan: EvalPlan,
    runtime: Runtime,
    *,
    batch_size: int,
    seed: int = 0,
    skips: Skips,
    between: Callable[[], None] | None = None,
) -> ClipScores:
    """Score every clip, shared between processes, in the order of `names`.

    `skips` decides what becomes of clips that cannot be read. `between` is called before each batch, equally often on
    every process. The model's train/eval mode is restored.
    """
    batches = InOrder(clips=len(names), batch=batch_size, rank=runtime.rank, world=runtime.world)
    donors = dict(zip(names, action_donors(names, seed), strict=True)) if plan.shuffled_action else {}
    scores = ClipScores()
    was_training = model.training
    model.eval()
    loader = load_batches(store, names, batches, pin_memory=runtime.pin_memory)
    try:
        for _ in range(batches.rounds):
            if between is not None:
                between()
            with skips.failing_together():
                loaded = next(loader, LoadedBatch(None))
                for error in loaded.errors:
                    skips.note(error)
                if loaded.clips is None:
                    continue
                others = None
                if donors:
                    given = [_donated_actions(store, donors, name) for name in loaded.clips.names]
                    donated = [actions for actions in given if actions is not None]
                    others = torch.stack(donated) if len(donated) == len(given) else None
                with runtime.autocast():
                    _score_batch(model, loaded.clips.to(runtime.device), others, plan, scores)
    finally:
        model.train(was_training)
    skips.agree()
    return _join(scores, names, runtime)


def _score_batch(
    model: PredictorModule, raw: ClipBatch, other_actions: Tensor | None, plan: EvalPlan, scores: ClipScores
) -> None:
    h = normalise(raw.features, enabled=plan.normalize_reps)
    clip = raw.with_features(h)
    first, horizon = plan.context_frames, plan.horizon
    target = h[:, first : first + horizon].float()

    def predict(batch: ClipBatch) -> Tensor:
        return rollout(model, batch, context_frames=first, horizon=horizon, normalize_reps=plan.normalize_reps).float()

    scores.names.extend(raw.names)
    scores.add("model", predict(clip), target)
    scores.add("copy_last", h[:, first - 1 : first].float().expand_as(target), target)
    if plan.zero_action:
        scores.add("zero_action", predict(clip.with_actions(torch.zeros_like(clip.actions))), target)
    if other_actions is not None:
        scores.add("shuffled_action", predict(clip.with_actions(other_actions.to(clip.actions))), target)
    scores.copy_first.extend((h[:, :1].float() - target).abs().mean(dim=(-2, -1)).tolist())
    scores.target_std.extend(target_spread(target))
    forced = teacher_forced(model, clip, frames=plan.T_teacher, normalize_reps=plan.normalize_reps).float()
    truth = h[:, 1 : plan.T_teacher + 1].float()
    scores.teacher.extend((forced - truth).abs().mean(dim=(-3, -2, -1)).tolist())


def action_donors(names: Sequence[str], seed: int) -> list[str]:
    """For each clip the clip whose actions it gets: a seeded cycle through all clips, so no clip keeps its own."""
    order = list(range(len(names)))
    random.Random(seed).shuffle(order)
    donors = [""] * len(names)
    for here, there in zip(order, [*order[1:], *order[:1]], strict=True):
        donors[here] = names[there]
    return donors


def _donated_actions(store: ClipStore, donors: dict[str, str], name: str) -> Tensor | None:
    """Actions [T-1, A] of the clip's donor, or of the next in the cycle whose actions can be read; None when there is
    no other clip with actions: its own are no shuffled ones."""
    donor = donors[name]
    while donor != name:
        try:
            return store.read_actions(donor)
        except DataError:
            donor = donors[donor]
    return None


def _join(scores: ClipScores, names: Sequence[str], runtime: Runtime) -> ClipScores:
    """Scores of all processes in the order of `names`."""
    if runtime.world > 1:
        joined = ClipScores()
        for part in runtime.gather([scores]):
            for spec in fields(ClipScores):
                mine, other = getattr(joined, spec.name), getattr(part, spec.name)
                if isinstance(mine, dict):
                    for row, values in other.items():
                        mine.setdefault(row, []).extend(values)
                else:
                    mine.extend(other)
        scores = joined
    if not scores.names:
        raise DataError("none of the clips could be read", value=f"{len(names)} clips")
    place = {name: i for i, name in enumerate(names)}
    order = sorted(range(len(scores.names)), key=lambda i: place[scores.names[i]])
    return ClipScores(
        names=[scores.names[i] for i in order],
        l1={row: [values[i] for i in order] for row, values in scores.l1.items()},
        cosine={row: [values[i] for i in order] for row, values in scores.cosine.items()},
        copy_first=[scores.copy_first[i] for i in order],
        target_std=[scores.target_std[i] for i in order],
        teacher=[scores.teacher[i] for i in order],
    )


@dataclass(frozen=True)
class ScoreSummary:
    """Rows with intervals and the numbers derived from several rows."""

    rows: list[EvalRow]
    loss_teacher: Interval
    action_sensitivity: Interval | None
    action_sensitivity_relative: float | None
    ratio_to_copy_last: float | None
    clips_with_ratio: int  # clips of which no frame equals the first
    resamples: int | None  # fewer than wanted where there are very many clips; None without intervals


@np.errstate(invalid="ignore", over="ignore")  # a clip that is not finite makes a mean one, which is said
def summarise(scores: ClipScores, *, bootstrap_samples: int, seed: int) -> ScoreSummary:
    """Means with paired 95 % bootstrap intervals over clips."""
    weights = bootstrap_weights(len(scores.names), samples=bootstrap_samples, seed=seed)
    rows = [summarise_row(scores, row, weights) for row in scores.l1]
    model, copy_last = scores.array("model").mean(), scores.array("copy_last").mean()
    sensitivity = relative = None
    if "shuffled_action" in scores.l1:
        gap = (scores.array("shuffled_action") - scores.array("model")).mean(axis=1)
        sensitivity = interval(gap, weights)
        relative = float(gap.mean() / model) if model > 0 else None
    return ScoreSummary(
        rows=rows,
        loss_teacher=interval(torch.tensor(scores.teacher, dtype=torch.float64).numpy(), weights),
        action_sensitivity=sensitivity,
        action_sensitivity_relative=relative,
        ratio_to_copy_last=float(model / copy_last) if copy_last > 0 else None,
        clips_with_ratio=sum(0.0 not in first for first in scores.copy_first),
        resamples=None if weights is None else len(weights),
    )


def validation_record(scores: ClipScores, *, step: int, epoch: int, seconds: float) -> ValidationRecord:
    """What training reports of held-out clips."""
    model, copy_last = scores.array("model").mean(axis=0), scores.array("copy_last").mean(axis=0)
    return ValidationRecord(
        step=step,
        epoch=epoch,
        clips=len(scores.names),
        loss_teacher=sum(scores.teacher) / len(scores.teacher),
        loss_rollout=float(model.mean()),
        rollout_per_horizon=model.tolist(),
        copy_last=float(copy_last.mean()),
        copy_last_per_horizon=copy_last.tolist(),
        seconds=seconds,
    )
