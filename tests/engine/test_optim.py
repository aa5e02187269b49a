"""Parameter groups, and AdamW whose groups step on the mean gradient of their period."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hopecli.config.schema import HopeSettings, OptimizerSettings, ViTACSettings
from hopecli.engine.optim import Group, PeriodicAdamW, parameter_groups
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule

SETTINGS = OptimizerSettings(
    lr=0.1,
    betas=(0.8, 0.95),  # not torch's defaults, nor is eps
    weight_decay=0.05,
    titan_lr_scale=0.2,
    cms_lr_scale=0.5,
    memory_weight_decay=0.005,
    eps=1e-6,
)
VIT = ViTACSettings(width=12, depth=1, num_heads=2)
HOPE = HopeSettings(
    width=12, depth=1, num_heads=2, memory_multiplier=1.0, cms_multipliers=(1.0, 2.0), cms_update_periods=(1, 4)
)


def build(settings: ViTACSettings | HopeSettings) -> PredictorModule:
    return build_model(settings, grid=2, embed_dim=6, action_dim=2, seed=0)


def placed(model: PredictorModule, settings: ViTACSettings | HopeSettings) -> dict[str, tuple[float, float, int]]:
    """Each parameter's learning-rate scale, weight decay and period; a parameter in two groups fails."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, tuple[float, float, int]] = {}
    for group in parameter_groups(model, SETTINGS, settings):
        for p in group.parameters:
            assert names[id(p)] not in found
            found[names[id(p)]] = (group.lr_scale, group.weight_decay, group.period)
    return found


@pytest.mark.parametrize("settings", [VIT, HOPE])
def test_groups_cover_the_trainable_parameters(settings: ViTACSettings | HopeSettings) -> None:
    model = build(settings)
    assert set(placed(model, settings)) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert "extrinsics_encoder.weight" not in placed(model, settings)  # frozen without extrinsics


@pytest.mark.parametrize("settings", [VIT, HOPE])
def test_no_decay_on_one_dimensional_parameters(settings: ViTACSettings | HopeSettings) -> None:
    model = build(settings)
    decays = {name: decay for name, (_, decay, _) in placed(model, settings).items()}
    for name, p in model.named_parameters():
        if p.requires_grad:
            assert (decays[name] == 0.0) == (p.dim() < 2), name


def test_memories_and_levels_have_their_own_scale_decay_and_period() -> None:
    for name, found in placed(build(HOPE), HOPE).items():
        if ".memories." in name:
            expected = (0.2, 0.005, 1)
        elif ".cms." in name:
            level = int(name.split(".cms.")[1][0])
            expected = (0.5, 0.05 if name.endswith(("fc1.weight", "fc2.weight")) else 0.0, (1, 4)[level])
        else:
            expected = (1.0, found[1], 1)
        assert found == expected, name


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((3, 2), (4,))]


def gradient(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator) for shape in ((3, 2), (4,))]


def periodic(params: list[nn.Parameter], period: int) -> PeriodicAdamW:
    """The first parameter steps every time, the second once per period at half the learning rate."""
    groups = [Group("fast", params[:1], 1.0, 0.05), Group("slow", params[1:], 0.5, 0.01, period)]
    return PeriodicAdamW(groups, SETTINGS, fused=False)


