"""hope train: resolve settings, build, run, report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopecli.cli.checkpoints import FREE_KEYS
from hopecli.cli.common import (
    DataDir,
    DeviceOption,
    JsonOption,
    Overrides,
    PrecisionOption,
    check_built_in,
    complete_presets,
    data_overrides,
    gives_clips,
    make_run_dir,
    override,
    require_right_numbers,
    runs_folder,
    start_runtime,
    with_data_folder,
)
from hopecli.cli.disk_space import require_space
from hopecli.cli.restore import Restored, restore
from hopecli.cli.resume import find_run, require_own
from hopecli.cli.train_clips import find_clips, keep_split, list_skipped
from hopecli.cli.train_notes import say_notes
from hopecli.cli.train_records import holding, open_sinks
from hopecli.errors import HopeError, SettingsError, command_line, is_first

if TYPE_CHECKING:
    from hopecli.config.load import Resolved
    from hopecli.engine.results import TrainSummary
    from hopecli.engine.runtime import Runtime
    from hopecli.engine.train_job import TrainJob
    from hopecli.report.lock import RunLock

HOPE_KEYS = ("optimizer.titan_lr_scale", "optimizer.cms_lr_scale", "optimizer.memory_weight_decay")
LEAVING_OUT = ("data.on_error", "data.max_skipped")  # lets a run that a bad clip has ended go on without it


@dataclass(frozen=True)
class Request:
    """Resolved settings and, when resuming, the run directory to go on with and the checkpoint to start from."""

    resolved: Resolved
    resume: Path | None
    checkpoint: Path | None


def train_command(
    overrides: Overrides = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-p", help="Preset name or YAML path.", autocompletion=complete_presets),
    ] = None,
    data_dir: DataDir = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    seed: Annotated[int | None, typer.Option("--seed", help="training.seed.")] = None,
    wandb: Annotated[str | None, typer.Option("--wandb", help="auto, online, offline or disabled.")] = None,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Run (or checkpoint) directory to go on with, or 'last'.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Sizes, memory and one pass; writes no files.")] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the settings as YAML (--json: JSON) and exit.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Train a predictor (--preset quickstart needs no data)."""
    flags = data_overrides(data_dir)
    for key, value in (
        ("training.device", device),
        ("training.precision", precision),
        ("training.seed", seed),
        ("logging.wandb", wandb),
    ):
        if value is not None:
            flags.append(override(key, value))
    request = resolve_settings(preset, [*(overrides or []), *flags], resume)
    if print_config:
        from hopecli.config.explain import to_tree, to_yaml

        resolved = request.resolved.settings
        if is_first():
            typer.echo(dumps(to_tree(resolved)) + "\n" if json else to_yaml(resolved), nl=False)
        return
    settings = request.resolved.settings
    runtime = start_runtime(settings.training, settings.training.precision, resumed=resume is not None)
    require_right_numbers(settings.model.kind, runtime, learning=True)
    say_notes(request.resolved, runtime, resume=resume)
    if dry_run:
        from hopecli.cli.dry_run import dry_run_report

        dry_run_report(request.resolved, runtime, json=json)
        return
    with runtime.closing(), holding(request.resume, runtime) as lock:
        report(run(build(request, runtime, lock)), runtime, json=json)


