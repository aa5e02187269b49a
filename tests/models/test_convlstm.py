"""ConvLSTM and copy_last: reference numbers, size, start and what they ignore."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hopecli.models.convlstm import ConvLSTM
from hopecli.models.copy_last import CopyLast
from tests.check_golden import TOLERANCE, max_abs_errors

GOLDEN = Path(__file__).parents[1] / "golden"


def small() -> ConvLSTM:
    torch.manual_seed(0)
    return ConvLSTM(embed_dim=5, action_dim=2, grid=3, hidden=4, kernel_size=3)


def test_reference_numbers() -> None:
    errors = max_abs_errors(GOLDEN / "convlstm_small.npz")
    assert set(errors) == {"y"}
    assert errors["y"] <= TOLERANCE


def test_full_size_has_5_26_million_parameters() -> None:
    with torch.device("meta"):
        model = ConvLSTM(embed_dim=1024, action_dim=2, grid=16, hidden=256, kernel_size=3)
    encoder, gates, decoder = 1024 * 256 + 256, 4 * 256 * ((256 + 2 + 256) * 9 + 1), 256 * 1024 + 1024
    assert sum(p.numel() for p in model.parameters()) == encoder + gates + decoder == 5_263_616


def test_keys_are_the_published_ones() -> None:
    layers = ("encoder", "conv_lstm.conv_gates", "decoder")
    assert set(small().state_dict()) == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


def test_it_starts_as_copy_last() -> None:
    features, actions = torch.randn(2, 3, 9, 5), torch.randn(2, 3, 2)
    copied = CopyLast(embed_dim=5, action_dim=2, grid=3)(features, actions, actions)
    assert torch.equal(copied, features)
    assert torch.equal(small()(features, actions, actions), features)


def test_states_and_extrinsics_are_not_used() -> None:
    model = small()
    torch.nn.init.normal_(model.decoder.weight)
    features, actions = torch.randn(2, 3, 9, 5), torch.randn(2, 3, 2)
    out = model(features, actions, torch.zeros(2, 3, 2))
    assert torch.equal(model(features, actions, torch.randn(2, 3, 2), torch.randn(2, 3, 1)), out)


def test_its_memory_may_start_another_clip() -> None:
    model = small()
    torch.nn.init.normal_(model.decoder.weight)
    frame, action = torch.randn(2, 9, 5), torch.randn(2, 2)
    fresh, memory = model.step(frame, action, action, None, memory=model.initial_state(2), t=0)
    carried, _ = model.step(frame, action, action, None, memory=memory, t=0)
    assert model.carries_memory
    assert (carried - fresh).abs().max() > 1e-3


def test_an_even_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size 4"):
        ConvLSTM(embed_dim=5, action_dim=2, grid=3, hidden=4, kernel_size=4)


def test_copy_last_has_no_parameters_and_no_memory() -> None:
    model = CopyLast(embed_dim=5, action_dim=2, grid=3)
    assert list(model.parameters()) == []
    assert not model.carries_memory
