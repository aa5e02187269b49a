"""The HOPE predictor around its blocks: size, parameter groups, carried memory, gradients, diagnostics."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.models.build import count_parameters
from hopecli.models.hope.diagnostics import diagnostics
from hopecli.models.hope.memory import MEMORY_NAMES, MemoryWeights
from hopecli.models.hope.predictor import HopeMemory, HopePredictor
from hopecli.models.hope.titans import FastWeights
from hopecli.models.vit_ac import ViTAC
from tests.models.initial_values import check_initial

D, A, GRID = 12, 3, 2


def small(
    *,
    activation_checkpointing: bool = False,
    truncate: int | None = None,
    perturb: float = 0.1,
    use_extrinsics: bool = False,
) -> HopePredictor:
    torch.manual_seed(0)
    model = HopePredictor(
        embed_dim=D,
        action_dim=A,
        grid=GRID,
        width=24,
        depth=2,
        num_heads=2,
        memory_multiplier=1.25,
        cms_multipliers=(2.0, 0.5),
        activation_checkpointing=activation_checkpointing,
        truncate_memory_gradient=truncate,
        use_extrinsics=use_extrinsics,
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return model


def clip(frames: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """features [2, T, N, D], actions and states [2, T, A]."""
    random = torch.Generator().manual_seed(seed)
    shapes = ((2, frames, GRID**2, D), (2, frames, A), (2, frames, A))
    features, actions, states = (torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)
    return features, actions, states


def walk(model: HopePredictor, given: tuple[Tensor, Tensor, Tensor], memory: HopeMemory) -> tuple[Tensor, HopeMemory]:
    """Teacher-forced predictions [B, T, N, D] from any memory, and the memory after them."""
    outputs = []
    for t in range(given[0].shape[1]):
        features, actions, states = (x[:, t] for x in given)
        out, memory = model.step(features, actions, states, None, memory=memory, t=t)
        outputs.append(out)
    return torch.stack(outputs, dim=1), memory


def test_full_size_has_as_many_parameters_as_the_vit() -> None:
    with torch.device("meta"):
        vit = ViTAC(embed_dim=1024, action_dim=2, grid=16, width=384, depth=24, num_heads=16)
        hope = HopePredictor(
            embed_dim=1024,
            action_dim=2,
            grid=16,
            width=384,
            depth=6,
            num_heads=16,
            memory_multiplier=2.0,
            cms_multipliers=(4.0, 4.0, 5.0),
        )
    assert count_parameters(vit) == 43_378_816  # as published, with the frozen encoder of the extrinsics
    assert count_parameters(hope) == 43_346_572  # 0.07 % less
    assert abs(count_parameters(hope) / count_parameters(vit) - 1.0) < 0.005


def test_keys_of_a_block() -> None:
    norms = (
        "norm1",
        "norm_o",
        "out_proj",
        "cms.0.norm",
        "cms.0.fc1",
        "cms.0.fc2",
        "cms.1.norm",
        "cms.1.fc1",
        "cms.1.fc2",
    )
    expected = {f"{name}.{part}" for name in (*norms, "gates") for part in ("weight", "bias")}
    expected |= {"local_conv.weight", "q_proj.weight", "memories.w_in", "memories.w_out"}
    prefix = "hope_blocks.1."
    assert {key.removeprefix(prefix) for key in small().state_dict() if key.startswith(prefix)} == expected


def test_initial_values() -> None:
    block = small(perturb=0.0).blocks()[0]
    assert block.memories.w_in.std().item() == pytest.approx(24**-0.5, rel=0.05)
    assert block.memories.w_out.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.gates.bias.tolist() == [-2.0, 3.0]
    assert [level.get_parameter("fc1.weight").shape for level in block.cms] == [(48, 24), (12, 24)]
    assert not block.gates.weight.any()
    assert not block.local_conv.weight.any()


def test_initial_weights_and_biases_are_those_of_the_vit_but_for_memories_and_gates() -> None:
    torch.manual_seed(0)
    model = HopePredictor(
        embed_dim=128,
        action_dim=64,
        grid=1,
        width=128,
        depth=1,
        num_heads=4,
        memory_multiplier=1.0,
        cms_multipliers=(1.0,),
    )
    for name, p in model.named_parameters():
        if not any(part in name for part in (".gates.", ".memories.", "local_conv")):
            check_initial(name, p)


@torch.no_grad()
def test_a_walk_is_its_blocks_each_with_its_own_memory() -> None:
    model, given = small(), clip()
    memories: list[FastWeights | None] = [None, None]
    for t in range(4):
        features, actions, states = (x[:, t : t + 1] for x in given)
        tokens = model.embed(features, actions, states, None)[:, 0]
        for i, block in enumerate(model.blocks()):
            tokens, memories[i] = block(tokens, memories[i], model.rotary(first_frame=t, frames=1))
        last = model.project(tokens)
    assert torch.equal(model(*given)[:, 3], last)


def test_memory_and_continuum_parameters_are_disjoint_and_named() -> None:
    model = small()
    groups = [list(model.memory_parameters())]
    groups += [list(model.cms_parameters(level)) for level in range(2)]
    names = {id(p): name for name, p in model.named_parameters()}
    assert [len(group) for group in groups] == [2 * 2, 2 * 6, 2 * 6]
    found = [names[id(p)] for group in groups for p in group]
    assert len(found) == len(set(found))
    assert all(".memories." in names[id(p)] for p in groups[0])
    for level, group in enumerate(groups[1:]):
        assert all(f".cms.{level}." in names[id(p)] for p in group)
    assert not any(".memories." in name or ".cms." in name for name in set(names.values()) - set(found))


def test_a_memory_carries_into_the_next_clip() -> None:
    model = small()
    assert model.carries_memory
    with torch.no_grad():
        fresh, _ = walk(model, clip(seed=2), model.initial_state(2))
        _, memory = walk(model, clip(), model.initial_state(2))
        carried, after = walk(model, clip(seed=2), memory)
        again, _ = walk(model, clip(seed=2), memory)
    assert (carried - fresh).abs().max() > 1e-3
    assert torch.equal(again, carried)
    assert after.blocks[0].all().w_in.shape == (2, 5, 30, 24)


@torch.no_grad()
def test_a_carried_memory_survives_an_optimizer_step() -> None:
    """Between two frames the parameters may move in place (sequential adaptation); what was written must not."""
    model = small()
    _, memory = walk(model, clip(frames=1), model.initial_state(2))
    before = [block.all() for block in memory.blocks]
    for parameter in model.parameters():
        parameter.mul_(1.5)
    for old, block in zip(before, memory.blocks, strict=True):
        assert torch.equal(old.w_in, block.all().w_in)
        assert torch.equal(old.w_out, block.all().w_out)


def test_activation_checkpointing_changes_no_number() -> None:
    given = clip()
    gradients = []
    for recompute in (False, True):
        model = small(activation_checkpointing=recompute)
        out = model(*given)
        out.square().sum().backward()
        gradients.append([out.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(
            recomputed, plain, rtol=1e-12, atol=1e-12
        )  # gradients may be summed in another order


@pytest.mark.parametrize(("truncate", "first_seen"), [(None, 0), (1, 3), (2, 2), (3, 3), (4, 0)])
def test_truncation_cuts_the_gradient_through_memory(truncate: int | None, first_seen: int) -> None:
    """The last of four teacher-forced predictions sees earlier frames through the memory alone."""
    model, (features, actions, states) = small(truncate=truncate), clip()
    features.requires_grad_()
    out = model(features, actions, states)
    assert torch.equal(out, small()(features, actions, states))
    out[:, 3].square().sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().amax(dim=(0, 2, 3)) > 0  # [T]
    assert reached.tolist() == [t >= first_seen for t in range(4)]


def test_truncation_keeps_the_memory_that_a_walk_begins_with() -> None:
    """Frame 0 of a clip is no multiple of n: what an earlier clip wrote is still learned from."""
    model, (features, actions, states) = small(truncate=1), clip(frames=2)
    features.requires_grad_()
    _, memory = walk(model, (features, actions, states), HopeMemory())
    later, _ = walk(model, clip(frames=1, seed=2), memory)
    later.square().sum().backward()
    assert features.grad is not None
    reached = features.grad.abs().amax(dim=(0, 2, 3)) > 0  # [T]
    assert reached.tolist() == [False, True]


def test_truncation_by_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="truncate_memory_gradient is 0"):
        small(truncate=0)


def test_diagnostics_at_initialisation() -> None:
    """Gate weights are zero, so rates are their biases' sigmoids; without a write nothing has changed."""
    model = small(perturb=0.0)
    found = diagnostics(model, *clip())
    per_memory = {f"{name}/{what}" for name in MEMORY_NAMES for what in ("surprise", "change")}
    keys = {f"hope/block_{i:02d}/{key}" for i in range(2) for key in per_memory | {"eta", "alpha"}}
    assert set(found) == keys
    assert all(math.isfinite(value) for value in found.values())
    for i in range(2):
        assert found[f"hope/block_{i:02d}/eta"] == pytest.approx(1 / (1 + math.exp(2)), abs=1e-12)
        assert found[f"hope/block_{i:02d}/alpha"] == pytest.approx(1 / (1 + math.exp(-3)), abs=1e-12)


