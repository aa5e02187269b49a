"""The clips of a training run: found and split before it, listed after it where some could not be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hopecli.cli.recognise import warn_of_dropped_actions
from hopecli.errors import written

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore
    from hopecli.engine.train_job import TrainJob

MANY_CLIPS = 2000  # so many take more than a moment to check


def find_clips(settings: Settings) -> tuple[ClipStore, Split]:
    """The folder of clips, made first where they are built in, and its split."""
    from hopecli.data.source import clips_folder
    from hopecli.data.split import make_split
    from hopecli.data.store import ClipStore
    from hopecli.report.console import counted, say
    from hopecli.report.progress import StageProgress

    store = ClipStore(clips_folder(settings.data, say), settings.data, use_extrinsics=settings.use_extrinsics)
    clips = len(store.select())
    if clips < MANY_CLIPS:
        split = make_split(store)
    else:
        say(f"checking {clips:,} clips in {store.folder}")
        with StageProgress() as progress:
            split = make_split(store, progress)
    if split.skipped:
        say(f"{counted(len(split.skipped), 'clip')} skipped; split.json lists them with the reason")
    warn_of_inputs(store, split, say)
    return store, split


def warn_of_inputs(store: ClipStore, split: Split, say: Callable[[str], None]) -> None:
    """Warn of training clips without the states of others, and of actions that the alignment leaves out."""
    found, of = store.sampled_states(split.train)
    if 0 < found < of:
        say(f"warning: {of - found} of the first {of} training clips lack the states.npy of the others: zeros stand in")
    warn_of_dropped_actions(store, split.train, "training clips", say)


def list_skipped(job: TrainJob) -> None:
    """Add the clips that turned out to be unreadable to split.json."""
    from dataclasses import replace

    from hopecli.report.console import counted
    from hopecli.report.files import write_text

    if not job.runtime.is_main or not (job.skipped or job.unreadable):
        return
    if job.skipped:
        job.sink.message(f"{counted(len(job.skipped), 'clip')} skipped while reading; split.json lists them")
    split = replace(job.split, skipped={**job.split.skipped, **job.skipped}, unreadable=tuple(sorted(job.unreadable)))
    with written(job.run_dir / "split.json"):
        write_text(job.run_dir / "split.json", split.to_json())
