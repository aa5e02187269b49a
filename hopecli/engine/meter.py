"""Losses and times of the steps since the last report, read from the device in one go."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from torch import nn

from hopecli.engine.adapt import all_finite
from hopecli.engine.results import StepRecord, ValidationRecord
from hopecli.engine.runtime import Runtime
from hopecli.engine.train_step import StepTensors
from hopecli.errors import DivergedError

_SMALLEST_SCALE = 1e-3  # it starts at 65536 and halves with each step skipped; gradients of 1e7 would still fit
_UNTRAINED = "nothing is learned yet: look at the clips (hope inspect-data DIR --deep), the loss weights and loss_exp"
_CALMER = "lower optimizer.lr or set a smaller optimizer.grad_clip and start again"


@dataclass
class _Entry:
    step: int
    epoch: int
    lr: float
    tensors: StepTensors
    data_seconds: float


class Meter:
    """Collects steps on the device; `flush` reduces them over processes and turns them into records."""

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.pending: list[_Entry] = []
        self.started = time.perf_counter()
        self.clips = 0
        self.seconds = 0.0
        self.last_loss: float | None = None

    def restart_clock(self) -> None:
        """Forget the time since the last flush (validation, saving and diagnostics are not training time)."""
        self.started = time.perf_counter()

    def add(self, step: int, epoch: int, lr: float, tensors: StepTensors, data_seconds: float) -> None:
        """One finished step."""
        self.pending.append(_Entry(step, epoch, lr, tensors, data_seconds))

    def flush(self) -> list[StepRecord]:
        """Records of all pending steps, whatever their numbers are (`check_finite` judges them)."""
        if not self.pending:
            return []
        table = torch.stack([entry.tensors.values for entry in self.pending])  # [steps, 4]
        values = (self.runtime.sum(table) / self.runtime.world).tolist()
        elapsed = time.perf_counter() - self.started
        clips = sum(entry.tensors.clips for entry in self.pending) * self.runtime.world
        self.clips, self.seconds = self.clips + clips, self.seconds + elapsed
        # Shared: which step computed for how long is not known, as losses are read once for all of them.
        per_step = max(0.0, elapsed - sum(entry.data_seconds for entry in self.pending)) / len(self.pending)
        records = [
            StepRecord(
                step=entry.step,
                epoch=entry.epoch,
                loss=row[0],
                loss_teacher=row[1],
                loss_rollout=row[2],
                lr=entry.lr,
                grad_norm=row[3],
                clips_per_second=clips / elapsed,
                data_seconds=entry.data_seconds,
                step_seconds=per_step,
            )
            for entry, row in zip(self.pending, values, strict=True)
        ]
        self.pending.clear()
        self.restart_clock()
        self.last_loss = records[-1].loss
        return records


def check_finite(records: list[StepRecord], *, scale: float | None) -> None:
    """DivergedError naming the first step whose loss is not finite (or gradient norm, unless a loss scaler, of this
    `scale` now, may overflow on purpose and skip the step: until no scale helps)."""
    overflowed = [not math.isfinite(record.grad_norm) for record in records]
    for record, overflow in zip(records, overflowed, strict=True):
        bad_norm = overflow and scale is None
        if not math.isfinite(record.loss) or bad_norm:
            what = "the loss" if not math.isfinite(record.loss) else "the gradient norm"
            raise DivergedError(
                f"{what} is not finite at step {record.step}",
                value=f"loss {record.loss}, gradient norm {record.grad_norm}, lr {record.lr:g}",
                fix=_UNTRAINED if record.step == 1 else _CALMER,
            )
    if scale is not None and scale < _SMALLEST_SCALE and records and all(overflowed):
        raise DivergedError(
            f"fp16 gradients are no longer finite at any loss scale: step {records[-1].step} changes no weight",
            value=f"gradient norm {records[-1].grad_norm}, loss scale {scale:g}, lr {records[-1].lr:g}",
            fix="start again with --precision bf16 or fp32, or a lower optimizer.lr if the loss had been falling",
        )


@torch.no_grad()
def check_sound(model: nn.Module, validation: ValidationRecord | None, *, step: int, lr: float) -> None:
    """DivergedError when the weights, or the losses they give on held-out clips, are not finite.

    Losses are from before their step: without this the step that breaks a model would be saved as its last one.
    """
    weights = [p for p in model.parameters() if p.numel()]
    if not all_finite(weights):
        raise DivergedError(f"the weights are not finite after step {step}", value=f"lr {lr:g}", fix=_CALMER)
    if validation is not None and not math.isfinite(validation.loss_teacher + validation.loss_rollout):
        raise DivergedError(
            f"the validation loss is not finite after step {step}",
            value=f"teacher {validation.loss_teacher}, rollout {validation.loss_rollout}, lr {lr:g}",
            fix=_CALMER,
        )
