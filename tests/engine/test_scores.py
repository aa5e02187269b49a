"""Per-clip errors, intervals and summaries against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hopecli.data.store import ClipStore
from hopecli.engine.evaluate import EvalPlan, action_donors, score_clips, summarise, validation_record
from hopecli.engine.results import Interval, to_tree
from hopecli.engine.runtime import start
from hopecli.engine.scores import (
    ClipScores,
    bootstrap_weights,
    frame_errors,
    interval,
    interval_over,
    summarise_row,
    target_spread,
)
from hopecli.engine.skips import Skips
from hopecli.errors import DataError
from hopecli.hardware import DeviceChoice
from hopecli.models.copy_last import CopyLast
from hopecli.models.protocol import PredictorModule
from tests.clips import DIM, GRID, data_settings, make_features, write_clip, write_clips
from tests.engine.toys import ActionAsFrame


def two_clips() -> ClipScores:
    """Two clips, two horizons, one patch of width 2; targets (0, 2), predictions off by 1 and 3, then 2 and 4."""
    target = torch.tensor([0.0, 2.0]).expand(2, 2, 1, 2)
    off = torch.tensor([[1.0, 3.0], [2.0, 4.0]])[..., None, None]
    scores = ClipScores(names=["a", "b"], copy_first=[[2.0, 6.0], [2.0, 6.0]], teacher=[0.5, 1.5])
    scores.add("model", target + off, target)
    scores.add("copy_last", target + 2 * off, target)
    scores.add("shuffled_action", target + off + 0.5, target)
    scores.target_std = target_spread(target)
    return scores


def test_frame_errors() -> None:
    prediction = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]])  # one clip, one frame, two patches
    target = torch.tensor([[[[0.0, 1.0], [0.0, 5.0]]]])
    l1, cosine = frame_errors(prediction, target)
    assert l1.tolist() == [[(1 + 1 + 0 + 3) / 4]]
    assert cosine.tolist() == [[(0 + 1) / 2]]


def test_target_spread_is_the_std_of_each_frame() -> None:
    target = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert target_spread(target)[0][0] == pytest.approx(math.sqrt(14 / 3), rel=1e-6)


def test_interval_is_the_percentile_interval_of_the_resampled_means() -> None:
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], np.float32)
    # The means are 0, 1, 2; 2.5 % of the way along two unit gaps is 0.05.
    found = interval(np.array([0.0, 2.0]), weights)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 0.05, 1.95))
    assert interval(np.array([3.0]), None) == Interval(3.0, None, None)


def test_bootstrap_of_two_clips() -> None:
    # Resampled means of 0 and 1 are 0, 0.5 and 1 with shares 1/4, 1/2, 1/4: the interval is the whole range.
    weights = bootstrap_weights(2, samples=2000, seed=0)
    assert weights is not None
    assert weights.shape == (2000, 2)
    assert interval(np.array([0.0, 1.0]), weights) == Interval(0.5, 0.0, 1.0)
    assert interval(np.array([0.0, -1.579e-4]), weights).high == 0.0  # float32 weights: rounded, it was below
    shares = [float((weights[:, 1] == value).mean()) for value in (0.0, 0.5, 1.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.045)  # four standard errors of 2,000 draws


def test_bootstrap_rows_sum_to_one_and_follow_the_seed() -> None:
    weights, again, other = (bootstrap_weights(7, samples=200, seed=seed) for seed in (3, 3, 4))
    assert weights is not None
    assert again is not None
    assert other is not None
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, rtol=1e-6)  # float32
    assert np.array_equal(weights, again)
    assert not np.array_equal(weights, other)


def test_the_table_of_resamples_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 MB of float32, but no fewer than 100 resamples; the table is asked for, not made."""

    def refuse(shape: tuple[int, int], dtype: type) -> None:
        raise MemoryError(shape)

    monkeypatch.setattr(np, "empty", refuse)
    for clips, samples in ((50_000, 2000), (200_000, 500), (4_000_000, 100)):
        with pytest.raises(MemoryError) as asked:
            bootstrap_weights(clips, samples=2000, seed=0)
        assert asked.value.args == ((samples, clips),)


