"""Adapting part of a model: groups -> parameter lists, one guarded gradient step, and swapping states bit-exactly.

Groups are named in the `adapt` setting and joined by +. Only the adapted subset needs gradients, so autograd builds no
graph below its first parameter and the other weights never get gradient buffers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hopecli.config.schema import AdaptationSettings, HopeSettings, ModelSettings
from hopecli.config.schema.running import ADAPT_GROUPS
from hopecli.engine.optim import GradientHold, Group, torch_groups
from hopecli.errors import SettingsError
from hopecli.models.attention import Block, FrameCausalAttention
from hopecli.models.convlstm import ConvLSTM
from hopecli.models.hope.predictor import HopePredictor
from hopecli.models.hope.titans import HopeBlock
from hopecli.models.protocol import Memory, PredictorModule


def group_parameters(model: PredictorModule, group: str) -> set[str]:
    """Names of a group's trainable parameters in this model; empty when the group means nothing for it.

    layernorm: weights and biases of every LayerNorm. attn_proj: the attention output projection (HOPE: out_proj).
    bias: every bias. mlp_out: the layer that writes into the residual stream (ViT: fc2, SwiGLU fc3; HOPE: fc2 of each
    CMS level; ConvLSTM: the decoder).
    """
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    if group == "bias":
        return {name for name in trainable if name.endswith(".bias")}
    chosen: set[int] = set()
    for module in model.modules():
        chosen |= {id(p) for layer in _layers(module, group) for p in layer.parameters()}
    return {name for name, p in model.named_parameters() if name in trainable and id(p) in chosen}


def _layers(module: nn.Module, group: str) -> list[nn.Module]:
    """The layers that a module contributes to a group."""
    if group == "layernorm":
        return [module] if isinstance(module, nn.LayerNorm) else []
    if group == "attn_proj":
        if isinstance(module, FrameCausalAttention):
            return [module.proj]
        return [module.out_proj] if isinstance(module, HopeBlock) else []
    assert group == "mlp_out", group
    if isinstance(module, Block):
        return [module.mlp.output]
    if isinstance(module, HopeBlock):
        return [level.get_submodule("fc2") for level in module.cms]
    return [module.decoder] if isinstance(module, ConvLSTM) else []


def adapted_groups(
    model: PredictorModule, adapt: str, model_settings: ModelSettings, weight_decay: float
) -> list[Group]:
    """The parameters that `adapt` names, each once, in the model's order; empty for none.

    HOPE: whatever belongs to a CMS level (norm, fc1, fc2) steps at that level's update period in every group, all else
    at every step. No decay on 1-D parameters. SettingsError for an unknown group and for one that matches no parameter
    of this kind of model.
    """
    if adapt == "none":
        return []
    allowed = [group for group in ADAPT_GROUPS if group_parameters(model, group)]
    chosen: set[str] = set()
    for group in adapt.split("+"):
        if group not in allowed:
            known = group in ADAPT_GROUPS
            raise SettingsError(
                f"{group} matches no parameter of a {model_settings.kind} model" if known else "unknown group",
                where="adaptation.adapt",
                value=adapt,
                fix=f"a {model_settings.kind} model can adapt {', '.join(['none', *allowed])}",
            )
        chosen |= group_parameters(model, group)
    periods: dict[int, int] = {}
    if isinstance(model_settings, HopeSettings):
        assert isinstance(model, HopePredictor)
        for level, period in enumerate(model_settings.cms_update_periods):
            periods |= {id(p): period for p in model.cms_parameters(level)}
    members: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if name in chosen:
            members.setdefault((periods.get(id(p), 1), weight_decay if p.dim() > 1 else 0.0), []).append(p)
    return [Group(f"period_{period}", ps, 1.0, decay, period) for (period, decay), ps in members.items()]


@contextmanager
def only_adapted(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """requires_grad for `parameters` alone while the block runs; afterwards every flag is as it was and no
    parameter has a gradient."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    adapted = {id(p) for p in parameters}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in adapted)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None


@dataclass(frozen=True)
class AdapterState:
    """Adapted weights and buffers (copies), optimizer state with waiting gradients, and the memory (a value)."""

    weights: list[Tensor]
    buffers: list[Tensor]
    optimizer: dict[str, Any]
    memory: Memory


@dataclass(frozen=True)
class StepOutcome:
    """One update: the loss before it, gradient norms before and after clipping; done is False when it was skipped.

    undid: its loss was not finite, so that the update before it was taken back.
    """

    done: bool
    loss: float
    norm: float = math.nan
    clipped_norm: float = math.nan
    undid: bool = False


