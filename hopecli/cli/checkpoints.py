"""From --ckpt to a trained model, and to the clips it should be judged on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopecli.cli.common import data_overrides, gives_clips, override, with_data_folder
from hopecli.cli.resume import newest_run
from hopecli.errors import DataError, HopeError, SettingsError

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
FREE_KEYS = ("training.device",)
TRAINING_KEYS = ("data.val_split", "data.batch_size")  # that neither eval nor tta uses
COMPARED_CLIPS = 256  # at most, to tell whether a folder is the one trained on


@dataclass(frozen=True)
class Trained:
    """A loaded checkpoint: the settings to use now, those it was trained under, and the model on the CPU."""

    checkpoint: Checkpoint
    settings: Settings
    trained_under: Settings
    model: PredictorModule
    data_dir: str | None

    @property
    def adapted_on(self) -> set[str]:
        """Fingerprints of the clips that the weights were adapted on."""
        return set(self.checkpoint.info.get("tta", {}).get("fingerprints", ()))


@dataclass(frozen=True)
class ChosenClips:
    """Clips to judge a model on. overlap: how many of them it trained on, None when that is not known.

    skipped: those that do not fit the settings; left_out: held-out clips that would be no fair test; with reasons.
    """

    store: ClipStore
    names: list[str]
    clips_from: str
    label: str
    overlap: int | None
    skipped: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)


def load_trained(
    ckpt: str, preset: str | None, overrides: Sequence[str], data_dir: str | None, *, unused: tuple[str, ...] = ()
) -> Trained:
    """Load a checkpoint under the evaluation, adaptation and logging sections of `preset` and the overrides.

    `ckpt` as --ckpt takes it: a folder or file, or 'last' for the run started last. unused: keys (or sections, with
    their dot) that the command does nothing with; a note says so when one is set.
    """
    from hopecli.config.explain import to_tree
    from hopecli.config.load import load_tree, merge, overridden, section_tree
    from hopecli.engine.checkpoint import load_checkpoint, load_into
    from hopecli.engine.trained import settings_of
    from hopecli.models.build import build_model
    from hopecli.report.console import say

    if ckpt == "last" and not Path(ckpt).exists():
        ckpt = str(newest_run(overrides))
        say(f"checkpoint: {ckpt}")
    checkpoint = load_checkpoint(ckpt)
    trained_under = settings_of(checkpoint)
    tree: dict[str, Any] = checkpoint.settings
    if checkpoint.run_dir is None:  # a file from elsewhere does not say where results go and on which device
        training = {key: value for key, value in (tree.get("training") or {}).items() if key != "device"}
        tree = {**tree, "training": training, "logging": {}}
    if preset is not None:
        tree = merge(tree, section_tree(preset, PRESET_SECTIONS))
    flags = list(data_overrides(data_dir))
    asked = overridden(overrides)
    idle = [key for key in asked if key.startswith(unused) and key != "evaluation.clips"]
    if idle:
        say(f"note: this command does not use {', '.join(idle)}")
    if data_dir is None and asked.get("data.source") == "physics":  # a recorded folder has no part in built-in clips
        flags.append(override("data.data_dir", None))
    elsewhere = gives_clips([*flags, *overrides])
    if elsewhere:  # ids of the training folder mean nothing in another one
        flags += [override("data.clip_start", None), override("data.clip_end", None)]
    frames = asked.get("data.num_timesteps")
    fitted = _on_shorter_clips(trained_under, frames) if isinstance(frames, int) else trained_under
    if fitted is not trained_under:
        tree = {**tree, "objective": to_tree(fitted)["objective"]}
    origin = "checkpoint" if preset is None else f"checkpoint or {preset}"
    settings = load_tree(tree, [*flags, *overrides], name=preset or "checkpoint", origin=origin).settings
    _require_same_model(settings, fitted)
    recorded = settings.data.data_dir
    settings = with_data_folder(settings, recorded=not elsewhere)
    if recorded is not None and settings.data.data_dir != recorded and not elsewhere:
        say(f"note: {recorded}, which it was trained on, has gone: HOPE_DATA_DIR={settings.data.data_dir} is used")
    trained_under = with_data_folder(trained_under, recorded=True)
    d = trained_under.data
    model = build_model(trained_under.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0)
    load_into(model, checkpoint)
    model.eval()
    return Trained(checkpoint, settings, trained_under, model, data_dir)


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
    }
    return trained_under.model_copy(update={"objective": o.model_copy(update=windows)})


def _require_same_model(settings: Settings, trained_under: Settings) -> None:
    """SettingsError for overrides of what the weights were trained as: they have no other layout or loss."""
    from hopecli.config.explain import to_tree
    from hopecli.config.load import flat

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


def open_store(settings: Settings, say: Callable[[str], None]) -> ClipStore:
    """The clips of these settings; built-in ones are made where they are not in the cache."""
    from hopecli.data.source import clips_folder
    from hopecli.data.store import ClipStore

    return ClipStore(clips_folder(settings.data, say), settings.data, use_extrinsics=settings.use_extrinsics)


def training_split(trained: Trained, say: Callable[[str], None]) -> Split | None:
    """The split the checkpoint was trained on: from its run directory, or made again from its settings where the
    clips are still the same; None when it is not known, or its clips cannot be recognised any more."""
    from hopecli.data.split import make_split, read_split

    run_dir = trained.checkpoint.run_dir
    if run_dir is not None and (run_dir / "split.json").is_file():
        split = read_split(run_dir / "split.json")
        return split if split.comparable else None
    try:
        split = make_split(open_store(trained.trained_under, say))
    except HopeError:
        return None
    return split if split.hash == trained.checkpoint.info.get("split") else None


def held_out_or_all(trained: Trained, which: str, say: Callable[[str], None]) -> ChosenClips:
    """The clips that `evaluation.clips` asks for, with the overlap counted by content: with the clips that the weights
    were trained on and, for adapted weights, with those they were adapted on.

    auto: the held-out part when the folder is the one trained on (or a copy of it), otherwise all clips.
    """
    from hopecli.data.split import usable_clips

    store = open_store(trained.settings, say)
    split = training_split(trained, say)
    adapted_on = trained.adapted_on
    readings = _readings(trained, store)
    held_out, left_out = ([], {}) if split is None else _held_out(readings, split, adapted_on)
    if which == "held_out" and not held_out:
        raise SettingsError(
            "the held-out clips of the training run are not in this folder",
            where="evaluation.clips",
            value=str(store.folder),
            fix="give the training folder with --data-dir, or use evaluation.clips=all",
        )
    if held_out and which != "all":
        usable, skipped = usable_clips(store, among=held_out)
        _compare_states(trained, store, list(usable.values()), say)
        for name, reason in left_out.items():
            say(f"note: held-out {name} is left out: {reason}")
        return ChosenClips(store, list(usable.values()), "held out from training", "held_out", 0, skipped, left_out)
    usable, skipped = usable_clips(store)
    names = list(usable.values())
    _compare_states(trained, store, names, say)
    marks = adapted_on if split is None else adapted_on | set(split.fingerprints.values())
    seen = len(recognised(readings, names, marks))
    unsure = split is None or not (len(readings) == 1 or _all_readable(readings[-1], names))
    overlap = None if unsure and not seen else seen
    if overlap:
        how = "trained or adapted on" if adapted_on else "trained on"
        say(f"warning: the checkpoint was {how} {overlap} of these {len(names)} clips")
    elif overlap is None:
        what = "training split is" if split is None else f"clips' {readings[-1].settings.feature_map} features are"
        say(f"note: the {what} not known, so overlap with training clips cannot be checked")
    label, ids = _label(trained.settings.data, store.folder), _ids(trained.settings.data)
    return ChosenClips(store, names, f"all of {label}{ids}", f"all_{label}{ids}", overlap, skipped)


def _compare_states(trained: Trained, store: ClipStore, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Warn when the clips have no states for a model that was trained with them, or the other way round."""
    expected = trained.checkpoint.info.get("states")  # absent in weights of an earlier version
    found, of = store.sampled_states(names)
    if expected is True and found < of:
        say(f"warning: {of - found} of the first {of} clips lack the states.npy it was trained with: zeros stand in")
    if expected is False and found:
        say(f"warning: {found} of the first {of} clips have a states.npy, but it was trained on clips without")