def test_bootstrap_interval_of_the_mean_has_the_width_of_theory() -> None:
    values = np.random.default_rng(0).standard_normal(400)
    found = interval(values, bootstrap_weights(400, samples=2000, seed=0))
    assert found.low is not None
    assert found.high is not None
    # +-1.96 std / sqrt(n); two percentiles of 2,000 resamples are known to a few percent
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.08)


def test_equal_clips_have_an_interval_of_no_width() -> None:
    found = interval(np.full(5, 0.7), bootstrap_weights(5, samples=500, seed=0))
    assert found.low == pytest.approx(0.7, rel=1e-6)  # weights are float32
    assert found.high == pytest.approx(0.7, rel=1e-6)


def test_one_clip_has_no_interval() -> None:
    assert bootstrap_weights(1, samples=500, seed=0) is None


def test_row_summary() -> None:
    row = summarise_row(two_clips(), "model", None)
    assert row.l1.mean == 2.5
    assert [h.mean for h in row.l1_per_horizon] == [1.5, 3.5]
    assert row.relative == pytest.approx(2.5 / 4)
    assert row.relative_per_horizon == pytest.approx([1.5 / 2, 3.5 / 6])
    std = math.sqrt(2)  # of (0, 2), unbiased
    assert row.error_to_signal == pytest.approx(2.5 / std)
    assert row.error_to_signal_per_horizon == pytest.approx([1.5 / std, 3.5 / std])
    # cosine of (0, 2) with (x, 2 + x) is (2 + x) / |(x, 2 + x)|
    expected = [np.mean([(2 + x) / math.hypot(x, 2 + x) for x in pair]) for pair in ((1, 2), (3, 4))]
    assert [h.mean for h in row.cosine_per_horizon] == pytest.approx(expected, rel=1e-6)


def test_ratios_of_each_clip_are_averaged_with_an_interval() -> None:
    scores = two_clips()
    scores.copy_first, scores.target_std = [[1.0, 2.0], [4.0, 8.0]], [[1.0, 2.0], [2.0, 4.0]]
    own = scores.array("model") / np.array([[1.0, 2.0], [4.0, 8.0]])
    row = summarise_row(scores, "model", bootstrap_weights(2, samples=500, seed=0))
    assert row.relative_per_clip is not None
    assert row.relative_per_clip.mean == pytest.approx(own.mean())
    # Of two clips: a resample has the one, the other or both.
    assert (row.relative_per_clip.low, row.relative_per_clip.high) == pytest.approx(sorted(own.mean(axis=1)))
    means = [x.mean for x in row.relative_per_clip_per_horizon if x is not None]
    assert means == pytest.approx(own.mean(axis=0))
    to_signal = scores.array("model") / np.array([[1.0, 2.0], [2.0, 4.0]])
    assert row.error_to_signal_per_clip is not None
    assert row.error_to_signal_per_clip.mean == pytest.approx(to_signal.mean())
    means = [x.mean for x in row.error_to_signal_per_clip_per_horizon if x is not None]
    assert means == pytest.approx(to_signal.mean(axis=0))


def test_a_clip_where_nothing_moves_has_no_ratio_of_its_own() -> None:
    weights = bootstrap_weights(3, samples=500, seed=0)
    values = np.array([2.0, np.nan, 4.0])
    found = interval_over(np.array([True, False, True]), values, weights)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((3.0, 2.0, 4.0), rel=1e-6)  # weights are float32
    assert interval_over(np.array([True, False, False]), values, weights) == Interval(2.0, None, None)
    assert interval_over(np.zeros(3, bool), values, weights) is None


