"""From --ckpt to a trained model, and to the clips it should be judged on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopecli.cli.common import data_overrides, gives_clips, override, with_data_folder
from hopecli.errors import CheckpointError, HopeError, SettingsError

if TYPE_CHECKING:
    from hopecli.config.schema import DataSettings, Settings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore
    from hopecli.engine.checkpoint import Checkpoint
    from hopecli.engine.runtime import Runtime
    from hopecli.models.protocol import PredictorModule

# What a preset may change of a trained model's protocol; the model and its clips' layout belong to the checkpoint.
PRESET_SECTIONS = ("evaluation", "adaptation", "logging")


@dataclass(frozen=True)
class Trained:
    """A loaded checkpoint: the settings to use now, those it was trained under, and the model on the CPU."""

    checkpoint: Checkpoint
    settings: Settings
    trained_under: Settings
    model: PredictorModule
    data_dir: str | None


@dataclass(frozen=True)
class ChosenClips:
    """Clips to judge a model on. overlap: how many of them it trained on, None when that is not known."""

    store: ClipStore
    names: list[str]
    clips_from: str
    label: str
    overlap: int | None
    skipped: dict[str, str]


def load_trained(ckpt: str, preset: str | None, overrides: Sequence[str], data_dir: str | None) -> Trained:
    """Load a checkpoint under the evaluation, adaptation and logging sections of `preset` and the overrides."""
    from hopecli.config.load import load_tree, merge, section_tree
    from hopecli.engine.checkpoint import load_checkpoint, load_into
    from hopecli.models.build import build_model

    for text in overrides:
        if text.startswith("model."):
            raise SettingsError("belongs to the checkpoint", where=text.split("=")[0], fix="leave it out")
    checkpoint = load_checkpoint(ckpt)
    try:
        trained_under = load_tree(checkpoint.settings, name="checkpoint", origin="checkpoint").settings
    except SettingsError as error:
        raise CheckpointError(f"its settings are not valid: {error}", where=str(checkpoint.path)) from error
    tree: dict[str, Any] = checkpoint.settings
    if preset is not None:
        tree = merge(tree, section_tree(preset, PRESET_SECTIONS)[0])
    flags = list(data_overrides(data_dir))
    if data_dir is None and "data.source=physics" in overrides:  # a recorded folder has no part in built-in clips
        flags.append(override("data.data_dir", None))
    if flags:  # ids of the training folder mean nothing in another one
        flags += [override("data.clip_start", None), override("data.clip_end", None)]
    settings = load_tree(tree, [*flags, *overrides], name=preset or "checkpoint", origin="checkpoint").settings
    settings = with_data_folder(settings, recorded=not gives_clips([*flags, *overrides]))
    trained_under = with_data_folder(trained_under, recorded=True)
    d = trained_under.data
    model = build_model(trained_under.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0)
    load_into(model, checkpoint)
    model.eval()
    return Trained(checkpoint, settings, trained_under, model, data_dir)


def open_store(settings: Settings, runtime: Runtime, say: Callable[[str], None]) -> ClipStore:
    """The clips of these settings; the built-in ones are made by the main process while the others wait."""
    from hopecli.data.source import clips_folder
    from hopecli.data.store import ClipStore

    if runtime.is_main:
        clips_folder(settings.data, say)
    runtime.barrier()
    folder = clips_folder(settings.data, say)
    return ClipStore(folder, settings.data, use_extrinsics=getattr(settings.model, "use_extrinsics", False))


def training_split(trained: Trained) -> Split | None:
    """The split the checkpoint was trained on: from its run directory, or made again from its settings where the
    clips are still the same; None when it is not known."""
    from hopecli.data.source import clips_folder
    from hopecli.data.split import make_split, read_split
    from hopecli.data.store import ClipStore

    run_dir = trained.checkpoint.run_dir
    if run_dir is not None and (run_dir / "split.json").is_file():
        return read_split(run_dir / "split.json")
    try:
        store = ClipStore(
            clips_folder(trained.trained_under.data, lambda text: None),
            trained.trained_under.data,
            use_extrinsics=getattr(trained.trained_under.model, "use_extrinsics", False),
        )
        split = make_split(store)
    except HopeError:
        return None
    return split if split.hash == trained.checkpoint.info.get("split") else None


def held_out_or_all(trained: Trained, runtime: Runtime, which: str, say: Callable[[str], None]) -> ChosenClips:
    """The clips that `evaluation.clips` asks for, with the overlap with training counted by content.

    auto: the held-out part when the folder is the one trained on (or a copy of it), otherwise all clips.
    """
    from hopecli.data.split import fingerprints, usable_clips

    store = open_store(trained.settings, runtime, say)
    split = training_split(trained)
    usable, skipped = usable_clips(store)
    names = list(usable.values())
    seen: set[str] = set()
    if split is not None:
        trained_on = set(split.fingerprints.values())
        seen = {name for name, mark in fingerprints(store, names).items() if mark in trained_on}
    held_out = [] if split is None else [name for name in split.held_out if name in set(names) and name not in seen]
    is_training_folder = split is not None and bool(held_out) and set(split.train) <= seen
    if which == "held_out" and not is_training_folder:
        raise SettingsError(
            "the held-out clips of the training run are not in this folder",
            where="evaluation.clips",
            value=str(store.folder),
            fix="give the training folder with --data-dir, or use evaluation.clips=all",
        )
    if is_training_folder and which != "all":
        return ChosenClips(store, held_out, "held out from training", "held_out", 0, skipped)
    overlap = None if split is None else len(seen)
    if overlap:
        say(f"warning: the checkpoint was trained on {overlap} of these {len(names)} clips")
    elif overlap is None:
        say("note: the training split is not known, so overlap with training clips cannot be checked")
    label = _label(trained.settings.data, store.folder)
    return ChosenClips(store, names, f"all of {label}", f"all_{label}", overlap, skipped)


def _label(data: DataSettings, folder: Path) -> str:
    return f"physics_{data.physics.domain}" if data.source == "physics" else folder.resolve().name or "clips"


def results_folder(trained: Trained, kind: str, name: str) -> Path:
    """RUN/<kind>/<name>; RUN/tta/<stream>/<kind>/<name> for weights that were adapted there; or for a file on its own
    <runs>/<kind>/<file stem>/<name>."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    run_dir, file = trained.checkpoint.run_dir, trained.checkpoint.path
    if run_dir is not None and file.resolve().is_relative_to(run_dir.resolve() / "tta"):
        return file.parent / kind / name
    if run_dir is not None:
        return run_dir / kind / name
    runs = trained.settings.logging.runs_dir or os.environ.get("HOPE_RUNS_DIR") or "runs"
    return Path(runs) / kind / trained.checkpoint.path.stem / name
