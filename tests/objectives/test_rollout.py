"""Walking time: what is fed to the model at each step, what comes out, and where gradients flow."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hopecli.objectives.rollout import normalise, observe, recomputed_rollout, rollout, steps, teacher_forced
from tests.objectives.adder import Adder, Seen, number_clip


def walk(context: int, horizon: int, *, detach: bool = False, scale: float = 1.0) -> torch.Tensor:
    """Rollout of the clip 1, 10, 100, 1000 under actions 1, 2, 3."""
    clip = number_clip([1, 10, 100, 1000], [1, 2, 3])
    return rollout(Adder(scale), clip, context_frames=context, horizon=horizon, normalize_reps=False, detach=detach)


@pytest.mark.parametrize(
    ("context", "horizon", "expected"),
    [
        (1, 1, [2.0]),
        (1, 3, [2.0, 4.0, 7.0]),  # 1+1, then +2, then +3
        (2, 2, [12.0, 15.0]),  # 10+2, then +3
        (3, 1, [103.0]),
    ],
)
@pytest.mark.parametrize("detach", [False, True])
def test_rollout_values(context: int, horizon: int, expected: list[float], detach: bool) -> None:
    out = walk(context, horizon, detach=detach)
    assert out.shape == (1, horizon, 1, 1)
    assert out.flatten().tolist() == expected


def test_steps_gives_true_frames_first_then_predictions_and_carries_memory() -> None:
    clip = number_clip([1, 10, 100, 1000], [1, 2, 3])
    yielded = list(steps(Adder(), clip, context_frames=2, horizon=2, normalize_reps=False))
    assert [t for t, _, _ in yielded] == [0, 1, 2]
    assert [prediction.item() for _, prediction, _ in yielded] == [2.0, 12.0, 15.0]
    memory = yielded[-1][2]
    assert memory.times == (0, 1, 2)
    assert [frame.item() for frame in memory.inputs] == [1.0, 10.0, 12.0]


def test_steps_can_start_from_another_memory() -> None:
    clip = number_clip([1, 10], [1])
    first = list(steps(Adder(), clip, context_frames=1, horizon=1, normalize_reps=False))[-1][2]
    second = list(steps(Adder(), clip, context_frames=1, horizon=1, normalize_reps=False, memory=first))[-1][2]
    assert second.times == (0, 0)


def test_teacher_forced_uses_true_frames_only() -> None:
    clip = number_clip([1, 10, 100, 1000], [1, 2, 3])
    out = teacher_forced(Adder(), clip, frames=3, normalize_reps=False)
    assert out.flatten().tolist() == [2.0, 12.0, 103.0]
    assert teacher_forced(Adder(), clip, frames=2, normalize_reps=False).flatten().tolist() == [2.0, 12.0]


class WithAll(Adder):
    """next frame = frame + first values of action, state and extrinsics."""

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, **rest: Any
    ) -> tuple[Tensor, Seen]:
        assert extrinsics is not None
        return super().step(frame, action + state_vec + extrinsics, state_vec, extrinsics, **rest)

    def __call__(self, features: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        assert extrinsics is not None
        return super().__call__(features, actions + states + extrinsics, states, extrinsics)


def test_every_walk_gives_the_model_its_states_and_extrinsics() -> None:
    clip = dataclasses.replace(
        number_clip([1, 10, 100, 1000], [1, 2, 3]),
        states=torch.tensor([[[0.01], [0.02], [0.03]]]),
        extrinsics=torch.tensor([[[0.1], [0.2], [0.3]]]),
    )
    model = WithAll()
    # From 1: +1.11, then +2.22, then +3.33; float32 holds the tenths to 1e-8.
    walked = rollout(model, clip, context_frames=1, horizon=3, normalize_reps=False)
    assert walked.flatten().tolist() == pytest.approx([2.11, 4.33, 7.66], rel=1e-6)
    again = recomputed_rollout(model, clip, horizon=3, normalize_reps=False)
    assert torch.equal(again, walked)
    forced = teacher_forced(model, clip, frames=3, normalize_reps=False)
    assert forced.flatten().tolist() == pytest.approx([2.11, 12.22, 103.33], rel=1e-6)


def test_observing_shows_the_first_true_frames_to_a_memory() -> None:
    clip = number_clip([1, 10, 100], [1, 2])
    memory = observe(Adder(), clip, frames=2)
    assert memory.times == (0, 1)
    assert [frame.item() for frame in memory.inputs] == [1.0, 10.0]
    assert observe(Adder(), clip, frames=1, memory=memory).times == (0, 1, 0)


class Counter(Adder):
    """next frame = frame + the number of steps before."""

    def step(self, frame: Tensor, *rest: Any, memory: Seen, t: int) -> tuple[Tensor, Seen]:
        return frame + len(memory.times), super().step(frame, *rest, memory=memory, t=t)[1]


def test_a_rollout_can_start_from_another_memory() -> None:
    clip = number_clip([5, 0, 0], [0, 0])
    memory = observe(Counter(), clip, frames=2)
    for start, expected in ((None, [5.0, 6.0]), (memory, [7.0, 10.0])):
        out = rollout(Counter(), clip, context_frames=1, horizon=2, normalize_reps=False, memory=start)
        assert out.flatten().tolist() == expected


@pytest.mark.parametrize(("detach", "expected"), [(False, 1 + 2 * 2 + 3 * 4), (True, 1 + 2 + 4)])
def test_gradients_flow_through_the_whole_rollout_unless_detached(detach: bool, expected: float) -> None:
    # From 1 with scale w and no action the predictions are w, w^2, w^3: the derivative of their sum at w = 2 is
    # 1 + 2w + 3w^2; with the fed-back frames held fixed each contributes its input: 1 + w + w^2.
    model, clip = Adder(2.0), number_clip([1, 0, 0, 0], [0, 0, 0])
    out = rollout(model, clip, context_frames=1, horizon=3, normalize_reps=False, detach=detach)
    assert out.flatten().tolist() == [2.0, 4.0, 8.0]
    out.sum().backward()
    assert model.scale.grad is not None
    assert model.scale.grad.item() == expected


def test_normalise_is_layer_norm_without_gain() -> None:
    x = torch.tensor([[1.0, 3.0], [5.0, 5.0]], dtype=torch.float64)
    unit = 1 / math.sqrt(1 + 1e-5)
    expected = torch.tensor([[-unit, unit], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(normalise(x), expected, rtol=0, atol=1e-15)
    assert normalise(x, enabled=False) is x


def test_normalise_of_tiny_features_feels_eps() -> None:
    x = torch.tensor([-1e-3, 1e-3], dtype=torch.float64)  # variance 1e-6, a tenth of eps
    assert normalise(x)[1].item() == pytest.approx(1e-3 / math.sqrt(1e-6 + 1e-5), rel=1e-12)


def test_normalise_of_float16_is_computed_in_float32() -> None:
    x = torch.tensor([30000.0, -30000.0], dtype=torch.float16)  # its variance overflows float16
    out = normalise(x)
    assert out.dtype == torch.float32
    assert out.tolist() == pytest.approx([1.0, -1.0])


def test_normalise_under_bfloat16_autocast_is_computed_in_float32() -> None:
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.bfloat16)  # a CPU's autocast would leave it at 8 bits
    with torch.autocast("cpu", torch.bfloat16):
        out = normalise(x)
    assert torch.equal(out, normalise(x.float()))


def test_predictions_are_normalised_before_they_are_fed_back() -> None:
    clip = number_clip([1, 1, 1], [0, 0])
    wide = type(clip)(torch.tensor([[[[-1.0, 1.0]]] * 3], dtype=torch.float64), clip.actions, clip.states, None, ("a",))
    walked = list(steps(Adder(5.0), wide, context_frames=1, horizon=2, normalize_reps=True))
    fed_back = walked[-1][2].inputs[1].flatten()
    assert fed_back.tolist() == pytest.approx([-5 / math.sqrt(25 + 1e-5), 5 / math.sqrt(25 + 1e-5)], rel=1e-12)
    rolled = rollout(Adder(5.0), wide, context_frames=1, horizon=2, normalize_reps=True)
    assert torch.equal(recomputed_rollout(Adder(5.0), wide, horizon=2, normalize_reps=True), rolled)