def test_ratios_to_nothing_are_absent_not_zero() -> None:
    scores = two_clips()
    scores.copy_first = [[0.0, 6.0], [0.0, 6.0]]
    scores.target_std = [[0.0, 0.0], [0.0, 0.0]]
    row = summarise_row(scores, "model", None)
    assert row.relative_per_horizon == [None, pytest.approx(3.5 / 6)]
    assert row.error_to_signal is None
    assert to_tree(row)["error_to_signal"] is None
    assert row.error_to_signal_per_clip is None
    assert row.relative_per_clip_per_horizon[0] is None
    assert summarise(scores, bootstrap_samples=100, seed=0).clips_with_ratio == 0
    assert summarise(two_clips(), bootstrap_samples=100, seed=0).clips_with_ratio == 2


def test_rows_share_resamples_so_a_constant_gap_has_no_width() -> None:
    summary = summarise(two_clips(), bootstrap_samples=500, seed=0)
    assert [row.name for row in summary.rows] == ["model", "copy_last", "shuffled_action"]
    gap = summary.action_sensitivity
    assert gap is not None
    # Every clip is 0.5 worse with shuffled actions, although the clips themselves differ.
    assert (gap.mean, gap.low, gap.high) == (0.5, 0.5, 0.5)
    assert summary.action_sensitivity_relative == pytest.approx(0.5 / 2.5)
    assert summary.ratio_to_copy_last == pytest.approx(0.5)
    assert summary.loss_teacher == Interval(1.0, 0.5, 1.5)
    model = summary.rows[0].l1
    assert model.low == 2.0
    assert model.high == 3.0
    assert summary.resamples == 500


def test_resamples_are_those_drawn() -> None:
    assert summarise(two_clips(), bootstrap_samples=50, seed=0).resamples == 50
    one = ClipScores(["a"], {"model": [[1.0]], "copy_last": [[2.0]]}, {"model": [[0.5]], "copy_last": [[0.5]]})
    one.copy_first, one.target_std, one.teacher = [[1.0]], [[1.0]], [0.5]
    assert summarise(one, bootstrap_samples=500, seed=0).resamples is None


def test_action_sensitivity_is_absent_without_its_row() -> None:
    scores = two_clips()
    del scores.l1["shuffled_action"]
    summary = summarise(scores, bootstrap_samples=500, seed=0)
    assert summary.action_sensitivity is None
    assert summary.action_sensitivity_relative is None


def test_ratios_to_a_perfect_model_or_copy_are_absent() -> None:
    scores = two_clips()
    scores.l1["model"] = scores.l1["copy_last"] = [[0.0, 0.0], [0.0, 0.0]]
    summary = summarise(scores, bootstrap_samples=500, seed=0)
    assert summary.action_sensitivity is not None
    assert (summary.action_sensitivity_relative, summary.ratio_to_copy_last) == (None, None)


def test_validation_record() -> None:
    record = validation_record(two_clips(), step=3, epoch=1, seconds=0.5)
    assert (record.clips, record.loss_teacher, record.loss_rollout, record.copy_last) == (2, 1.0, 2.5, 5.0)
    assert record.rollout_per_horizon == [1.5, 3.5]
    assert record.copy_last_per_horizon == [3.0, 7.0]


@pytest.mark.parametrize("count", [2, 3, 10])
def test_shuffled_actions_come_from_another_clip_each_once(count: int) -> None:
    names = [f"clip_{i:05d}" for i in range(count)]
    donors = action_donors(names, seed=0)
    assert sorted(donors) == names
    assert all(donor != name for donor, name in zip(donors, names, strict=True))
    assert donors == action_donors(names, seed=0)
    if count == 10:
        assert donors != action_donors(names, seed=1)


