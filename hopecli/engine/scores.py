"""Per-clip errors of a rollout and its baselines, and what is reported of them.

Shapes: n clips, H rollout steps. All errors are in the normalised space.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.engine.results import EvalRow, Interval

# Of how many in a hundred samples of n values of a normal distribution `interval` holds the mean: n up to the next one.
SHARE_HELD = {2: 50, 3: 75, 4: 80, 5: 83, 6: 86, 8: 88, 10: 90, 15: 92}
ENOUGH_CLIPS = 20  # 93 in a hundred; 95 from about 100 on


@dataclass
class ClipScores:
    """What is measured of each clip: arrays grow batch by batch.

    names [n]; l1 and cosine per row name [n, H]; copy_first [n, H]: mean |h_0 - h_t|;
    target_std [n, H]: std of the target frame; teacher [n]: teacher-forced loss.
    """

    names: list[str] = field(default_factory=list)
    l1: dict[str, list[list[float]]] = field(default_factory=dict)
    cosine: dict[str, list[list[float]]] = field(default_factory=dict)
    copy_first: list[list[float]] = field(default_factory=list)
    target_std: list[list[float]] = field(default_factory=list)
    teacher: list[float] = field(default_factory=list)

    def add(self, row: str, prediction: Tensor, target: Tensor) -> None:
        """Errors of predictions [B, H, N, D] against targets of the same shape."""
        error, cosine = frame_errors(prediction, target)
        self.l1.setdefault(row, []).extend(error.tolist())
        self.cosine.setdefault(row, []).extend(cosine.tolist())

    def array(self, row: str) -> np.ndarray:
        """l1 of a row [n, H]."""
        return np.asarray(self.l1[row], dtype=np.float64)

    def not_finite(self) -> list[str]:
        """The clips of which a number is NaN or infinite, but with actions of another clip: that may be the cause."""
        own = [row for row in self.l1 if row != "shuffled_action"]
        measured = [self.copy_first, self.target_std, *(kept[row] for kept in (self.l1, self.cosine) for row in own)]
        finite = np.isfinite(np.asarray(self.teacher, dtype=np.float64))
        for values in measured:
            finite &= np.isfinite(np.asarray(values, dtype=np.float64)).all(axis=1)
        return [name for name, fine in zip(self.names, finite, strict=True) if not fine]


def frame_errors(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """L1 and cosine similarity per clip and frame, each [B, H], of [B, H, N, D]."""
    l1 = (prediction - target).abs().mean(dim=(-2, -1))
    return l1.cpu(), F.cosine_similarity(prediction, target, dim=-1).mean(dim=-1).cpu()


def interval(values: np.ndarray, weights: np.ndarray | None) -> Interval:
    """Mean of values [n] with the 95 % percentile interval over bootstrap `weights` [S, n] (rows sum to 1)."""
    mean = float(values.mean())
    if weights is None or not np.isfinite(mean):
        return Interval(mean, None, None)
    # Around the mean float32 is exact enough, and a large table of weights need not be converted for every interval.
    # Over few clips a bound may be the value of one of them, such as 0, which must not be rounded past.
    kind = np.float64 if len(values) < ENOUGH_CLIPS else weights.dtype
    low, high = np.percentile(weights.astype(kind, copy=False) @ (values - mean).astype(kind), [2.5, 97.5])
    return Interval(mean, mean + float(low), mean + float(high))


def too_narrow(clips: int, noun: str = "clips") -> str | None:
    """What to say of intervals over few clips: resampled means spread less than means of new clips would. None where
    there are enough clips, or no interval. noun: what they are."""
    if not 2 <= clips < ENOUGH_CLIPS:
        return None
    held = SHARE_HELD[max(n for n in SHARE_HELD if n <= clips)]
    return f"note: {clips} {noun} are few for 95 % intervals: about {held} % of such intervals hold the true mean"


def bootstrap_weights(clips: int, *, samples: int, seed: int) -> np.ndarray | None:
    """Resampling weights over clips [S, n] in float32, the same for all rows so that intervals are paired.

    None with fewer than two clips. S is `samples`, lowered where the table would exceed 400 MB, but not below 100.
    """
    if clips < 2:
        return None
    generator = np.random.default_rng(seed)
    samples = min(samples, max(100, 100_000_000 // clips))
    weights = np.empty((samples, clips), np.float32)
    for i in range(samples):
        weights[i] = np.bincount(generator.integers(0, clips, clips), minlength=clips) / clips
    return weights


def summarise_row(scores: ClipScores, row: str, weights: np.ndarray | None) -> EvalRow:
    """Means over clips with intervals, over all horizons and per horizon."""
    l1, cosine = scores.array(row), np.asarray(scores.cosine[row], dtype=np.float64)
    firsts = np.asarray(scores.copy_first, dtype=np.float64)
    stds = np.asarray(scores.target_std, dtype=np.float64)
    per_horizon, first, std = l1.mean(axis=0), firsts.mean(axis=0), stds.mean(axis=0)
    relative, has_first = own_ratios(l1, firsts), firsts != 0.0
    to_signal, has_std = own_ratios(l1, stds), stds != 0.0
    return EvalRow(
        name=row,
        l1=interval(l1.mean(axis=1), weights),
        l1_per_horizon=[interval(column, weights) for column in l1.T],
        relative=_ratio(per_horizon.mean(), first.mean()),
        relative_per_horizon=[_ratio(a, b) for a, b in zip(per_horizon, first, strict=True)],
        cosine=interval(cosine.mean(axis=1), weights),
        cosine_per_horizon=[interval(column, weights) for column in cosine.T],
        error_to_signal=_ratio(per_horizon.mean(), std.mean()),
        error_to_signal_per_horizon=[_ratio(a, b) for a, b in zip(per_horizon, std, strict=True)],
        relative_per_clip=interval_over(has_first.all(axis=1), relative.mean(axis=1), weights),
        relative_per_clip_per_horizon=[
            interval_over(has, ratios, weights) for has, ratios in zip(has_first.T, relative.T, strict=True)
        ],
        error_to_signal_per_clip=interval_over(has_std.all(axis=1), to_signal.mean(axis=1), weights),
        error_to_signal_per_clip_per_horizon=[
            interval_over(has, ratios, weights) for has, ratios in zip(has_std.T, to_signal.T, strict=True)
        ],
    )


def own_ratios(values: np.ndarray, bases: np.ndarray) -> np.ndarray:
    """values / bases, element by element; NaN where the base is 0."""
    return np.divide(values, bases, out=np.full(values.shape, np.nan), where=bases > 0.0)


def interval_over(known: np.ndarray, values: np.ndarray, weights: np.ndarray | None) -> Interval | None:
    """`interval` over the values [n] of the clips that are `known` [n], with the same resamples; None without any.

    A known value that is not finite makes the mean one: it must not be passed over as if the clip were not there.
    """
    if not known.any():
        return None
    if weights is not None and not known.all():
        weights = weights[:, known]
        total = weights.sum(axis=1, keepdims=True)
        weights = None if known.sum() < 2 else (weights / np.where(total > 0.0, total, 1.0))[total[:, 0] > 0.0]
    return interval(values[known], weights)


def falling(errors: np.ndarray) -> list[int]:
    """Indices of errors [n] from the worst on, those that are not finite first; equal ones in their order."""
    return np.argsort(-np.where(np.isfinite(errors), errors, np.inf), kind="stable").tolist()


def _ratio(value: float, base: float) -> float | None:
    return float(value / base) if base > 0.0 else None


def target_spread(target: Tensor) -> list[list[float]]:
    """Standard deviation of each target frame [B, H] over its patches and features, from [B, H, N, D]."""
    spread: list[list[float]] = torch.std(target.flatten(2), dim=-1).tolist()
    return spread
