"""The clips of hope tta: those of the stream that can be read, and the source clips, whose loss shows forgetting: clips
of the training domain that no update has seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hopecli.cli.checkpoints import ChosenClips, Trained, training_split
from hopecli.cli.common import expanded
from hopecli.cli.recognise import compare_inputs, held_out_here, readings_of, recognised
from hopecli.errors import DataError, HopeError, SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from hopecli.config.schema import DataSettings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore

AS_TRAINED = ("feature_map", "action_alignment", "action_reduce")  # of the source clips, whatever the stream's are
AS_NOW = ("num_timesteps", "on_short", "on_error", "max_skipped", "workers")


@dataclass(frozen=True)
class Source:
    """Clips of the training domain whose loss shows forgetting; unreadable: how many others could not be read."""

    store: ClipStore
    names: list[str]
    label: str
    unreadable: int


def fingerprinted(
    chosen: ChosenClips, before: Mapping[str, Any] | None, say: Callable[[str], None]
) -> tuple[ChosenClips, dict[str, str]]:
    """The stream's clips with their fingerprints; with data.on_error=skip without those that cannot be read for one.

    before: the state of an interrupted stream that is to go on. What it left out stays out, and with data.on_error=skip
    its clips stay in it (under the fingerprints they had) whatever has become of them. DataError for a clip that cannot
    be read, or when more than data.max_skipped of them are left out.
    """
    from hopecli.data.fingerprint import fingerprints, fingerprints_or_errors
    from hopecli.data.folder import clip_names
    from hopecli.data.resumed_split import spoilt
    from hopecli.data.split import check_skipped, count_defects

    store, d = chosen.store, chosen.store.settings
    clips: dict[str, str] = {} if before is None else before.get("clips", {})
    stays_out: dict[str, str] = {} if before is None else before.get("left_out", {})
    names = [name for name in chosen.names if name not in stays_out]
    if d.on_error == "error":
        marks = fingerprints(store, names)
        for error in spoilt(store, marks, clips).values():  # before it is found to have other content, which tells less
            raise error
        return replace(chosen, names=names, skipped={**chosen.skipped, **stays_out}), marks
    marks, errors = fingerprints_or_errors(store, names)
    errors |= spoilt(store, marks, clips)
    marks = {name: mark for name, mark in marks.items() if name not in errors}
    skipped = {**chosen.skipped, **{name: error.what for name, error in errors.items()}, **stays_out}
    skipped = {name: reason for name, reason in skipped.items() if name not in clips}  # the stream will meet them
    for name in errors:
        if name not in clips:
            say(f"{name} is left out: {skipped[name]}")
    there = set(clip_names(store.folder).values())  # a clip that is no longer selected is not lost
    lost = {name for name in clips if name in errors or name in chosen.skipped or name not in there}
    marks = {name: marks.get(name, mark) for name, mark in clips.items() if name in marks or name in lost} | marks
    check_skipped(count_defects(skipped), len(marks) + len(skipped), d.max_skipped, str(store.folder))
    if not marks:
        raise DataError("none of the clips can be read", where=str(store.folder), value=f"{len(skipped)} skipped")
    return replace(chosen, names=list(marks), skipped=skipped), marks


def find_source(
    trained: Trained, source_data_dir: str | None, chosen: ChosenClips, streamed: set[str], say: Callable[[str], None]
) -> Source | None:
    """The clips of --source-data-dir, else those held out from training where they still are; None otherwise. They are
    read as training reads its clips: data settings of the command are of the stream (whose reading is taken for a
    folder that does not fit training's).

    Left out: clips that are in the stream (by its fingerprints `streamed`), or that the weights were adapted on before,
    held-out clips of fewer frames than the stream uses, and with data.on_error=skip clips that cannot be read.
    SettingsError when that leaves none of a folder that was given; DataError for a clip of it that cannot be read.
    """
    from hopecli.data.source import clips_folder
    from hopecli.data.split import usable_clips
    from hopecli.data.store import ClipStore
    from hopecli.engine.tta_clip import make_plan

    extrinsics = trained.settings.use_extrinsics
    seen = streamed | trained.adapted_on
    if source_data_dir is not None:
        folder = expanded(source_data_dir, "--source-data-dir")
        store, usable = _readable(trained, folder, extrinsics, say)
        return _given(trained, store, usable, seen, say)
    if chosen.overlap == 0 and chosen.clips_from == "held out from training":
        say("note: the stream is the held-out part itself, so forgetting is not measured (give --source-data-dir)")
        return None
    try:
        s = trained.settings
        as_now = {key: getattr(s.data, key) for key in ("on_error", "max_skipped", "workers")}
        settings = trained.trained_under.data.model_copy(update=as_now)
        store = ClipStore(clips_folder(settings, say), settings, use_extrinsics=extrinsics)
        split = training_split(trained, say)
        held_out, lost = ([], {}) if split is None else _held_out(trained, store, split)
        if held_out:
            usable_ids, skipped = usable_clips(store, among=held_out)
            held_out, lost = list(usable_ids.values()), lost | skipped
        plan = make_plan(s.adaptation, s.objective, s.data.num_timesteps)
        needed = plan.context_frames + plan.horizon
        lengths = {name: store.check(name) for name in held_out} if needed > settings.num_timesteps else {}
    except HopeError as error:
        say(f"note: forgetting is not measured: {error}")
        return None
    if not held_out:
        what = "are not known"
        if split is not None:
            what = f"are not in {store.folder}, or not to be recognised: its training clips have changed"
        say(f"note: forgetting is not measured: the checkpoint's held-out clips {what} (give --source-data-dir)")
        return None
    label = "held out from training"
    _say_lost(lost, "held-out clip", say)
    if lengths:  # the stream is longer than the clips that training read
        held_out = [name for name in held_out if lengths[name] >= needed]
        if not held_out:
            least, most = min(lengths.values()), max(lengths.values())
            found = f"{most}" if least == most else f"{least} to {most}"
            say(
                f"note: forgetting is not measured: the held-out clips have {found} frames, the stream uses {needed} "
                "(give --source-data-dir)"
            )
            return None
        store = ClipStore(
            store.folder, settings.model_copy(update={"num_timesteps": needed}), use_extrinsics=extrinsics
        )
        label += _too_short(len(lengths) - len(held_out), needed, say)
    try:
        names, left_out, lost = _unseen(trained, store, held_out, seen)
    except DataError as error:
        say(f"note: forgetting is not measured: {error}")
        return None
    _say_lost(lost, "held-out clip", say)
    if not names:
        why = "cannot be read, " if lost else ""
        say(
            f"note: forgetting is not measured: all held-out clips {why}are in the stream, or the weights were adapted "
            "on them (give --source-data-dir)"
        )
        return None
    other = _differences(s.data, settings)
    if other:
        say(f"note: the source clips are read as in training, with {', '.join(other)}")
    return Source(store, names, f"{label}{_left_out(left_out, say)}", len(lost))


def _held_out(trained: Trained, store: ClipStore, split: Split) -> tuple[list[str], dict[str, str]]:
    """The held-out clips of the training run as far as the folder still holds them, and why others are left out. By
    name where nothing else tells: built-in clips are what they were by their settings, and where no training clip is
    left in the folder trained on there is none to recognise it by."""
    from hopecli.data.folder import clip_names

    here = set(clip_names(store.folder).values())
    same_place = store.settings.data_dir == (trained.checkpoint.settings.get("data") or {}).get("data_dir")
    if store.settings.source == "physics" or (same_place and here.isdisjoint(split.train)):
        return [name for name in split.held_out if name in here], {}
    return held_out_here(store, readings_of(store, trained.settings.data), split, set())


def _readable(
    trained: Trained, folder: Path, extrinsics: bool, say: Callable[[str], None]
) -> tuple[ClipStore, list[str]]:
    """The usable clips of a folder that the user names, read as in training; as the stream where they are laid out so.

    DataError, as reading them as in training gives it, when they are neither.
    """
    from hopecli.data.split import usable_clips
    from hopecli.data.store import ClipStore

    now, then = trained.settings.data, trained.trained_under.data
    update = {"source": "folder", "data_dir": str(folder), "clip_start": None, "clip_end": None}
    as_trained = then.model_copy(update=update | {key: getattr(now, key) for key in AS_NOW})
    store = ClipStore(folder, as_trained, use_extrinsics=extrinsics)
    other = _differences(now, then)
    try:
        usable = usable_clips(store)[0]
    except DataError as error:
        if not other:
            raise
        as_stream = as_trained.model_copy(update={key: getattr(now, key) for key in AS_TRAINED})
        store = ClipStore(folder, as_stream, use_extrinsics=extrinsics)
        try:
            usable = usable_clips(store)[0]
        except DataError as again:
            if str(again) == str(error):
                raise
            fix = f"they are read as in training ({', '.join(other)}) or, where they do not fit that, as the stream"
            raise DataError(error.what, where=error.where, value=error.value, fix=fix) from error
        say("note: the source clips do not fit what training read: they are read as the stream")
        return store, list(usable.values())
    if other:
        say(f"note: the source clips are read as in training, with {', '.join(other)}")
    return store, list(usable.values())


def _given(
    trained: Trained, store: ClipStore, usable: Sequence[str], seen: set[str], say: Callable[[str], None]
) -> Source:
    """The clips of a folder that the user names, with how many of them the checkpoint was trained on."""
    names, left_out, lost = _unseen(trained, store, usable, seen)
    _say_lost(lost, "source clip", say)
    if not names:
        why = "cannot be read, " if lost else ""
        raise SettingsError(
            f"all of its clips {why}are in the stream, or the weights were adapted on them",
            where="--source-data-dir",
            value=str(store.folder),
            fix="give clips of the training domain that are not, or leave it out",
        )
    compare_inputs(store, names, trained.with_states, say, "source clips")
    label = f"{store.folder}{_left_out(left_out, say)}"
    split: Split | None = training_split(trained, say)
    known = 0 if split is None else len(recognised([store], names, set(split.fingerprints.values())))
    if known:
        say(f"warning: the checkpoint was trained on {known} of these {len(names)} source clips")
        label += f", {known} of {len(names)} trained on"
    return Source(store, names, label, len(lost))


def _differences(now: DataSettings, then: DataSettings) -> list[str]:
    """KEY=VALUE of training where the stream (`now`) is read otherwise; rows are reduced for per_timestep only."""
    keys = [key for key in AS_TRAINED if key != "action_reduce" or then.action_alignment == "per_timestep"]
    return [f"data.{key}={getattr(then, key)}" for key in keys if getattr(now, key) != getattr(then, key)]


def _unseen(
    trained: Trained, store: ClipStore, names: Sequence[str], seen: set[str]
) -> tuple[list[str], int, dict[str, str]]:
    """The first adaptation.source_clips clips without one of these fingerprints, how many were left out on the way for
    having one (of what the stream reads, which may be another feature map of the same clip), and those left out since
    they cannot be read, with reasons: with data.on_error "skip" alone, otherwise a DataError."""
    from hopecli.data.resumed_split import unreadable
    from hopecli.data.split import reason_of

    readings = readings_of(store, trained.settings.data)
    chosen: list[str] = []
    left_out, lost = 0, {}
    for name in names:
        if len(chosen) == trained.settings.adaptation.source_clips:
            break
        if recognised(readings, [name], seen):
            left_out += 1
            continue
        error = unreadable(store, [name]).get(name)
        if error is None:
            chosen.append(name)
        elif store.settings.on_error == "error":
            fix = "encode it again, or leave such clips out with data.on_error=skip"
            raise DataError(error.what, where=str(store.folder / name), value=error.value, fix=fix)
        else:
            lost[name] = reason_of(error)
    return chosen, left_out, lost


def _say_lost(lost: Mapping[str, str], noun: str, say: Callable[[str], None]) -> None:
    if lost:
        from hopecli.report.console import counted

        name, reason = next(iter(lost.items()))
        say(f"note: {counted(len(lost), noun)} left out of forgetting, the first {name}: {reason}")


def _too_short(count: int, frames: int, say: Callable[[str], None]) -> str:
    if not count:
        return ""
    from hopecli.report.console import counted

    say(f"note: {counted(count, 'held-out clip')} left out of forgetting: fewer than the stream's {frames} frames")
    return f", without {count} of fewer than {frames} frames"


def _left_out(count: int, say: Callable[[str], None]) -> str:
    if not count:
        return ""
    from hopecli.report.console import counted

    clips = counted(count, "source clip")
    say(f"note: {clips} left out of forgetting: in the stream, or the weights were adapted on them before")
    return f", without {count} in the stream or adapted on"