def _readings(trained: Trained, store: ClipStore) -> list[ClipStore]:
    """The clips as they are read now and, where that is another feature map, as training read them: their fingerprints
    are of what is read. A clip too short for a longer evaluation is still one of the clips trained on."""
    from hopecli.data.store import ClipStore

    d = trained.trained_under.data
    maps = dict.fromkeys([store.settings.feature_map, d.feature_map])
    frames = min(store.settings.num_timesteps, d.num_timesteps)
    changes = [{"feature_map": feature_map, "num_timesteps": frames} for feature_map in maps]
    return [ClipStore(store.folder, store.settings.model_copy(update=c), use_extrinsics=False) for c in changes]


def _held_out(readings: list[ClipStore], split: Split, adapted_on: set[str]) -> tuple[list[str], dict[str, str]]:
    """The held-out clips of a training run in its folder or a copy of it, and why others of them are left out; none
    in any other folder.

    A folder is taken for the one trained on when most clips (a sample of them) with the names of training clips have
    their content (some may have been removed or changed since), whatever clip_start and clip_end select. Left out: a
    held-out clip with the content of a training clip, one that the weights were adapted on, and one that training found
    unreadable.
    """
    from hopecli.data.store import clip_names

    store = readings[0]
    here = set(clip_names(store.folder).values())
    named = [name for name in split.train if name in here]
    named = named[:: len(named) // COMPARED_CLIPS + 1]  # evenly: to read all of a large folder would take long
    trained_on = set(split.fingerprints.values())
    if 2 * len(recognised(readings, named, trained_on)) <= len(named):
        return [], {}
    selected = set(store.select().values())
    held_out = [name for name in split.held_out if name in selected]
    left_out = {name: split.skipped[name] for name in held_out if name in split.skipped}
    left_out |= dict.fromkeys(recognised(readings, held_out, adapted_on), "the weights were adapted on it")
    left_out |= dict.fromkeys(recognised(readings, held_out, trained_on), "it has the content of a training clip")
    return [name for name in held_out if name not in left_out], left_out


def _all_readable(store: ClipStore, names: Sequence[str]) -> bool:
    """Whether every clip has features and actions that fit the settings, to be recognised by."""
    from hopecli.data.fingerprint import fingerprints

    try:
        fingerprints(store, names)
    except DataError:
        return False
    return True


def recognised(readings: Sequence[ClipStore], names: Sequence[str], marks: set[str]) -> set[str]:
    """Those of the clips whose content, in one of the readings, has one of the fingerprints; a clip that cannot be read
    has none."""
    from hopecli.data.fingerprint import readable_fingerprints

    found: set[str] = set()
    for store in readings if marks else ():
        found |= {name for name, mark in readable_fingerprints(store, names).items() if mark in marks}
    return found


def _label(data: DataSettings, folder: Path) -> str:
    return f"physics_{data.physics.domain}" if data.source == "physics" else folder.resolve().name or "clips"


def _ids(data: DataSettings) -> str:
    """What a range of ids adds to a folder's label."""
    if data.clip_start is None and data.clip_end is None:
        return ""
    return f"[{data.clip_start or 0}:{'' if data.clip_end is None else data.clip_end}]"
