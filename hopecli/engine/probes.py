"""What works on this machine, found by trying it: precisions and attention backends."""

from __future__ import annotations

import contextlib
import platform
import re
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from hopecli.engine.memory import free_host_memory
from hopecli.engine.predictor_trials import DTYPES, SMALL, WORKS, first_line, judge, try_predictor
from hopecli.engine.runtime import no_tf32
from hopecli.errors import DeviceError
from hopecli.hardware import (
    AttentionTrial,
    DeviceChoice,
    HardwareReport,
    Machine,
    PrecisionName,
    PrecisionTrial,
    Surroundings,
    resolve,
)

PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
FLASH_CAPABILITY = (8, 0)


def try_machine(report: HardwareReport, choice: DeviceChoice) -> Machine:
    """Everything about the machine, with each precision, predictor and backend tried on the chosen device."""
    no_tf32()
    device = torch.device(choice.device)
    precisions = tuple(try_precision(name, choice.device, report) for name in PRECISIONS)
    predictors = tuple(try_predictor(kind, choice) for kind in SMALL)
    dtype = DTYPES[choice.precision] if choice.device == "cuda" else torch.float32
    names = [name for name in BACKENDS if name != "cuDNN" or choice.device == "cuda"]
    attention = tuple(try_attention(name, device, dtype) for name in names)
    return Machine(report, choice, surroundings(report), precisions, predictors, attention, notes(report, choice))


def try_precision(precision: PrecisionName, device: str, report: HardwareReport) -> PrecisionTrial:
    """A loss, its gradients and a rollout in this precision; usable when the resolver takes it and the numbers hold."""
    refused = None
    try:
        resolve(device, precision, report)
    except DeviceError as error:
        refused = f"not offered: {error.what}"
    found, reason = judge("vit_ac", precision, torch.device(device))
    if found is None:
        return PrecisionTrial(precision, False, refused or reason, None, None)
    works = reason == WORKS and refused is None
    return PrecisionTrial(precision, works, refused or reason, found.loss, found.gradient)


def try_attention(backend: str, device: torch.device, dtype: torch.dtype) -> AttentionTrial:
    """One call as in a rollout of a full-size predictor, with this backend alone allowed: a frame's queries over the
    keys and values of three frames, laid out as there (some kernels go wrong on views), with NaN behind them."""
    frame, seen, room = 258, 3 * 258, 8 * 258
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, frame, 16, 24, generator=generator).transpose(1, 2)
    keys_values = torch.full((2, 1, 16, room, 24), torch.nan)
    keys_values[:, :, :, :seen] = torch.randn(2, 1, 16, seen, 24, generator=generator)
    k, v = keys_values[:, :, :, :seen].double()
    expected = (q.double() @ k.mT / 24**0.5).softmax(dim=-1) @ v
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            k, v = keys_values.to(device, dtype)[:, :, :, :seen]
            with sdpa_kernel([BACKENDS[backend]]):
                out = F.scaled_dot_product_attention(q.to(device, dtype), k, v)
            error = float((out.cpu().double() - expected).abs().max())
        except (RuntimeError, NotImplementedError) as failure:
            why = [first_line(w.message) for w in caught] or [first_line(failure)]
            reason = f"no such kernel for {device.type}" if why[-1].startswith("No viable backend") else why[-1]
            return AttentionTrial(backend, False, reason, None)
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    right = error <= limit  # not so for NaN
    return AttentionTrial(backend, right, WORKS if right else "wrong numbers", error)


def surroundings(report: HardwareReport) -> Surroundings:
    """Driver, free memory and instruction sets."""
    driver = cudnn = free = None
    if report.cuda:
        driver = _nvidia_driver()
        cudnn = torch.backends.cudnn.version()
        free = torch.cuda.mem_get_info()[0]
    fast = None
    with contextlib.suppress(AttributeError, RuntimeError):
        fast = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return Surroundings(
        driver=driver,
        cudnn=cudnn,
        cuda_free=free,
        memory_available=free_host_memory(),
        instructions=torch.backends.cpu.get_cpu_capability(),
        fast_bf16=fast,
        macos=platform.mac_ver()[0] or None,
        mps_memory=torch.mps.recommended_max_memory() if report.mps else None,
    )


def _nvidia_driver() -> str | None:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            found = re.search(r"\b(\d{3}\.[\d.]+)\b", file.readline())
    except OSError:
        return None
    return found.group(1) if found else None


def notes(report: HardwareReport, choice: DeviceChoice) -> tuple[str, ...]:
    """Information, not warnings: limits that follow from the device."""
    return tuple(_notes(report, choice))


def _notes(report: HardwareReport, choice: DeviceChoice) -> Iterator[str]:
    if choice.device == "cuda" and report.cuda[0].capability < FLASH_CAPABILITY:
        yield "FlashAttention needs compute capability 8.0; the memory-efficient or math backend gives the same results"
    elif choice.device == "cuda" and choice.precision == "fp32":
        yield "FlashAttention needs bf16 or fp16; in fp32 another backend gives the same results"
    elif choice.device != "cuda":
        yield "FlashAttention's CUDA kernels need an NVIDIA GPU; this device's own attention gives the same results"
    if choice.device == "mps":
        yield "MPS runs fp32 only here, has no float64, and shares its memory with the system"
    if len(report.cuda) > 1:
        yield f"one of {len(report.cuda)} GPUs is used per process; torchrun starts one process per GPU"
