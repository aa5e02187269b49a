"""What this machine has, and the one resolver of device and precision, with its reasons."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hopecli.errors import DeviceError, SettingsError

DeviceName = Literal["cuda", "mps", "cpu"]
PrecisionName = Literal["fp32", "bf16", "fp16"]
DEVICES = ("auto", "cuda", "mps", "cpu")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")

# torch.cuda.is_bf16_supported() counts emulation, so the compute capability decides.
BF16_CAPABILITY = (8, 0)
FP16_CAPABILITY = (7, 0)


@dataclass(frozen=True)
class CudaDevice:
    """One CUDA device: name, memory in bytes, compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class HardwareReport:
    """Facts about this machine; None means not known."""

    system: str
    machine: str
    processor: str
    python: str
    torch: str
    cores: int
    threads: int
    memory: int | None
    cuda_version: str | None
    cuda: tuple[CudaDevice, ...] = ()
    mps: bool = False
    mps_reason: str | None = None


@dataclass(frozen=True)
class DeviceChoice:
    """The device and precision of a run and why they were chosen."""

    device: DeviceName
    precision: PrecisionName
    device_reason: str
    precision_reason: str
    device_label: str


@dataclass(frozen=True)
class PrecisionTrial:
    """A small ViT trained and rolled out in one precision, against float64 on the CPU.

    usable: the resolver takes it and the numbers hold. errors: relative, |x - reference| / |reference|, of the loss
    and of all gradients together; None when the call failed.
    """

    precision: PrecisionName
    usable: bool
    reason: str
    loss_error: float | None
    gradient_error: float | None


@dataclass(frozen=True)
class PredictorTrial:
    """One kind of predictor, trained and rolled out in the precision chosen; errors as in PrecisionTrial."""

    predictor: str
    works: bool
    reason: str
    loss_error: float | None
    gradient_error: float | None
    rollout_error: float | None


@dataclass(frozen=True)
class AttentionTrial:
    """One scaled-dot-product backend, tried with a real call; max_error against float64, None when it failed."""

    backend: str
    works: bool
    reason: str
    max_error: float | None


@dataclass(frozen=True)
class Surroundings:
    """Facts that cost a call to find; None means not known or not there. Bytes.

    instructions: what torch's CPU kernels use. fast_bf16: whether the CPU has bf16 instructions.
    """

    driver: str | None
    cudnn: int | None
    cuda_free: int | None
    memory_available: int | None
    instructions: str
    fast_bf16: bool | None
    macos: str | None
    mps_memory: int | None


@dataclass(frozen=True)
class Machine:
    """What `hope hw-info` reports without --bench."""

    hardware: HardwareReport
    choice: DeviceChoice
    surroundings: Surroundings
    precisions: tuple[PrecisionTrial, ...]
    predictors: tuple[PredictorTrial, ...]
    attention: tuple[AttentionTrial, ...]
    notes: tuple[str, ...]


def probe() -> HardwareReport:
    """Look at this machine; imports torch."""
    import torch

    cuda = []
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            cuda.append(CudaDevice(properties.name, properties.total_memory, (properties.major, properties.minor)))
    mps = torch.backends.mps.is_available()
    reason = None
    if not mps:
        reason = (
            "torch was built without MPS" if not torch.backends.mps.is_built() else "needs macOS 12.3 on Apple silicon"
        )
    return HardwareReport(
        system=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        processor=processor_name(),
        python=platform.python_version(),
        torch=torch.__version__,
        cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory=total_memory(),
        cuda_version=torch.version.cuda,
        cuda=tuple(cuda),
        mps=mps,
        mps_reason=reason,
    )


def resolve(device: str, precision: str, report: HardwareReport) -> DeviceChoice:
    """Choose device and precision; SettingsError for an unknown name, DeviceError for what this machine cannot run."""
    _check_name("--device", device, DEVICES)
    _check_name("--precision", precision, PRECISIONS)
    name, device_reason = _resolve_device(device, report)
    label = report.cuda[0].name if name == "cuda" else "Apple GPU (MPS)" if name == "mps" else report.processor
    chosen, reason = _resolve_precision(name, precision, report)
    return DeviceChoice(name, chosen, device_reason, reason, label)


