"""What `hope hw-info` shows people, against a machine and rates whose numbers are all different."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hopecli.engine.results import Bench, Timing
from hopecli.hardware import (
    AttentionTrial,
    CudaDevice,
    DeviceChoice,
    HardwareReport,
    Machine,
    PrecisionTrial,
    PredictorTrial,
    Surroundings,
)
from hopecli.report.console import show
from hopecli.report.hardware import bench_command, bench_tables, machine_tables
from tests.report.examples import cells, pairs, title

GIB = 2**30
MACHINE = Machine(
    hardware=HardwareReport(
        system="Linux",
        machine="x86_64",
        processor="a CPU",
        python="3.12.1",
        torch="2.7.0",
        cores=16,
        threads=8,
        memory=64 * GIB,
        cuda_version="12.6",
        cuda=(CudaDevice("first", 80 * GIB, (9, 0)), CudaDevice("second", 24 * GIB, (8, 6))),
        mps_reason="not a Mac",
    ),
    choice=DeviceChoice("cpu", "fp32", "asked for", "asked for", "a CPU"),
    surroundings=Surroundings(
        driver="560.1",
        cudnn=90100,
        cuda_free=70 * GIB,
        memory_available=48 * GIB,
        instructions="AVX2",
        fast_bf16=False,
        macos=None,
        mps_memory=None,
    ),
    precisions=(
        PrecisionTrial("fp32", True, "exact", 1.5e-7, 2.5e-6),
        PrecisionTrial("fp16", False, "no such kernels", None, None),
    ),
    predictors=(
        PredictorTrial("vit_ac", True, "fine", 3.5e-8, 4.5e-7, 5.5e-7),
        PredictorTrial("hope", False, "no such solve", None, None, None),
    ),
    attention=(AttentionTrial("math", True, "runs", 3.5e-5), AttentionTrial("flash", False, "no GPU", None)),
    notes=(),
)
BENCH = Bench(
    preset="p",
    model="hope",
    parameters=12_345_678,
    device="cuda",
    precision="bf16",
    matmul_side=4096,
    matmul={"fp32": 50.4e12, "bf16": 700.6e12},
    bandwidth=3210.04e9,
    timings=(
        Timing("rollout", 4, 7, 1234.56, 3.256, 9_876_543_210, 0.456),
        Timing("training_step", 8, 5, 9.87, 810.54, None, None),
    ),
    rollout_speedup=2.34,
    loader_clips_per_second=56.78,
    loader_workers=6,
    static_bytes=3 * 2**29,
    activation_bytes_per_clip=0.25 * GIB,
    free_bytes=70 * GIB,
    largest_batch_estimated=270,
    largest_batch_tried=256,
    recommended=(),
    reasons=("because", "and because"),
    command="hope train --preset p",
    seconds=65.4,
)


def test_facts() -> None:
    assert pairs(machine_tables(MACHINE)[0]) == {
        "GPU 0": "first, 80.00 GiB, 70.00 GiB free, compute capability 9.0",
        "GPU 1": "second, 24.00 GiB, compute capability 8.6",
        "CUDA": "12.6, driver 560.1, cuDNN 90100",
        "MPS": "no: not a Mac",
        "CPU": "a CPU, 16 cores, 8 threads, AVX2, no bf16 instructions",
        "RAM": "64.00 GiB, 48.00 GiB available",
        "system": "Linux x86_64",
        "versions": "Python 3.12.1, torch 2.7.0",
    }


def test_facts_of_a_mac() -> None:
    hardware = replace(MACHINE.hardware, cuda_version=None, cuda=(), mps=True, mps_reason=None, memory=None)
    hardware = replace(hardware, cores=1, threads=1)
    around = replace(MACHINE.surroundings, fast_bf16=True, macos="15.1", mps_memory=20 * GIB)
    shown = pairs(machine_tables(replace(MACHINE, hardware=hardware, surroundings=around))[0])
    assert shown["CUDA"] == "torch was built without CUDA"
    assert shown["MPS"] == "available, up to 20.00 GiB"
    assert shown["CPU"] == "a CPU, 1 core, 1 thread, AVX2, bf16 instructions"
    assert shown["RAM"] == "not measured"
    assert shown["system"] == "Linux x86_64, macOS 15.1"


@pytest.mark.parametrize(
    ("driver", "cuda", "shown"),
    [
        (None, MACHINE.hardware.cuda, "12.6, driver not known, cuDNN 90100"),
        ("560.1", (), "torch has CUDA 12.6, no device is seen"),
    ],
)
def test_cuda_without_driver_or_device(driver: str | None, cuda: tuple[CudaDevice, ...], shown: str) -> None:
    machine = replace(
        MACHINE,
        hardware=replace(MACHINE.hardware, cuda=cuda),
        surroundings=replace(MACHINE.surroundings, driver=driver),
    )
    assert pairs(machine_tables(machine)[0])["CUDA"] == shown


def test_trials() -> None:
    _, precisions, predictors, attention = machine_tables(MACHINE)
    assert cells(precisions) == {
        "fp32": {"usable": "yes", "loss error": "1.5e-07", "gradient error": "2.5e-06", "why": "exact"},
        "fp16": {"usable": "no", "loss error": "-", "gradient error": "-", "why": "no such kernels"},
    }
    assert title(predictors) == "Predictors on cpu in fp32: a small one of each kind, likewise"
    assert cells(predictors) == {
        "vit_ac": {
            "works": "yes",
            "loss error": "3.5e-08",
            "gradient error": "4.5e-07",
            "rollout error": "5.5e-07",
            "why": "fine",
        },
        "hope": {
            "works": "no",
            "loss error": "-",
            "gradient error": "-",
            "rollout error": "-",
            "why": "no such solve",
        },
    }
    assert cells(attention) == {
        "math": {"works": "yes", "max error": "3.5e-05", "why": "runs"},
        "flash": {"works": "no", "max error": "-", "why": "no GPU"},
    }


def test_bench() -> None:
    rates, passes, more, advice = bench_tables(BENCH)
    assert pairs(rates) == {
        "matmul fp32": "50,400 GFLOP/s",
        "matmul bf16": "700,600 GFLOP/s",
        "memory": "3,210.0 GB/s (read and written by a copy)",
    }
    assert title(passes) == "p: hope, 12.35 M parameters, bf16"
    assert cells(passes) == {
        "rollout with memory": {
            "clips": "4",
            "runs": "7",
            "ms": "1,234.6",
            "clips/s": "3.26",
            "GFLOP": "9.9",
            "of matmul rate": "46 %",
        },
        "training step": {
            "clips": "8",
            "runs": "5",
            "ms": "9.9",
            "clips/s": "810.54",
            "GFLOP": "-",
            "of matmul rate": "-",
        },
    }
    assert pairs(more) == {
        "rollout with memory": "2.3 times faster than recomputing",
        "loader": "56.8 clips/s with 6 processes",
        "weights, gradients, AdamW": "1.50 GiB",
        "activations per clip": "0.25 GiB",
        "largest batch": "270 clips estimated, 256 tried and ran (70.00 GiB free)",
        "measured in": "65 s",
    }
    assert pairs(advice) == {"1.": "because", "2.": "and because"}


def test_the_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = f"hope train --preset p {' '.join(f'model.key{i}={i}' for i in range(40))}"
    show(None, lambda _: [bench_command(replace(BENCH, command=command))], json=False)
    assert capsys.readouterr().out == f"{command}\n"


def test_bench_without_what_was_not_measured() -> None:
    less = replace(
        BENCH,
        loader_clips_per_second=None,
        activation_bytes_per_clip=None,
        largest_batch_tried=None,
    )
    shown = pairs(bench_tables(less)[2])
    assert {shown[key] for key in ("loader", "activations per clip")} == {"not measured"}
    assert shown["largest batch"] == "270 clips estimated (70.00 GiB free)"
    unknown = replace(less, largest_batch_estimated=None)
    assert pairs(bench_tables(unknown)[2])["largest batch"] == "not measured"