@torch.no_grad()
@pytest.mark.parametrize(("frames", "use_extrinsics"), [(1, False), (3, True)])
def test_diagnostics_measure_surprise_and_change(frames: int, use_extrinsics: bool) -> None:
    """By plain formulas: |M(k) - M(v)| at each frame's start, |W_T - W_0| / |W_0| over both matrices; all means."""
    model, given = small(use_extrinsics=use_extrinsics), clip(frames=frames)
    extrinsics = given[1][..., 1:] if use_extrinsics else None
    found = diagnostics(model, *given, extrinsics)
    start = [MemoryWeights(*(w.expand(2, -1, -1, -1) for w in block.memories.parameters())) for block in model.blocks()]
    now, memory, seen = start, model.initial_state(2), defaultdict(list)
    for t in range(frames):
        features, actions, states = (x[:, t] for x in given)
        rows = None if extrinsics is None else extrinsics[:, t]
        _, memory = model.step(features, actions, states, rows, memory=memory, t=t)
        for i, (weights, fast) in enumerate(zip(now, memory.blocks, strict=True)):
            seen[f"hope/block_{i:02d}/eta"].append(fast.write.eta.mean())
            seen[f"hope/block_{i:02d}/alpha"].append(fast.write.alpha.mean())
            for m, name in enumerate(MEMORY_NAMES):
                for b in range(2):
                    w_in, w_out, k, v = (
                        weights.w_in[b, m],
                        weights.w_out[b, m],
                        fast.write.keys[b],
                        fast.write.values[b],
                    )
                    error = k + F.gelu(k @ w_in.T) @ w_out.T - v - F.gelu(v @ w_in.T) @ w_out.T
                    seen[f"hope/block_{i:02d}/{name}/surprise"].append(error.norm(dim=-1).mean())
        now = [fast.all() for fast in memory.blocks]
    for i, (first, last) in enumerate(zip(start, now, strict=True)):
        for m, name in enumerate(MEMORY_NAMES):
            for b in range(2):
                old, new = (torch.cat([w[b, m].flatten() for w in weights]) for weights in (first, last))
                seen[f"hope/block_{i:02d}/{name}/change"].append((new - old).norm() / old.norm())
    # float64: pytest's 1e-6 is far above rounding.
    assert found == pytest.approx({key: torch.stack(values).mean().item() for key, values in seen.items()})


@torch.no_grad()
def test_without_rope_a_frame_has_no_place_in_time() -> None:
    model = small()
    features, actions, states = (x[:, 0] for x in clip(frames=1))

    def at(t: int) -> Tensor:
        return model.step(features, actions, states, None, memory=HopeMemory(), t=t)[0]

    assert (at(3) - at(0)).abs().max() > 1e-6
    model.rope = None
    assert torch.equal(at(3), at(0))


@torch.no_grad()
def test_a_half_precision_model_keeps_float32_memories() -> None:
    model = small(perturb=0.0).to(torch.bfloat16)
    features, actions, states = (x.bfloat16() for x in clip())
    out, memory = walk(model, (features, actions, states), HopeMemory())
    assert out.dtype == torch.bfloat16
    assert out.isfinite().all()
    assert memory.blocks[0].all().w_in.dtype == torch.float32
