"""Every kind of predictor is tried on the device with its real objective; wrong kernels are found."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.engine import predictor_trials
from hopecli.engine.predictor_trials import SMALL, TOLERANCE, Errors, errors, judge, require_right_numbers
from hopecli.engine.probes import try_attention, try_machine, try_precision
from hopecli.errors import DeviceError
from hopecli.hardware import DeviceChoice, probe

CPU = torch.device("cpu")
ON_MPS = DeviceChoice("mps", "fp32", "", "", "")


@pytest.mark.parametrize("kind", SMALL)
def test_what_is_right_is_far_within_the_limit(kind: str) -> None:
    found = errors(kind, CPU, None)
    # 24-bit mantissa, a few layers: far below the 1e-3 that decides; and float32 was used, not the reference itself.
    assert 0.0 < max(found) < 1e-5
    half = errors(kind, CPU, torch.bfloat16)
    assert 1e-4 < max(half) < TOLERANCE["bf16"] / 2
    assert judge(kind, "bf16", CPU)[1] == "works"


def in_float32(right: Callable[..., Tensor], wrong: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The operation as a device has it that computes float32 wrongly."""

    def call(x: Tensor, *rest: Any, **settings: Any) -> Tensor:
        return (wrong if x.dtype == torch.float32 else right)(x, *rest, **settings)

    return call


def without_solving(matrix: Tensor, rows: Tensor, **_: Any) -> Tensor:
    return rows


def with_keys_of_the_first_frame_only(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention(q, k[:, :, : q.shape[2]], v[:, :, : q.shape[2]])


def without_borders(x: Tensor, weight: Tensor, *rest: Any, **settings: Any) -> Tensor:
    return convolution(x.roll(1, dims=-1), weight, *rest, **settings)


def not_a_number(x: Tensor, *_: Any, **__: Any) -> Tensor:
    return gelu(x) * math.nan


attention, convolution, gelu = F.scaled_dot_product_attention, F.conv2d, F.gelu
FAULTS: list[tuple[str, Any, str, Callable[..., Tensor]]] = [
    ("hope", torch.linalg, "solve_triangular", without_solving),
    ("hope", F, "gelu", not_a_number),
    ("vit_ac", F, "scaled_dot_product_attention", with_keys_of_the_first_frame_only),
    ("convlstm", torch.nn.functional, "conv2d", without_borders),
]


@pytest.mark.parametrize(("kind", "place", "name", "wrong"), FAULTS, ids=[f"{f[0]}-{f[2]}" for f in FAULTS])
def test_a_wrong_kernel_is_found(
    kind: str, place: Any, name: str, wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, in_float32(getattr(place, name), wrong))
    found, reason = judge(kind, "fp32", CPU)
    assert found is not None
    assert reason.startswith("wrong numbers: relative error ")


def test_one_wrong_number_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        for value in (0.5, math.nan):
            found = Errors(*(value if i == j else 0.0 for j in range(3)))
            monkeypatch.setattr(predictor_trials, "errors", lambda *given, found=found, **settings: found)
            assert judge("hope", "fp32", CPU)[1].startswith("wrong numbers"), found


def test_precisions_are_judged_by_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = in_float32(attention, with_keys_of_the_first_frame_only)
    monkeypatch.setattr(F, "scaled_dot_product_attention", wrong)
    trial = try_precision("fp32", "cpu", probe())
    assert not trial.usable
    assert trial.reason.startswith("wrong numbers")
    assert trial.gradient_error is not None


def test_an_operation_that_is_missing_is_one_line() -> None:
    """No number comes back from the meta device: torch says so in many lines."""
    found, reason = judge("hope", "fp32", torch.device("meta"))
    assert found is None
    assert reason.startswith("the call failed: ")
    assert len(reason.splitlines()) == 1


def test_without_learning_gradients_may_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    def flat(x: Tensor) -> Tensor:
        return gelu(x).detach() if x.dtype == torch.float32 else gelu(x)

    monkeypatch.setattr(F, "gelu", flat)
    assert judge("hope", "fp32", CPU)[1].startswith("wrong numbers")
    found, reason = judge("hope", "fp32", CPU, learning=False)
    assert reason == "works"
    assert found is not None
    assert found.gradient == 0.0
    assert 0.0 < found.rollout < 1e-5  # float32 rounding


def test_a_run_on_mps_needs_right_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(kind: str, device: torch.device, cast: torch.dtype | None, *, learning: bool) -> Errors:
        raise NotImplementedError(f"no such operation on {device.type}\nand more")

    monkeypatch.setattr(predictor_trials, "errors", missing)
    for learning in (True, False):
        with pytest.raises(DeviceError) as caught:
            require_right_numbers("hope", ON_MPS, learning=learning)
        assert caught.value.exit_code == 5
        what = "hope does not work here: the call failed: no such operation on mps (got 'mps')"
        assert str(caught.value).startswith(f"--device: {what}. Use --device cpu")
    require_right_numbers("copy_last", ON_MPS, learning=True)  # computes nothing
    require_right_numbers("hope", DeviceChoice("cpu", "fp32", "", "", ""), learning=True)
    monkeypatch.setattr(predictor_trials, "errors", lambda *given, learning: Errors(0.0, 0.5 * learning, 0.0))
    require_right_numbers("hope", ON_MPS, learning=False)
    with pytest.raises(DeviceError):
        require_right_numbers("hope", ON_MPS, learning=True)


def test_attention_that_reads_behind_the_keys_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert try_attention("math", CPU, torch.float32).works

    def over_all_room(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.as_strided((1, 16, x.stride(1) // 24, 24), x.stride(), x.storage_offset()) for x in (k, v))
        return attention(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", over_all_room)
    trial = try_attention("math", CPU, torch.float32)
    assert (trial.works, trial.reason) == (False, "wrong numbers")


def test_what_is_tried_in_float32_is_not_tf32() -> None:
    torch.backends.cudnn.allow_tf32 = True
    try_machine(probe(), DeviceChoice("cpu", "fp32", "", "", ""))
    assert not torch.backends.cudnn.allow_tf32
