"""What a preset's model costs on this machine, measured in one run, and the settings that follow from it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from hopecli.config.schema import Settings
from hopecli.data.clip import ClipBatch
from hopecli.data.loader import EpochBatches, load_batches
from hopecli.data.readers import reader_processes
from hopecli.data.split import usable_clips
from hopecli.data.store import ClipStore
from hopecli.engine.bench_advice import Evidence, advise, command
from hopecli.engine.bench_machine import (
    MATMUL_SIDE,
    REPETITIONS,
    SLOW_SECONDS,
    VERY_SLOW_SECONDS,
    Measured,
    matmul_rate,
    measure_in_turn,
    memory_bandwidth,
    timed,
    timed_and_counted,
)
from hopecli.engine.bench_passes import adaptation_pass, inference_passes, training_pass
from hopecli.engine.dry_run import random_batch, static_bytes
from hopecli.engine.memory import free_memory, peak_memory, reset_peak_memory
from hopecli.engine.predictor_trials import DTYPES
from hopecli.engine.results import Bench, Timing
from hopecli.engine.runtime import Runtime
from hopecli.hardware import PrecisionName, PrecisionTrial, usable_cores
from hopecli.models.build import build_model, count_parameters
from hopecli.models.protocol import PredictorModule

# Clips in every timed pass: a CPU is busy with one full-size clip, a GPU is not.
CLIPS = {"cuda": 8, "mps": 2, "cpu": 1}
LOADER_SECONDS = 5.0
MEMORY_SHARE = 0.9
# The whole benchmark ends within three minutes: repetitions stop after a minute, and what is not needed for the
# recommendation is left out when a busy or slow machine has used the rest.
REPEAT_SECONDS = 60.0
LAST_START_SECONDS = 130.0
END_SECONDS = 165.0
# Below this ratio of matmul rates another precision is not worth a pass of the model to find out.
WORTH_TRYING = 1.3


def bench(
    preset: str,
    settings: Settings,
    runtime: Runtime,
    trials: tuple[PrecisionTrial, ...],
    *,
    overrides: Sequence[str],
    data_dir: Path | None,
    say: Callable[[str], None],
) -> Bench:
    """Measure; `say` takes a line per stage; `overrides` are what the settings have over the preset's.

    Raises DataError when the clips of data_dir do not fit the settings.
    """
    started = time.perf_counter()
    device, precision = runtime.device, runtime.choice.precision
    usable: list[PrecisionName] = [trial.precision for trial in trials if trial.usable]
    loader = workers = None
    if data_dir is not None:
        say("reading clips")
        loader, workers = loader_rate(settings, data_dir), reader_processes(settings.data)
    side = MATMUL_SIDE[device.type]
    say("matrix products and memory")
    rates: dict[str, float] = {name: matmul_rate(DTYPES[name], device, side) for name in usable}
    bandwidth = memory_bandwidth(device)
    model = _build(settings).to(device)
    batch = random_batch(settings, CLIPS[device.type]).to(device)
    say("teacher-forced pass and rollouts")
    passes = inference_passes(model, settings, batch, runtime)
    until = started + REPEAT_SECONDS
    measured = measure_in_turn({"teacher_forced": passes.pop("teacher_forced")}, device, until=until)
    measured |= measure_in_turn(passes, device, until=until)
    faster = _other_precisions(model, settings, batch, rates, runtime, say, until=until)
    training = training_pass(model, settings, batch, runtime)
    activations = flops = None
    if training is not None:
        say("training step")
        flops = training_flops(settings, batch, runtime)
    if time.perf_counter() - started + _expected_seconds(flops, measured) > END_SECONDS:
        say("training step left out: this machine is too slow or busy for it in three minutes")
    elif training is not None:
        measured["training_step"], activations = _training(training, model, len(batch), flops, device)
    adaptation = adaptation_pass(model, settings, batch, runtime)
    if time.perf_counter() - started > LAST_START_SECONDS:
        say("adaptation step left out: this machine is too slow or busy for it in three minutes")
    elif adaptation is not None:
        say("adaptation step")
        measured |= measure_in_turn({"adaptation_step": adaptation}, device, until=started + LAST_START_SECONDS)
    free, static = free_memory(device), static_bytes(model, settings)
    largest = tried = None
    if activations and free is not None:
        # The weights are on the device already.
        room = MEMORY_SHARE * free - static + sum(p.numel() * p.element_size() for p in model.parameters())
        largest = max(0, int(room / activations))
        if device.type == "cuda" and training is not None:
            say("largest batch")
            tried = largest_batch(model, settings, runtime, largest)
    timings = tuple(_timing(name, m, len(batch), rates.get(precision)) for name, m in measured.items())
    seconds = {name: m.seconds for name, m in measured.items()}
    evidence = Evidence(
        precision=precision,
        rates=rates,
        faster=faster,
        largest_batch=tried if tried is not None else largest,
        training_clips_per_second=len(batch) / seconds["training_step"] if "training_step" in seconds else None,
        loader_clips_per_second=loader,
        cores=usable_cores(),
    )
    recommended, reasons = advise(settings, evidence)
    return Bench(
        preset=preset,
        model=settings.model.kind,
        parameters=count_parameters(model),
        device=runtime.choice.device,
        precision=precision,
        matmul_side=side,
        matmul=rates,
        bandwidth=bandwidth,
        timings=timings,
        rollout_speedup=seconds["rollout_recomputed"] / seconds["rollout"],
        loader_clips_per_second=loader,
        loader_workers=workers,
        static_bytes=static,
        activation_bytes_per_clip=activations,
        free_bytes=free,
        largest_batch_estimated=largest,
        largest_batch_tried=tried,
        recommended=tuple(recommended),
        reasons=tuple(reasons),
        command=command(preset, data_dir, [*overrides, *recommended]),
        seconds=time.perf_counter() - started,
    )


def _timing(name: str, measured: Measured, clips: int, rate: float | None) -> Timing:
    share = None
    if measured.flops is not None and rate is not None:
        share = measured.flops / measured.seconds / rate
    return Timing(
        name=name,
        clips=clips,
        runs=measured.runs,
        milliseconds=1e3 * measured.seconds,
        clips_per_second=clips / measured.seconds,
        flops=measured.flops,
        matmul_share=share,
    )


def _training(
    training: Callable[[], object], model: PredictorModule, clips: int, flops: int | None, device: torch.device
) -> tuple[Measured, float | None]:
    """The training step, and activation bytes per clip: the first step's peak less the gradients (AdamW's moments are
    not there yet). None where peaks cannot be measured."""
    before = reset_peak_memory(device)
    first = timed(training, device)
    peak = peak_memory(device)
    activations = None
    if before is not None and peak is not None:
        gradients = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        grown = peak - before - gradients
        activations = grown / clips if grown > 0 else None  # too little to be told from what the process holds
    more = 0 if first >= VERY_SLOW_SECONDS else 1 if first >= SLOW_SECONDS else REPETITIONS
    times = [first] if first >= SLOW_SECONDS else []
    times += [timed(training, device) for _ in range(more)]
    return Measured(statistics.median(times), len(times), flops), activations


def training_flops(settings: Settings, batch: ClipBatch, runtime: Runtime) -> int | None:
    """FLOPs of a training step. Blocks are alike, so models of one and two blocks tell those of any depth; counting
    the full model would hold its activations and take minutes on a small CPU."""

    def count(depth: int | None) -> int | None:
        changed = settings.model if depth is None else settings.model.model_copy(update={"depth": depth})
        s = settings.model_copy(update={"model": changed})
        training = training_pass(_build(s).to(runtime.device), s, batch, runtime)
        return None if training is None else timed_and_counted(training, runtime.device)[1]

    depth = getattr(settings.model, "depth", None)
    if depth is None or depth <= 2:
        return count(None)
    one, two = count(1), count(2)
    return None if one is None or two is None else one + (depth - 1) * (two - one)


def _expected_seconds(flops: int | None, measured: dict[str, Measured]) -> float:
    """How long a pass will take at the slowest rate seen so far; 0 when nothing was counted."""
    rates = [m.seconds / m.flops for m in measured.values() if m.flops]
    return max(rates) * flops if rates and flops else 0.0


def _build(settings: Settings) -> PredictorModule:
    d = settings.data
    return build_model(
        settings.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=settings.training.seed
    )


def _other_precisions(
    model: PredictorModule,
    settings: Settings,
    batch: ClipBatch,
    rates: dict[str, float],
    runtime: Runtime,
    say: Callable[[str], None],
    *,
    until: float,
) -> dict[str, float]:
    """Speed of the model's teacher-forced pass in precisions whose matmul is faster, relative to the chosen one."""
    chosen = runtime.choice.precision
    found: dict[str, float] = {}
    for name in ("bf16", "fp16"):
        if name == chosen or rates.get(name, 0.0) < WORTH_TRYING * rates.get(chosen, float("inf")):
            continue
        say(f"teacher-forced pass in {name}")
        other = replace(runtime, choice=replace(runtime.choice, precision=name))
        calls = {
            "chosen": inference_passes(model, settings, batch, runtime)["teacher_forced"],
            "other": inference_passes(model, settings, batch, other)["teacher_forced"],
        }
        seconds = measure_in_turn(calls, runtime.device, until=until)
        found[name] = seconds["chosen"].seconds / seconds["other"].seconds
    return found