def resolve_settings(preset: str | None, overrides: list[str], resume: str | None) -> Request:
    """Settings of a preset, or of the run to resume (which takes no preset and changes nothing it trains on)."""
    from dataclasses import replace

    from hopecli.config.load import DEFAULT, load_preset, load_tree, overridden
    from hopecli.report.console import say

    if resume is None:
        if preset is None:
            from hopecli.config.files import list_presets
            from hopecli.config.keys import closest

            fix = f"add --preset NAME; presets: {', '.join(list_presets())}"
            stray = next((text for text in overrides if "=" not in text), "")
            meant = stray if os.path.isfile(stray) else closest(stray, list_presets(), 0.7)
            if meant:
                fix = f"did you mean {command_line(['--preset', meant])}?"
            raise SettingsError("no preset is given", where="hope train", fix=fix)
        resolved = load_preset(preset, overrides)
        asked, kind = overridden(overrides), resolved.settings.model.kind
        check_built_in(resolved.settings, overrides)
        if all(origin == DEFAULT for key, origin in resolved.origins.items() if key.startswith("model.")):
            say(f"note: preset {resolved.name} says nothing of a model: the default {kind} of full size is trained")
        idle = [key for key in HOPE_KEYS if key in asked and kind != "hope"]
        if idle:
            say(f"note: a {kind} model does not use {', '.join(idle)}")
        return Request(replace(resolved, settings=with_data_folder(resolved.settings)), None, None)
    if preset is not None:
        raise SettingsError("cannot be combined with --preset", where="--resume", fix="a run knows its own settings")
    allowed = ("data.source", "data.data_dir", "data.workers", *LEAVING_OUT, *FREE_KEYS, "logging.")
    for text in overrides:
        if not text.startswith(allowed):
            raise SettingsError(
                "cannot change in a resumed run", where=text.split("=")[0], fix="start a new run, or leave it out"
            )
    run_dir, source = find_run(resume, overrides)
    from hopecli.engine.checkpoint import load_checkpoint
    from hopecli.engine.trained import settings_of
    from hopecli.report.lock import naming_another_training

    with naming_another_training(run_dir):
        checkpoint = load_checkpoint(str(source))
    # First as they are, so that a mistake in them is not taken for one in the overrides.
    require_own(run_dir, settings_of(checkpoint), allowed)
    name = str(checkpoint.info.get("preset", run_dir.parent.name))
    resolved = load_tree(checkpoint.settings, overrides, name=name, origin=f"run {run_dir}")
    settings = with_data_folder(resolved.settings, recorded=not gives_clips(overrides))
    return Request(replace(resolved, settings=settings), run_dir, source)


def build(request: Request, runtime: Runtime, lock: RunLock | None) -> TrainJob:
    """Clips, split, model, run directory and sinks."""
    from hopecli.data.readers import readers_note
    from hopecli.engine.model_notes import length_notes
    from hopecli.engine.train_job import TrainJob, steps_per_epoch
    from hopecli.models.build import build_model
    from hopecli.report.console import say
    from hopecli.report.wandb_sink import resolve_mode

    settings = request.resolved.settings
    mode, reason = runtime.from_main(lambda: resolve_mode(settings.logging.wandb))
    # Once for all processes: each would read every clip, and one that sees another folder would train on other clips.
    found = runtime.from_main(lambda: find_clips(settings, request.resume))
    store, split = found.store, found.split
    with runtime.raising_as_one():
        steps = steps_per_epoch(settings, len(split.train), runtime.world) * settings.training.epochs
    d = settings.data
    readers = readers_note(store, split.train, d.batch_size // (runtime.world * settings.training.accumulate))
    for note in (readers, *length_notes(settings, steps)):
        if note and runtime.is_main:
            say(note)
    model = build_model(
        settings.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=settings.training.seed
    )
    before = Restored()
    if request.resume is not None:
        assert request.checkpoint is not None
        before = restore(request.resume, request.checkpoint, settings, runtime, found, model, steps=steps)
    name = request.resolved.name

    def place() -> Path:
        folder = request.resume or runs_folder(settings) / name
        note = require_space(folder, settings, model, new=request.resume is None)
        if note:
            say(note)
        return request.resume or make_run_dir(folder)

    run_dir = runtime.from_main(place)
    trainer = before.trainer
    again = trainer is not None and (trainer.get("validation") is None or not trainer["optimizer"])
    sink = open_sinks(
        settings,
        run_dir,
        split,
        runtime,
        lock=lock,
        mode=mode,
        reason=reason,
        first_step=before.first_step,
        validates_again=again,
    )
    return TrainJob(
        preset=name,
        settings=settings,
        runtime=runtime,
        store=store,
        split=split,
        model=model,
        run_dir=run_dir,
        sink=sink,
        resumed=trainer,
        skipped=found.lost,
        unreadable=before.unreadable,
        lost=frozenset(found.lost),
        keep_split=keep_split,
    )


def run(job: TrainJob) -> TrainSummary:
    """Train; sinks are closed whatever happens, and split.json lists the clips that turned out to be unreadable."""
    from hopecli.engine.runtime import EndedTogether
    from hopecli.engine.train import train

    together = False
    try:
        return train(job)
    except (HopeError, EndedTogether) as error:
        together = isinstance(error, EndedTogether) or error.together
        raise
    finally:
        try:
            list_skipped(job)
        finally:
            job.sink.close()
            if together:  # torchrun ends all processes when one ends: not before the main one has closed its files
                job.runtime.barrier()


def report(summary: TrainSummary, runtime: Runtime, *, json: bool) -> None:
    """The summary on stdout."""
    from hopecli.report.console import show
    from hopecli.report.tables import train_tables

    if runtime.is_main:
        show(summary, train_tables, json=json)
