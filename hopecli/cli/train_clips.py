"""The clips of a training run: found and split before it, listed after it where some could not be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hopecli.cli.common import open_store
from hopecli.cli.recognise import among, compare_states, warn_of_dropped_actions
from hopecli.errors import is_file, written

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore
    from hopecli.engine.train_job import TrainJob

MANY_CLIPS = 2000  # so many take more than a moment to check


@dataclass(frozen=True)
class FoundClips:
    """The folder of clips, its split, and clips of the split that cannot be used any more, with reasons."""

    store: ClipStore
    split: Split
    lost: dict[str, str]


def find_clips(settings: Settings, run_dir: Path | None) -> FoundClips:
    """The folder of clips, made first where they are built in, and its split; that of `run_dir` when it goes on."""
    from hopecli.data.resumed_split import resumed_split
    from hopecli.data.split import make_split, read_split
    from hopecli.report.console import counted, say
    from hopecli.report.progress import StageProgress

    before = None if run_dir is None else read_split(run_dir / "split.json")
    store = open_store(settings, say)
    clips = len(store.select())
    if clips >= MANY_CLIPS:
        say(f"checking {clips:,} clips in {store.folder}")
    with StageProgress() if clips >= MANY_CLIPS else nullcontext() as progress:
        split, lost = (make_split(store, progress), {}) if before is None else resumed_split(store, before, progress)
    if split.skipped:
        say(f"{counted(len(split.skipped), 'clip')} skipped; split.json lists them with the reason")
    if lost:
        name, reason = next(iter(lost.items()))
        say(f"{counted(len(lost), 'clip')} of the run skipped, the first {name}: {reason}")
    warn_of_inputs(store, [name for name in split.train if name not in lost], settings, say)
    return FoundClips(store, split, lost)


def warn_of_inputs(store: ClipStore, train: Sequence[str], settings: Settings, say: Callable[[str], None]) -> None:
    """Warn of training clips without the states of others, and of actions that the alignment leaves out."""
    found, of = store.sampled_states(train) if settings.uses_states else (0, 0)
    if 0 < found < of:
        lack = f"{of - found} of {among(train, of, 'training clips')} lack the states.npy of the others"
        say(f"warning: {lack}: zeros stand in")
    warn_of_dropped_actions(store, train, "training clips", say)


def warn_of_other_states(store: ClipStore, train: Sequence[str], had: object, say: Callable[[str], None]) -> None:
    """Warn where states have come to all clips or left all of them since the run was started; `had`: whether any had,
    None when that is not known. Some clips may have been without all the time."""
    found, of = store.sampled_states(train)
    if had is not None and found == (0 if had else of):
        compare_states(store, train, had, say, "training clips")


def keep_split(job: TrainJob) -> None:
    """Bring split.json up to date with the clips that were found unreadable, lost or mended."""
    from dataclasses import replace

    from hopecli.report.files import write_text

    if not job.runtime.is_main:
        return
    unread = job.unreadable | ((job.skipped.keys() - job.lost) & set(job.split.train))
    split = replace(job.split, skipped={**job.split.skipped, **job.skipped}, unreadable=tuple(sorted(unread)))
    file = job.run_dir / "split.json"
    with written(file):
        if not is_file(file) or split.to_json() != file.read_text(encoding="utf-8"):
            write_text(file, split.to_json())


def list_skipped(job: TrainJob) -> None:
    """Say how many clips were skipped, and where they are listed."""
    from hopecli.report.console import counted

    if job.skipped and job.runtime.is_main:
        job.sink.message(f"{counted(len(job.skipped), 'clip')} skipped while reading; split.json lists them")
    keep_split(job)
