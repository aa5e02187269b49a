"""hope tta: resolve settings, build, run, report."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopecli.cli.checkpoints import TRAINING_KEYS, Trained, held_out_or_all, load_trained
from hopecli.cli.common import (
    DeviceOption,
    JsonOption,
    OtherDataDir,
    PrecisionOption,
    StreamOverrides,
    check_launch,
    complete_presets,
    override,
    require_right_numbers,
    start_runtime,
)
from hopecli.cli.results_folder import announce_replacing, results_folder
from hopecli.cli.tta_identity import identity, mark_of
from hopecli.cli.tta_report import report
from hopecli.cli.tta_source import find_source, fingerprinted
from hopecli.errors import DeviceError, SettingsError, one_of_several

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.engine.optim import Group
    from hopecli.engine.runtime import Runtime
    from hopecli.engine.sink import StreamSink
    from hopecli.engine.tta_job import StreamRecord, TtaJob
    from hopecli.engine.tta_summary import StreamFacts


@dataclass(frozen=True)
class Request:
    """What the options ask for, beside the settings. asked: dotted keys that the command line sets."""

    source_data_dir: str | None
    name: str | None
    baselines: list[str]
    resume: bool
    preset: str | None
    asked: Collection[str] = ()


def tta_command(
    overrides: StreamOverrides = None,
    ckpt: Annotated[
        str, typer.Option("--ckpt", "-c", help="Run or checkpoint directory, .safetensors file, or 'last'.")
    ] = "",
    data_dir: OtherDataDir = None,
    source_data_dir: Annotated[
        str | None, typer.Option("--source-data-dir", help="Clips that show forgetting (else those held out).")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-p", help="Preset whose adaptation section to use.", autocompletion=complete_presets),
    ] = None,
    baselines: Annotated[
        str, typer.Option("--baselines", help="frozen (always on), periodic_reset; joined by commas.")
    ] = "frozen",
    name: Annotated[str | None, typer.Option("--name", help="Folder name of the results.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted stream of this command.")
    ] = False,
    wandb: Annotated[str | None, typer.Option("--wandb", help="auto, online, offline or disabled.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    json: JsonOption = False,
) -> None:
    """Adapt a checkpoint to a stream of clips: predict, score, then adapt, with the frozen model beside it.

    A CMS level of HOPE steps once in its update period, counted over the stream. With adaptation.reset_per_clip=true
    the count starts again with each clip, so a level whose period exceeds the steps of a clip never moves, and
    adapted.safetensors holds the checkpoint's weights.
    """
    from hopecli.config.load import overridden

    if not ckpt:
        raise SettingsError("no checkpoint is given", where="hope tta", fix="add --ckpt RUN")
    if one_of_several():
        raise SettingsError(
            "a stream is adapted to clip by clip, on one process",
            where="WORLD_SIZE",
            value=os.environ["WORLD_SIZE"].strip(),
            fix="drop torchrun",
        )
    check_launch()
    flags = [] if precision is None else [override("adaptation.precision", precision)]
    flags += [] if wandb is None else [override("logging.wandb", wandb)]
    unused = ("evaluation.", "logging.diagnostics_every", *TRAINING_KEYS)
    trained = load_trained(ckpt, preset, [*(overrides or []), *flags], data_dir, unused=unused, hashed=True)
    chosen_baselines = list(dict.fromkeys(["frozen", *(text.strip() for text in baselines.split(",") if text.strip())]))
    asked = overridden(overrides or [])
    request = Request(source_data_dir, name, chosen_baselines, resume, preset, asked)
    runtime = choose_runtime(trained, device)
    from hopecli.report.lock import stream_lock

    job, facts = build(trained, request, runtime)
    with stream_lock(job.folder):
        try:
            record = run(job)
        finally:
            job.sink.close()
            runtime.close()
        report(trained, job, record, facts, json=json)


def choose_runtime(trained: Trained, device: str | None) -> Runtime:
    """The device asked for; for `auto` the CPU where LayerNorm cannot be trained on MPS, else DeviceError."""
    from hopecli.engine.adapt import layernorm_backward_works
    from hopecli.report.console import say

    s = trained.settings
    asked = device or s.training.device
    runtime = start_runtime(s.training, s.adaptation.precision, device)
    if runtime.device.type == "mps" and not layernorm_backward_works(runtime.device, s.data.embed_dim):
        what = "LayerNorm's backward gives non-finite gradients on this MPS release"
        if asked != "auto":
            raise DeviceError(what, where="--device", value=asked, fix="use --device auto or cpu")
        say(f"{what}: adapting on the CPU")
        runtime = start_runtime(s.training, s.adaptation.precision, "cpu")
    require_right_numbers(s.model.kind, runtime, learning=s.adaptation.adapt != "none")
    if runtime.choice.precision == "fp16" and s.adaptation.adapt != "none":
        raise SettingsError(
            "small gradients vanish in fp16", where="adaptation.precision", value="fp16", fix="use fp32 or bf16"
        )
    return runtime


def build(trained: Trained, request: Request, runtime: Runtime) -> tuple[TtaJob, StreamFacts]:
    """Stream, source clips, sinks and what identifies the stream."""
    from hopecli.config.files import find_preset
    from hopecli.engine.adapt import adapted_groups
    from hopecli.engine.tta_job import TtaJob
    from hopecli.engine.tta_state import read_state, require_same_stream, unread_marks
    from hopecli.engine.tta_summary import StreamFacts
    from hopecli.report.console import say
    from hopecli.report.files import require_writable

    s = trained.settings
    model = trained.model.to(runtime.device)
    groups = adapted_groups(model, s.adaptation.adapt, s.model, s.adaptation.weight_decay)
    chosen = held_out_or_all(trained, s.evaluation.clips, say)
    stem = "" if request.preset is None else f"{find_preset(request.preset).stem}_"
    folder = results_folder(trained, "tta", request.name or f"{stem}{chosen.label}")
    require_writable(folder)
    before = read_state(folder) if request.resume else None
    chosen, marks = fingerprinted(chosen, before, say)
    then = {} if before is None else {n: mark for n, mark in unread_marks(before).items() if n in marks}
    source = find_source(trained, request.source_data_dir, chosen, set(marks.values()), say)
    say_notes(s, request, groups, say)
    of_stream = marks | then
    own = identity(trained, request.baselines, runtime, chosen, of_stream, source)
    if before is not None:  # before a mirror is opened
        require_same_stream(before, own, folder=chosen.store.folder, marks=of_stream, left_out=chosen.skipped)
    job = TtaJob(
        settings=s,
        runtime=runtime,
        model=model,
        clips=chosen.store,
        names=chosen.names,
        sink=open_sink(trained, folder, own, say),
        folder=folder,
        source=None if source is None else (source.store, source.names),
        baselines=request.baselines,
        identity=own,
        resume=request.resume,
        left_out=chosen.skipped,
        marks=of_stream,
    )
    facts = StreamFacts(
        checkpoint=str(trained.checkpoint.path),
        data=str(chosen.store.folder),
        clips_from=chosen.clips_from,
        seen=None if chosen.overlap is None else chosen.seen,
        unreadable={**chosen.left_out, **chosen.skipped},
        source_label=None if source is None else source.label,
        adapted_parameters=sum(p.numel() for group in groups for p in group.parameters),
        fingerprints=marks,
        training_seed=trained.trained_under.training.seed,
        source_unreadable=0 if source is None else source.unreadable,
    )
    announce_replacing(folder, say, resumed=request.resume)  # last: nothing is replaced when the settings are refused
    return job, facts


def say_notes(s: Settings, request: Request, groups: Sequence[Group], say: Callable[[str], None]) -> None:
    """What of the settings is not as it seems: frames not used, settings without effect, scores before learning."""
    from hopecli.engine.reading import unscored
    from hopecli.engine.tta_clip import make_plan
    from hopecli.engine.tta_idle import idle_settings
    from hopecli.report.console import counted

    a, frames = s.adaptation, s.data.num_timesteps
    plan = make_plan(a, s.objective, frames)
    unused = unscored("adaptation", frames=frames, context=plan.context_frames, horizon=plan.horizon)
    if unused:
        say(unused)
    idle = idle_settings(request.asked, s, groups, request.baselines)
    if idle:
        say(f"note: without effect: {', '.join(f'{key} ({why})' for key, why in idle.items())}")
    usual = s.evaluation.context_frames or s.objective.context_frames
    if a.context_frames != usual and "adaptation.context_frames" not in request.asked:
        shorter = " adaptation.T_rollout=null" if (a.T_rollout or 0) + usual > frames else ""
        say(
            f"note: clips are scored from {counted(a.context_frames, 'true frame')} on, by hope eval from {usual} "
            f"(adaptation.context_frames={usual}{shorter})"
        )
    if a.reset_per_clip and a.mode == "full_rollout" and a.adapt != "none":
        say(
            "note: each clip is scored before it is learned and then forgotten, so online equals frozen; "
            "adaptation.mode=sequential adapts within a clip"
        )


def open_sink(trained: Trained, folder: Path, own: Mapping[str, Any], say: Callable[[str], None]) -> StreamSink:
    """The terminal, and the mirror: a run of its own for each stream (by its identity, `own`) under one name."""
    from hopecli.config.explain import to_tree
    from hopecli.report.tta import ConsoleStream, StreamFanout, WandbStream
    from hopecli.report.wandb_sink import WandbSink, resolve_mode

    s = trained.settings
    mode, reason = resolve_mode(s.logging.wandb)
    console = ConsoleStream(every=s.logging.log_every)
    if mode == "disabled":
        return console
    say(reason)
    folder.mkdir(parents=True, exist_ok=True)
    run_dir = trained.checkpoint.run_dir
    label = folder.name if run_dir is None else f"{run_dir.parent.name}/{run_dir.name}/tta/{folder.name}"
    mirror = WandbSink(
        mode=mode,
        project=s.logging.wandb_project,
        entity=s.logging.wandb_entity,
        run_dir=folder,
        config=to_tree(s),
        say=say,
        label=label,
        mark=mark_of(own),
        record="per_clip.csv",
    )
    return StreamFanout([console, WandbStream(mirror)])


def run(job: TtaJob) -> StreamRecord:
    """Stream the clips."""
    from hopecli.engine.tta import stream

    return stream(job)
