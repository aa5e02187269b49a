"""Statistics of clip content, one clip in memory at a time.

Shapes: T encoded frames, N patches, D feature width.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

OUTLIER_FACTOR = 5.0
LISTED_DIMENSIONS = 16
NORM_POINTS = 20_000


@dataclass(frozen=True)
class FeatureFacts:
    """Over the clips read whose content is sound.

    mean, std, min, max: of all values. dead_dimensions: of D, those with one value throughout. outlier_dimensions:
    those whose root mean square is over 5 times the median one; both list at most the first 16 of their count.
    """

    clips: int
    mean: float
    std: float
    min: float
    max: float
    dead_count: int
    dead_share: float
    dead_dimensions: tuple[int, ...]
    outlier_count: int
    outlier_dimensions: tuple[int, ...]


@dataclass(frozen=True)
class MotionFacts:
    """copy_last_l1[h - 1]: mean |h_0 - h_h| over patches, features and clips at horizon h = 1.., with
    h = LayerNorm over D without gain, eps 1e-5: what `hope eval` reports as copy-last from one context frame."""

    clips: int
    copy_last_l1: tuple[float, ...]


@dataclass
class FeatureTally:
    """Running sums; per-dimension arrays [D] in float64."""

    clips: int = 0
    tokens: int = 0
    total: np.ndarray | None = None
    squares: np.ndarray | None = None
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    copy_last: list[list[float]] = field(default_factory=list)
    norms: list[np.ndarray] = field(default_factory=list)

    def add(self, features: np.ndarray, *, horizon: int, points: int) -> str | None:
        """Finite features [T, N, D]; returns the code of a defect (its statistics then stay out), else None.

        `horizon` frames after the first count for copy-last; at most `points` token norms are kept for the picture.
        """
        values = torch.from_numpy(np.ascontiguousarray(features)).float()
        if bool((values == values[..., :1]).all()):
            return "zero_variance"
        # The same operations in the same order as evaluation, so that the numbers agree to rounding.
        h = F.layer_norm(values, values.shape[-1:])
        moved = (h[1 : horizon + 1] - h[:1]).abs().mean(dim=(-2, -1))
        self.copy_last.append(moved.tolist())
        tokens = values.flatten(0, 1)  # [T*N, D]
        self.clips += 1
        self.tokens += len(tokens)
        low, high = tokens.amin(dim=0).numpy(), tokens.amax(dim=0).numpy()
        total = tokens.sum(dim=0, dtype=torch.float64).numpy()
        squares = tokens.double().square_().sum(dim=0).numpy()
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)
        if points:
            kept = tokens[:: -(-len(tokens) // points)]
            self.norms.append(torch.linalg.vector_norm(kept, dim=-1, dtype=torch.float64).numpy())
        return "no_motion" if bool((values[1:] == values[:1]).all()) else None

    def facts(self) -> FeatureFacts | None:
        """None when no clip counted."""
        if self.total is None or self.squares is None or self.low is None or self.high is None:
            return None
        width = len(self.total)
        mean = self.total.sum() / (self.tokens * width)
        variance = max(0.0, self.squares.sum() / (self.tokens * width) - mean**2)
        dead = np.flatnonzero(self.low == self.high)
        rms = np.sqrt(self.squares / self.tokens)
        outliers = np.flatnonzero(rms > OUTLIER_FACTOR * np.median(rms))
        return FeatureFacts(
            clips=self.clips,
            mean=float(mean),
            std=float(np.sqrt(variance)),
            min=float(self.low.min()),
            max=float(self.high.max()),
            dead_count=len(dead),
            dead_share=len(dead) / width,
            dead_dimensions=tuple(dead[:LISTED_DIMENSIONS].tolist()),
            outlier_count=len(outliers),
            outlier_dimensions=tuple(outliers[:LISTED_DIMENSIONS].tolist()),
        )

    def motion(self) -> MotionFacts | None:
        """Per horizon the mean over the clips; all clips that train have the same horizon."""
        if not self.copy_last:
            return None
        means = np.asarray(self.copy_last, dtype=np.float64).mean(axis=0)
        return MotionFacts(len(self.copy_last), tuple(means.tolist()))


def pca_images(features: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """First three principal components of one clip's tokens [T, N, D] as images [T, gh, gw, 3] in 0..1."""
    tokens = features.reshape(-1, features.shape[-1]).astype(np.float32)
    tokens = tokens / max(np.abs(tokens).max(), 1e-12)  # products of large features would overflow
    tokens = tokens - tokens.mean(axis=0)
    _, axes = np.linalg.eigh(tokens.T @ tokens)  # ascending
    projected = tokens @ axes[:, ::-1][:, :3]
    projected = np.pad(projected, ((0, 0), (0, 3 - projected.shape[1])))
    low, high = np.percentile(projected, [1, 99], axis=0)
    scaled = np.clip((projected - low) / np.maximum(high - low, 1e-12), 0.0, 1.0)
    return scaled.reshape(len(features), *grid, 3).astype(np.float32)
