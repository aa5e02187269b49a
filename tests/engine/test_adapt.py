"""One guarded step on the adapted subset, and swapping states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hopecli.config.schema import AdaptationSettings, Settings
from hopecli.data.loader import collate
from hopecli.engine.adapt import (
    Adapter,
    adapted_groups,
    layernorm_backward_works,
    only_adapted,
    swapped,
)
from hopecli.engine.tta_clip import adapt_on_rollout, make_plan, memory_after, prepare
from hopecli.engine.tta_state import memory_tensors, pack_memory, unpack_memory
from tests.engine.streams import FRAMES, build, cpu, sample, settings
from tests.engine.test_adapt_groups import EXPECTED, named


def adapter_for(s: Settings) -> Adapter:
    model = build(s)
    return Adapter(model, adapted_groups(model, s.adaptation.adapt, s.model, s.adaptation.weight_decay), s.adaptation)


def given(s: Settings, seed: int = 3) -> Any:
    loaded = collate([sample("clip_00000", seed)]).clips
    assert loaded is not None
    return prepare(loaded, plan_of(s), cpu())


def plan_of(s: Settings) -> Any:
    return make_plan(s.adaptation, s.objective, FRAMES)


def learn(adapter: Adapter, s: Settings, seed: int = 3) -> Any:
    with only_adapted(adapter.model, adapter.parameters):
        return adapt_on_rollout(adapter, given(s, seed), plan_of(s), cpu())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["vit_ac", "hope", "convlstm"])
def test_only_the_adapted_subset_moves_and_nothing_keeps_a_gradient(kind: str) -> None:
    s = settings(kind, adapt="bias" if kind == "convlstm" else "layernorm+mlp_out")
    adapter = adapter_for(s)
    before, flags = weights(adapter.model), [p.requires_grad for p in adapter.model.parameters()]
    adapted = set(named(adapter.model, s, s.adaptation.adapt))
    learn(adapter, s)
    moved = {name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])}
    slow = {name for name in adapted if ".cms.1." in name}  # two steps, period four
    # The embeddings of frames and actions enter before; a bias that reaches no output would not move.
    assert moved == adapted - slow
    assert [p.requires_grad for p in adapter.model.parameters()] == flags
    assert all(p.grad is None for p in adapter.model.parameters())


def test_a_gradient_ends_with_the_block_it_was_taken_in() -> None:
    adapter = adapter_for(settings("convlstm", adapt="bias"))
    with only_adapted(adapter.model, adapter.parameters):
        torch.stack([p.sum() for p in adapter.parameters]).sum().backward()
        assert all(p.grad is not None for p in adapter.parameters)
    assert all(p.grad is None for p in adapter.model.parameters())


def test_a_slow_level_moves_on_its_fourth_step() -> None:
    s = settings("hope", adapt="mlp_out", steps=3)
    adapter, name = adapter_for(s), "hope_blocks.0.cms.1.fc2.weight"
    start = weights(adapter.model)[name]
    learn(adapter, s)
    assert torch.equal(weights(adapter.model)[name], start)
    learn(adapter, settings("hope", adapt="mlp_out", steps=1))
    assert not torch.equal(weights(adapter.model)[name], start)


class GraphProbe:
    """Which modules' outputs are part of a graph."""

    def __init__(self, model: nn.Module):
        self.in_graph: dict[str, bool] = {}
        for name, module in model.named_modules():
            module.register_forward_hook(self.hook(name))

    def hook(self, name: str) -> Any:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.in_graph[name] = self.in_graph.get(name, False) or output.requires_grad

        return record


def test_no_graph_below_the_first_adapted_parameter() -> None:
    s = settings("vit_ac", adapt="attn_proj", steps=1, T_rollout=1)
    adapter = adapter_for(s)
    probe = GraphProbe(adapter.model)
    saved: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    def count(parameters: list[nn.Parameter]) -> int:
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t), only_adapted(adapter.model, parameters):
            adapt_on_rollout(adapter, given(s), plan_of(s), cpu())
        return sum(saved)

    part = count(adapter.parameters)
    assert not probe.in_graph["predictor_embed"]
    assert not probe.in_graph["predictor_blocks.0.attn.qkv"]
    assert probe.in_graph["predictor_blocks.0.attn.proj"]
    assert probe.in_graph["predictor_blocks.1.attn.qkv"]
    assert part < 0.8 * count(list(adapter.model.parameters()))  # frozen weights' inputs need not be kept


