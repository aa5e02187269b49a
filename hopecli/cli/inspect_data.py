"""hope inspect-data: resolve options, survey the folder, fit presets, report."""

from __future__ import annotations

import errno
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hopecli.cli.common import JsonOption, data_overrides, expanded, override
from hopecli.errors import DataError, HopeError, SettingsError, is_dir, nearest_existing, written

if TYPE_CHECKING:
    from hopecli.config.schema import DataSettings, Settings
    from hopecli.data.survey import PresetFit, Survey, Surveyed

DATA_EXIT_CODE = DataError.exit_code


def inspect_data_command(
    folder: Annotated[str | None, typer.Argument(help="Folder of clips (else HOPE_DATA_DIR).")] = None,
    sample: Annotated[int, typer.Option("--sample", min=0, help="Clips whose features are read whole.")] = 64,
    deep: Annotated[bool, typer.Option("--deep", help="Read every clip whole, with a progress bar.")] = False,
    feature_map: Annotated[
        str | None, typer.Option("--feature-map", help="Feature file without .npy; found by itself by default.")
    ] = None,
    num_timesteps: Annotated[
        int | None,
        typer.Option("--num-timesteps", min=2, help="Frames training uses (default: the presets' or the clips')."),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with code 3 for warnings too.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="Write a picture: a .png outside the folder.")] = None,
    json: JsonOption = False,
) -> None:
    """Say what a folder of clips holds, whether training on it will mean anything, and what is wrong with it.

    Headers and actions of all clips are read, and the features of a sample. Nothing is written into the folder. Exit
    code 3 when a clip has an error, which is what training refuses: missing_features, missing_actions, unreadable,
    truncated, pickled, odd_shape, odd_dtype, float64, feature_width, grid, not_divisible, too_few_frames,
    actions_shape, actions_dtype, states_shape, states_dtype, not_finite, duplicate_id. Warnings: duplicate,
    zero_variance, no_motion, actions_zero, actions_dropped, not_finite_unused, mixed_dtypes, missing_states,
    missing_extrinsics, extrinsics_unusable.
    """
    given = folder or os.environ.get("HOPE_DATA_DIR")
    if not given:
        raise SettingsError("no folder is given", where="hope inspect-data", fix="add DIR or set HOPE_DATA_DIR")
    target = expanded(given, "DIR" if folder else "HOPE_DATA_DIR")
    if plot is not None:
        check_plot_path(plot, target)
    presets = training_presets()
    surveyed = run(target, presets, sample, deep, feature_map, num_timesteps, pictures=plot is not None)
    survey = surveyed.survey
    try:
        if plot is not None:
            draw(surveyed, plot)
    finally:  # `| head` closes stdout: the picture is there by then, and without it the survey is
        report(survey, json=json)
    show_cost(survey)
    if survey.errors or (strict and survey.warnings):
        raise typer.Exit(DATA_EXIT_CODE)


def draw(surveyed: Surveyed, plot: Path) -> None:
    """The picture."""
    from hopecli.report.console import say
    from hopecli.report.survey_plot import plot_survey

    assert surveyed.pictures is not None
    with written(f"--plot {plot}", kind=SettingsError):
        plot_survey(surveyed.survey, surveyed.pictures, plot)
    say(f"picture: {plot}")


def show_cost(survey: Survey) -> None:
    """One line on stderr: time and, where the system tells it, the process's peak memory."""
    import sys

    import torch

    from hopecli.engine.memory import peak_memory
    from hopecli.report.console import counted, say

    text = f"surveyed {counted(survey.clips, 'clip')} in {survey.seconds:.1f} s"
    peak = peak_memory(torch.device("cpu"))
    if peak is None and sys.platform == "darwin":
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    if peak is not None:
        text += f", peak memory {peak / 2**20:.0f} MiB"
    say(text)


def check_plot_path(plot: Path, folder: Path) -> None:
    """The picture is a .png outside the folder, in which nothing is ever written; it must be possible to write it."""
    if plot.suffix.lower() != ".png":
        raise SettingsError("must end in .png", where="--plot", value=str(plot), fix="name a .png file")
    if plot.resolve().is_relative_to(folder.resolve()):
        raise SettingsError(
            "lies in the inspected folder, in which nothing is written",
            where="--plot",
            value=str(plot),
            fix="name a file elsewhere",
        )
    with written(f"--plot {plot}", kind=SettingsError, fix="name a file in a folder that can be written"):
        if is_dir(plot):
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=nearest_existing(plot.absolute().parent)):
            pass


def training_presets() -> dict[str, Settings | HopeError]:
    """Presets that say what to train, or the error of one that cannot be read."""
    from hopecli.config.files import list_presets
    from hopecli.config.load import load_preset, section_tree

    found: dict[str, Settings | HopeError] = {}
    for name, path in list_presets().items():
        try:
            if section_tree(str(path), ["model"]):
                found[name] = load_preset(str(path)).settings
        except HopeError as error:
            found[name] = error
    return found


