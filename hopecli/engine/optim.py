"""Parameter groups, and optimizers whose groups may step less often than the loop that drives them.

A group with period k takes its step on every k-th training step, on the mean of the gradients since its last one, and
is untouched in between. Source: Nested Learning (Behrouz et al. 2025), Eq. 31.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hopecli.config.schema import HopeSettings, ModelSettings, OptimizerSettings
from hopecli.models.protocol import PredictorModule

MOMENTS = ("exp_avg", "exp_avg_sq")  # what torch's AdamW keeps for each parameter beside `step`


@dataclass(frozen=True)
class Group:
    """Named parameters that share a learning-rate scale, weight decay and update period."""

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float
    weight_decay: float
    period: int = 1


def parameter_groups(model: PredictorModule, settings: OptimizerSettings, model_settings: ModelSettings) -> list[Group]:
    """Memories, CMS levels and the rest; no weight decay on biases, norms and 1-D parameters.

    The groups are proved complete and disjoint over the trainable parameters.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    special: dict[int, tuple[str, float, float, int]] = {}
    if isinstance(model_settings, HopeSettings):
        from hopecli.models.hope.predictor import HopePredictor

        assert isinstance(model, HopePredictor)
        for p in model.memory_parameters():
            special[id(p)] = ("memories", settings.titan_lr_scale, settings.memory_weight_decay, 1)
        for level, period in enumerate(model_settings.cms_update_periods):
            for p in model.cms_parameters(level):
                special[id(p)] = (f"cms_{level}", settings.cms_lr_scale, settings.weight_decay, period)
    members: dict[tuple[str, float, float, int], list[nn.Parameter]] = {}
    for _, p in named:
        name, scale, decay, period = special.get(id(p), ("rest", 1.0, settings.weight_decay, 1))
        if p.dim() < 2:
            name, decay = f"{name}_no_decay", 0.0
        members.setdefault((name, scale, decay, period), []).append(p)
    groups = [Group(name, ps, scale, decay, period) for (name, scale, decay, period), ps in members.items()]
    listed = [id(p) for group in groups for p in group.parameters]
    assert len(listed) == len(set(listed)), "a parameter is in two groups"
    assert set(listed) == {id(p) for _, p in named}, "the groups do not cover the trainable parameters"
    return groups


def waiting_parameters(
    model: PredictorModule, settings: OptimizerSettings, model_settings: ModelSettings
) -> list[nn.Parameter]:
    """Those of which training keeps gradients from step to step: their groups wait for their period."""
    groups = parameter_groups(model, settings, model_settings)
    return [p for group in groups if group.period > 1 for p in group.parameters]


def torch_groups(groups: Iterable[Group]) -> list[dict[str, Any]]:
    """The groups as torch's optimizers take them, with what `GradientHold` keeps there."""
    return [
        {
            "params": group.parameters,
            "weight_decay": group.weight_decay,
            "lr_scale": group.lr_scale,
            "period": group.period,
            "waited": 0,
            "name": group.name,
        }
        for group in groups
    ]


class GradientHold:
    """Puts aside the gradients of groups whose period has not come; the same rule for every optimizer."""

    def __init__(self) -> None:
        self.accumulated: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def before_step(self, param_groups: list[dict[str, Any]]) -> None:
        """To be called before each step: groups that are not due only accumulate, and lose their gradients."""
        for index, group in enumerate(param_groups):
            if group["period"] > 1:
                self._hold(index, group)

    def _hold(self, index: int, group: dict[str, Any]) -> None:
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in group["params"]]
        sums = self.accumulated.get(index)
        if sums is None:
            sums = [g.clone() for g in gradients]
        else:
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient)
        group["waited"] += 1
        due = group["waited"] == group["period"]
        for p, total in zip(group["params"], sums, strict=True):
            p.grad = total / group["period"] if due else None
        if due:
            group["waited"] = 0
            self.accumulated.pop(index, None)
        else:
            self.accumulated[index] = sums

    def restore(self, accumulated: dict[int, list[Tensor]], param_groups: list[dict[str, Any]]) -> None:
        """Take over copies of saved sums, on their parameters' devices."""
        self.accumulated = {
            int(index): [
                t.to(p.device, copy=True) for t, p in zip(sums, param_groups[int(index)]["params"], strict=True)
            ]
            for index, sums in accumulated.items()
        }


