"""What must hold for every predictor, whatever is inside. float64 on the CPU, tiny models.

Tolerance 1e-12: the same sums in another order (a batched product may block differently); values are of order one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.models.convlstm import ConvLSTM
from hopecli.models.copy_last import CopyLast
from hopecli.models.hope.predictor import HopePredictor
from hopecli.models.hope.titans import ReadOrder
from hopecli.models.protocol import PredictorModule
from hopecli.models.rope import RopeLayout
from hopecli.models.vit_ac import ViTAC
from hopecli.objectives.losses import training_loss
from hopecli.objectives.schedules import ObjectivePhase

D, A, GRID, FRAMES = 12, 3, 3, 4
TOLERANCE = 1e-12


def vit(*, mlp: str = "gelu", rope: RopeLayout = "vjepa2", use_extrinsics: bool = False) -> ViTAC:
    return ViTAC(
        embed_dim=D,
        action_dim=A,
        grid=GRID,
        width=24,
        depth=2,
        num_heads=2,
        mlp_ratio=2.0,
        mlp=mlp,
        rope=rope,
        use_extrinsics=use_extrinsics,
    )


def hope(
    *,
    read: ReadOrder = "after_write",
    rope: RopeLayout = "vjepa2",
    use_rope: bool = True,
    use_extrinsics: bool = False,
    activation_checkpointing: bool = False,
    truncate: int | None = None,
) -> HopePredictor:
    return HopePredictor(
        embed_dim=D,
        action_dim=A,
        grid=GRID,
        width=24,
        depth=2,
        num_heads=2,
        memory_multiplier=1.5,
        cms_multipliers=(2.0, 1.0),
        read=read,
        rope=rope,
        use_rope=use_rope,
        use_extrinsics=use_extrinsics,
        activation_checkpointing=activation_checkpointing,
        truncate_memory_gradient=truncate,
    )


KINDS: dict[str, Callable[[], PredictorModule]] = {
    "vit_ac_gelu": vit,
    "vit_ac_swiglu": lambda: vit(mlp="swiglu"),
    "vit_ac_rope_exact": lambda: vit(rope="exact"),
    "vit_ac_extrinsics": lambda: vit(use_extrinsics=True),
    "convlstm": lambda: ConvLSTM(embed_dim=D, action_dim=A, grid=GRID, hidden=6, kernel_size=3),
    "copy_last": lambda: CopyLast(embed_dim=D, action_dim=A, grid=GRID),
    "hope": hope,
    "hope_before_write": lambda: hope(read="before_write"),
    "hope_truncated": lambda: hope(truncate=2),
    "hope_no_rope": lambda: hope(use_rope=False),
    "hope_rope_exact": lambda: hope(rope="exact"),
    "hope_extrinsics": lambda: hope(use_extrinsics=True),
    "hope_checkpointed": lambda: hope(activation_checkpointing=True),
}
LEARNED = [kind for kind in KINDS if kind != "copy_last"]


class Inputs(NamedTuple):
    """features [B, T, N, D], actions and states [B, T, A], extrinsics [B, T, A-1] or None."""

    features: Tensor
    actions: Tensor
    states: Tensor
    extrinsics: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        extrinsics = None if self.extrinsics is None else change(self.extrinsics)
        return Inputs(change(self.features), change(self.actions), change(self.states), extrinsics)

    def pick(self, clips: list[int]) -> Inputs:
        return self.map(lambda x: x[clips])

    def at(self, t: int) -> Inputs:
        return self.map(lambda x: x[:, t])


def build(kind: str, *, perturb: float = 0.1) -> PredictorModule:
    """The model in float64, every parameter moved off its initial value (zeros would hide what they multiply)."""
    torch.manual_seed(0)
    model = KINDS[kind]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return model


def inputs(model: PredictorModule, *, batch: int = 3, frames: int = FRAMES, seed: int = 1) -> Inputs:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, frames, *shape, generator=random, dtype=torch.float64)

    extrinsics = normal(A - 1) if getattr(model, "use_extrinsics", False) else None
    return Inputs(normal(GRID**2, D), normal(A), normal(A), extrinsics)


def walk(model: PredictorModule, given: Inputs) -> Tensor:
    """Teacher-forced predictions [B, T, N, D] by `step` alone."""
    memory = model.initial_state(given.features.shape[0])
    outputs = []
    for t in range(given.features.shape[1]):
        prediction, memory = model.step(*given.at(t), memory=memory, t=t)
        outputs.append(prediction)
    return torch.stack(outputs, dim=1)


def loss(model: PredictorModule, given: Inputs) -> Tensor:
    """Teacher forcing and a full rollout, as trained."""
    transitions = given.map(lambda x: x[:, :-1])
    clip = ClipBatch(given.features, transitions.actions, transitions.states, transitions.extrinsics, ())
    phase = ObjectivePhase(loss_weight_teacher=1.0, loss_weight_rollout=1.0, T_rollout=FRAMES - 1, context_frames=1)
    return training_loss(model, clip, phase=phase, T_teacher=FRAMES - 1, normalize_reps=True, loss_exp=1.0).total


def largest(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_step_is_the_parallel_call(kind: str) -> None:
    model = build(kind)
    given = inputs(model)
    parallel = model(*given)
    assert largest(walk(model, given), parallel) < TOLERANCE
    flat = model(given.features.flatten(1, 2), *given[1:])
    assert torch.equal(flat.view_as(parallel), parallel)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_clip_is_the_same_alone_and_in_any_batch(kind: str) -> None:
    model = build(kind)
    given = inputs(model)
    together = model(*given)
    for i in range(3):
        assert largest(model(*given.pick([i])), together[[i]]) < TOLERANCE
    order = [2, 0, 1]
    assert largest(model(*given.pick(order)), together[order]) < TOLERANCE
    loud = given.map(torch.clone)
    loud.features[1:] *= 1e3
    assert largest(model(*loud)[:1], together[:1]) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("changed", range(1, FRAMES))
@torch.no_grad()
def test_later_inputs_never_change_earlier_outputs(kind: str, changed: int) -> None:
    model = build(kind)
    given, later = inputs(model), inputs(model)
    for x, noise in zip(later, inputs(model, seed=2), strict=True):
        if x is not None and noise is not None:
            x[:, changed:] = noise[:, changed:]
    before, after = model(*given), model(*later)
    assert largest(before[:, :changed], after[:, :changed]) < TOLERANCE
    assert largest(before[:, changed], after[:, changed]) > 1e-3


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("t", range(FRAMES - 1))
@torch.no_grad()
def test_an_action_changes_the_output_it_should(kind: str, t: int) -> None:
    model = build(kind)
    given, pushed = inputs(model), inputs(model)
    pushed.actions[:, t] += 1.0
    difference = (model(*given) - model(*pushed)).abs().amax(dim=(0, 2, 3))  # [T]
    # Read before the write, a frame's action reaches the patches one frame later.
    first = t + 1 if kind == "hope_before_write" else t
    assert all(value < TOLERANCE for value in difference[:first])
    assert difference[first] > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_remembers_nothing_between_calls(kind: str) -> None:
    model = build(kind)
    given, other = inputs(model), inputs(model, batch=2, frames=2, seed=3)
    first, weights = model(*given), {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        out = model(*other)
        if out.requires_grad:
            out.sum().backward()
        walk(model, other)
    assert torch.equal(model(*given), first)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_two_walks_can_be_interleaved(kind: str) -> None:
    model = build(kind)
    one, two = inputs(model, frames=2), inputs(model, frames=2, seed=4)
    memories = [model.initial_state(3), model.initial_state(3)]
    outputs: list[list[Tensor]] = [[], []]
    for t in range(2):
        for i, given in enumerate((one, two)):
            out, memories[i] = model.step(*given.at(t), memory=memories[i], t=t)
            outputs[i].append(out)
    assert torch.equal(torch.stack(outputs[0], dim=1), walk(model, one))
    assert torch.equal(torch.stack(outputs[1], dim=1), walk(model, two))


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_states_and_actions_at_initialisation_give_finite_gradients(kind: str, dtype: torch.dtype) -> None:
    model = build(kind, perturb=0.0).to(dtype).train()
    given = inputs(model)
    zeroed = given.map(torch.zeros_like)._replace(features=given.features)
    loss(model, zeroed.map(lambda x: x.to(dtype))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("kind", LEARNED)
def test_every_parameter_learns(kind: str) -> None:
    model = build(kind).train()
    loss(model, inputs(model)).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name.startswith("extrinsics_encoder")
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        rows = parameter.grad if ".memories." in name else parameter.grad[None]  # each of the five memories by itself
        assert all(row.norm() > 0 for row in rows), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_a_tensor_of_its_own(kind: str) -> None:
    model = build(kind)
    first = inputs(model).at(0)
    given = first.features.clone()
    with torch.no_grad():
        prediction, _ = model.step(*first, memory=model.initial_state(3), t=0)
        prediction += 1
    assert torch.equal(first.features, given)
