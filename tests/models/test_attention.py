"""The ViT's blocks: long walks with a cache, half precision, the gated MLP against its formula."""

from __future__ import annotations

import weakref
from typing import Literal

import pytest
import torch
import torch.nn.functional as F

from hopecli.config.schema import ViTACSettings
from hopecli.models.attention import USUAL_FRAMES, SwiGluMLP
from hopecli.models.build import build_model
from hopecli.models.vit_ac import ViTAC

GRID, DIM, ACTIONS, CLIPS = 2, 6, 2, 2


def make(mlp: str = "gelu", *, checkpointing: bool = False) -> ViTAC:
    torch.manual_seed(0)
    model = ViTAC(
        embed_dim=DIM,
        action_dim=ACTIONS,
        grid=GRID,
        width=24,
        depth=2,
        num_heads=2,
        mlp=mlp,
        mlp_ratio=2.0,
        activation_checkpointing=checkpointing,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("frames", [USUAL_FRAMES, 2 * USUAL_FRAMES + 3])
@torch.no_grad()
def test_a_walk_without_gradients_may_be_longer_than_the_usual_clip(frames: int) -> None:
    """Its buffer grows, and keeps what it held: float64, steps against the parallel pass, only rounding (1e-12)."""
    model = make().double()
    features = torch.randn(CLIPS, frames, GRID**2, DIM, dtype=torch.float64)
    actions = torch.randn(CLIPS, frames, ACTIONS, dtype=torch.float64)
    memory, out = model.initial_state(CLIPS), []
    for t in range(frames):
        prediction, memory = model.step(features[:, t], actions[:, t], actions[:, t], None, memory=memory, t=t)
        out.append(prediction)
    torch.testing.assert_close(torch.stack(out, dim=1), model(features, actions, actions), rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_half_precision_model_attends_in_its_own_dtype() -> None:
    """The rotary tables are float32. Outputs of order one, a few roundings to 8 bits deep (0.1)."""
    model = make()
    features, actions = torch.randn(CLIPS, 3, GRID**2, DIM), torch.randn(CLIPS, 3, ACTIONS)
    exact = model(features, actions, actions)
    half = model.to(torch.bfloat16)
    features, actions = features.bfloat16(), actions.bfloat16()
    rough = half(features, actions, actions)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0, atol=0.1)
    _, memory = half.step(features[:, 0], actions[:, 0], actions[:, 0], None, memory=half.initial_state(CLIPS), t=0)
    assert {x.dtype for past in memory.blocks for x in past.joined()} == {torch.bfloat16}


def test_swiglu_gates_with_the_silu_of_its_first_layer() -> None:
    torch.manual_seed(0)
    mlp, x = SwiGluMLP(width=8, hidden=24).double(), torch.randn(3, 8, dtype=torch.float64)
    a, b = F.linear(x, mlp.fc1.weight, mlp.fc1.bias), F.linear(x, mlp.fc2.weight, mlp.fc2.bias)
    expected = F.linear(a * torch.sigmoid(a) * b, mlp.fc3.weight, mlp.fc3.bias)
    torch.testing.assert_close(mlp(x), expected, rtol=0, atol=1e-14)  # float64 rounding


@pytest.mark.parametrize(("mlp", "mlp_ratio", "hidden"), [("gelu", 1.5, 36), ("swiglu", 4.0, 64), ("swiglu", 1.5, 24)])
def test_hidden_width_of_a_preset(mlp: Literal["gelu", "swiglu"], mlp_ratio: float, hidden: int) -> None:
    """mlp_ratio * width; of SwiGLU, which has a third matrix, two thirds of it."""
    settings = ViTACSettings(width=24, depth=1, num_heads=2, mlp_ratio=mlp_ratio, mlp=mlp)
    model = build_model(settings, grid=GRID, embed_dim=DIM, action_dim=ACTIONS, seed=0)
    assert model.get_parameter("predictor_blocks.0.mlp.fc1.weight").shape == (hidden, 24)


@pytest.mark.parametrize("autocast_first", [True, False])
@torch.no_grad()
def test_a_memory_made_under_autocast_goes_on_without_it_and_the_other_way_round(autocast_first: bool) -> None:
    """Against one precision all the way: bfloat16 keeps 8 bits, so outputs of size 1 agree to 0.05."""
    model = make()
    features, actions = torch.randn(CLIPS, 4, GRID**2, DIM), torch.randn(CLIPS, ACTIONS)
    memory = model.initial_state(CLIPS)
    for t in range(4):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast_first == (t < 2)):
            out, memory = model.step(features[:, t], actions, actions, None, memory=memory, t=t)
    steady = model(features, actions[:, None].expand(-1, 4, -1), actions[:, None].expand(-1, 4, -1))[:, 3]
    torch.testing.assert_close(out.float(), steady, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_parallel_pass_keeps_no_keys_of_earlier_layers(gradients: bool) -> None:
    """Neither without gradients nor where backward computes them again: no step follows that would read them."""
    model = make(checkpointing=True)
    kept: list[weakref.ref[torch.UntypedStorage]] = []
    alive: list[bool] = []
    first, last = model.blocks()
    first.attn.qkv.register_forward_hook(lambda _module, _inputs, out: kept.append(weakref.ref(out.untyped_storage())))
    last.register_forward_pre_hook(lambda _module, _inputs: alive.append(kept[0]() is not None))
    with torch.set_grad_enabled(gradients):
        model(torch.randn(CLIPS, 3, GRID**2, DIM), torch.randn(CLIPS, 3, ACTIONS), torch.randn(CLIPS, 3, ACTIONS))
    assert alive == [False]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_a_memory_with_gradients_keeps_keys_and_values_only(checkpointing: bool) -> None:
    """No views, which would keep the queries alive, and what was not yet rotated."""
    model = make(checkpointing=checkpointing)
    features, actions = torch.randn(CLIPS, GRID**2, DIM), torch.randn(CLIPS, ACTIONS)
    memory = model.initial_state(CLIPS)
    for t in range(2):
        _, memory = model.step(features, actions, actions, None, memory=memory, t=t)
    pieces = [piece for past in memory.blocks for piece in (*past.keys, *past.values)]
    assert len(pieces) == 2 * 2 * 2  # blocks, frames, keys and values
    assert all(piece.untyped_storage().nbytes() == piece.nbytes for piece in pieces)