@pytest.mark.parametrize("adapt", ["layernorm", "attn_proj"])
@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_one_step_is_the_optimizer_named(name: str, adapt: str) -> None:
    changes = {"optimizer": name, "adapt": adapt, "weight_decay": 0.1}
    s = settings("vit_ac", **changes, steps=1, grad_clip=None, lr=0.05, betas=[0.8, 0.9])
    adapter, reference = adapter_for(s), build(s)
    chosen = {n: p for n, p in reference.named_parameters() if n in EXPECTED["vit_ac", adapt]}
    groups: list[dict[str, Any]] = [  # only matrices decay, of which a LayerNorm has none
        {"params": [p for p in chosen.values() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in chosen.values() if p.dim() == 1], "weight_decay": 0.0},
    ]
    assert len(groups[0]["params"]) == (2 if adapt == "attn_proj" else 0)
    kinds = {
        "adam": lambda: torch.optim.Adam(groups, lr=0.05, betas=(0.8, 0.9)),
        "adamw": lambda: torch.optim.AdamW(groups, lr=0.05, betas=(0.8, 0.9)),
        "sgd": lambda: torch.optim.SGD(groups, lr=0.05),
    }
    optimizer = kinds[name]()
    h = given(s)
    clip, memory = h.clip, reference.initial_state(1)
    out, _ = reference.step(clip.features[:, 0], clip.actions[:, 0], clip.states[:, 0], None, memory=memory, t=0)
    first = nn.functional.layer_norm(out, out.shape[-1:], eps=1e-5)
    (first - h.target[:, 0]).abs().mean().backward()
    optimizer.step()
    one = settings("vit_ac", **{**s.adaptation.model_dump(), "T_rollout": 1})
    with only_adapted(adapter.model, adapter.parameters):
        adapt_on_rollout(adapter, given(one), plan_of(one), cpu())
    moved = dict(adapter.model.named_parameters())
    assert all(torch.equal(moved[n], expected) for n, expected in chosen.items())


@pytest.mark.parametrize(("limit", "scale"), [(0.5, 1.0), (0.5, 1e-3), (None, 1.0)])
def test_clipping_norms_are_what_they_say(limit: float | None, scale: float) -> None:
    s = settings("vit_ac", grad_clip=limit, optimizer="sgd", lr=1.0)
    adapter = adapter_for(s)
    before = [p.detach().clone() for p in adapter.parameters]
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator) * scale for p in adapter.parameters]
    loss = sum(((p * d).sum() for p, d in zip(adapter.parameters, directions, strict=True)), torch.zeros(()))
    outcome = adapter.step(loss)
    norm = math.sqrt(sum(float(d.double().square().sum()) for d in directions))
    expected = norm if limit is None else min(norm, limit)
    moved = math.sqrt(
        sum(float((p.detach() - b).double().square().sum()) for p, b in zip(adapter.parameters, before, strict=True))
    )
    # torch divides by norm + 1e-6; float32 sums; p - b loses digits against weights of size 1.
    assert outcome.norm == pytest.approx(norm, rel=1e-5)
    assert outcome.clipped_norm == pytest.approx(expected, rel=1e-4)
    assert moved == pytest.approx(expected, rel=1e-3)