def run(
    folder: Path,
    presets: dict[str, Settings | HopeError],
    sample: int,
    deep: bool,
    feature_map: str | None,
    num_timesteps: int | None,
    *,
    pictures: bool,
) -> Surveyed:
    """Survey the folder and fit the presets to what was found."""
    from dataclasses import replace

    from hopecli.config.schema import DataSettings, Settings
    from hopecli.data.survey_run import survey_folder
    from hopecli.report.progress import StageProgress

    known = [settings.data for settings in presets.values() if isinstance(settings, Settings)] or [DataSettings()]
    with StageProgress() as progress:
        surveyed = survey_folder(
            folder,
            feature_map=feature_map,
            sample=sample,
            deep=deep,
            known_grids=[data.grid for data in known],
            num_timesteps=num_timesteps or max(data.num_timesteps for data in known),
            shorten=num_timesteps is None,
            pictures=pictures,
            on_progress=progress,
        )
    fits = tuple(fit_preset(name, preset, surveyed) for name, preset in presets.items())
    return replace(surveyed, survey=replace(surveyed.survey, presets=fits))


def fit_preset(name: str, preset: Settings | HopeError, surveyed: Surveyed) -> PresetFit:
    """The overrides a preset needs for these clips, validated by loading it with them, and its split."""
    from hopecli.config.files import list_presets
    from hopecli.config.load import load_preset
    from hopecli.data.split import split_ids
    from hopecli.data.survey import PresetFit

    if isinstance(preset, HopeError):
        return PresetFit(name, False, (), str(preset), None, None, None)
    d, g = preset.data, surveyed.survey.geometry
    needed = d.num_timesteps if g.frames is None else min(d.num_timesteps, g.frames)
    blind = surveyed.no_extrinsics if preset.use_extrinsics else frozenset[int]()
    ids = [number for number, frames in surveyed.frames.items() if frames >= needed and number not in blind]
    short = sum(frames < needed for frames in (surveyed.frames | surveyed.defective).values())
    problem = unfit(preset, surveyed.survey)
    if problem is not None or len(ids) < 2:
        return PresetFit(name, False, (), problem or "training needs at least 2 usable clips", None, None, None)
    train, held_out = split_ids(ids, d.val_split)
    changes = needed_overrides(preset, surveyed.survey)
    changes += leaving_out(d, surveyed.survey, short=short, usable=len(ids))
    if len(train) < d.batch_size:
        changes.append(override("data.batch_size", len(train)))
    try:
        load_preset(str(list_presets()[name]), [*data_overrides(surveyed.survey.folder), *changes])
    except SettingsError as error:
        problem = str(error)
    fits = not changes and problem is None
    return PresetFit(name, fits, tuple(changes), problem, len(train), len(held_out), (held_out[0], held_out[-1]))


def unfit(preset: Settings, survey: Survey) -> str | None:
    """Why no override makes the preset fit, None when some may."""
    g = survey.geometry
    if any(finding.code == "duplicate_id" for finding in survey.findings):
        return "two clip folders have the same number: rename one of them"
    if g.patches is None or g.width is None or survey.actions.width is None or g.frames is None:
        return "the sizes of the clips could not be told"
    if round(g.patches**0.5) ** 2 != g.patches or (g.grid is not None and g.grid[0] != g.grid[1]):
        found = g.patches if g.grid is None else "x".join(map(str, g.grid))
        return f"its predictor needs a square grid of patches (gh = gw), not {found}"
    if g.frames < 2:
        return "clips of one frame have no transition to learn"
    if preset.use_extrinsics and not survey.extrinsics:
        return "it needs extrinsics.npy in every clip"
    return None


def needed_overrides(preset: Settings, survey: Survey) -> list[str]:
    """KEY=VALUE where the clips differ from the preset; a shorter clip also shortens the training windows."""
    d, o, g, a = preset.data, preset.objective, survey.geometry, survey.actions
    assert g.patches is not None
    found: Sequence[tuple[str, object, object]] = [
        ("feature_map", d.feature_map, survey.feature_map),
        ("grid", d.grid, round(g.patches**0.5)),
        ("embed_dim", d.embed_dim, g.width),
        ("action_dim", d.action_dim, a.width),
        ("action_alignment", d.action_alignment, a.suggested_alignment or d.action_alignment),
    ]
    changes = [override(f"data.{key}", value) for key, wanted, value in found if wanted != value]
    if g.frames is not None and g.frames < d.num_timesteps:
        changes.append(override("data.num_timesteps", g.frames))
        if o.T_teacher > g.frames - 1:
            changes.append(override("objective.T_teacher", g.frames - 1))
        if o.T_rollout > g.frames - o.context_frames:
            changes.append(override("objective.T_rollout", max(1, g.frames - o.context_frames)))
    return changes


def leaving_out(settings: DataSettings, survey: Survey, *, short: int, usable: int) -> list[str]:
    """KEY=VALUE that let training go on without the `short` clips and those that have defects, as far as they are
    known; `usable` clips are neither."""
    broken = survey.clips - usable - short
    changes = [override("data.on_short", "skip")] if short and settings.on_short != "skip" else []
    if broken and settings.on_error != "skip":
        changes.append(override("data.on_error", "skip"))
    share = math.ceil(1000 * broken / survey.clips) / 1000
    if share > settings.max_skipped:
        changes.append(override("data.max_skipped", share))
    return changes


def report(survey: Survey, *, json: bool) -> None:
    """The survey on stdout."""
    from hopecli.report.console import show
    from hopecli.report.survey import survey_report

    show(survey, survey_report, json=json)
