"""The one place that builds an Accelerator: device, precision, processes, and sums over them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from hopecli.errors import DeviceError, HopeError
from hopecli.hardware import DeviceChoice

Result = TypeVar("Result")

# Others wait while the main process makes or checks clips; torchrun ends them all when one dies.
PATIENCE = timedelta(hours=12)
_SHARDED = tuple(f"ACCELERATE_USE_{way}" for way in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"))
_NO = ("", "0", "false", "f", "no", "n", "off")  # as Accelerate reads them
_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class EndedTogether(SystemExit):
    """Ends a process without a word, because of an error that the main process says."""

    together = True


@dataclass(frozen=True)
class Runtime:
    """A started Accelerator with the choice it was built from."""

    accelerator: Accelerator
    choice: DeviceChoice
    host_group: Any = None  # ProcessGroup for plain values; None: the default group works on the host already

    @property
    def device(self) -> torch.device:
        """This process's device."""
        return self.accelerator.device

    @property
    def rank(self) -> int:
        """This process's number, from 0."""
        return self.accelerator.process_index

    @property
    def world(self) -> int:
        """How many processes share the work."""
        return self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.accelerator.is_main_process

    @property
    def command(self) -> str:
        """How a command is started on as many processes as there are now."""
        here = os.environ.get("LOCAL_WORLD_SIZE", str(self.world))
        nodes = "" if here == str(self.world) else f" --nnodes {self.world // int(here)}"
        return "hope" if self.world == 1 else f"torchrun{nodes} --nproc_per_node {here} -m hopecli.cli.main"

    @property
    def pin_memory(self) -> bool:
        """Whether host batches should be page-locked."""
        return self.device.type == "cuda"

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision for forward passes outside a prepared model."""
        if self.choice.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.choice.precision == "bf16" else torch.float16)

    def no_sync(self, module: torch.nn.Module, *, last: bool) -> AbstractContextManager[Any]:
        """Skip the gradient exchange between processes for all but the last micro-batch."""
        return nullcontext() if last else self.accelerator.no_sync(module)

    def allow_idle_parameters(self) -> None:
        """Let a step of what is prepared next give some parameters no gradient: processes would wait for it."""
        self.accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over processes."""
        return self.accelerator.reduce(values, reduction="sum") if self.world > 1 else values

    def host_sum(self, *values: float) -> list[float]:
        """Sums over processes of numbers that the hosts hold: does not wait for the device."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.host_group)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        return self.host_sum(float(flag))[0] > 0

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """Lists of plain objects from all processes, joined in process order."""
        if self.world == 1:
            return list(items)
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, list(items), group=self.host_group)
        return [item for part in parts for item in part]

    def from_main(self, work: Callable[[], Result]) -> Result:
        """What work() gives on the main process, on every process: what must not differ is found out once.

        Where it raises a HopeError the other processes end without a word of their own, with its exit code.
        """
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, 0]
        failed: HopeError | None = None
        if self.is_main:
            try:
                outcome[0] = work()
            except HopeError as error:
                failed, outcome[1], error.together = error, error.exit_code, True
        dist.broadcast_object_list(outcome, src=0, group=self.host_group)
        if failed is not None:
            raise failed
        if outcome[1]:
            raise EndedTogether(outcome[1])
        return outcome[0]

    def raise_as_one(self, error: HopeError) -> NoReturn:
        """Raise an error that all processes have at the same place: the main process says it, the others only end."""
        error.together = True
        raise error if self.is_main else EndedTogether(error.exit_code)

    @contextmanager
    def raising_as_one(self) -> Iterator[None]:
        """`raise_as_one` what the block raises, which is the same on all processes."""
        try:
            yield
        except HopeError as error:
            self.raise_as_one(error)

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            dist.barrier(group=self.host_group)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Leave the process group after the block, so that a later command in this process can start another one.

        Not after an error of this process alone: the others may be waiting for it within a collective, and with NCCL
        to leave would wait for them. torchrun ends them once this process has said its error and ended.
        """
        try:
            yield
        except BaseException as error:
            if self.world == 1 or isinstance(error, EndedTogether) or getattr(error, "together", False):
                self.close()
            raise
        self.close()

    def close(self) -> None:
        """Leave the process group; waits for the other processes."""
        if self.world > 1:
            self.accelerator.end_training()


