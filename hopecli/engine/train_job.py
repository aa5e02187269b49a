"""A training run as data: what the command builds and the loop walks through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hopecli.config.schema import Settings
from hopecli.data.split import Split
from hopecli.data.store import ClipStore
from hopecli.engine.runtime import Runtime
from hopecli.engine.sink import Sink
from hopecli.errors import SettingsError
from hopecli.models.protocol import PredictorModule


@dataclass
class TrainJob:
    """Everything a run needs, built by the command. `resumed` is the trainer's state to go on from, `skipped` the clips
    that turned out to be unreadable, `lost` those of them that were so before the first step, `unreadable` the training
    clips that ended the run. `keep_split` writes all of these down."""

    preset: str
    settings: Settings
    runtime: Runtime
    store: ClipStore
    split: Split
    model: PredictorModule
    run_dir: Path
    sink: Sink
    resumed: dict[str, Any] | None = None
    skipped: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    lost: frozenset[str] = frozenset()
    keep_split: Callable[[TrainJob], None] = lambda job: None

    def skipping(self, text: str) -> None:
        """Say that a clip is left out, and write it down."""
        self.sink.message(text)
        self.keep_split(self)

    @property
    def steps_per_epoch(self) -> int:
        """Global batches per epoch; the last incomplete one is dropped."""
        return steps_per_epoch(self.settings, len(self.split.train), self.runtime.world)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps_per_epoch * self.settings.training.epochs

    def validates_after(self, epoch: int) -> bool:
        """Whether the held-out clips are scored after this epoch."""
        return self._due(self.settings.training.evaluate_every, epoch)

    def keeps(self, epoch: int) -> bool:
        """Whether this epoch's checkpoint is kept beside `last`."""
        every = self.settings.training.save_every
        return every > 0 and self._due(every, epoch)

    def _due(self, every: int, epoch: int) -> bool:
        return epoch == self.settings.training.epochs - 1 or (every > 0 and (epoch + 1) % every == 0)


def steps_per_epoch(settings: Settings, clips: int, world: int) -> int:
    """Global steps per epoch; SettingsError when the batch does not fit the clips or the processes."""
    batch, parts = settings.data.batch_size, world * settings.training.accumulate
    most, apart = clips // parts * parts, clips // world * world
    if batch % parts:
        raise SettingsError(
            f"must be a multiple of {world} processes x training.accumulate {settings.training.accumulate}",
            where="data.batch_size",
            value=batch,
            fix=f"use {min(most, max(1, batch // parts) * parts)}" if most else _fewer(apart, clips),
        )
    if batch > clips:
        raise SettingsError(
            f"is larger than the {clips} training clips",
            where="data.batch_size",
            value=batch,
            fix=f"use at most {most}" if most else _fewer(apart, clips),
        )
    return clips // batch


def _fewer(apart: int, clips: int) -> str:
    """What to do where no batch of the clips can be shared by all micro-batches; apart: what processes can share."""
    return f"use data.batch_size={apart} training.accumulate=1" if apart else f"use at most {clips} processes"