def run(optimizer: PeriodicAdamW, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        optimizer.set_learning_rate(0.1 / (1 + step))
        for p, g in zip(params, gradient(step), strict=True):
            p.grad = g.clone()
        optimizer.step()
        optimizer.zero_grad()


def plain(p: nn.Parameter, weight_decay: float) -> torch.optim.AdamW:
    return torch.optim.AdamW([p], lr=0.1, betas=SETTINGS.betas, eps=SETTINGS.eps, weight_decay=weight_decay)


def test_period_one_is_adamw() -> None:
    params, reference = parameters(), parameters()
    optimizer, other = periodic(params, 1), plain(reference[0], 0.05)
    for step in range(3):
        run(optimizer, params, range(step, step + 1))
        other.param_groups[0]["lr"] = 0.1 / (1 + step)
        reference[0].grad = gradient(step)[0]
        other.step()
        assert torch.equal(params[0], reference[0])


def test_untouched_between_its_steps_then_one_step_on_the_mean_gradient() -> None:
    params, reference = parameters(), parameters()
    optimizer, other = periodic(params, 3), plain(reference[1], 0.01)
    for start in (0, 3, 6):  # the second and third update also depend on AdamW's moments
        before = [p.detach().clone() for p in params]
        run(optimizer, params, range(start, start + 2))
        assert torch.equal(params[1], before[1])
        assert not torch.equal(params[0], before[0])
        run(optimizer, params, range(start + 2, start + 3))
        other.param_groups[0]["lr"] = 0.5 * 0.1 / (1 + start + 2)
        reference[1].grad = torch.stack([gradient(start + i)[1] for i in range(3)]).mean(dim=0)
        other.step()
        # the mean is summed in another order: float32 rounding
        torch.testing.assert_close(params[1], reference[1], rtol=0, atol=1e-6)
        assert not torch.equal(params[1], before[1])


def test_a_closure_is_run_before_the_groups_are_held_back() -> None:
    params, before = parameters(), parameters()

    def closure() -> float:
        torch.cat([p.flatten() for p in params]).sum().backward()
        return 0.5

    assert periodic(params, 2).step(closure) == 0.5
    assert not torch.equal(params[0], before[0])
    assert torch.equal(params[1], before[1])  # in its second step


def test_a_step_without_gradient_counts_as_zero() -> None:
    params, reference = parameters(), parameters()
    optimizer, other = periodic(params, 2), plain(reference[1], 0.01)
    optimizer.set_learning_rate(0.1)
    params[1].grad = torch.ones(4)
    optimizer.step()
    params[1].grad = None
    optimizer.step()
    other.param_groups[0]["lr"] = 0.05
    reference[1].grad = torch.full((4,), 0.5)
    other.step()
    assert torch.equal(params[1], reference[1])


def test_gradient_tensors_may_be_reused_between_steps() -> None:
    params, reference = parameters(), parameters()
    optimizer, other = periodic(params, 2), periodic(reference, 2)
    buffers = [torch.zeros_like(p) for p in params]
    for step in range(2):
        for p, buffer, g in zip(params, buffers, gradient(step), strict=True):
            buffer.copy_(g)  # as zero_grad(set_to_none=False) and a new backward pass would
            p.grad = buffer
        optimizer.step()
    for step in range(2):
        for p, g in zip(reference, gradient(step), strict=True):
            p.grad = g
        other.step()
    assert torch.equal(params[1], reference[1])


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resuming_in_the_middle_of_a_period_changes_nothing(stop: int) -> None:
    whole = parameters()
    run(periodic(whole, 4), whole, range(9))

    first = parameters()
    optimizer = periodic(first, 4)
    run(optimizer, first, range(stop))
    state, values = through_a_file(optimizer.state_dict()), [p.detach().clone() for p in first]
    run(optimizer, first, range(stop, 9))  # going on must not change what was saved

    second = [nn.Parameter(value) for value in values]
    resumed = periodic(second, 4)
    resumed.load_state_dict(state)
    run(resumed, second, range(stop, 9))
    for a, b, c in zip(whole, first, second, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_a_loaded_state_is_a_copy() -> None:
    params = parameters()
    optimizer = periodic(params, 4)
    run(optimizer, params, range(2))
    state = copy.deepcopy(optimizer.state_dict())
    resumed = periodic(parameters(), 4)
    resumed.load_state_dict(state)
    run(resumed, resumed.param_groups[0]["params"] + resumed.param_groups[1]["params"], range(2, 3))
    assert torch.equal(state["accumulated"][1][0], optimizer.state_dict()["accumulated"][1][0])


def test_learning_rate_is_scaled_per_group() -> None:
    optimizer = periodic(parameters(), 2)
    optimizer.set_learning_rate(0.3)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.3, 0.15])


