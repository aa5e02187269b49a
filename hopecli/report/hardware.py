"""The machine and its measured rates as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from hopecli.engine.results import Bench, Timing
from hopecli.errors import printable
from hopecli.hardware import Machine
from hopecli.report.console import counted
from hopecli.report.tables import gib, pairs_table, plain_table

PASS_TITLES = {
    "teacher_forced": "teacher-forced pass",
    "rollout": "rollout with memory",
    "rollout_recomputed": "rollout, past recomputed",
    "training_step": "training step",
    "adaptation_step": "adaptation step (LayerNorm)",
}


def machine_tables(machine: Machine) -> list[Table]:
    """Facts, precisions, predictors and attention backends."""
    precisions = [
        [
            trial.precision,
            "yes" if trial.usable else "no",
            _error(trial.loss_error),
            _error(trial.gradient_error),
            trial.reason,
        ]
        for trial in machine.precisions
    ]
    predictors = [
        [
            trial.predictor,
            "yes" if trial.works else "no",
            _error(trial.loss_error),
            _error(trial.gradient_error),
            _error(trial.rollout_error),
            trial.reason,
        ]
        for trial in machine.predictors
    ]
    attention = [
        [trial.backend, "yes" if trial.works else "no", _error(trial.max_error), trial.reason]
        for trial in machine.attention
    ]
    return [
        pairs_table("Machine", _facts(machine)),
        plain_table(
            f"Precisions on {machine.choice.device}: a small ViT trained and rolled out, against float64",
            ["precision", "usable", "loss error", "gradient error", "why"],
            precisions,
            numbers_from=5,
        ),
        plain_table(
            f"Predictors on {machine.choice.device} in {machine.choice.precision}: a small one of each kind, likewise",
            ["predictor", "works", "loss error", "gradient error", "rollout error", "why"],
            predictors,
            numbers_from=6,
        ),
        plain_table(
            "Scaled-dot-product attention, each backend called alone",
            ["backend", "works", "max error", "why"],
            attention,
            numbers_from=4,
        ),
    ]


def _facts(machine: Machine) -> Mapping[str, Any]:
    h, s = machine.hardware, machine.surroundings
    facts: dict[str, Any] = {}
    for i, gpu in enumerate(h.cuda):
        free = f", {gib(s.cuda_free)} free" if i == 0 and s.cuda_free is not None else ""
        capability = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        facts[f"GPU {i}"] = f"{gpu.name}, {gib(gpu.memory)}{free}, {capability}"
    if h.cuda_version is None:
        facts["CUDA"] = "torch was built without CUDA"
    elif not h.cuda:
        facts["CUDA"] = f"torch has CUDA {h.cuda_version}, no device is seen"
    else:
        facts["CUDA"] = f"{h.cuda_version}, driver {s.driver or 'not known'}, cuDNN {s.cudnn or 'none'}"
    facts["MPS"] = f"available, up to {gib(s.mps_memory)}" if h.mps else f"no: {h.mps_reason}"
    bf16 = {True: ", bf16 instructions", False: ", no bf16 instructions", None: ""}[s.fast_bf16]
    counts = f"{counted(h.cores, 'core')}, {counted(h.threads, 'thread')}"
    facts["CPU"] = f"{h.processor}, {counts}, {s.instructions}{bf16}"
    available = "" if s.memory_available is None else f", {gib(s.memory_available)} available"
    facts["RAM"] = None if h.memory is None else f"{gib(h.memory)}{available}"
    facts["system"] = f"{h.system} {h.machine}" + (f", macOS {s.macos}" if s.macos else "")
    facts["versions"] = f"Python {h.python}, torch {h.torch}"
    return facts


def bench_tables(bench: Bench) -> list[Table]:
    """Rates, passes, memory and what follows."""
    rates = {f"matmul {name}": f"{rate / 1e9:,.0f} GFLOP/s" for name, rate in bench.matmul.items()}
    return [
        pairs_table(
            f"Rates of {bench.device}",
            {**rates, "memory": f"{bench.bandwidth / 1e9:,.1f} GB/s (read and written by a copy)"},
        ),
        plain_table(
            f"{bench.preset}: {bench.model}, {bench.parameters / 1e6:.2f} M parameters, {bench.precision}",
            ["pass", "clips", "runs", "ms", "clips/s", "GFLOP", "of matmul rate"],
            [_timing_row(timing) for timing in bench.timings],
        ),
        pairs_table("", _more(bench)),
        pairs_table("Recommended", {f"{i}.": reason for i, reason in enumerate(bench.reasons, start=1)}),
    ]


def bench_command(bench: Bench) -> Text:
    """The recommended command, never broken over lines: it is to be pasted."""
    return Text(printable(bench.command), no_wrap=True)


def _timing_row(t: Timing) -> list[str]:
    share = "-" if t.matmul_share is None else f"{100 * t.matmul_share:.0f} %"
    flops = "-" if t.flops is None else f"{t.flops / 1e9:,.1f}"
    title = PASS_TITLES.get(t.name, t.name)
    return [title, str(t.clips), str(t.runs), f"{t.milliseconds:,.1f}", f"{t.clips_per_second:.2f}", flops, share]


def _more(bench: Bench) -> Mapping[str, Any]:
    loader = None
    if bench.loader_clips_per_second is not None:
        loader = f"{bench.loader_clips_per_second:.1f} clips/s with {bench.loader_workers} processes"
    tried = "" if bench.largest_batch_tried is None else f", {bench.largest_batch_tried} tried and ran"
    largest = None
    if bench.largest_batch_estimated is not None:
        largest = f"{bench.largest_batch_estimated} clips estimated{tried} ({gib(bench.free_bytes)} free)"
    return {
        "rollout with memory": f"{bench.rollout_speedup:.1f} times faster than recomputing",
        "loader": loader,
        "weights, gradients, AdamW": gib(bench.static_bytes),
        "activations per clip": gib(bench.activation_bytes_per_clip),
        "largest batch": largest,
        "measured in": f"{bench.seconds:.0f} s",
    }


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"
