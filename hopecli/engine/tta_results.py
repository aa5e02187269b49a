"""What test-time adaptation hands out: plain dataclasses that become JSON. None means not measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hopecli.engine.results import Interval

AFTER_UPDATE_NOTE = "diagnostic only: after the update the clip is predicted by weights that saw its own targets"


@dataclass(frozen=True)
class TtaClip:
    """One clip of one order; losses are L1 in the normalised space, means over the scored frames.

    online: by weights that have not seen the clip. after_update: by weights that have (a diagnostic). gain: frozen -
    online. step_losses: the adaptation loss before each update. grad_norm: mean over steps, before and after clipping.
    ms: predict, adapt and observe; ms_frozen: predict alone.
    """

    order: int
    position: int
    clip: str
    online: float
    frozen: float
    copy_last: float
    after_update: float | None
    gain: float
    periodic_reset: float | None
    grad_norm: float | None
    grad_norm_clipped: float | None
    drift: float | None
    ms: float
    ms_frozen: float
    steps_done: int
    steps_skipped: int
    step_losses: list[float]


@dataclass(frozen=True)
class SourceRecord:
    """Mean loss on the source clips after `clips` clips of an order's stream."""

    order: int
    clips: int
    loss: float


@dataclass(frozen=True)
class TtaProgress:
    """Trailing means over the last `window` clips (at most 50, of the running order), and counts of the whole stream so
    far."""

    done: int
    total: int
    window: int
    online: float
    frozen: float
    drift: float | None
    steps_skipped: int
    clips_skipped: int


@dataclass(frozen=True)
class Forgetting:
    """A -> B -> A: the source loss before the stream and after it (mean over orders), as measured from the stream's
    weights and carried memory. difference: after - before with its paired 95 % interval over source clips. left_out:
    source clips that could not be read, or whose loss was not finite before or after; they are in no number but the
    trace, which takes those that were finite at its time."""

    source: str
    clips: int
    left_out: int
    before: float
    after: float | None
    difference: Interval | None
    ratio: float | None
    trace: list[SourceRecord]


@dataclass(frozen=True)
class OrderSummary:
    """One pass over the stream. order_seed None: the clips' own order."""

    order: int
    order_seed: int | None
    clips: int
    loss_online: float
    difference: float
    drift: float | None


@dataclass(frozen=True)
class TtaResults:
    """What `hope tta` writes to results.json.

    difference: adapted - frozen, paired over clips (mean over orders first); negative is better. per_step: mean loss
    before each update, of loss_exp as in training; all others are L1. rolling_*: trailing means over 50 clips of the
    first order. periodic_reset: its online loss, and its difference to frozen. Milliseconds are medians; bytes are the
    growth of the peak in the passes of a clip.
    read_as: the data settings that decide what a clip's numbers are. restarts, periodic_reset_restarts: returns to the
    checkpoint because a prediction was not finite. bootstrap_samples: resamples used, fewer than the protocol's where
    there are very many clips; None without intervals. training_seed: the run's; the bootstrap's is in the protocol.
    """

    checkpoint: str
    data: str
    model: str
    parameters: int
    adapted_parameters: int
    adapted_share: float | None
    protocol: dict[str, Any]
    context_frames: int
    T_rollout: int
    normalize_reps: bool
    loss_exp: float
    read_as: dict[str, Any]
    clips: int
    clips_from: str
    overlap_with_training: int | None
    complete: bool
    loss_online: Interval
    loss_frozen: Interval
    difference: Interval
    relative_difference: float | None
    copy_last: Interval
    periodic_reset: Interval | None
    periodic_reset_difference: Interval | None
    loss_after_update: Interval | None
    after_update_note: str
    per_step: list[float]
    rolling_online: list[float]
    rolling_frozen: list[float]
    share_worse: float
    steps_done: int
    steps_skipped: int
    restarts: int
    periodic_reset_restarts: int
    grad_norm: float | None
    grad_norm_clipped: float | None
    drift: float | None
    ms_adapted: float
    ms_frozen: float
    bytes_adapted: int | None
    bytes_frozen: int | None
    forgetting: Forgetting | None
    orders: list[OrderSummary]
    device: str
    precision: str
    seconds: float
    stopped_by: str | None
    skipped_clips: dict[str, str]
    bootstrap_samples: int | None
    training_seed: int | None
