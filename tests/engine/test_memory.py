"""The memory that is left is what the machine has, or what a container or batch system leaves of it."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from hopecli.engine import memory
from hopecli.engine.memory import free_host_memory, peak_memory, reset_peak_memory, room_in_groups


def group(folder: Path, limit: str, used: int, cached: int, *, version: int) -> None:
    """Files as the kernel shows them, each value in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {cached}\nactive_file 3\n")
    else:
        (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"inactive_file 7\ntotal_inactive_file {cached}\ntotal_rss 5\n")


def test_limits_of_a_group_and_of_those_above_it(tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    process.write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "slurm" / "job_7", "1000", 700, 100, version=2)
    group(tmp_path / "slurm" / "job_7" / "step_0", "max", 600, 0, version=2)  # no limit of its own
    group(tmp_path / "slurm", "500", 600, 40, version=2)  # over its limit: the kernel is about to act
    assert room_in_groups(process, tmp_path) == [400, 0]


def test_limits_of_version_1(tmp_path: Path) -> None:
    """From within a container the path is the host's, and only the container's own group can be seen."""
    process = tmp_path / "cgroup"
    process.write_text("5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n1:name=systemd:/\n0::/\n")
    group(tmp_path / "memory", "2000", 900, 50, version=1)
    assert room_in_groups(process, tmp_path) == [1150]


@pytest.mark.parametrize("content", [None, "", "0::/\n", "nonsense\n", "4:memory:/x\n"])
def test_without_limits(content: str | None, tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    if content is not None:
        process.write_text(content)
    assert room_in_groups(process, tmp_path / "nowhere") == []


def test_what_is_free_is_the_smallest_room(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = free_host_memory()
    monkeypatch.setattr(memory, "room_in_groups", lambda: [10**15, 12345])
    assert free_host_memory() == (None if everything is None else 12345)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's heap")
def test_what_an_earlier_pass_has_freed_counts_for_the_next_one() -> None:
    """glibc keeps it for new tensors, whose memory would not show."""
    blocks, size = 1000, 64 * 1024  # too small to be given back one by one

    def fill() -> list[torch.Tensor]:
        return [torch.ones(size // 4) for _ in range(blocks)]

    earlier, behind = fill(), torch.ones(size // 4)
    del earlier
    before = reset_peak_memory(torch.device("cpu"))
    held = fill()
    peak = peak_memory(torch.device("cpu"))
    assert before is not None
    assert peak is not None
    # 0.9: pages that the blocks share with what was there before
    assert peak - before > 0.9 * blocks * size
    assert len(held) == blocks
    assert behind.numel() == size // 4