def loader_rate(settings: Settings, folder: Path) -> float:
    """Clips per second that the loader delivers from `folder` in training order, measured for up to five seconds."""
    store = ClipStore(folder, settings.data, use_extrinsics=settings.use_extrinsics)
    names = list(usable_clips(store)[0].values())
    size = min(settings.data.batch_size, len(names))
    sampler = EpochBatches(clips=len(names), global_batch=size, seed=0, epoch=0)
    clips, started = 0, time.perf_counter()
    for loaded in load_batches(store, names, sampler, pin_memory=False):
        clips += 0 if loaded.clips is None else len(loaded.clips)
        if time.perf_counter() - started > LOADER_SECONDS:
            break
    return clips / (time.perf_counter() - started)


def largest_batch(model: PredictorModule, settings: Settings, runtime: Runtime, estimate: int) -> int:
    """The largest of a few batch sizes around `estimate` whose training step fits in the device's memory; 0 if none."""
    tried: set[int] = set()
    for share in (1.25, 1.0, 0.8, 0.6, 0.4, 0.2, 0.1):
        clips = max(1, min(int(share * estimate), settings.data.batch_size))
        if clips in tried:
            continue
        tried.add(clips)
        try:
            step = training_pass(model, settings, random_batch(settings, clips).to(runtime.device), runtime)
            assert step is not None
            timed(step, runtime.device)
        except torch.OutOfMemoryError:
            step = None  # its batch and optimizer
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
            continue
        return clips
    return 0
