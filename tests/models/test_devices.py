"""No predictor makes a tensor on the CPU that meets those of a GPU. Checked without a GPU, on tensors that know their
device and type but hold no numbers (torch's FakeTensorMode): they refuse to be mixed as real ones would.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hopecli.models.hope.predictor import HopePredictor
from hopecli.models.protocol import PredictorModule
from tests.models.test_invariants import FRAMES, GRID, D, Inputs, build, inputs, loss, walk

GPU = torch.device("cuda:0")


def fakes_need_a_driver() -> bool:
    """Older versions of torch, and builds for the CPU alone, ask the driver even for tensors without numbers."""
    with FakeTensorMode():
        try:
            torch.empty(1, 1, device=GPU)[:, 0]
        except (RuntimeError, AssertionError):  # the latter: "not compiled with CUDA enabled"
            return True
    return False


pytestmark = pytest.mark.skipif(fakes_need_a_driver(), reason="this build of torch asks the driver of a GPU")


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """What torch.autocast does on a GPU: without one it only turns itself off."""
    if dtype is None:
        yield
        return
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)


def on_gpu(mode: FakeTensorMode, kind: str) -> tuple[PredictorModule, Inputs]:
    """A model in float32 and its inputs, as on the GPU."""
    model = build(kind).float()
    given = inputs(model).map(Tensor.float)

    def moved(x: Tensor) -> Tensor:
        with mode:
            return mode.from_tensor(x).detach().to(GPU)

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(moved(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = moved(buffer)
    return model, given.map(moved)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize(
    "kind", ["vit_ac_gelu", "vit_ac_extrinsics", "convlstm", "copy_last", "hope", "hope_extrinsics"]
)
def test_all_is_computed_on_the_device_of_the_inputs(kind: str, dtype: torch.dtype | None) -> None:
    mode = FakeTensorMode()
    model, given = on_gpu(mode, kind)
    with mode, autocast(dtype):
        walked, total = walk(model, given), loss(model.train(), given)
    assert (walked.device, walked.shape) == (GPU, (3, FRAMES, GRID**2, D))
    assert (total.device, total.dtype) == (GPU, torch.float32)


def test_hopes_memories_stay_in_float32() -> None:
    mode = FakeTensorMode()
    model, given = on_gpu(mode, "hope")
    assert isinstance(model, HopePredictor)
    memory = model.initial_state(len(given.features))
    with mode, autocast(torch.bfloat16):
        for t in range(2):
            prediction, memory = model.step(*given.at(t), memory=memory, t=t)
        weights = [weight for block in memory.blocks for weight in block.all()]
    assert prediction.dtype == torch.bfloat16  # so autocast was on
    assert {(weight.device, weight.dtype) for weight in weights} == {(GPU, torch.float32)}
