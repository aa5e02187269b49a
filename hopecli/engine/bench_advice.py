"""Settings that follow from measurements, each with its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hopecli.config.schema import Settings
from hopecli.errors import DeviceError, command_line
from hopecli.hardware import DeviceChoice, HardwareReport, resolve

# A precision is recommended when the model itself, not just a matrix product, gains at least this much.
WORTH_CHANGING = 1.15


@dataclass(frozen=True)
class Evidence:
    """Measured: matmul FLOP/s per precision; `faster`: speed of the model's pass in other precisions relative to
    `precision`; clips per pass that fit; clips/s of training and of the loader. None = not measured."""

    precision: str
    rates: dict[str, float]
    faster: dict[str, float]
    largest_batch: int | None
    training_clips_per_second: float | None
    loader_clips_per_second: float | None
    cores: int


def advise(settings: Settings, evidence: Evidence) -> tuple[list[str], list[str]]:
    """Overrides, and a reason for each decision (also those that change nothing)."""
    overrides, reasons = _precision(settings, evidence)
    more, why = _accumulate(settings, evidence)
    overrides, reasons = overrides + more, reasons + why
    more, why = _workers(settings, evidence)
    return overrides + more, reasons + why


def _precision(settings: Settings, e: Evidence) -> tuple[list[str], list[str]]:
    best = max(e.faster, key=lambda name: e.faster[name], default=None)
    if best is not None and e.faster[best] >= WORTH_CHANGING:
        ratio = e.rates[best] / e.rates[e.precision]
        return [f"training.precision={best}"], [
            f"{best}: its matmul is {ratio:.1f} times as fast as {e.precision} and the model's pass "
            f"{e.faster[best]:.1f} times"
        ]
    if best is not None:
        return [], [
            f"{e.precision}: {best} multiplies faster, but the model's pass is only {e.faster[best]:.2f} times as fast"
        ]
    if len(e.rates) > 1:
        return [], [f"{e.precision}: no other precision multiplies clearly faster here"]
    return [], [f"{e.precision}: the only precision usable here"]


def _accumulate(settings: Settings, e: Evidence) -> tuple[list[str], list[str]]:
    batch, largest = settings.data.batch_size, e.largest_batch
    if largest is None:
        return [], []
    if largest < 1:
        return [], ["not even one clip fits in the free memory: use a smaller model or activation checkpointing"]
    needed = next(parts for parts in range(1, batch + 1) if batch % parts == 0 and batch // parts <= largest)
    if needed <= settings.training.accumulate:
        return [], [f"the batch of {batch} fits in memory ({largest} clips would)"]
    return [f"training.accumulate={needed}"], [
        f"accumulate {needed}: {largest} clips fit in memory, the batch has {batch}"
    ]


def _workers(settings: Settings, e: Evidence) -> tuple[list[str], list[str]]:
    loader, training, workers = e.loader_clips_per_second, e.training_clips_per_second, settings.data.workers
    if loader is None or training is None:
        return [], []
    rates = f"the loader gives {loader:.1f} clips/s, training takes {training:.1f}"
    if loader >= training:
        return [], [f"{min(workers, e.cores)} loader processes are enough: {rates}"]
    if workers < e.cores:
        return [f"data.workers={e.cores}"], [f"more loader processes: {rates}"]
    return [], [f"reading is the limit: {rates}; a faster disk or float16 features would help"]


def as_measured(settings: Settings, choice: DeviceChoice, hardware: HardwareReport) -> tuple[list[str], list[str]]:
    """Overrides, with a reason for each, where the settings would train on another device or in another precision than
    was measured, or cannot train here at all."""
    training, overrides, reasons = settings.training, [], []
    for key, wanted, measured, asked in (
        ("device", choice.device, _device(training.device, hardware), training.device),
        ("precision", choice.precision, _precision_on(choice.device, training.precision, hardware), training.precision),
    ):
        if measured != wanted:
            why = "cannot be had here" if measured is None else f"means {measured} here"
            overrides.append(f"training.{key}={wanted}")
            reasons.append(f"{wanted} was measured; the settings' training.{key}={asked} {why}")
    return overrides, reasons


def _device(name: str, hardware: HardwareReport) -> str | None:
    try:
        return resolve(name, "fp32", hardware).device
    except DeviceError:
        return None


def _precision_on(device: str, name: str, hardware: HardwareReport) -> str | None:
    try:
        return resolve(device, name, hardware).precision
    except DeviceError:
        return None


def command(preset: str, data_dir: Path | None, overrides: Sequence[str]) -> str:
    """The training command with these overrides; of several values for one key the last counts and is shown."""
    folder = [] if data_dir is None else ["--data-dir", str(data_dir)]
    last: dict[str, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        last[text if value.lstrip().startswith("{") else key] = text  # mappings are merged
    return command_line(["hope", "train", "--preset", preset, *folder, *last.values()])
