"""Peak memory of the device, or of this process on the CPU, and waiting for the device."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import torch

from hopecli.hardware import GROUPS, PROCESS_GROUPS, control_groups


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it: kernels run behind the host's back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> int | None:
    """Start a new peak measurement; returns the bytes in use now, None where it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return None  # Metal tells what is in use, not what was
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is freed: the next pass would use that again
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets VmHWM, the peak resident set (Linux)
    return _status("VmRSS")


def peak_memory(device: torch.device) -> int | None:
    """Bytes at the peak since the last reset, None where it cannot be measured."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return None
    return _status("VmHWM")  # ru_maxrss would be the starting process's where that was larger (Linux keeps it)


def _status(key: str) -> int | None:
    return _field("/proc/self/status", key)


def _field(path: str, key: str) -> int | None:
    """Bytes of a `key: n kB` line."""
    try:
        with open(path, encoding="ascii") as file:
            for line in file:
                if line.startswith(f"{key}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def free_host_memory() -> int | None:
    """RAM in bytes that new allocations can have, None where the system does not tell."""
    system = _field("/proc/meminfo", "MemAvailable")
    return system if system is None else min([system, *room_in_groups()])


def room_in_groups(process: Path = PROCESS_GROUPS, mounted: Path = GROUPS) -> list[int]:
    """Bytes that the memory limits of containers and batch systems (Linux control groups, versions 1 and 2) leave,
    one per group with a limit; cached files count as room, as the system gives them up first."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }
    found = [_room(folder, *names[version]) for folder, version in control_groups("memory", process, mounted)]
    return [room for room in found if room is not None]


def _room(group: Path, limit: str, used: str, cached: str) -> int | None:
    """Bytes left in one group, None when it has no limit or does not tell."""
    try:
        free = int((group / limit).read_text(encoding="ascii")) - int((group / used).read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):  # no such group; "max"
        return None
    return max(0, free + sum(int(line.split()[1]) for line in lines if line.startswith(f"{cached} ")))


def free_memory(device: torch.device) -> int | None:
    """Bytes that a new tensor on the device can have, what torch holds but does not use included."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return free_host_memory()