def same(a: Any, b: Any) -> bool:
    """Bit equality of nested containers of tensors."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def everything(adapter: Adapter) -> list[Any]:
    """Weights, buffers, optimizer with waiting gradients, memory."""
    state = adapter.snapshot()
    return [weights(adapter.model), state.buffers, state.optimizer, pack_memory(adapter.memory)]


@pytest.mark.parametrize("kind", ["hope", "convlstm"])
def test_swap_and_restore_is_bit_exact(kind: str) -> None:
    s = settings(kind, adapt="bias+mlp_out", memory="carry", steps=3)
    adapter = adapter_for(s)
    adapter.model.register_buffer("counter", torch.zeros(3))
    adapter.initial = adapter.snapshot()
    start = everything(adapter)
    learn(adapter, s)
    adapter.model.get_buffer("counter").add_(1.5)
    adapter.memory = memory_after(adapter, given(s), plan_of(s), cpu())
    adapted = everything(adapter)
    assert not any(same(a, b) for a, b in zip(start, adapted, strict=True))
    with swapped(adapter, adapter.initial):
        assert same(everything(adapter), start)
        learn(adapter, s, seed=9)  # what happens inside leaves no trace
    assert same(everything(adapter), adapted)
    with pytest.raises(KeyError), swapped(adapter, adapter.initial):
        raise KeyError
    assert same(everything(adapter), adapted)
    adapter.reset()
    assert same(everything(adapter), start)


def test_a_snapshot_can_be_restored_again_and_again() -> None:
    s = settings("hope", adapt="bias+mlp_out", steps=3)
    adapter = adapter_for(s)
    learn(adapter, s)  # so that the optimizer has moments
    saved, then = adapter.snapshot(), everything(adapter)
    for seed in (4, 5):
        learn(adapter, s, seed=seed)
        adapter.restore(saved)
        assert same(everything(adapter), then)


@pytest.mark.parametrize("what", ["loss", "gradient", "weights"])
def test_a_step_that_is_not_finite_changes_nothing(what: str) -> None:
    s = settings("hope", adapt="layernorm+mlp_out", grad_clip=None, optimizer="sgd", lr=1e30)
    adapter = adapter_for(s)
    adapter.step(sum((p.sum() * 1e-32 for p in adapter.parameters), torch.zeros(())))  # something to lose
    adapter.prove()
    before = everything(adapter)
    p = adapter.parameters[0]
    losses = {
        "loss": p.sum() * math.inf,
        "gradient": (p - p.detach()).abs().sqrt().sum(),  # 0 with an infinite slope
        "weights": p.sum() * 1e10,  # a finite gradient times the learning rate overflows
    }
    outcome = adapter.step(losses[what])
    assert not outcome.done
    assert math.isfinite(outcome.loss) == (what != "loss")
    assert same(everything(adapter), before)
    assert all(p.grad is None for p in adapter.parameters)
    assert adapter.step(p.sum() * 1e-32).done


def test_a_gradient_that_is_not_finite_does_not_enter_the_sums_of_a_slow_level() -> None:
    """No weight moves before the fourth step, so that only the sums can hold it."""
    adapter = adapter_for(settings("hope", {"cms_update_periods": (4, 4)}, adapt="mlp_out"))
    p = adapter.parameters[0]
    assert adapter.step(p.sum()).done  # something to spoil
    before = everything(adapter)
    assert not adapter.step((p - p.detach()).abs().sqrt().sum()).done  # 0 with an infinite slope
    assert same(everything(adapter), before)


@pytest.mark.parametrize("kind", ["hope", "convlstm"])
def test_a_memory_survives_packing(kind: str) -> None:
    s = settings(kind, adapt="bias", memory="carry")
    adapter = adapter_for(s)
    memory = memory_after(adapter, given(s), plan_of(s), cpu())
    back = unpack_memory(pack_memory(memory), torch.device("cpu"))
    assert type(back) is type(memory)
    assert same(pack_memory(back), pack_memory(memory))
    assert memory_tensors(memory)
    assert not any(t.requires_grad for t in memory_tensors(memory))
    assert pack_memory(None) is None


def test_drift_by_hand() -> None:
    adapter = adapter_for(settings("vit_ac"))
    assert adapter.drift() == 0.0
    size = math.sqrt(sum(float(p.detach().double().square().sum()) for p in adapter.parameters))
    with torch.no_grad():
        adapter.parameters[0].add_(0.5)
    change = 0.5 * math.sqrt(adapter.parameters[0].numel())
    assert adapter.drift() == pytest.approx(change / size, rel=1e-5)  # float32 norms
    nothing = settings("vit_ac", adapt="none")
    assert Adapter(build(nothing), [], AdaptationSettings()).drift() is None


def test_layernorm_check_runs_on_this_machine() -> None:
    assert layernorm_backward_works(torch.device("cpu"), 8)
