"""What a run of `hope train` goes on with: weights, the trainer's state, and clips that are still the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hopecli.cli.resume import note_going_back, note_stand_in
from hopecli.cli.train_clips import FoundClips, warn_of_other_states
from hopecli.errors import CheckpointError

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.engine.runtime import Runtime
    from hopecli.models.protocol import PredictorModule


@dataclass(frozen=True)
class Restored:
    """What a run goes on with besides the weights: its trainer's state, and clips known to be unreadable."""

    trainer: dict[str, Any] | None = None
    first_step: int = 0
    unreadable: set[str] = field(default_factory=set)


def restore(
    run_dir: Path,
    checkpoint_dir: Path,
    settings: Settings,
    runtime: Runtime,
    found: FoundClips,
    model: PredictorModule,
    *,
    steps: int,
) -> Restored:
    """Load the weights of the run to resume into the model, and say what is no longer as it was; CheckpointError on
    other clips. steps: of the whole run."""
    from hopecli.data.split import read_split
    from hopecli.engine.checkpoint import load_checkpoint, load_into, load_trainer
    from hopecli.engine.saved_weights import find_weights
    from hopecli.report.console import counted, say

    store, split = found.store, found.split
    checkpoint = load_checkpoint(str(checkpoint_dir))
    before = read_split(run_dir / "split.json")
    if checkpoint.info.get("split") not in (*split.earlier, split.hash) or not split.same_clips(before):
        mistake = CheckpointError(
            "the clips are not those the run was started with",
            where=str(store.folder),
            value=split.difference(before),
            fix="give the original clips with --data-dir",
        )
        runtime.raise_as_one(mistake)
    load_into(model, checkpoint)
    trainer = load_trainer(find_weights(str(checkpoint_dir))[0].parent)
    first_step = int(checkpoint.info["step"])
    if runtime.is_main:
        note_stand_in(str(checkpoint_dir), checkpoint.path, say)
        note_going_back(run_dir, first_step, say)
        processes = checkpoint.info.get("processes", runtime.world)  # absent in a run of an earlier version
        if processes != runtime.world and first_step < steps:
            before_and_now = f"{counted(processes, 'process', 'processes')}, now on {runtime.world}"
            say(f"note: the run was on {before_and_now}: it goes on, but not bit for bit as it would have")
        if settings.uses_states:
            warn_of_other_states(store, split.train, checkpoint.info.get("states"), say)
    return Restored(trainer, first_step, set(before.unreadable))
