"""Schedules as pure functions: the learning rate of a global step and the curriculum's phase of an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

CHANGEABLE = ("loss_weight_teacher", "loss_weight_rollout", "T_rollout", "context_frames")


@dataclass(frozen=True)
class ObjectivePhase:
    """What the curriculum may change: both loss weights, rollout steps and context frames."""

    loss_weight_teacher: float
    loss_weight_rollout: float
    T_rollout: int
    context_frames: int


class PhaseChange(Protocol):
    """One curriculum entry; None keeps the value of the phase before."""

    @property
    def epoch(self) -> int: ...
    @property
    def loss_weight_teacher(self) -> float | None: ...
    @property
    def loss_weight_rollout(self) -> float | None: ...
    @property
    def T_rollout(self) -> int | None: ...
    @property
    def context_frames(self) -> int | None: ...


def phase_at(epoch: int, start: ObjectivePhase, curriculum: Sequence[PhaseChange]) -> ObjectivePhase:
    """The phase of `epoch` (from 0): every change whose epoch has come, in order; keys not named keep their value."""
    phase = start
    for change in curriculum:
        if change.epoch > epoch:
            break
        for key in CHANGEABLE:
            value = getattr(change, key)
            if value is not None:
                phase = replace(phase, **{key: value})
    return phase


def learning_rate(
    step: int,
    *,
    total_steps: int,
    lr: float,
    warmup_start_lr: float,
    final_lr: float,
    warmup_pct: float,
    decay_pct: float,
) -> float:
    """Warmup-stable-decay learning rate of global step `step` in 0..total_steps-1 (V-JEPA 2).

    W = int(warmup_pct N), D = int(decay_pct N): linear warmup_start_lr -> lr for s < W, lr until N-D, then linear to
    final_lr at s = N. A run too short for a phase skips it.
    """
    warmup, decay = phase_length(warmup_pct, total_steps), phase_length(decay_pct, total_steps)
    if step < warmup:
        return warmup_start_lr + (lr - warmup_start_lr) * step / warmup
    start = total_steps - decay
    if step < start:
        return lr
    progress = min(1.0, (step - start) / decay) if decay else 0.0
    return lr + (final_lr - lr) * progress


def phase_length(share: float, total_steps: int) -> int:
    """int(share * N), with a hair of tolerance so that 0.29 * 100 = 28.999999999999996 still counts as 29 steps."""
    return int(share * total_steps + 1e-9)
