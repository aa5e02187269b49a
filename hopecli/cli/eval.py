"""hope eval: resolve settings, build, run, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopecli.cli.checkpoints import TRAINING_KEYS, Trained, held_out_or_all, load_trained
from hopecli.cli.common import (
    DeviceOption,
    JsonOption,
    OtherDataDir,
    OtherOverrides,
    PrecisionOption,
    complete_presets,
    override,
    require_right_numbers,
    start_runtime,
)
from hopecli.cli.results_folder import announce_replacing, results_folder
from hopecli.errors import SettingsError, written

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.engine.evaluate import EvalPlan
    from hopecli.engine.results import EvalResults
    from hopecli.engine.runtime import Runtime
    from hopecli.engine.scores import ClipScores


@dataclass(frozen=True)
class Evaluation:
    """Results and what they were computed from, for the files."""

    results: EvalResults
    scores: ClipScores
    order: list[int]  # of the clips in per_clip.csv
    folder: Path


def eval_command(
    overrides: OtherOverrides = None,
    ckpt: Annotated[
        str, typer.Option("--ckpt", "-c", help="Run or checkpoint directory, .safetensors file, or 'last'.")
    ] = "",
    data_dir: OtherDataDir = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", "-p", help="Preset whose evaluation section to use.", autocompletion=complete_presets),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Folder name of the results.")] = None,
    device: DeviceOption = None,
    precision: PrecisionOption = None,
    json: JsonOption = False,
) -> None:
    """Measure a checkpoint's rollouts beside baselines: copy-last, zero and shuffled actions.

    Without --data-dir the clips held out from training are used.
    """
    if not ckpt:
        raise SettingsError("no checkpoint is given", where="hope eval", fix="add --ckpt RUN")
    flags = [] if precision is None else [override("evaluation.precision", precision)]
    unused = ("adaptation.", "logging.wandb", "logging.log_every", "logging.diagnostics_every", *TRAINING_KEYS)
    trained = load_trained(ckpt, preset, [*(overrides or []), *flags], data_dir, unused=unused)
    settings = trained.settings
    runtime = start_runtime(settings.training, settings.evaluation.precision, device)
    require_right_numbers(settings.model.kind, runtime, learning=False)
    with runtime.closing():
        evaluation = run(trained, runtime, name)
        if runtime.is_main:
            report(evaluation, json=json)


def run(trained: Trained, runtime: Runtime, name: str | None) -> Evaluation:
    """Score the clips and summarise."""
    from hopecli.data.readers import readers_note
    from hopecli.data.split import count_defects
    from hopecli.engine.evaluate import score_clips, summarise
    from hopecli.engine.reading import reading, unscored
    from hopecli.engine.results import EvalResults
    from hopecli.engine.scores import falling
    from hopecli.engine.skips import Skips
    from hopecli.models.build import count_parameters
    from hopecli.report.console import say
    from hopecli.report.files import require_writable

    s, started = trained.settings, time.perf_counter()
    e = s.evaluation
    clips = runtime.from_main(lambda: held_out_or_all(trained, e.clips, say))  # once: all must score the same clips
    folder = results_folder(trained, "eval", name or clips.label)
    runtime.from_main(lambda: require_writable(folder))
    if runtime.is_main:
        announce_replacing(folder, say)
    plan = plan_of(s)
    unused = unscored("evaluation", frames=s.data.num_timesteps, context=plan.context_frames, horizon=plan.horizon)
    if unused and runtime.is_main:
        say(unused)
    model = trained.model.to(runtime.device)
    skips = Skips(
        s.data,
        clips=len(clips.names) + len(clips.skipped),
        before=count_defects(clips.skipped),
        folder=clips.store.folder,
        runtime=runtime,
        say=say,
    )
    note = readers_note(clips.store, clips.names, max(1, e.batch_size)) if runtime.is_main else None
    if note:
        say(note)
    scores = score_clips(
        model,
        clips.store,
        clips.names,
        plan,
        runtime,
        batch_size=e.batch_size,
        seed=e.seed,
        skips=skips,
    )
    order = falling(scores.array("model").mean(axis=1)) if e.num_worst_clips else list(range(len(scores.names)))
    summary = summarise(scores, bootstrap_samples=e.bootstrap_samples, seed=e.seed)
    results = EvalResults(
        checkpoint=str(trained.checkpoint.path),
        data=str(clips.store.folder),
        model=s.model.kind,
        parameters=count_parameters(model),
        clips=len(scores.names),
        clips_from=clips.clips_from,
        overlap_with_training=clips.overlap_of(scores.names),
        context_frames=plan.context_frames,
        T_rollout=plan.horizon,
        normalize_reps=plan.normalize_reps,
        device=runtime.choice.device,
        precision=runtime.choice.precision,
        rows=summary.rows,
        loss_teacher=summary.loss_teacher,
        action_sensitivity=summary.action_sensitivity,
        action_sensitivity_relative=summary.action_sensitivity_relative,
        ratio_to_copy_last=summary.ratio_to_copy_last,
        seconds=time.perf_counter() - started,
        worst_clips=[scores.names[i] for i in order[: e.num_worst_clips]],
        skipped_clips={**clips.left_out, **clips.skipped, **skips.reasons},
        preset=trained.checkpoint.info.get("preset"),
        step=trained.checkpoint.info.get("step"),
        epoch=trained.checkpoint.info.get("epoch"),
        seed=e.seed,
        bootstrap_samples=summary.resamples,
        T_teacher=plan.T_teacher,
        training_seed=trained.trained_under.training.seed,
        read_as=reading(s),
        clips_with_ratio=summary.clips_with_ratio,
        clips_not_finite=scores.not_finite(),
    )
    return Evaluation(results, scores, order, folder)


def plan_of(settings: Settings) -> EvalPlan:
    """What to measure of every clip."""
    from hopecli.engine.evaluate import EvalPlan

    e = settings.evaluation
    context = e.context_frames or settings.objective.context_frames
    horizon = e.T_rollout or settings.data.num_timesteps - context
    return EvalPlan(
        context_frames=context,
        horizon=horizon,
        T_teacher=context + horizon - 1,  # to the rollout's last frame, however long training's clips were
        normalize_reps=settings.objective.normalize_reps,
        zero_action=True,
        shuffled_action=True,
    )


def report(evaluation: Evaluation, *, json: bool) -> None:
    """The files, and the table (or JSON) on stdout, also when a file cannot be written."""
    from hopecli.engine.scores import too_narrow
    from hopecli.report.console import say, show
    from hopecli.report.tables import eval_tables

    try:
        write_files(evaluation)
        few = too_narrow(evaluation.results.clips)
        if few:
            say(few)
        found = evaluation.results
        lost = found.clips_not_finite
        if lost:
            say(
                f"warning: an error is not finite (NaN or infinite) on {len(lost)} of {found.clips} clips, the first "
                f"{lost[0]}: means of the rows concerned are not known (null in results.json, which lists the clips)"
            )
        still = found.clips - found.clips_with_ratio
        if still:
            say(
                f"note: {still} of {found.clips} clips have a predicted frame that equals the first, hence no error "
                "relative to copy-first there: the mean of ratios is without them"
            )
        say(f"results: {evaluation.folder}")
    finally:
        show(evaluation.results, eval_tables, json=json)


def write_files(evaluation: Evaluation) -> None:
    """results.json, per_clip.csv and the picture."""
    from hopecli.engine.results import to_tree
    from hopecli.report.files import write_csv, write_json
    from hopecli.report.lock import alone_in
    from hopecli.report.per_clip import per_clip_rows
    from hopecli.report.plots import plot_error_against_horizon

    results, folder, scores = evaluation.results, evaluation.folder, evaluation.scores
    rows = per_clip_rows(
        names=scores.names,
        l1=scores.l1,
        cosine=scores.cosine,
        copy_first=scores.copy_first,
        target_std=scores.target_std,
        teacher=scores.teacher,
        order=evaluation.order,
    )
    with written(folder), alone_in(folder):
        write_json(folder / "results.json", to_tree(results))
        write_csv(folder / "per_clip.csv", rows)
        plot_error_against_horizon(results, folder / "error_against_horizon.png")
