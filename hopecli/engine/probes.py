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

from hopecli.config.schema import ViTACSettings
from hopecli.engine.memory import free_host_memory
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
from hopecli.models.build import build_model

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "bf16", "fp16")
# Relative error allowed for loss and gradients of the small predictor: a wide margin over the rounding of a 24, 8 or
# 11 bit mantissa through a few layers (2^-24, 2^-8, 2^-11), far below what a broken kernel gives.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
FLASH_CAPABILITY = (8, 0)


def try_machine(report: HardwareReport, choice: DeviceChoice) -> Machine:
    """Everything about the machine, with each precision and backend tried on the chosen device."""
    device = torch.device(choice.device)
    precisions = tuple(try_precision(name, choice.device, report) for name in PRECISIONS)
    dtype = DTYPES[choice.precision] if choice.device == "cuda" else torch.float32
    names = [name for name in BACKENDS if name != "cuDNN" or choice.device == "cuda"]
    attention = tuple(try_attention(name, device, dtype) for name in names)
    return Machine(report, choice, surroundings(report), precisions, attention, notes(report, choice))


def try_precision(precision: PrecisionName, device: str, report: HardwareReport) -> PrecisionTrial:
    """One forward and backward in this precision; usable when the resolver takes it and the numbers hold."""
    refused = None
    try:
        resolve(device, precision, report)
    except DeviceError as error:
        refused = f"not offered: {error.what}"
    try:
        loss_error, gradient_error = _precision_errors(precision, torch.device(device))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return PrecisionTrial(precision, False, refused or f"the call failed: {_first_line(error)}", None, None)
    limit = TOLERANCE[precision]
    wrong = [error for error in (loss_error, gradient_error) if not error <= limit]  # also NaN, which max() may drop
    if wrong:
        reason = f"wrong numbers: relative error {max(wrong):.1e}, at most {limit:.0e} is rounding"
        return PrecisionTrial(precision, False, refused or reason, loss_error, gradient_error)
    return PrecisionTrial(precision, refused is None, refused or "works", loss_error, gradient_error)


def _precision_errors(precision: PrecisionName, device: torch.device) -> tuple[float, float]:
    settings = ViTACSettings.model_validate({"width": 48, "depth": 2, "num_heads": 4})
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 3, 16, 32, generator=generator)
    target = torch.randn(1, 3, 16, 32, generator=generator)
    rows = torch.randn(1, 3, 2, generator=generator)

    def run(where: torch.device, dtype: torch.dtype, cast: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
        model = build_model(settings, grid=4, embed_dim=32, action_dim=2, seed=0).to(where, dtype)
        inputs = [x.to(where, dtype) for x in (features, rows, rows)]
        with torch.autocast(where.type, cast) if cast is not None else contextlib.nullcontext():
            out = model(*inputs)
        loss = (out.to(dtype) - target.to(where, dtype)).square().mean()
        # Without a scale small fp16 gradients vanish; training scales them too.
        (loss * (1024.0 if cast == torch.float16 else 1.0)).backward()
        scale = 1.0 / 1024.0 if cast == torch.float16 else 1.0
        gradients = [scale * p.grad.flatten() for p in model.parameters() if p.grad is not None]
        return loss.detach().cpu().double(), torch.cat(gradients).cpu().double()

    loss, gradient = run(torch.device("cpu"), torch.float64, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cast = None if precision == "fp32" else DTYPES[precision]
        tried_loss, tried_gradient = run(device, torch.float32, cast)
    return float((tried_loss - loss).abs() / loss), float((tried_gradient - gradient).norm() / gradient.norm())


def try_attention(backend: str, device: torch.device, dtype: torch.dtype) -> AttentionTrial:
    """One call of the shape of a full-size predictor's frame, with this backend alone allowed."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 16, 258, 24, generator=generator) for _ in range(3))
    scores = (q.double() @ k.double().transpose(-1, -2)) / 24**0.5
    expected = scores.softmax(dim=-1) @ v.double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with sdpa_kernel([BACKENDS[backend]]):
                out = F.scaled_dot_product_attention(q.to(device, dtype), k.to(device, dtype), v.to(device, dtype))
            error = float((out.cpu().double() - expected).abs().max())
        except (RuntimeError, NotImplementedError) as failure:
            why = [_first_line(w.message) for w in caught] or [_first_line(failure)]
            reason = f"no such kernel for {device.type}" if why[-1].startswith("No viable backend") else why[-1]
            return AttentionTrial(backend, False, reason, None)
    limit = 1e-4 if dtype == torch.float32 else 5e-2
    right = error <= limit
    return AttentionTrial(backend, right, "works" if right else "wrong numbers", error)


def _first_line(error: object) -> str:
    text = re.split(r"\(Triggered internally|\n", str(error).strip())[0]
    return " ".join(text.split())[:160]


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
