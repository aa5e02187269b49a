"""The rows beside the model after two context frames, by hand: which frame is copied, whose actions are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hopecli.data.store import ClipStore
from hopecli.engine.evaluate import EvalPlan, action_donors, score_clips
from hopecli.engine.runtime import start
from hopecli.engine.scores import ClipScores
from hopecli.engine.skips import Skips
from hopecli.hardware import DeviceChoice
from hopecli.models.protocol import PredictorModule
from tests.clips import ACTION_DIM, DIM, GRID, count_rows, data_settings, make_features, write_clip
from tests.engine.toys import ActionAsFrame, ModeRecorder

FRAMES, CONTEXT, HORIZON, SEED = 5, 2, 3, 3
NAMES = [f"clip_{i:05d}" for i in range(4)]
# Float32 sums of some tens of numbers, none of which nearly cancels.
TOLERANCE = 1e-5


def score(folder: Path, model: PredictorModule, *, normalize_reps: bool = False) -> ClipScores:
    """Rollouts over four clips with an action in every transition, features as they are unless normalised."""
    for number in range(len(NAMES)):
        rows = count_rows(2 * FRAMES) + 7 * number
        write_clip(folder, number, features=make_features(number, FRAMES), actions=rows)
    runtime = start(DeviceChoice("cpu", "fp32", "test", "test", "CPU"))
    settings = data_settings({"num_timesteps": FRAMES, "action_alignment": "per_timestep"})
    plan = EvalPlan(
        CONTEXT, HORIZON, T_teacher=4, normalize_reps=normalize_reps, zero_action=True, shuffled_action=True
    )
    store = ClipStore(folder, settings, use_extrinsics=False)
    skips = Skips(settings, clips=len(NAMES), folder=folder, runtime=runtime, say=lambda text: None)
    return score_clips(model, store, NAMES, plan, runtime, batch_size=3, seed=SEED, skips=skips)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> ClipScores:
    return score(tmp_path_factory.mktemp("rows"), ActionAsFrame(embed_dim=DIM, action_dim=ACTION_DIM, grid=GRID))


def features(number: int) -> np.ndarray:
    return make_features(number, FRAMES).astype(np.float64)


def filled(number: int) -> np.ndarray:
    """What the model fills frames 1..4 with, shaped for broadcasting: the sum of the clip's actions so far."""
    transitions = (count_rows(2 * FRAMES) + 7 * number)[1::2][: FRAMES - 1]  # the last row of each tubelet
    return np.cumsum(transitions.astype(np.float64).sum(axis=1))[:, None, None]


def errors(number: int, prediction: np.ndarray | float) -> np.ndarray:
    """Mean |prediction - target| of each of the frames 2, 3 and 4."""
    error: np.ndarray = np.abs(prediction - features(number)[CONTEXT:]).mean(axis=(1, 2))
    return error


def test_model_and_teacher(scores: ClipScores) -> None:
    expected = [errors(i, filled(i)[CONTEXT - 1 :]) for i in range(len(NAMES))]
    np.testing.assert_allclose(scores.array("model"), expected, rtol=TOLERANCE)
    forced = [np.abs(filled(i) - features(i)[1:]).mean() for i in range(len(NAMES))]
    np.testing.assert_allclose(scores.teacher, forced, rtol=TOLERANCE)


def test_zero_action_is_the_model_without_actions(scores: ClipScores) -> None:
    expected = [errors(i, 0.0) for i in range(len(NAMES))]
    np.testing.assert_allclose(scores.array("zero_action"), expected, rtol=TOLERANCE)


def test_shuffled_action_is_the_model_with_the_donors_actions(scores: ClipScores) -> None:
    donors = [NAMES.index(name) for name in action_donors(NAMES, SEED)]
    expected = [errors(i, filled(donor)[CONTEXT - 1 :]) for i, donor in enumerate(donors)]
    np.testing.assert_allclose(scores.array("shuffled_action"), expected, rtol=TOLERANCE)


def test_copy_last_is_the_last_true_frame_and_copy_first_the_first(scores: ClipScores) -> None:
    last = [errors(i, features(i)[CONTEXT - 1]) for i in range(len(NAMES))]
    np.testing.assert_allclose(scores.array("copy_last"), last, rtol=TOLERANCE)
    first = [errors(i, features(i)[0]) for i in range(len(NAMES))]
    np.testing.assert_allclose(scores.copy_first, first, rtol=TOLERANCE)


def test_all_is_measured_in_the_normalised_space(tmp_path: Path) -> None:
    """There a frame filled with one number is zero, so that the model's error is the mean of |h|."""
    model = ActionAsFrame(embed_dim=DIM, action_dim=ACTION_DIM, grid=GRID)
    found = score(tmp_path, model, normalize_reps=True)
    x = np.stack([features(i) for i in range(len(NAMES))])
    h = (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    rest = h[:, CONTEXT:]
    for row in ("model", "zero_action", "shuffled_action"):
        np.testing.assert_allclose(found.array(row), np.abs(rest).mean(axis=(2, 3)), rtol=TOLERANCE)
    np.testing.assert_allclose(found.teacher, np.abs(h[:, 1:]).mean(axis=(1, 2, 3)), rtol=TOLERANCE)
    last, first = (np.abs(rest - h[:, t : t + 1]).mean(axis=(2, 3)) for t in (CONTEXT - 1, 0))
    np.testing.assert_allclose(found.array("copy_last"), last, rtol=TOLERANCE)
    np.testing.assert_allclose(found.copy_first, first, rtol=TOLERANCE)
    np.testing.assert_allclose(found.target_std, rest.std(axis=(2, 3), ddof=1), rtol=TOLERANCE)


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_scored_in_evaluation_mode_without_a_graph_and_left_in_its_own(
    training: bool, tmp_path: Path
) -> None:
    model = ModeRecorder(embed_dim=DIM, action_dim=ACTION_DIM, grid=GRID).train(training)
    score(tmp_path, model)
    assert model.modes
    assert not any(model.modes)
    assert not any(model.graphs)
    assert model.training == training
