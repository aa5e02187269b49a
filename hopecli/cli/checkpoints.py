"""From --ckpt to a trained model, and to the clips it should be judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopecli.cli.common import check_built_in, data_overrides, gives_clips, open_store, override, with_data_folder
from hopecli.cli.recognise import GONE, all_readable, compare_inputs, held_out_here, readings_of, recognised
from hopecli.cli.resume import newest_run, note_stand_in
from hopecli.errors import CheckpointError, HopeError, SettingsError, accessed, exists, is_file

if TYPE_CHECKING:
    from hopecli.config.schema import DataSettings, Settings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore
    from hopecli.engine.checkpoint import Checkpoint
    from hopecli.models.protocol import PredictorModule

# What a preset may change of a trained model's protocol; the model and its clips' layout belong to the checkpoint.
PRESET_SECTIONS = ("evaluation", "adaptation", "logging")
# What nothing may change: the weights fit no other model and layout, and were trained under these rules.
CHECKPOINT_SECTIONS = ("model", "objective", "optimizer", "schedule", "training")
CHECKPOINT_KEYS = ("data.grid", "data.embed_dim", "data.action_dim")
FREE_KEYS = ("training.device", "training.cpu_threads")
LISTED = 3  # clips that are named each
TRAINING_KEYS = ("data.val_split", "data.batch_size")  # that neither eval nor tta uses


@dataclass(frozen=True)
class Trained:
    """A loaded checkpoint: the settings to use now, those it was trained under, and the model on the CPU."""

    checkpoint: Checkpoint
    settings: Settings
    trained_under: Settings
    model: PredictorModule

    @property
    def adapted_on(self) -> set[str]:
        """Fingerprints of the clips that the weights were adapted on."""
        return set(self.checkpoint.info.get("tta", {}).get("fingerprints", ()))

    @property
    def with_states(self) -> bool | None:
        """Whether it was trained on states; None when that is not known (an earlier version), or its kind has none."""
        found: bool | None = self.checkpoint.info.get("states")
        return found if self.trained_under.uses_states else None


@dataclass(frozen=True)
class ChosenClips:
    """Clips to judge a model on. overlap: how many of them it trained on, None when that is not known; seen: which.

    skipped: those that do not fit the settings; left_out: held-out clips that would be no fair test; with reasons.
    """

    store: ClipStore
    names: list[str]
    clips_from: str
    label: str
    overlap: int | None
    skipped: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    def overlap_of(self, scored: Iterable[str]) -> int | None:
        """How many of the clips that could be scored it trained on."""
        return None if self.overlap is None else len(self.seen.intersection(scored))


def load_trained(
    ckpt: str,
    preset: str | None,
    overrides: Sequence[str],
    data_dir: str | None,
    *,
    unused: tuple[str, ...] = (),
    hashed: bool = False,
) -> Trained:
    """Load a checkpoint under the evaluation, adaptation and logging sections of `preset` and the overrides.

    `ckpt` as --ckpt takes it: a folder or file, or 'last' for the run started last. unused: keys (or sections, with
    their dot) that the command does nothing with; a note says so when one is set. hashed: with the weights' digest.
    """
    from hopecli.config.explain import to_tree
    from hopecli.config.load import load_tree, merge, overridden, section_tree
    from hopecli.engine.checkpoint import load_checkpoint
    from hopecli.engine.trained import model_of, settings_of
    from hopecli.report.console import say

    with accessed(ckpt, kind=CheckpointError):
        newest = ckpt == "last" and not exists(ckpt)
    if newest:
        ckpt = str(newest_run(overrides))
        say(f"checkpoint: {ckpt}")
    checkpoint = load_checkpoint(ckpt, hashed=hashed)
    note_stand_in(ckpt, checkpoint.path, say)
    trained_under = settings_of(checkpoint)
    tree: dict[str, Any] = checkpoint.settings
    if checkpoint.run_dir is None:  # a file from elsewhere does not say where results go and on which device
        training = {key: value for key, value in (tree.get("training") or {}).items() if key != "device"}
        tree = {**tree, "training": training, "logging": {}}
    sections = {} if preset is None else section_tree(preset, PRESET_SECTIONS)
    tree = merge(tree, sections)
    given = data_overrides(data_dir)
    asked = overridden(overrides)
    at_home = () if newest or checkpoint.run_dir is None else ("logging.runs_dir",)  # results go to the run
    if idle := [key for key in asked if key.startswith((*unused, *at_home)) and key != "evaluation.clips"]:
        say(f"note: this command does not use {', '.join(idle)}")
    section = "adaptation" if "evaluation." in unused else "evaluation"
    if preset is not None and section not in sections:
        say(f"note: preset {preset} has no {section} section: that of the checkpoint is used")
    replaced: list[str] = []
    if data_dir is None and asked.get("data.source") == "physics":  # a recorded folder has no part in built-in clips
        replaced.append(override("data.data_dir", None))
    elsewhere = gives_clips([*overrides, *given])
    if elsewhere:  # ids of the training folder mean nothing in another one
        replaced += [override("data.clip_start", None), override("data.clip_end", None)]
    frames = asked.get("data.num_timesteps")
    fitted = _on_shorter_clips(trained_under, frames) if isinstance(frames, int) else trained_under
    if fitted is not trained_under:
        tree = {**tree, "objective": to_tree(fitted)["objective"]}
    origin = "checkpoint" if preset is None else f"checkpoint or {preset}"
    settings = load_tree(tree, [*replaced, *overrides, *given], name=preset or "checkpoint", origin=origin).settings
    _require_same_model(settings, fitted)
    check_built_in(settings, [*overrides, *given])
    recorded = settings.data.data_dir
    settings = with_data_folder(settings, recorded=not elsewhere)
    if recorded is not None and settings.data.data_dir != recorded and not elsewhere:
        say(f"note: {recorded}, which it was trained on, has gone: HOPE_DATA_DIR={settings.data.data_dir} is used")
    trained_under = with_data_folder(trained_under, recorded=True)
    return Trained(checkpoint, settings, trained_under, model_of(checkpoint, trained_under))


def _on_shorter_clips(trained_under: Settings, frames: int) -> Settings:
    """The settings with the windows of training cut to clips of `frames` frames, which they would not fit."""
    o = trained_under.objective
    if not 1 < frames < trained_under.data.num_timesteps:
        return trained_under
    context = min(o.context_frames, frames - 1)
    windows = {
        "T_teacher": min(o.T_teacher, frames - 1),
        "T_rollout": min(o.T_rollout, frames - context),
        "context_frames": context,
        "curriculum": (),
        "loss_weight_rollout": o.loss_weight_rollout or 1.0,  # not used here, but 0 beside a teacher's 0 is refused
    }
    return trained_under.model_copy(update={"objective": o.model_copy(update=windows)})


def _require_same_model(settings: Settings, trained_under: Settings) -> None:
    """SettingsError for overrides of what the weights were trained as: they have no other layout or loss."""
    from hopecli.config.explain import to_tree
    from hopecli.config.mistakes import flat

    asked, known = flat(to_tree(settings)), flat(to_tree(trained_under))
    wrong = [
        key
        for key in sorted({*asked, *known})
        if (key in CHECKPOINT_KEYS or key.split(".")[0] in CHECKPOINT_SECTIONS)
        and key not in FREE_KEYS
        and asked.get(key) != known.get(key)
    ]
    if "model.kind" in wrong:  # the rest follows from it
        wrong = ["model.kind"]
    if len(wrong) == 1:
        raise SettingsError("belongs to the checkpoint", where=wrong[0], value=asked.get(wrong[0]), fix="leave it out")
    if wrong:
        raise SettingsError("belong to the checkpoint", where=", ".join(wrong), fix="leave them out")


def training_split(trained: Trained, say: Callable[[str], None]) -> Split | None:
    """The split the checkpoint was trained on: from its run directory, unless it is of another run and was put there,
    or made again from its settings where the clips are still the same; None when it is not known, or its clips cannot
    be recognised any more."""
    from hopecli.data.split import make_split, read_split

    run_dir = trained.checkpoint.run_dir
    if run_dir is not None:
        file = run_dir / "split.json"
        with accessed(file, kind=CheckpointError):
            recorded = is_file(file)
        if recorded:
            split = read_split(file)
            if not split.comparable:
                return None
            if trained.checkpoint.info.get("split") in (None, split.hash, *split.earlier):
                return split
            say(f"note: {trained.checkpoint.path} was not trained on the split of the run it lies in")
    try:
        split = make_split(open_store(trained.trained_under, say))
    except HopeError:
        return None
    return split if split.hash == trained.checkpoint.info.get("split") else None


def _to_find_them(now: DataSettings, then: DataSettings) -> str:
    """What may bring the held-out clips of a run with the data settings `then` into the selection."""
    way = "leave data.source and data.physics as in training, or"
    way = way if then.source == "physics" else "give the training folder with --data-dir, or"
    limits = (now.clip_start, now.clip_end)
    own = limits in ((None, None), (then.clip_start, then.clip_end))
    return way if own else f"widen data.clip_start and data.clip_end, {way}"


def held_out_or_all(trained: Trained, which: str, say: Callable[[str], None]) -> ChosenClips:
    """The clips that `evaluation.clips` asks for, with the overlap counted by content: with the clips that the weights
    were trained on and, for adapted weights, with those they were adapted on.

    auto: the held-out part when the folder is the one trained on (or a copy of it), otherwise all clips.
    """
    from hopecli.data.split import usable_clips

    store = open_store(trained.settings, say)
    split = training_split(trained, say)
    adapted_on = trained.adapted_on
    with_states = trained.with_states
    readings = readings_of(store, trained.trained_under.data)
    held_out, left_out = ([], {}) if split is None else held_out_here(store, readings, split, adapted_on)
    reasons = ", ".join(dict.fromkeys(left_out.values()))
    if which == "held_out" and not held_out and left_out:
        elsewhere = "give the training folder with --data-dir, or " if GONE in left_out.values() else ""
        raise SettingsError(
            f"none of the {len(left_out)} held-out clips is left: {reasons}",
            where="evaluation.clips",
            value=which,
            fix=f"{elsewhere}use evaluation.clips=all",
        )
    if which == "held_out" and not held_out:
        raise SettingsError(
            "the held-out clips of the training run are not in this folder",
            where="evaluation.clips",
            value=str(store.folder),
            fix=f"{_to_find_them(trained.settings.data, trained.trained_under.data)} use evaluation.clips=all",
        )
    if held_out and which != "all":
        usable, skipped = usable_clips(store, among=held_out)
        compare_inputs(store, list(usable.values()), with_states, say)
        for line in _left_out_lines(left_out):
            say(line)
        d, then = trained.settings.data, trained.trained_under.data
        part = "" if (d.clip_start, d.clip_end) == (then.clip_start, then.clip_end) else _ids(d)
        return ChosenClips(store, [*usable.values()], "held out from training", f"held_out{part}", 0, skipped, left_out)
    if which == "auto" and left_out:
        say(f"note: none of the {len(left_out)} held-out clips is left ({reasons}): all other clips are taken")
    usable, skipped = usable_clips(store)
    names = list(usable.values())
    compare_inputs(store, names, with_states, say)
    marks = adapted_on if split is None else adapted_on | set(split.fingerprints.values())
    seen = recognised(readings, names, marks)
    unsure = split is None or not (len(readings) == 1 or all_readable(readings[-1], names))
    overlap = None if unsure and not seen else len(seen)
    if overlap:
        how = "trained or adapted on" if adapted_on else "trained on"
        say(f"warning: the checkpoint was {how} {overlap} of these {len(names)} clips")
    elif overlap is None:
        what = "training split is" if split is None else f"clips' {readings[-1].settings.feature_map} features are"
        say(f"note: the {what} not known, so overlap with training clips cannot be checked")
    label, ids = _label(trained, store.folder), _ids(trained.settings.data)
    return ChosenClips(store, names, f"all of {label}{ids}", f"all_{label}{ids}", overlap, skipped, seen=seen)


def _left_out_lines(left_out: dict[str, str]) -> Iterator[str]:
    """A line for each of a few held-out clips, or one for all that have the same reason."""
    names: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        names.setdefault(reason, []).append(name)
    for reason, those in names.items():
        if len(those) > LISTED:
            yield f"note: {len(those)} held-out clips are left out, the first {those[0]}: {reason}"
        else:
            yield from (f"note: held-out {name} is left out: {reason}" for name in those)


def _label(trained: Trained, folder: Path) -> str:
    """The folder's name; for built-in clips their domain, and their seed where it is not the training's."""
    d = trained.settings.data
    if d.source != "physics":
        return folder.resolve().name or "clips"
    seed = d.physics.seed
    return f"physics_{d.physics.domain}" + ("" if seed == trained.trained_under.data.physics.seed else f"_seed{seed}")


def _ids(data: DataSettings) -> str:
    """What a range of ids adds to a folder's label."""
    if data.clip_start is None and data.clip_end is None:
        return ""
    return f"[{data.clip_start or 0}:{'' if data.clip_end is None else data.clip_end}]"
