"""The V-JEPA 2-AC predictor: cell interface, causality, initialisation, stochastic depth, checkpointing, names."""

from __future__ import annotations

import gc
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hopecli.models.attention import Block, SwiGluMLP
from hopecli.models.vit_ac import ViTAC
from tests.masked_attention import one_masked_call
from tests.models.initial_values import check_initial

SIZES: dict[str, Any] = {"embed_dim": 6, "action_dim": 3, "grid": 2, "width": 24, "depth": 2, "num_heads": 2}
T, B = 4, 2


def make(seed: int = 0, changes: dict[str, Any] | None = None) -> ViTAC:
    torch.manual_seed(seed)
    return ViTAC(**{**SIZES, **(changes or {})}).double()


def inputs(seed: int = 1, *, extrinsics: bool = False) -> list[Tensor | None]:
    """features [B, T, 4, 6], actions and states [B, T, 3], extrinsics [B, T, 2] or None, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, T, 4, 6), (B, T, 3), (B, T, 3), (B, T, 2)]
    made = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    return [*made[:3], made[3] if extrinsics else None]


def walk(model: ViTAC, data: list[Tensor | None]) -> Tensor:
    """All frames one `step` at a time."""
    features, actions, states, extrinsics = data
    assert features is not None
    assert actions is not None
    assert states is not None
    memory, out = model.initial_state(B), []
    for t in range(T):
        rows = None if extrinsics is None else extrinsics[:, t]
        prediction, memory = model.step(features[:, t], actions[:, t], states[:, t], rows, memory=memory, t=t)
        out.append(prediction)
    return torch.stack(out, dim=1)


def gradients(model: ViTAC, data: list[Tensor | None], out: Tensor) -> dict[str, Tensor]:
    """Gradients of a fixed non-linear function of `out` for all trainable parameters and inputs."""
    wanted: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wanted |= {f"input {i}": x for i, x in enumerate(data) if x is not None}
    return dict(zip(wanted, torch.autograd.grad(out.square().sum(), list(wanted.values())), strict=True))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_extrinsics": True, "rope": "exact"},
    {"mlp": "swiglu", "num_heads": 3, "grid": 2, "depth": 3},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_steps_equal_the_parallel_pass_gradients_included(changes: dict[str, Any]) -> None:
    model, data = make(changes=changes), inputs(extrinsics="use_extrinsics" in changes)
    parallel, stepped = model(*data), walk(model, data)
    # float64: only the order of sums differs
    torch.testing.assert_close(stepped, parallel, rtol=0, atol=1e-10)
    a, b = gradients(model, data, parallel), gradients(model, data, stepped)
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=0, atol=1e-10)
        assert a[name].abs().max() > 0, name


@pytest.mark.parametrize("changes", VARIANTS)
def test_attention_per_frame_equals_one_masked_call(changes: dict[str, Any]) -> None:
    model, data = make(changes=changes), inputs(extrinsics="use_extrinsics" in changes)
    own = model(*data)
    with one_masked_call():
        masked, stepped = model(*data), walk(model, data)
    # float64: only the order of sums differs
    torch.testing.assert_close(own, masked, rtol=0, atol=1e-10)
    torch.testing.assert_close(own, stepped, rtol=0, atol=1e-10)
    a, b = gradients(model, data, own), gradients(model, data, masked)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-10)


def test_flat_and_framed_features_give_the_same() -> None:
    model, (features, actions, states, _) = make(), inputs()
    assert features is not None
    flat = model(features.flatten(1, 2), actions, states)
    assert flat.shape == (B, T * 4, 6)
    assert torch.equal(flat, model(features, actions, states).flatten(1, 2))


@pytest.mark.parametrize("frame", range(T))
def test_a_frame_sees_its_own_and_earlier_frames_only(frame: int) -> None:
    model, data = make(changes={"use_extrinsics": True}), inputs(extrinsics=True)
    seen = torch.autograd.grad(model(*data)[:, frame].sum(), [x for x in data if x is not None])
    for gradient in seen:
        per_frame = gradient.flatten(2).abs().sum(-1)  # [B, T]
        assert (per_frame[:, : frame + 1] > 0).all()
        assert (per_frame[:, frame + 1 :] == 0).all()


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    model, data = make(), inputs()
    single = model(*[None if x is None else x[:1] for x in data])
    torch.testing.assert_close(model(*data)[:1], single, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0, 2, 3])
def test_a_step_out_of_order_is_an_error(t: int) -> None:
    model = make()
    frame, row = torch.zeros(1, 4, 6).double(), torch.zeros(1, 3).double()
    _, memory = model.step(frame, row, row, None, memory=model.initial_state(1), t=0)
    with pytest.raises(ValueError, match=f"next frame is 1, not {t}"):
        model.step(frame, row, row, None, memory=memory, t=t)


def test_wrong_lengths_and_missing_extrinsics_are_errors() -> None:
    features, actions, states, extrinsics = inputs(extrinsics=True)
    rows = {"actions": actions, "states": states, "extrinsics": extrinsics}
    for name, whole in rows.items():
        assert whole is not None
        with pytest.raises(ValueError, match=f"{name} have 3 steps for 4 frames"):
            make(changes={"use_extrinsics": True})(features, **{**rows, name: whole[:, :3]})
    with pytest.raises(ValueError, match="use_extrinsics"):
        make(changes={"use_extrinsics": True})(features, actions, states)
    with pytest.raises(ValueError, match="width 25"):
        make(changes={"width": 25})


def test_extrinsics_off_keeps_the_encoder_frozen_and_unused() -> None:
    off, on = make(), make(changes={"use_extrinsics": True})
    assert off.state_dict().keys() == on.state_dict().keys()
    assert {n for n, p in off.named_parameters() if not p.requires_grad} == {
        "extrinsics_encoder.weight",
        "extrinsics_encoder.bias",
    }
    assert all(p.requires_grad for p in on.parameters())
    features, actions, states, extrinsics = inputs(extrinsics=True)
    assert torch.equal(off(features, actions, states, extrinsics), off(features, actions, states))


LINEAR = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


def test_names_are_the_published_ones() -> None:
    outer = ["predictor_embed", "action_encoder", "state_encoder", "extrinsics_encoder", "predictor_norm"]
    inner = [f"predictor_blocks.0.{name}" for name in ["norm1", "norm2", *LINEAR]]
    modules = [*outer, "predictor_proj", *inner]
    assert set(make(changes={"depth": 1}).state_dict()) == {f"{m}.{p}" for m in modules for p in ("weight", "bias")}
    assert make().blocks()[0].norm1.eps == 1e-6


def test_initial_weights_and_biases() -> None:
    torch.manual_seed(0)
    model = ViTAC(embed_dim=128, action_dim=64, grid=1, width=128, depth=4, num_heads=4)
    for name, p in model.named_parameters():
        layer = int(name.split(".")[1]) + 1 if name.startswith("predictor_blocks") else 0
        scaled = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
        check_initial(name, p, std=0.02 / math.sqrt(2 * layer) if scaled else 0.02)


def test_swiglu_hidden_width_is_two_thirds_rounded_up_to_eight() -> None:
    # 2/3 of 4 * 24 = 64; of int(2/3 * 60) = 40; of int(2/3 * 50) = 33 -> 40; of int(2/3 * 1536) = 1024
    for hidden, expected in ((96, 64), (60, 40), (50, 40), (1536, 1024)):
        assert SwiGluMLP(width=8, hidden=hidden).fc1.out_features == expected
    assert SwiGluMLP(width=8, hidden=50, wide=False).fc2.out_features == 50


def test_swiglu_output_weights_are_scaled_too() -> None:
    torch.manual_seed(0)
    model = ViTAC(embed_dim=8, action_dim=2, grid=1, width=96, depth=2, num_heads=2, mlp="swiglu")
    found = [block.mlp.output.weight.std().item() for block in model.blocks()]
    assert found == pytest.approx([0.02 / math.sqrt(2), 0.02 / 2], rel=0.05)  # 24,576 draws


def test_drop_path_acts_in_training_only_and_follows_the_seed() -> None:
    model, data = make(changes={"drop_path": 0.5, "depth": 4}), inputs()

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(*data)

    whole = run(0)
    assert not torch.equal(whole, run(1))
    assert torch.equal(whole, run(0))
    model.eval()
    assert torch.equal(run(0), run(1))
    plain = make(changes={"depth": 4})
    assert torch.equal(run(0), plain(*data))


def test_drop_path_grows_linearly_over_depth() -> None:
    rates = [block.drop_path for block in make(changes={"drop_path": 0.3, "depth": 4}).blocks()]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [block.drop_path for block in make(changes={"drop_path": 0.3, "depth": 1}).blocks()] == [0.0]


@pytest.mark.parametrize(("silent", "index"), [("mlp.fc2", 0), ("attn.proj", 1)])
def test_drop_path_drops_whole_branches_and_scales_the_rest(silent: str, index: int) -> None:
    """Of either branch alone, by its own draw: attention is drawn first."""
    torch.manual_seed(0)
    block = Block(
        width=4, num_heads=1, mlp_ratio=1.0, mlp="gelu", wide_swiglu=True, drop_path=0.2, tokens_per_frame=2
    ).double()
    for parameter in block.get_submodule(silent).parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(1, 2, 4, dtype=torch.float64).expand(2000, -1, -1)
    kept = block.draw_kept(x)
    assert kept is not None
    change = (block(x, None, None, kept)[0] - x).flatten(1)
    assert block.eval().draw_kept(x) is None
    branch = (block(x, None, None)[0] - x).flatten(1)
    dropped = (change == 0).all(dim=1)
    assert torch.equal(dropped, kept[index].flatten() == 0)
    # a share of 2,000 coins: standard error 0.9 %, four of them; 0.8 would be the share of those kept
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.036)
    torch.testing.assert_close(change[~dropped], branch[~dropped] / 0.8, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("walked", [False, True])
def test_activation_checkpointing_changes_no_gradient(walked: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(changes={"activation_checkpointing": checkpointing, "drop_path": 0.3, "depth": 3})
        data = inputs()
        torch.manual_seed(5)
        found.append(gradients(model, data, walk(model, data) if walked else model(*data)))
    for name in found[0]:
        assert torch.equal(found[0][name], found[1][name]), name


def test_a_memory_is_a_value_without_gradients() -> None:
    """Two continuations of one memory do not disturb each other, though they share its buffer."""
    model = ViTAC(embed_dim=6, action_dim=2, grid=2, width=12, depth=2, num_heads=2).double().eval()
    frames = torch.randn(4, 2, 4, 6, dtype=torch.float64)
    action = torch.randn(2, 2, dtype=torch.float64)
    with torch.no_grad():
        memory = model.initial_state(2)
        for t in range(3):
            _, memory = model.step(frames[t], action, action, None, memory=memory, t=t)
        first, longer = model.step(frames[3], action, action, None, memory=memory, t=3)
        model.step(-frames[3], action, action, None, memory=memory, t=3)
        again, _ = model.step(frames[3], action, action, None, memory=memory, t=3)
        after, _ = model.step(frames[0], action, action, None, memory=longer, t=4)
        fresh = torch.cat([frames, frames[:1]]).transpose(0, 1)
        whole = model(fresh, action[:, None].expand(2, 5, 2), action[:, None].expand(2, 5, 2))
    assert torch.equal(first, again)
    # Steps against the parallel pass: float64 rounding.
    torch.testing.assert_close(after, whole[:, 4], rtol=0, atol=1e-12)


def test_a_memory_of_inference_mode_goes_on_without_it() -> None:
    model = ViTAC(embed_dim=6, action_dim=2, grid=2, width=12, depth=1, num_heads=2).eval()
    frame, action = torch.randn(1, 4, 6), torch.randn(1, 2)
    with torch.no_grad():
        memory, expected = model.initial_state(1), []
        for t in range(3):
            out, memory = model.step(frame, action, action, None, memory=memory, t=t)
            expected.append(out)
    with torch.inference_mode():
        memory = model.initial_state(1)
        for t in range(2):
            _, memory = model.step(frame, action, action, None, memory=memory, t=t)
    with torch.no_grad():
        out, _ = model.step(frame, action, action, None, memory=memory, t=2)
    assert torch.equal(out, expected[2])


def test_a_checkpointed_rollout_keeps_each_frame_once() -> None:
    """Not the keys and values of every prefix: T frames, not T^2 / 2."""
    model, data = make(changes={"activation_checkpointing": True}), inputs()
    out = walk(model, data)
    head = SIZES["width"] // SIZES["num_heads"]
    tensors = [x for x in gc.get_objects() if type(x) is Tensor and x.dim() == 4 and x.shape[-1] == head]
    kept = {x.shape[2] for x in tensors if x.shape[:2] == (B, SIZES["num_heads"])}
    assert kept == {model.tokens_per_frame}
    assert out.requires_grad