def _check_name(option: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        # By its letters "gpu" is nearest to "cpu", the opposite of what is meant.
        near = ["cuda"] if name.lower() == "gpu" else difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise SettingsError("unknown name", where=option, value=name, fix=f"{hint}Known: {', '.join(known)}")


def _resolve_device(device: str, report: HardwareReport) -> tuple[DeviceName, str]:
    if device == "auto":
        if report.cuda:
            return "cuda", f"auto: {len(report.cuda)} CUDA device{'s' if len(report.cuda) > 1 else ''} found"
        if report.mps:
            return "mps", "auto: no CUDA device, MPS is available"
        return "cpu", "auto: no CUDA device and no MPS"
    if device == "cuda" and not report.cuda:
        built = f"torch {report.torch} sees no CUDA device" if report.cuda_version else "torch was built without CUDA"
        raise DeviceError(f"no CUDA device: {built}", where="--device", value=device, fix="use --device auto or cpu")
    if device == "mps" and not report.mps:
        raise DeviceError(
            f"MPS is not available: {report.mps_reason}", where="--device", value=device, fix="use --device auto or cpu"
        )
    chosen: DeviceName = "cuda" if device == "cuda" else "mps" if device == "mps" else "cpu"
    return chosen, "as set"


def _resolve_precision(device: DeviceName, precision: str, report: HardwareReport) -> tuple[PrecisionName, str]:
    capability = report.cuda[0].capability if report.cuda else (0, 0)
    shown = f"compute capability {capability[0]}.{capability[1]}"
    if precision == "auto":
        if device == "cuda" and capability >= BF16_CAPABILITY:
            return "bf16", f"auto: {shown} >= 8.0 has bf16 units"
        if device == "cuda" and capability >= FP16_CAPABILITY:
            return "fp16", f"auto: {shown} has fp16 units but no bf16"
        return "fp32", f"auto: fp32 on {device}"
    if precision == "fp32":
        return "fp32", "as set"
    if device == "mps":
        reason = "mixed precision is not supported on MPS here"
    elif device == "cpu" and precision == "fp16":
        reason = "Accelerate has no fp16 there and would silently run fp32"
    elif device == "cuda" and precision == "bf16" and capability < BF16_CAPABILITY:
        reason = f"{shown} only emulates bf16; it needs 8.0"
    elif device == "cuda" and precision == "fp16" and capability < FP16_CAPABILITY:
        reason = f"{shown} has no units for it; it needs 7.0"
    else:
        return ("bf16" if precision == "bf16" else "fp16"), "as set"
    raise DeviceError(
        f"{precision} cannot be used on {device}: {reason}",
        where="--precision",
        value=precision,
        fix="use --precision auto or fp32",
    )


def usable_cores() -> int:
    """Cores this process may use: those it may run on, or fewer where its quota of CPU time is less."""
    return cores_within_quota() or allowed_cores()


def cores_within_quota() -> int | None:
    """The CPU quota of this process's container or batch system, rounded up; None unless it is less than the cores
    that the process may run on."""
    quota = min(cpu_quotas(), default=math.inf)
    return math.ceil(quota) if quota <= allowed_cores() - 1 else None


def allowed_cores() -> int:
    """Cores that this process may run on, whatever its quota of CPU time."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


PROCESS_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def control_groups(controller: str, process: Path, mounted: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's Linux control groups for `controller`, each before the groups above it, whose
    limits hold too, and the version (1 or 2); from within a container some of the folders cannot be seen."""
    with contextlib.suppress(OSError, ValueError):
        for line in process.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = mounted / controller if controllers else mounted
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if folder.is_relative_to(top):
                    yield folder, 1 if controllers else 2


def cpu_quotas(process: Path = PROCESS_GROUPS, mounted: Path = GROUPS) -> list[float]:
    """The CPUs that containers and batch systems let this process use in a unit of time, one per group with a limit."""
    quotas = []
    for folder, version in control_groups("cpu", process, mounted):
        files = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if version == 1 else ("cpu.max",)
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # no such group; "max" and -1 are no limit
            quota, period = " ".join((folder / file).read_text(encoding="ascii") for file in files).split()
            if int(quota) > 0:
                quotas.append(int(quota) / int(period))
    return quotas


def processor_name() -> str:
    """The CPU's marketing name where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def total_memory() -> int | None:
    """RAM in bytes, None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
