"""The precision of a run is the one that was asked for, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hopecli.engine.runtime import _settings_of_a_launcher, start
from hopecli.errors import DeviceError
from hopecli.hardware import DeviceChoice, PrecisionName
from tests.cli.runner import ROOT
from tests.engine.runs import CPU


class Product(nn.Module):
    """Remembers the dtype in which its product was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        self.dtype = y.dtype
        return y


@pytest.fixture(autouse=True)
def fp32_afterwards() -> Iterator[None]:
    """Accelerate keeps one precision per process."""
    yield
    start(CPU)


# fp16 needs a GPU.
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_prepared_module_and_autocast_compute_in_it(precision: PrecisionName, dtype: torch.dtype) -> None:
    runtime = start(DeviceChoice("cpu", precision, "test", "test", "CPU"))
    module = Product()
    prepared = runtime.accelerator.prepare(module)
    loss = prepared(torch.ones(2, 4)).sum()
    assert module.dtype == dtype
    runtime.accelerator.backward(loss)
    assert {p.dtype for p in module.parameters()} == {torch.float32}  # weights and gradients stay what they are
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}
    unprepared = Product()
    with runtime.autocast():
        unprepared(torch.ones(2, 4))
    assert unprepared.dtype == dtype


def test_variables_of_a_launcher_compile_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --dynamo_backend`: one run of a comparison would be compiled and the other not."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    assert type(start(CPU).accelerator.prepare(Product())) is Product


def test_fp32_is_never_tf32() -> None:
    """cuDNN's default would give a convolutional model 10 bits of mantissa where an attention model has 23, and
    NVIDIA's containers would give them to both."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    start(CPU)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cuda = DeviceChoice("cuda", "bf16", "test", "test", "GPU")
    with pytest.raises(DeviceError, match="3 processes were started on this machine, which shows 2 CUDA devices"):
        start(cuda)


def test_gpus_that_cannot_talk_to_each_other_get_the_variables_to_set() -> None:
    """What Accelerate raises for several RTX 40 cards under an old driver."""
    with pytest.raises(DeviceError, match="NCCL_P2P_DISABLE=1") as raised, _settings_of_a_launcher():
        raise NotImplementedError("Using RTX 4000 series doesn't support faster communication broadband via P2P.")
    assert raised.value.exit_code == 5


ALONE = """
import sys
import torch.distributed as dist
from hopecli.engine.runtime import EndedTogether, start
from hopecli.errors import CheckpointError, HopeError
from tests.engine.runs import CPU

def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")  # in one piece: the processes share the pipe

runtime = start(CPU)
try:
    with runtime.closing():
        if runtime.is_main:
            raise CheckpointError("of the main process alone")
        say("other", runtime.host_sum(1.0))
except HopeError:
    say("main left", not dist.is_initialized())
    say("main", runtime.host_sum(2.0))
if runtime.is_main:
    try:
        with runtime.closing(), runtime.raising_as_one():
            raise CheckpointError("of both")
    except HopeError:
        say("main left", not dist.is_initialized())
"""


@pytest.mark.slow
def test_a_process_that_fails_alone_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """With NCCL to leave the group waits for all of its processes, which may be waiting for this one."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == ["main [3.0]", "main left False", "main left True", "other [3.0]"]