class PeriodicAdamW(torch.optim.AdamW):
    """AdamW over groups with update periods; the gradients a group has accumulated are part of its state_dict."""

    def __init__(self, groups: Iterable[Group], settings: OptimizerSettings, *, fused: bool):
        # None, not False, leaves torch the choice: its kernels over many parameters at once where the device has them.
        chosen = True if fused else None
        super().__init__(torch_groups(groups), lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=chosen)
        self.hold = GradientHold()

    def set_learning_rate(self, lr: float) -> None:
        """The schedule's value for this step; each group multiplies it by its scale."""
        for group in self.param_groups:
            group["lr"] = lr * group["lr_scale"]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One training step: groups that are not due only accumulate their gradients. The loss of `closure`, if any."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.hold.before_step(self.param_groups)
        super().step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """AdamW's state and the gradients waiting for their group's turn."""
        return {**super().state_dict(), "accumulated": self.hold.accumulated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; ValueError when they are not of these parameters and groups."""
        super().load_state_dict(fitted(state_dict, self.param_groups, MOMENTS))
        self.hold.restore(state_dict["accumulated"], self.param_groups)


def fitted(saved: dict[str, Any], param_groups: list[dict[str, Any]], moments: tuple[str, ...]) -> dict[str, Any]:
    """A copy of an optimizer's saved state as its load_state_dict takes it; ValueError when it is not of these groups.

    moments: what the optimizer keeps of each parameter beside `step`; () when it keeps nothing. Checked here because
    torch does not: its fused kernel reads past the end of a state of another shape.
    """
    check_saved(saved, param_groups, moments)
    every = [p for group in param_groups for p in group["params"]]
    # A view has a shape without the memory for it, which the kernel walks through all the same: hence copies.
    state = {
        number: {"step": entry["step"], **{key: torch.empty_like(every[number]).copy_(entry[key]) for key in moments}}
        for number, entry in saved["state"].items()
    }
    pairs = zip(param_groups, saved["param_groups"], strict=True)
    groups = [{**own, **{key: group[key] for key in ("params", "lr", "waited")}} for own, group in pairs]
    return {"state": state, "param_groups": groups}


def check_saved(saved: dict[str, Any], param_groups: list[dict[str, Any]], moments: tuple[str, ...]) -> None:
    """ValueError unless an optimizer's saved state fits the groups: their number, names, settings and sizes, the
    shape of every state, and the gradients that wait in the groups that have put some aside."""
    groups, state, waiting = (saved.get(key) for key in ("param_groups", "state", "accumulated"))
    if not (isinstance(groups, list) and isinstance(state, dict) and isinstance(waiting, dict)):
        raise ValueError("it holds no optimizer state")
    if len(groups) != len(param_groups):
        raise ValueError(f"it has {len(groups)} groups of parameters, the model has {len(param_groups)}")
    numbered: dict[int, Tensor] = {}
    waited = set()
    for index, (group, own) in enumerate(zip(groups, param_groups, strict=True)):
        _check_group(group, own, first=len(numbered))
        numbered |= dict(zip(group["params"], own["params"], strict=True))
        if group["waited"]:
            waited.add(index)
    for number, entry in state.items():
        p = numbered.get(number)
        if p is None or not isinstance(entry, dict) or entry.keys() != {"step", *moments}:
            raise ValueError(f"it does not hold the optimizer's state of parameter {number}")
        check_shape(entry["step"], torch.Size(), f"step of parameter {number}")
        for key in moments:
            check_shape(entry[key], p.shape, f"{key} of parameter {number}")
    if waiting.keys() != waited:
        raise ValueError("its waiting gradients are not those of the groups that wait")
    for index, sums in waiting.items():
        own = param_groups[index]
        if not isinstance(sums, list) or len(sums) != len(own["params"]):
            raise ValueError(f"it does not hold one waiting gradient for each parameter of {own['name']}")
        for total, p in zip(sums, own["params"], strict=True):
            check_shape(total, p.shape, f"waiting gradient of {own['name']}")


def _check_group(group: object, own: dict[str, Any], *, first: int) -> None:
    """ValueError unless a saved group is `own`, with its parameters numbered from `first`; only lr and waited move."""
    size = len(own["params"])
    name = f"group {own['name']}"
    numbers = group.get("params") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(numbers, list) or len(numbers) != size:
        raise ValueError(f"{name} does not have {size} parameters")
    for key in ("name", "period", "lr_scale", "weight_decay", "betas", "eps"):
        if key in own and (type(group.get(key)) is not type(own[key]) or group[key] != own[key]):
            raise ValueError(f"{name} has another {key}")
    if not all(isinstance(n, int) for n in numbers) or numbers != list(range(first, first + size)):
        raise ValueError(f"the parameters of {name} are not numbered in order")
    if not isinstance(group.get("waited"), int) or not 0 <= group["waited"] < own["period"]:
        raise ValueError(f"{name} has not waited for less than its period")
    if not isinstance(group.get("lr"), float):
        raise ValueError(f"{name} has no learning rate")


def check_shape(value: object, shape: torch.Size, name: str) -> None:
    """ValueError unless `value` is a dense tensor of floating-point numbers of that shape."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or not value.is_floating_point():
        raise ValueError(f"the {name} is not a tensor of numbers")
    if value.shape != shape:
        raise ValueError(f"the {name} has the shape {list(value.shape)}, not {list(shape)}")
