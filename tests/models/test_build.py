"""Every field of a model's settings reaches the model: another value gives another model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from hopecli.config.schema import ConvLSTMSettings, CopyLastSettings, HopeSettings, ModelSettings, ViTACSettings
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule

GRID, DIM, ACTIONS, CLIPS, FRAMES = 2, 6, 3, 2, 3
# Heads of 12 channels are the smallest on which the two RoPE layouts differ; the first block never drops its path.
TOKENS: dict[str, Any] = {"width": 24, "depth": 2, "num_heads": 2}
BASE: dict[str, dict[str, Any]] = {
    "vit_ac": {"kind": "vit_ac", **TOKENS},
    "convlstm": {"kind": "convlstm", "hidden": 5},
    "copy_last": {"kind": "copy_last"},
    "hope": {
        "kind": "hope",
        **TOKENS,
        "memory_multiplier": 1.0,
        "cms_multipliers": (1.0, 2.0),
        "cms_update_periods": (1, 4),
    },
}
OTHER: dict[str, dict[str, Any]] = {
    "vit_ac": {
        "width": 12,
        "depth": 3,
        "num_heads": 1,
        "mlp_ratio": 2.0,
        "mlp": "swiglu",
        "drop_path": 0.9,
        "rope": "exact",
        "use_extrinsics": True,
    },
    "convlstm": {"hidden": 4, "kernel_size": 1},
    "copy_last": {},
    "hope": {
        "width": 12,
        "depth": 3,
        "num_heads": 1,
        "memory_multiplier": 2.0,
        "cms_multipliers": (1.0, 1.0),
        "read": "before_write",
        "use_rope": False,
        "rope": "exact",
        "use_extrinsics": True,
        "truncate_memory_gradient": 1,
    },
}
CHANGES = [(kind, field) for kind, fields in OTHER.items() for field in fields]
# How often weights are updated is the optimizer's affair; recomputing must change no number and has its own test.
ELSEWHERE = {"kind", "cms_update_periods", "activation_checkpointing"}


def build(kind: str, seed: int = 0, **changes: Any) -> PredictorModule:
    settings: ModelSettings = TypeAdapter(ModelSettings).validate_python({**BASE[kind], **changes})
    return build_model(settings, grid=GRID, embed_dim=DIM, action_dim=ACTIONS, seed=seed).train()


def predict(model: PredictorModule) -> Tensor:
    """Predictions of fixed random clips, with all weights moved off the zeros that hide what they multiply."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator))
    features = torch.randn(CLIPS, FRAMES, GRID * GRID, DIM, generator=generator)
    actions, states = torch.randn(2, CLIPS, FRAMES, ACTIONS, generator=generator)
    extrinsics = torch.randn(CLIPS, FRAMES, ACTIONS - 1, generator=generator)
    torch.manual_seed(2)  # for stochastic depth
    return model(features, actions, states, extrinsics if getattr(model, "use_extrinsics", False) else None)


def trace(model: PredictorModule) -> dict[str, Tensor]:
    """Everything a setting can change: shapes and values of parameters, predictions and gradients in training."""
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    out = predict(model)
    if out.requires_grad:
        out.square().sum().backward()
    gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**found, **gradients, "out": out.detach()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("settings", [ViTACSettings, ConvLSTMSettings, CopyLastSettings, HopeSettings])
def test_no_field_is_left_out(
    settings: type[ViTACSettings] | type[ConvLSTMSettings] | type[CopyLastSettings] | type[HopeSettings],
) -> None:
    kind = settings.model_fields["kind"].default
    assert set(OTHER[kind]) == set(settings.model_fields) - ELSEWHERE


@pytest.mark.parametrize(("kind", "field"), CHANGES)
def test_another_value_gives_another_model(kind: str, field: str) -> None:
    base = trace(build(kind))
    assert same(trace(build(kind)), base)  # so that a difference comes from the field alone
    assert not same(trace(build(kind, **{field: OTHER[kind][field]})), base)


def test_rope_has_no_effect_where_it_is_off() -> None:
    off = trace(build("hope", use_rope=False))
    assert same(trace(build("hope", use_rope=False, rope="exact")), off)


@pytest.mark.parametrize("training", [True, False])  # test-time adaptation learns in evaluation mode
@pytest.mark.parametrize("kind", ["vit_ac", "hope"])
def test_checkpointed_blocks_run_again_in_the_backward_pass(kind: str, training: bool) -> None:
    runs = {}
    for recompute in (False, True):
        model = build(kind, activation_checkpointing=recompute).train(training)
        blocks = next(module for module in model.children() if isinstance(module, nn.ModuleList))
        calls: list[int] = []
        for block in blocks:
            # Before, not after: recomputing stops inside the block, at the last tensor that is needed.
            block.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        predict(model).square().sum().backward()
        runs[recompute] = len(calls)
    assert runs[True] == 2 * runs[False]


@pytest.mark.parametrize("kind", ["vit_ac", "convlstm", "hope"])
def test_initial_weights_are_a_function_of_the_seed_alone(kind: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build(kind, seed=0).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert same(build(kind, seed=0).state_dict(), first)
    assert not same(build(kind, seed=1).state_dict(), first)


def test_building_sets_no_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed reaches the generators of every GPU, which forking the CPU's does not give back."""
    reached: list[int] = []
    seed_gpus = torch.cuda.manual_seed_all

    def seed_all(seed: int) -> None:
        reached.append(seed)
        seed_gpus(seed)

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    torch.manual_seed(7)
    assert reached == [7]
    before = torch.get_rng_state()
    model = build("vit_ac", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert reached == [7]
    torch.manual_seed(8)
    again = build("vit_ac", seed=3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
