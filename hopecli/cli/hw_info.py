"""hope hw-info: resolve device and settings, try what works, measure, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopecli.cli.common import (
    DeviceOption,
    JsonOption,
    Overrides,
    PrecisionOption,
    check_launch,
    complete_presets,
    data_overrides,
    expanded,
    limit_threads,
)
from hopecli.errors import SettingsError

if TYPE_CHECKING:
    from hopecli.config.load import Resolved
    from hopecli.engine.results import Bench
    from hopecli.hardware import Machine


def hw_info_command(
    overrides: Overrides = None,
    bench: Annotated[bool, typer.Option("--bench", help="Measure rates and the passes of a preset's model.")] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", "-p", help="Preset to measure (default: quickstart).", autocompletion=complete_presets
        ),
    ] = None,
    data_dir: Annotated[str | None, typer.Option("--data-dir", help="Clips to measure the loader on.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    json: JsonOption = False,
) -> None:
    """Show the machine, what each choice of device and precision rests on, and which kernels work here.

    Every precision and every kind of predictor is tried against float64 on the CPU, every attention backend with a
    call. --bench measures matrix products, memory, and a preset's passes in under three minutes, and recommends
    settings with the command.
    """
    if not bench and (preset or data_dir or overrides):
        raise SettingsError("has no effect without --bench", where="hope hw-info", fix="add --bench")
    preset = preset or "quickstart"
    check_launch()
    resolved = resolve_settings(preset, [*(overrides or []), *data_overrides(data_dir)]) if bench else None
    machine = look(device or "auto", precision or "auto")
    if not json:
        show_machine(machine)
    measured = None
    if resolved is not None:
        folder = None if data_dir is None else expanded(data_dir, "--data-dir")
        measured = measure(preset, resolved, machine, overrides or [], folder)
    report(machine, measured, json=json)


def resolve_settings(preset: str, overrides: list[str]) -> Resolved:
    """The preset to measure."""
    from hopecli.config.load import load_preset

    return load_preset(preset, overrides)


def look(device: str, precision: str) -> Machine:
    """Probe, resolve and try."""
    from hopecli.engine.probes import try_machine
    from hopecli.hardware import probe, resolve

    found = probe()
    return try_machine(found, resolve(device, precision, found))


def measure(preset: str, resolved: Resolved, machine: Machine, overrides: list[str], data_dir: Path | None) -> Bench:
    """Run the benchmark on the device and precision chosen; `preset` is what the user gave, a name or a path."""
    from dataclasses import replace

    from hopecli.engine.bench import bench
    from hopecli.engine.bench_advice import as_measured
    from hopecli.engine.runtime import start
    from hopecli.report.console import say

    if limit_threads(resolved.settings.training, machine.choice):
        threads = resolved.settings.training.cpu_threads
        say(f"note: measured with training.cpu_threads={threads}, the matrix products too")
    forced, reasons = as_measured(resolved.settings, machine.choice, machine.hardware)
    runtime = start(machine.choice)
    try:
        result = bench(
            preset,
            resolved.settings,
            runtime,
            machine.precisions,
            overrides=[*overrides, *forced],
            data_dir=data_dir,
            say=say,
        )
    finally:
        runtime.close()
    return replace(result, reasons=(*reasons, *result.reasons))


def show_machine(machine: Machine) -> None:
    """The banner and the tables."""
    from hopecli.report.console import hardware_banner, make_console
    from hopecli.report.hardware import machine_tables

    console = make_console(stderr=False)
    banner = hardware_banner(machine.choice, processes=1, threads=machine.hardware.threads)
    console.print(banner, markup=False, soft_wrap=True)
    for table in machine_tables(machine):
        console.print(table)
    for note in machine.notes:
        console.print(f"note: {note}", markup=False)


def report(machine: Machine, bench: Bench | None, *, json: bool) -> None:
    """The benchmark below the machine; both as one object with --json."""
    from hopecli.engine.results import to_tree
    from hopecli.report.console import show
    from hopecli.report.hardware import bench_command, bench_tables

    tree = {**to_tree(machine), "bench": None if bench is None else to_tree(bench)}
    show(tree, lambda _: [] if bench is None else [*bench_tables(bench), bench_command(bench)], json=json)