class Adapter:
    """A model whose adapted subset moves, with its optimizer and the memory that the next clip starts from.

    memory None is the model's initial state.
    """

    def __init__(self, model: PredictorModule, groups: Sequence[Group], settings: AdaptationSettings):
        self.model, self.grad_clip = model, settings.grad_clip
        self.parameters = [p for group in groups for p in group.parameters]
        self.optimizer = _optimizer(groups, settings) if groups else None
        self.hold = GradientHold()
        self.memory: Memory = None
        self.unproven: AdapterState | None = None  # the state before the last step, until a loss after it was finite
        self.initial = self.snapshot()

    def step(self, loss: Tensor) -> StepOutcome:
        """One clipped optimizer step down the gradient of `loss`; skipped when loss, gradient or the weights after it
        are not finite: weights and optimizer are then the last that gave a finite loss."""
        assert self.optimizer is not None, "nothing is adapted"
        value = float(loss.detach())
        if not math.isfinite(value):
            return StepOutcome(False, value, undid=self.undo())
        self.prove()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        limit = math.inf if self.grad_clip is None else self.grad_clip
        norm = float(nn.utils.clip_grad_norm_(self.parameters, limit))
        if not math.isfinite(norm):
            self.optimizer.zero_grad(set_to_none=True)
            return StepOutcome(False, value, norm)
        clipped = float(nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        before = self.snapshot()
        self.hold.before_step(self.optimizer.param_groups)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if not all_finite(self.parameters):
            self.restore(before)
            return StepOutcome(False, value, norm, clipped)
        self.unproven = before
        return StepOutcome(True, value, norm, clipped)

    def undo(self) -> bool:
        """Take back the last step, after which something was not finite; False when it has proved itself before."""
        if self.unproven is None:
            return False
        self.restore(self.unproven)
        self.unproven = None
        return True

    def prove(self) -> None:
        """A loss or prediction from the present weights was finite: the last step stays."""
        self.unproven = None

    @torch.no_grad()
    def snapshot(self) -> AdapterState:
        """A copy of everything that adaptation changes."""
        optimizer = {} if self.optimizer is None else self.optimizer.state_dict()
        weights, buffers = [p.clone() for p in self.parameters], [b.clone() for b in self.model.buffers()]
        return AdapterState(weights, buffers, _cloned({**optimizer, "accumulated": self.hold.accumulated}), self.memory)

    @torch.no_grad()
    def restore(self, state: AdapterState) -> None:
        """Go back to a snapshot, bit for bit; the snapshot stays usable."""
        for p, weight in zip(self.parameters, state.weights, strict=True):
            p.copy_(weight)
        for buffer, saved in zip(self.model.buffers(), state.buffers, strict=True):
            buffer.copy_(saved)
        if self.optimizer is not None:
            # torch keeps the tensors it is given, so a snapshot must hand out copies.
            self.optimizer.load_state_dict(
                _cloned({key: value for key, value in state.optimizer.items() if key != "accumulated"})
            )
            self.hold.restore(state.optimizer["accumulated"], self.optimizer.param_groups)
        self.memory = state.memory

    def reset(self) -> None:
        """Back to the state at construction: checkpoint weights, a new optimizer, no memory."""
        self.restore(self.initial)
        self.unproven = None

    @torch.no_grad()
    def drift(self) -> float | None:
        """|theta - theta_0| / |theta_0| over the adapted parameters; None when nothing is adapted."""
        if not self.parameters:
            return None
        change = nn.utils.get_total_norm(
            [p - start for p, start in zip(self.parameters, self.initial.weights, strict=True)]
        )
        size = float(nn.utils.get_total_norm(self.initial.weights))
        return float(change) / size if size > 0.0 else None


@contextmanager
def swapped(adapter: Adapter, state: AdapterState) -> Iterator[None]:
    """`state` in place of the adapter's own while the block runs; afterwards weights, buffers, optimizer and memory
    are bit for bit what they were."""
    own = adapter.snapshot()
    adapter.restore(state)
    try:
        yield
    finally:
        adapter.restore(own)


def _cloned(tree: Any) -> Any:
    """Nested dicts and lists with every tensor cloned."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: _cloned(value) for key, value in tree.items()}
    return [_cloned(value) for value in tree] if isinstance(tree, list) else tree


def _optimizer(groups: Sequence[Group], settings: AdaptationSettings) -> torch.optim.Optimizer:
    # The largest factors that torch hands to a kernel: Adam's first step divides by its bias correction.
    scale = 1.0 if settings.optimizer == "sgd" else 1.0 / (1.0 - settings.betas[0])
    decay = max(group.weight_decay for group in groups)
    factors = {"lr": settings.lr * scale, "weight_decay": decay * max(1.0, settings.lr)}
    for key, factor in factors.items():
        if factor > torch.finfo(torch.float32).max:
            where, value = f"adaptation.{key}", getattr(settings, key)
            raise SettingsError("a step this long overflows float32", where=where, value=value, fix="use a lower value")
    if settings.optimizer == "sgd":
        return torch.optim.SGD(torch_groups(groups), lr=settings.lr)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(torch_groups(groups), lr=settings.lr, betas=settings.betas)


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element is finite; one read from the device."""
    return not tensors or bool(torch.stack([t.isfinite().all() for t in tensors]).all())


def layernorm_backward_works(device: torch.device, width: int) -> bool:
    """Whether LayerNorm's backward gives finite gradients on this device: a real call, since some MPS releases do
    not."""
    x = torch.linspace(-1.0, 1.0, 4 * width, device=device).reshape(4, width).requires_grad_()
    norm = nn.LayerNorm(width).to(device)
    norm(x).pow(2).sum().backward()
    return all_finite([g for g in (x.grad, norm.weight.grad, norm.bias.grad) if g is not None])