def start(choice: DeviceChoice) -> Runtime:
    """Start the Accelerator for this device and precision (and the process group under torchrun).

    DeviceError when it was placed elsewhere, or on another number of processes.
    """
    _check_a_gpu_each(choice)
    if PartialState._shared_state:  # a second command in one process (tests, notebooks) may choose otherwise
        AcceleratorState._reset_state(reset_partial_state=True)
    with _settings_of_a_launcher():
        accelerator = Accelerator(
            cpu=choice.device == "cpu",
            mixed_precision=_MIXED[choice.precision],
            step_scheduler_with_optimizer=False,
            # Given, or variables of `accelerate launch` would divide every gradient and compile the model.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            dynamo_backend="no",
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    announced = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != announced:
        raise DeviceError(
            f"{announced} processes were started but {accelerator.num_processes} joined",
            where="WORLD_SIZE",
            fix="start with torchrun --nproc_per_node N -m hopecli.cli.main ...",
        )
    if accelerator.device.type != choice.device:
        raise DeviceError(
            f"asked for {choice.device} but the run was placed on {accelerator.device.type}",
            where="--device",
            fix="unset ACCELERATE_* variables or use --device auto",
        )
    no_tf32()
    # Of a depthwise convolution, whose gradient differs in the stride of an axis of size 1.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    apart = announced > 1 and choice.device != "cpu"
    return Runtime(accelerator, choice, dist.new_group(backend="gloo", timeout=PATIENCE) if apart else None)


def _check_a_gpu_each(choice: DeviceChoice) -> None:
    """DeviceError when more processes were started on this machine than it has GPUs: two would share one, or none."""
    if choice.device != "cuda":
        return
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > gpus:
        problem = f"{here} processes were started on this machine, which shows {gpus} CUDA device{'s' * (gpus != 1)}"
        fix = f"start with --nproc_per_node {max(gpus, 1)}, or check CUDA_VISIBLE_DEVICES"
        raise DeviceError(problem, where="LOCAL_WORLD_SIZE", fix=fix)


@contextmanager
def _settings_of_a_launcher() -> Iterator[None]:
    """DeviceError when `accelerate launch` was set to what is not done here, or the block cannot use its settings."""
    fix = "unset {} (torchrun --nproc_per_node N -m hopecli.cli.main ... starts several processes without)"
    for name in _SHARDED:
        value = os.environ.get(name, "")
        if value.strip().lower() not in _NO:
            problem = "each process holds the whole model; it cannot be split"
            raise DeviceError(problem, where=name, value=value, fix=fix.format("it"))
    try:
        yield
    except NotImplementedError as error:  # consumer GPUs whose driver cannot have them talk to each other directly
        problem = f"Accelerate cannot use several of these GPUs: {str(error).rstrip('. ')}"
        raise DeviceError(problem, where="torchrun", fix="set NCCL_P2P_DISABLE=1 and NCCL_IB_DISABLE=1") from error
    except (ImportError, ValueError) as error:
        if not (names := sorted(name for name in os.environ if name.startswith("ACCELERATE_"))):
            raise
        problem = f"Accelerate cannot use these settings: {str(error).rstrip('. ')}"
        raise DeviceError(problem, where=", ".join(names), fix=fix.format("them")) from error


def no_tf32() -> None:
    """fp32 means fp32: cuDNN's convolutions would use TF32 by default, and products where the environment asks for it
    (NVIDIA's containers set TORCH_ALLOW_TF32_CUBLAS_OVERRIDE)."""
    with warnings.catch_warnings():  # torch 2.9 wants a newer flag, beside which reading this one raises
        warnings.simplefilter("ignore", UserWarning)
        torch.backends.cudnn.allow_tf32 = False
        torch.set_float32_matmul_precision("highest")
