"""Every interval of a row, from the resampled means by their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hopecli.engine import evaluate
from hopecli.engine.results import Interval
from hopecli.engine.scores import (
    ENOUGH_CLIPS,
    SHARE_HELD,
    ClipScores,
    bootstrap_weights,
    falling,
    interval,
    interval_over,
    summarise_row,
    too_narrow,
)
from tests.engine.test_scores import two_clips

CLIPS, HORIZON = 6, 3
STILL, FLAT = (2, 1), (4, 0)  # a clip and frame where nothing moves; one whose target has no spread


@pytest.fixture(scope="module")
def scores() -> ClipScores:
    random = np.random.default_rng(0)
    l1, cosine, first, std = random.uniform(0.5, 2.0, (4, CLIPS, HORIZON))
    first[STILL] = std[FLAT] = 0.0
    names = [f"clip_{i:05d}" for i in range(CLIPS)]
    return ClipScores(names, {"model": l1.tolist()}, {"model": cosine.tolist()}, first.tolist(), std.tolist())


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    drawn = bootstrap_weights(CLIPS, samples=300, seed=0)
    assert drawn is not None
    return drawn


def check(found: Interval | None, values: np.ndarray, weights: np.ndarray) -> None:
    """Mean of the clips that have a value; a resample's mean is over those of them that it drew, if any."""
    known = np.isfinite(values)
    drawn = weights[:, known].astype(np.float64)
    means = (drawn @ values[known] / drawn.sum(axis=1))[drawn.sum(axis=1) > 0]
    low, high = np.percentile(means, [2.5, 97.5])
    assert found is not None
    # 1e-5: the weights are float32.
    assert (found.mean, found.low, found.high) == pytest.approx((values[known].mean(), low, high), rel=1e-5)


def check_all(
    whole: Interval | None, per_horizon: list[Interval] | list[Interval | None], values: np.ndarray, weights: np.ndarray
) -> None:
    """Of values [n, H]: over all frames, then of each."""
    check(whole, values.mean(axis=1), weights)
    for found, column in zip(per_horizon, values.T, strict=True):
        check(found, column, weights)


def test_errors_and_cosines(scores: ClipScores, weights: np.ndarray) -> None:
    row = summarise_row(scores, "model", weights)
    check_all(row.l1, row.l1_per_horizon, scores.array("model"), weights)
    check_all(row.cosine, row.cosine_per_horizon, np.array(scores.cosine["model"]), weights)


def test_ratios_of_each_clip_leave_out_those_without_one(scores: ClipScores, weights: np.ndarray) -> None:
    """A clip with a frame that has no ratio has none over all frames either: the others would stand for it."""
    row = summarise_row(scores, "model", weights)
    for whole, per_horizon, bases, lost in (
        (row.relative_per_clip, row.relative_per_clip_per_horizon, scores.copy_first, STILL),
        (row.error_to_signal_per_clip, row.error_to_signal_per_clip_per_horizon, scores.target_std, FLAT),
    ):
        below = np.array(bases)
        below[lost] = np.nan
        check_all(whole, per_horizon, scores.array("model") / below, weights)


def share_held(clips: int) -> float:
    """How often the interval over so many values of a normal distribution holds its mean, in 2,000 samples under each
    of four tables of resamples, which differ by 0.01."""
    held = []
    for seed in range(4):
        weights = bootstrap_weights(clips, samples=1000, seed=seed)
        for values in np.random.default_rng(seed).standard_normal((2000, clips)):
            found = interval(values, weights)
            assert found.low is not None
            assert found.high is not None
            held.append(found.low <= 0.0 <= found.high)
    return float(np.mean(held))


@pytest.mark.slow
@pytest.mark.parametrize("clips", SHARE_HELD)
def test_how_often_an_interval_over_few_clips_holds_the_mean(clips: int) -> None:
    # The mean of 8,000 answers is known to 0.006, that of four tables to 0.005: two standard deviations of both.
    assert share_held(clips) == pytest.approx(SHARE_HELD[clips] / 100, abs=0.016)
    line = too_narrow(clips)
    assert line is not None
    assert f"about {SHARE_HELD[clips]} %" in line


@pytest.mark.slow
def test_enough_clips_for_an_interval() -> None:
    assert share_held(ENOUGH_CLIPS) > 0.91
    assert too_narrow(ENOUGH_CLIPS - 1) is not None
    assert too_narrow(ENOUGH_CLIPS) is None
    assert too_narrow(1) is None  # there is none


def test_as_many_resamples_as_asked_for() -> None:
    for samples in (1, 50, 300):
        drawn = bootstrap_weights(10, samples=samples, seed=0)
        assert drawn is not None
        assert drawn.shape == (samples, 10)


def test_resamples_that_drew_no_clip_with_a_value_do_not_count() -> None:
    drawn = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], np.float32)  # the first: the clip without a value, only
    found = interval_over(np.array([False, True, True]), np.array([math.nan, 1.0, 3.0]), drawn)
    assert found == Interval(2.0, 1.0, 1.0)


def test_equal_errors_keep_the_order_of_the_clips() -> None:
    assert falling(np.array([1.0, 2.0] * 50)) == [*range(1, 100, 2), *range(0, 100, 2)]


@pytest.mark.parametrize(
    "where", ["model", "copy_last", "shuffled_action", "cosine", "copy_first", "target_std", "teacher"]
)
def test_one_number_of_a_clip_that_is_not_finite_is_enough(where: str) -> None:
    """But with another clip's actions, of which that clip may be the cause."""

    def ones() -> list[list[float]]:
        return [[1.0, 1.0], [1.0, 1.0]]

    rows = ("model", "copy_last", "shuffled_action")
    l1, cosine = {row: ones() for row in rows}, {row: ones() for row in rows}
    scores = ClipScores(["a", "b"], l1, cosine, ones(), ones(), [1.0, 1.0])
    if where == "teacher":
        scores.teacher[1] = math.inf
    else:
        held = cosine["model"] if where == "cosine" else l1[where] if where in l1 else getattr(scores, where)
        held[1][1] = math.nan
    assert scores.not_finite() == ([] if where == "shuffled_action" else ["b"])


def test_fewer_resamples_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are so many clips that as many as asked for would not fit in memory."""
    drawn = np.full((7, 2), 0.5, np.float32)
    monkeypatch.setattr(evaluate, "bootstrap_weights", lambda *given, **named: drawn)
    assert evaluate.summarise(two_clips(), bootstrap_samples=2000, seed=0).resamples == 7
