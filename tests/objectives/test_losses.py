"""Distances and training losses against values computed by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.models.convlstm import ConvLSTM
from hopecli.objectives.losses import distance, training_loss
from hopecli.objectives.rollout import normalise
from hopecli.objectives.schedules import ObjectivePhase
from tests.objectives.adder import Adder, Seen, number_clip

PHASE = ObjectivePhase(loss_weight_teacher=1.0, loss_weight_rollout=1.0, T_rollout=3, context_frames=1)


@pytest.mark.parametrize(
    ("loss_exp", "expected"),
    [
        (1.0, (1 + 2 + 0 + 3) / 4),
        (2.0, (1 + 4 + 0 + 9) / 4 / 2),
        (3.0, (1 + 8 + 0 + 27) / 4 / 3),
        (1.5, (1 + 2**1.5 + 0 + 3**1.5) / 4 / 1.5),
        (0.5, (1 + 2**0.5 + 0 + 3**0.5) / 4 / 0.5),
    ],
)
def test_distance(loss_exp: float, expected: float) -> None:
    prediction = torch.tensor([[1.0, -2.0], [0.0, 5.0]], dtype=torch.float64)
    target = torch.tensor([[0.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    prediction.requires_grad_()
    loss = distance(prediction, target, loss_exp)
    assert loss.item() == pytest.approx(expected, rel=1e-14)
    (gradient,) = torch.autograd.grad(loss, prediction)
    found = [x * abs(x) ** (loss_exp - 2) / 4 if x else 0.0 for x in (1.0, -2.0, 0.0, 3.0)]  # 0 where nothing differs
    assert gradient.flatten().tolist() == pytest.approx(found, rel=1e-14)
    assert distance(prediction * torch.nan, target, loss_exp).isnan()


def loss_terms(
    *, T_teacher: int = 3, loss_exp: float = 1.0, phase: ObjectivePhase = PHASE
) -> tuple[float, float, float]:
    """total, teacher and rollout of the clip 0, 1, 3, 6 under actions of 1: no normalisation, next = frame + 1."""
    terms = training_loss(
        Adder(),
        number_clip([0, 1, 3, 6], [1, 1, 1]),
        phase=phase,
        T_teacher=T_teacher,
        normalize_reps=False,
        loss_exp=loss_exp,
    )
    return terms.total.item(), terms.teacher.item(), terms.rollout.item()


def test_teacher_forcing_compares_frame_t_plus_1_with_the_prediction_from_frame_t() -> None:
    # From 0, 1, 3 it predicts 1, 2, 4 where 1, 3, 6 are true.
    assert loss_terms()[1] == pytest.approx((0 + 1 + 2) / 3)
    assert loss_terms(T_teacher=2)[1] == pytest.approx((0 + 1) / 2)
    assert loss_terms(T_teacher=1)[1] == 0.0


def test_rollout_feeds_predictions_back() -> None:
    # 0 -> 1 -> 2 -> 3 where 1, 3, 6 are true.
    assert loss_terms()[2] == pytest.approx((0 + 1 + 3) / 3)


def test_a_rollout_shorter_than_the_clip_is_scored_on_the_frames_after_its_context() -> None:
    # 0 -> 1 -> 2 where 1, 3 are true, not 3, 6.
    phase = dataclasses.replace(PHASE, T_rollout=2)
    assert loss_terms(phase=phase)[2] == pytest.approx((0 + 1) / 2)


def test_rollout_from_two_context_frames_is_scored_from_frame_two() -> None:
    # 0, 1 are given: 1 -> 2 -> 3 where 3, 6 are true.
    phase = dataclasses.replace(PHASE, T_rollout=2, context_frames=2)
    assert loss_terms(phase=phase)[2] == pytest.approx((1 + 3) / 2)


def test_exponent_two() -> None:
    _, teacher, rolled = loss_terms(loss_exp=2.0)
    assert teacher == pytest.approx((0 + 1 + 4) / 3 / 2)
    assert rolled == pytest.approx((0 + 1 + 9) / 3 / 2)


def test_total_is_weighted_and_its_parts_are_not() -> None:
    phase = dataclasses.replace(PHASE, loss_weight_teacher=0.3, loss_weight_rollout=2.0)
    assert loss_terms(phase=phase) == pytest.approx((0.3 * 1 + 2 * 4 / 3, 1, 4 / 3))
    only_rollout = dataclasses.replace(PHASE, loss_weight_teacher=0.0)
    assert loss_terms(phase=only_rollout) == pytest.approx((4 / 3, 1, 4 / 3))


def test_normalisation_applies_to_targets_and_predictions() -> None:
    # Width 1 normalises to zero, so both losses vanish whatever the model says.
    clip = number_clip([0, 1, 3, 6], [1, 1, 1])
    terms = training_loss(Adder(5.0), clip, phase=PHASE, T_teacher=3, normalize_reps=True, loss_exp=1.0)
    assert terms.total.item() == 0.0
    # With width 2 a positive scale changes nothing after normalisation; without it the losses are large.
    wide = dataclasses.replace(
        clip, features=torch.tensor([[[[-1.0, 1.0]]] * 4], dtype=torch.float64), actions=clip.states
    )
    for normalize, expected in ((True, 0.0), (False, (4 + 24 + 124) / 3)):
        terms = training_loss(Adder(5.0), wide, phase=PHASE, T_teacher=3, normalize_reps=normalize, loss_exp=1.0)
        # eps 1e-5 shrinks +-1 by 5e-6 and +-5 by less, so normalised values differ by about that much
        assert terms.rollout.item() == pytest.approx(expected, abs=1e-5)


class Listening(Adder):
    """Keeps what it was given: the features of parallel passes and the frames of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[Tensor] = []
        self.frames: list[Tensor] = []

    def step(self, frame: Tensor, *rest: Any, memory: Seen, t: int) -> tuple[Tensor, Seen]:
        self.frames.append(frame)
        return super().step(frame, *rest, memory=memory, t=t)

    def __call__(self, features: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        self.passes.append(features)
        return super().__call__(features, actions, states, extrinsics)


def test_the_model_is_given_normalised_features() -> None:
    """Those of the normalised space that it predicts in, as in evaluation; raw ones only would train worse."""
    features = 3 * torch.randn(2, 4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    rows = torch.zeros(2, 3, 1, dtype=torch.float64)
    model, phase = Listening(), dataclasses.replace(PHASE, T_rollout=1, context_frames=3)
    clip = ClipBatch(features, rows, rows, None, ("a", "b"))
    training_loss(model, clip, phase=phase, T_teacher=3, normalize_reps=True, loss_exp=1.0)
    (seen,) = model.passes
    assert torch.equal(seen, normalise(features)[:, :3])
    assert torch.equal(torch.stack(model.frames, dim=1), normalise(features)[:, :3])


class Exploding(Adder):
    """Fine on true frames, infinite on its own predictions."""

    def step(self, frame: Tensor, *rest: Any, memory: Any, t: int) -> tuple[Tensor, Any]:
        out, memory = super().step(frame, *rest, memory=memory, t=t)
        return out * float("inf"), memory


@pytest.mark.parametrize("measured", ["teacher", "rollout"])
def test_a_term_of_weight_zero_is_measured_but_not_learned(measured: str) -> None:
    forced = measured == "teacher"
    phase = dataclasses.replace(PHASE, loss_weight_teacher=1.0 - forced, loss_weight_rollout=float(forced))
    clip = number_clip([0, 1, 3, 6], [1, 1, 1])
    clip.features.requires_grad_()
    terms = training_loss(Adder(), clip, phase=phase, T_teacher=3, normalize_reps=False, loss_exp=1.0)
    left_out, learned = (terms.teacher, terms.rollout) if forced else (terms.rollout, terms.teacher)
    assert not left_out.requires_grad
    assert left_out.item() == pytest.approx((0 + 1 + 2) / 3 if forced else (0 + 1 + 3) / 3)
    assert torch.equal(terms.total, learned)
    assert terms.total.requires_grad


def test_training_learns_through_the_whole_rollout() -> None:
    # From 1 with scale w the predictions are w, w^2, w^3 where 0 is true: the derivative of their mean at w = 2 is
    # (1 + 2w + 3w^2) / 3; with the fed-back frames held fixed it would be (1 + w + w^2) / 3.
    model, phase = Adder(2.0), dataclasses.replace(PHASE, loss_weight_teacher=0.0)
    clip = number_clip([1, 0, 0, 0], [0, 0, 0])
    training_loss(model, clip, phase=phase, T_teacher=3, normalize_reps=False, loss_exp=1.0).total.backward()
    assert model.scale.grad is not None
    assert model.scale.grad.item() == pytest.approx((1 + 4 + 12) / 3)


def test_without_gradients_neither_term_makes_any() -> None:
    with torch.no_grad():
        terms = training_loss(
            Adder(), number_clip([0, 1, 3, 6], [1, 1, 1]), phase=PHASE, T_teacher=3, normalize_reps=False, loss_exp=1.0
        )
    assert not any(term.requires_grad for term in (terms.total, terms.teacher, terms.rollout))


def test_a_term_of_weight_zero_may_be_infinite() -> None:
    phase = dataclasses.replace(PHASE, loss_weight_rollout=0.0)
    clip = number_clip([0, 1, 3, 6], [1, 1, 1])
    terms = training_loss(Exploding(), clip, phase=phase, T_teacher=3, normalize_reps=False, loss_exp=1.0)
    assert not terms.rollout.isfinite()
    assert terms.total.item() == pytest.approx(1.0)


@pytest.mark.parametrize("measured", ["loss_weight_teacher", "loss_weight_rollout"])
def test_a_term_of_weight_zero_takes_no_gradient_from_the_other_under_autocast(measured: str) -> None:
    """Autocast keeps its casts of weights: one made without gradients must not serve the term that is learned."""
    phase = dataclasses.replace(PHASE, **{measured: 0.0})  # type: ignore[arg-type]
    model = ConvLSTM(embed_dim=4, action_dim=1, grid=1, hidden=4, kernel_size=1)
    torch.nn.init.ones_(model.decoder.weight)
    rows = torch.ones(2, 3, 1)
    clip = ClipBatch(torch.randn(2, 4, 1, 4), rows, rows, None, ("a", "b"))
    with torch.autocast("cpu", torch.bfloat16):
        training_loss(model, clip, phase=phase, T_teacher=3, normalize_reps=True, loss_exp=1.0).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
