"""The one place that builds an Accelerator: device, precision, processes, and sums over them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, gather_object

from hopecli.errors import DeviceError
from hopecli.hardware import DeviceChoice

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Runtime:
    """A started Accelerator with the choice it was built from."""

    accelerator: Accelerator
    choice: DeviceChoice

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

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Elementwise sum over processes."""
        return self.accelerator.reduce(values, reduction="sum") if self.world > 1 else values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item() > 0)

    def gather(self, items: Sequence[Any]) -> list[Any]:
        """Lists of plain objects from all processes, joined in process order."""
        return list(gather_object(list(items))) if self.world > 1 else list(items)

    def share(self, value: Any) -> Any:
        """The main process's value, on every process."""
        return broadcast_object_list([value])[0] if self.world > 1 else value

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world > 1:
            self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """Leave the process group, so that a later command in this process can start another one."""
        if self.world > 1:
            self.accelerator.end_training()


def start(choice: DeviceChoice) -> Runtime:
    """Start the Accelerator for this device and precision (and the process group under torchrun).

    DeviceError when it was placed elsewhere, or on another number of processes.
    """
    if PartialState._shared_state:  # a second command in one process (tests, notebooks) may choose otherwise
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        cpu=choice.device == "cpu",
        mixed_precision=_MIXED[choice.precision],
        step_scheduler_with_optimizer=False,
        # Given as a plugin, or ACCELERATE_GRADIENT_ACCUMULATION_STEPS would divide every gradient.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
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
    return Runtime(accelerator, choice)
