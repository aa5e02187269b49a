"""What the engine hands out: plain dataclasses that become JSON. None means not measured."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step; losses are means over the global batch, `loss` is the curriculum's weighted sum.

    data_seconds: waited for this step's clips. clips_per_second and step_seconds (all but that waiting) are means over
    the steps since the last report.
    """

    step: int
    epoch: int
    loss: float
    loss_teacher: float
    loss_rollout: float
    lr: float
    grad_norm: float
    clips_per_second: float
    data_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class ValidationRecord:
    """Held-out losses after `step` steps, never weighted by the curriculum. Lists run over the rollout horizon."""

    step: int
    epoch: int
    clips: int
    loss_teacher: float
    loss_rollout: float
    rollout_per_horizon: list[float]
    copy_last: float
    copy_last_per_horizon: list[float]
    seconds: float


@dataclass(frozen=True)
class DiagnosticsRecord:
    """Memory diagnostics of HOPE at one step: name -> value."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class TrainSummary:
    """What `hope train` reports at the end."""

    run_dir: str
    preset: str
    model: str
    parameters: int
    device: str
    precision: str
    steps: int
    epochs: int
    train_clips: int
    held_out_clips: int
    seconds: float
    clips_per_second: float | None
    loss: float | None
    validation: ValidationRecord | None
    skipped_clips: int
    seed: int  # training.seed


@dataclass(frozen=True)
class Interval:
    """A mean over clips with its 95 % bootstrap interval; low and high are None with fewer than two clips, or where the
    mean is not finite."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class EvalRow:
    """One predictor on the clips, over all horizons and per horizon. Lists run over the rollout horizon.

    l1: mean |p - h| in the normalised space. cosine: mean over patches. relative: mean l1 / mean copy-first-frame l1.
    error_to_signal: mean l1 / mean std of the target, in the same space. The same two `_per_clip`: the ratio of each
    clip and frame by itself, then the mean of these; over all horizons of the clips that have one at each (a frame that
    equals the first has none).
    """

    name: str
    l1: Interval
    l1_per_horizon: list[Interval]
    relative: float | None
    relative_per_horizon: list[float | None]
    cosine: Interval
    cosine_per_horizon: list[Interval]
    error_to_signal: float | None
    error_to_signal_per_horizon: list[float | None]
    relative_per_clip: Interval | None
    relative_per_clip_per_horizon: list[Interval | None]
    error_to_signal_per_clip: Interval | None
    error_to_signal_per_clip_per_horizon: list[Interval | None]


@dataclass(frozen=True)
class EvalResults:
    """What `hope eval` writes to results.json; rows: model, copy_last, zero_action, shuffled_action.

    seed: the evaluation's own, of the shuffled actions and the bootstrap; training_seed: that of the run. T_teacher:
    loss_teacher covers frames 1..T_teacher. read_as: the data settings that decide what a clip's numbers are.
    clips_with_ratio: clips behind the rows' relative_per_clip. clips_not_finite: those of which an error is NaN or
    infinite (but with the actions of another clip), and with it the row's means.
    """

    checkpoint: str
    data: str
    model: str
    parameters: int
    clips: int
    clips_from: str
    overlap_with_training: int | None
    context_frames: int
    T_rollout: int
    normalize_reps: bool
    device: str
    precision: str
    rows: list[EvalRow]
    loss_teacher: Interval | None
    action_sensitivity: Interval | None
    action_sensitivity_relative: float | None
    ratio_to_copy_last: float | None
    seconds: float
    worst_clips: list[str]
    skipped_clips: dict[str, str]
    preset: str | None  # that the checkpoint was trained with
    step: int | None  # that the checkpoint was saved after
    epoch: int | None  # of that step, from 0
    seed: int
    bootstrap_samples: int | None
    T_teacher: int
    training_seed: int
    read_as: dict[str, Any]
    clips_with_ratio: int
    clips_not_finite: list[str]


@dataclass(frozen=True)
class DryRun:
    """What was measured and estimated; bytes and seconds. None = not measured.

    batch: clips in the pass; loss and gradient norm at initialisation. activation_bytes_per_clip: measured growth of
    the process or device peak divided by the batch. estimated_bytes: weights, gradients and AdamW states, and the
    activations of one micro-batch.
    """

    preset: str
    model: str
    parameters: int
    trainable: int
    data: str
    train_clips: int | None
    held_out_clips: int | None
    global_batch: int
    micro_batch: int
    steps_per_epoch: int | None
    total_steps: int | None
    batch: int
    seconds: float
    loss: float
    grad_norm: float | None
    static_bytes: int
    activation_bytes_per_clip: float | None
    estimated_bytes: float | None
    device: str
    precision: str


@dataclass(frozen=True)
class Timing:
    """One kind of pass: median of `runs`, for `clips` clips. flops: counted, all of them; matmul_share: of the measured
    matmul rate in the same precision."""

    name: str
    clips: int
    runs: int
    milliseconds: float
    clips_per_second: float
    flops: int | None
    matmul_share: float | None


@dataclass(frozen=True)
class Bench:
    """What `hope hw-info --bench` measures; None = not measured.

    matmul: precision -> FLOP/s of square matrices of side `matmul_side`. bandwidth: bytes/s read and written by a copy.
    Rollout speed-up: recomputing the past / carrying memory. loader: clips/s from --data-dir. largest_batch_estimated:
    clips per pass from free memory and the activations measured; largest_batch_tried: on CUDA, one that ran.
    """

    preset: str
    model: str
    parameters: int
    device: str
    precision: str
    matmul_side: int
    matmul: dict[str, float]
    bandwidth: float
    timings: tuple[Timing, ...]
    rollout_speedup: float
    loader_clips_per_second: float | None
    loader_workers: int | None
    static_bytes: int
    activation_bytes_per_clip: float | None
    free_bytes: int | None
    largest_batch_estimated: int | None
    largest_batch_tried: int | None
    recommended: tuple[str, ...]
    reasons: tuple[str, ...]
    command: str
    seconds: float


def to_tree(result: Any) -> dict[str, Any]:
    """A dataclass as a JSON-able mapping; non-finite floats become None, since JSON has none."""
    return _clean(dataclasses.asdict(result))


def _clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