def set_in(*path: Any, to: Any) -> Callable[[Any], None]:
    """Replaces what lies at a path of keys."""

    def damage(tree: Any) -> None:
        for key in path[:-1]:
            tree = tree[key]
        tree[path[-1]] = to

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda saved: saved.clear(), "holds no optimizer state"),
        (set_in("state", to=None), "holds no optimizer state"),
        (set_in("param_groups", to=[]), "it has 0 groups"),
        (set_in("param_groups", 0, to=None), "group fast does not have 1 parameters"),
        (set_in("param_groups", 1, "params", to=[1, 2]), "group slow does not have 1 parameters"),
        (set_in("param_groups", 1, "params", to=[0]), "parameters of group slow are not numbered"),
        (set_in("param_groups", 1, "params", to=[torch.ones(2)]), "parameters of group slow are not numbered"),
        (set_in("param_groups", 1, "name", to="fast"), "group slow has another name"),
        (set_in("param_groups", 1, "betas", to=torch.ones(2)), "group slow has another betas"),
        (set_in("param_groups", 1, "period", to=5), "group slow has another period"),
        (set_in("param_groups", 1, "lr_scale", to=1.0), "group slow has another lr_scale"),
        (set_in("param_groups", 1, "weight_decay", to=0.0), "group slow has another weight_decay"),
        (set_in("param_groups", 1, "eps", to=1e-8), "group slow has another eps"),
        (set_in("param_groups", 1, "waited", to=4), "group slow has not waited"),
        (set_in("param_groups", 1, "waited", to=-1), "group slow has not waited"),
        (set_in("param_groups", 1, "waited", to=0), "waiting gradients are not those"),
        (set_in("param_groups", 0, "lr", to=None), "group fast has no learning rate"),
        (set_in("state", 7, to={}), "the optimizer's state of parameter 7"),
        (set_in("state", 0, to=[]), "the optimizer's state of parameter 0"),
        (set_in("state", 0, to={"step": torch.tensor(1.0)}), "the optimizer's state of parameter 0"),
        (set_in("state", 0, "step", to=torch.ones(3)), r"step of parameter 0 has the shape \[3\], not \[\]"),
        (set_in("state", 0, "step", to=1), "step of parameter 0 is not a tensor"),
        (set_in("state", 0, "exp_avg", to=torch.ones(2, 3)), r"exp_avg of parameter 0 has the shape \[2, 3\]"),
        (set_in("state", 0, "exp_avg_sq", to=torch.ones(3, 2).to_sparse()), "exp_avg_sq of parameter 0 is not"),
        (set_in("state", 0, "exp_avg_sq", to=torch.ones(3, 2, dtype=torch.long)), "exp_avg_sq of parameter 0 is not"),
        (set_in("accumulated", to={}), "waiting gradients are not those"),
        (set_in("accumulated", 1, to=None), "one waiting gradient for each parameter of slow"),
        (set_in("accumulated", 1, to=[torch.ones(5)]), r"waiting gradient of slow has the shape \[5\], not \[4\]"),
    ],
)
def test_a_state_of_other_parameters_is_refused(damage: Callable[[Any], None], words: str) -> None:
    params = parameters()
    optimizer = periodic(params, 4)
    run(optimizer, params, range(2))
    saved = through_a_file(optimizer.state_dict())
    resumed = periodic(parameters(), 4)
    damage(saved)
    with pytest.raises(ValueError, match=words):
        resumed.load_state_dict(saved)
    assert not resumed.state
    assert not resumed.hold.accumulated


def test_a_view_with_less_memory_than_its_shape_is_copied() -> None:
    """The fused kernel walks through memory, whatever the strides say."""
    params = parameters()
    optimizer = PeriodicAdamW([Group("all", params, 1.0, 0.0)], SETTINGS, fused=True)
    run(optimizer, params, range(1))
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = torch.ones(1).expand(3, 2)
    optimizer.load_state_dict(saved)
    assert optimizer.state[params[0]]["exp_avg"].is_contiguous()


def test_only_what_training_moves_is_taken_from_the_saved_groups() -> None:
    optimizer = periodic(parameters(), 4)
    saved = optimizer.state_dict()
    saved["param_groups"][0].update(lr=0.5, capturable="x", foreach=True)
    del saved["param_groups"][0]["amsgrad"]
    optimizer.load_state_dict(saved)
    group = optimizer.param_groups[0]
    assert (group["lr"], group["capturable"], group["foreach"], group["amsgrad"]) == (0.5, False, None, False)
    assert group["fused"] is None  # not False, which has torch step through the parameters one by one on CUDA