def score(
    folder: Path,
    batch_size: int,
    skipped: dict[str, str] | None = None,
    model: PredictorModule | None = None,
    max_skipped: float = 0.2,
) -> ClipScores:
    """Rollouts (of copy_last by default) over five clips of a folder, without normalisation."""
    runtime = start(DeviceChoice("cpu", "fp32", "test", "test", "CPU"))
    plan = EvalPlan(1, 2, T_teacher=2, normalize_reps=False, zero_action=True, shuffled_action=True)
    model = (model or CopyLast(embed_dim=DIM, action_dim=2, grid=GRID)).train()
    names = [f"clip_{i:05d}" for i in range(5)]
    settings = data_settings({"on_error": "error" if skipped is None else "skip", "max_skipped": max_skipped})
    store = ClipStore(folder, settings, use_extrinsics=False)
    skips = Skips(settings, clips=5, folder=folder, runtime=runtime, say=lambda text: None, reasons=skipped)
    scores = score_clips(model, store, names, plan, runtime, batch_size=batch_size, skips=skips)
    assert model.training
    return scores


def test_scores_of_a_folder_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    write_clips(tmp_path, range(5))
    scores = score(tmp_path, 1)
    assert scores.names == [f"clip_{i:05d}" for i in range(5)]
    features = [make_features(i).astype(np.float64) for i in range(5)]
    expected = [[np.abs(x[t] - x[0]).mean() for t in (1, 2)] for x in features]
    for row in ("model", "copy_last", "zero_action", "shuffled_action"):  # this model ignores actions
        np.testing.assert_allclose(scores.array(row), expected, rtol=1e-6)  # float32
    np.testing.assert_allclose(scores.copy_first, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.teacher, [np.abs(np.diff(x, axis=0)).mean() for x in features], rtol=1e-6)
    for batch_size in (2, 5):
        np.testing.assert_allclose(score(tmp_path, batch_size).array("model"), scores.array("model"), rtol=1e-6)


def test_a_clip_that_cannot_be_read_is_an_error_or_listed(tmp_path: Path) -> None:
    write_clips(tmp_path, range(5))
    whole = score(tmp_path, 2)
    write_clip(tmp_path, 3, features=np.full_like(make_features(3), np.nan))
    with pytest.raises(DataError, match="clip_00003: features hold NaN"):
        score(tmp_path, 2)
    with pytest.raises(DataError, match=r"1 of 5 clips cannot be used, more than data\.max_skipped allows"):
        score(tmp_path, 2, {}, max_skipped=0.19)
    skipped: dict[str, str] = {}
    scores = score(tmp_path, 2, skipped)
    assert skipped == {"clip_00003": "features hold NaN or infinite values. Encode the clip again"}
    assert scores.names == [name for name in whole.names if name != "clip_00003"]
    np.testing.assert_allclose(scores.array("model"), np.delete(whole.array("model"), 3, axis=0), rtol=1e-6)


def test_a_clip_with_broken_actions_gives_them_to_no_other_clip(tmp_path: Path) -> None:
    write_clips(tmp_path, range(5))
    write_clip(tmp_path, 3, actions=np.full((6, 2), np.nan, np.float32))
    skipped: dict[str, str] = {}
    scores = score(tmp_path, 5, skipped, model=ActionAsFrame(embed_dim=DIM, action_dim=2, grid=GRID))
    assert list(skipped) == ["clip_00003"]
    assert np.isfinite(scores.array("shuffled_action")).all()
    assert not np.isclose(scores.array("shuffled_action"), scores.array("model")).any()


def test_without_another_clip_with_actions_no_row_is_of_shuffled_ones(tmp_path: Path) -> None:
    write_clips(tmp_path, range(5))
    for clip in (0, 1, 2, 4):
        write_clip(tmp_path, clip, actions=np.full((6, 2), np.nan, np.float32))
    scores = score(tmp_path, 2, {}, max_skipped=0.9)
    assert scores.names == ["clip_00003"]
    assert list(scores.l1) == ["model", "copy_last", "zero_action"]
