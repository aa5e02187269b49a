"""Device and precision chosen for machines that are described, not owned."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hopecli import hardware
from hopecli.errors import DeviceError, SettingsError
from hopecli.hardware import CudaDevice, HardwareReport, cpu_quotas, probe, resolve, usable_cores

CPU = HardwareReport(
    system="Linux 6",
    machine="x86_64",
    processor="Some CPU",
    python="3.11",
    torch="2.6.0",
    cores=2,
    threads=2,
    memory=2**33,
    cuda_version=None,
    mps_reason="torch was built without MPS",
)


def with_cuda(name: str, capability: tuple[int, int]) -> HardwareReport:
    return dataclasses.replace(CPU, cuda_version="12.4", cuda=(CudaDevice(name, 2**34, capability),))


A100, H100, T4, OLD = (
    with_cuda("NVIDIA A100", (8, 0)),
    with_cuda("NVIDIA H100", (9, 0)),
    with_cuda("Tesla T4", (7, 5)),
    with_cuda("GTX 1080", (6, 1)),
)
MPS = dataclasses.replace(CPU, system="Darwin 23", machine="arm64", processor="Apple M2", mps=True, mps_reason=None)


@pytest.mark.parametrize(
    ("report", "device", "precision", "label", "reason"),
    [
        (A100, "cuda", "bf16", "NVIDIA A100", "8.0"),
        (H100, "cuda", "bf16", "NVIDIA H100", "9.0"),
        (T4, "cuda", "fp16", "Tesla T4", "7.5 has fp16 units but no bf16"),
        (OLD, "cuda", "fp32", "GTX 1080", "fp32 on cuda"),
        (MPS, "mps", "fp32", "Apple GPU (MPS)", "fp32 on mps"),
        (CPU, "cpu", "fp32", "Some CPU", "fp32 on cpu"),
    ],
)
def test_auto(report: HardwareReport, device: str, precision: str, label: str, reason: str) -> None:
    choice = resolve("auto", "auto", report)
    assert (choice.device, choice.precision, choice.device_label) == (device, precision, label)
    assert choice.device_reason.startswith("auto: ")
    assert choice.precision_reason.startswith("auto: ")
    assert reason in choice.precision_reason


@pytest.mark.parametrize(
    ("report", "device", "precision", "expected"),
    [
        (A100, "cpu", "auto", ("cpu", "fp32")),
        (A100, "cuda", "fp32", ("cuda", "fp32")),
        (A100, "auto", "fp16", ("cuda", "fp16")),
        (T4, "auto", "fp16", ("cuda", "fp16")),
        (CPU, "cpu", "bf16", ("cpu", "bf16")),
        (MPS, "mps", "fp32", ("mps", "fp32")),
        (MPS, "cpu", "auto", ("cpu", "fp32")),
    ],
)
def test_asked_for(report: HardwareReport, device: str, precision: str, expected: tuple[str, str]) -> None:
    choice = resolve(device, precision, report)
    assert (choice.device, choice.precision) == expected
    assert "as set" in (choice.device_reason, choice.precision_reason)


@pytest.mark.parametrize(
    ("report", "device", "precision", "parts"),
    [
        (CPU, "cuda", "auto", ("--device", "no CUDA device", "built without CUDA", "'cuda'")),
        (dataclasses.replace(CPU, cuda_version="12.4"), "cuda", "auto", ("torch 2.6.0 sees no CUDA device",)),
        (CPU, "mps", "auto", ("--device", "torch was built without MPS")),
        (CPU, "cpu", "fp16", ("--precision", "fp16 cannot be used on cpu", "--precision auto")),
        (A100, "cpu", "fp16", ("fp16 cannot be used on cpu",)),
        (T4, "auto", "bf16", ("bf16 cannot be used on cuda", "7.5 only emulates bf16")),
        (OLD, "auto", "fp16", ("fp16 cannot be used on cuda", "6.1 has no units for it; it needs 7.0")),
        (MPS, "auto", "bf16", ("bf16 cannot be used on mps",)),
        (MPS, "mps", "fp16", ("fp16 cannot be used on mps",)),
    ],
)
def test_impossible(report: HardwareReport, device: str, precision: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(DeviceError) as raised:
        resolve(device, precision, report)
    assert raised.value.exit_code == 5
    for part in parts:
        assert part in str(raised.value)


@pytest.mark.parametrize(
    ("device", "precision", "parts"),
    [
        ("foo", "auto", ("--device", "'foo'", "auto, cuda, mps, cpu")),
        ("gpu", "auto", ("--device", "'gpu'", "Did you mean cuda?")),
        ("", "auto", ("--device", "Known: auto")),
        ("auto", "foo", ("--precision", "'foo'", "auto, fp32, bf16, fp16")),
        ("cpu", "FP32", ("--precision", "Did you mean fp32?")),
    ],
)
def test_unknown_names(device: str, precision: str, parts: tuple[str, ...]) -> None:
    for report in (CPU, A100, MPS):
        with pytest.raises(SettingsError) as raised:
            resolve(device, precision, report)
        for part in parts:
            assert part in str(raised.value)


@pytest.mark.parametrize(("first", "second", "precision"), [(T4, H100, "fp16"), (H100, T4, "bf16")])
def test_of_several_gpus_the_first_counts(first: HardwareReport, second: HardwareReport, precision: str) -> None:
    """A process without a launcher runs on device 0."""
    choice = resolve("auto", "auto", dataclasses.replace(first, cuda=first.cuda + second.cuda))
    assert (choice.device, choice.precision) == ("cuda", precision)
    assert choice.device_label == first.cuda[0].name
    assert "2 CUDA devices" in choice.device_reason


def test_a_cpu_without_a_name_beside_a_gpu_is_not_called_a_gpu() -> None:
    assert resolve("cpu", "fp32", dataclasses.replace(A100, processor="")).device_label == ""


def test_probe_describes_this_machine() -> None:
    import torch

    report = probe()
    assert report.torch == torch.__version__
    assert report.cores >= 1
    assert report.processor
    assert len(report.cuda) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert (report.mps_reason is None) == report.mps
    choice = resolve("auto", "auto", report)
    assert (choice.device == "cuda") == bool(report.cuda)


def test_cpu_quotas_of_a_group_and_of_those_above_it(tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    process.write_text("0::/slurm/job_7/step_0\n")
    (tmp_path / "slurm" / "job_7" / "step_0").mkdir(parents=True)
    (tmp_path / "slurm" / "job_7" / "step_0" / "cpu.max").write_text("max 100000\n")  # no limit of its own
    (tmp_path / "slurm" / "job_7" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "slurm" / "cpu.max").write_text("400000 50000\n")
    assert cpu_quotas(process, tmp_path) == [1.5, 8.0]


@pytest.mark.parametrize(("quota", "expected"), [("250000", [2.5]), ("-1", [])])
def test_cpu_quota_of_version_1(quota: str, expected: list[float], tmp_path: Path) -> None:
    """From within a container the path is the host's, and only the container's own group can be seen."""
    process = tmp_path / "cgroup"
    process.write_text("5:cpu,cpuacct:/docker/1\n4:memory:/docker/1\n0::/\n")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_quotas(process, tmp_path) == expected


@pytest.mark.parametrize("content", [None, "", "0::/\n", "nonsense\n", "4:cpu:/x\n"])
def test_without_cpu_quotas(content: str | None, tmp_path: Path) -> None:
    process = tmp_path / "cgroup"
    if content is not None:
        process.write_text(content)
    assert cpu_quotas(process, tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("quotas", "cores"), [([], 8), ([1.0], 1), ([0.2], 1), ([2.5, 6.0], 3), ([7.5], 8), ([9.0], 8)]
)
def test_a_quota_is_rounded_up_to_cores(quotas: list[float], cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "cpu_quotas", lambda: quotas)
    monkeypatch.setattr(hardware, "allowed_cores", lambda: 8)
    assert usable_cores() == cores
