"""Tiny training runs on clips on disk, in this process; what they report is kept in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hopecli.config.load import load_tree
from hopecli.config.schema import Settings
from hopecli.data.clip import ClipBatch
from hopecli.data.loader import collate, require_all
from hopecli.data.split import make_split
from hopecli.data.store import ClipStore, Sample
from hopecli.engine.results import DiagnosticsRecord, StepRecord, ValidationRecord
from hopecli.engine.runtime import start
from hopecli.engine.sink import NullSink
from hopecli.engine.train import train
from hopecli.engine.train_job import TrainJob
from hopecli.hardware import DeviceChoice
from hopecli.models.build import build_model
from tests.clips import ACTION_DIM, DIM, GRID, PATCHES, write_clip

FRAMES, CLIPS, TRAINING = 5, 6, 4  # six clips, of which the last two are held out
CPU = DeviceChoice("cpu", "fp32", "test", "test", "CPU")
BASE: dict[str, Any] = {
    "data": {
        "num_timesteps": FRAMES,
        "grid": GRID,
        "embed_dim": DIM,
        "action_dim": ACTION_DIM,
        "action_alignment": "as_is",
        "val_split": 0.34,
        "batch_size": 2,
        "workers": 0,
    },
    "model": {"kind": "vit_ac", "width": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0},
    "objective": {"T_teacher": FRAMES - 1, "T_rollout": FRAMES - 1},
    "training": {"epochs": 1, "device": "cpu", "precision": "fp32", "seed": 3},
    "logging": {"log_every": 3, "wandb": "disabled"},
}


class ReadingOrder(ClipStore):
    """The clips of a folder, with the names in the order in which they were read."""

    def __init__(self, folder: Path, settings: Settings):
        super().__init__(folder, settings.data, use_extrinsics=False)
        self.names: list[str] = []

    def read(self, name: str) -> Sample:
        self.names.append(name)
        return super().read(name)


@dataclass
class Kept(NullSink):
    """Keeps a run's events, and the state of torch's generator at each step as the seed it was last given."""

    records: list[StepRecord] = field(default_factory=list)
    validations: list[ValidationRecord] = field(default_factory=list)
    measured: list[DiagnosticsRecord] = field(default_factory=list)
    step_seeds: list[int] = field(default_factory=list)

    def tick(self, step: int) -> None:
        self.step_seeds.append(torch.initial_seed())

    def steps(self, records: Sequence[StepRecord]) -> None:
        self.records.extend(records)

    def validation(self, record: ValidationRecord) -> None:
        self.validations.append(record)

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        self.measured.append(record)


@dataclass(frozen=True)
class Run:
    """A finished run: its job, what it reported, and the training clips in the order in which they were read."""

    job: TrainJob
    kept: Kept
    order: list[str]


def settings(changes: dict[str, dict[str, Any]]) -> Settings:
    """The base settings with keys of some sections changed, checked as those of a preset; a model of its own `kind`
    replaces the base's."""
    tree = {
        section: values if "kind" in values else {**BASE.get(section, {}), **values}
        for section, values in {**BASE, **changes}.items()
    }
    return load_tree(tree, name="test", origin="test").settings


def write_random_clips(folder: Path) -> Path:
    """Clips of random features, far from mean 0 and variance 1, with random actions."""
    for number in range(CLIPS):
        random = np.random.default_rng(number)
        features = (1.0 + 3.0 * random.standard_normal((FRAMES, PATCHES, DIM))).astype(np.float32)
        actions = random.standard_normal((FRAMES - 1, ACTION_DIM)).astype(np.float32)
        write_clip(folder, number, features=features, actions=actions)
    return folder


def run(clips: Path, run_dir: Path, *, kept: Kept | None = None, **changes: dict[str, Any]) -> Run:
    """Train under the base settings with these sections changed; `kept` receives what the run reports."""
    s = settings(changes)
    store = ReadingOrder(clips, s)
    split = make_split(store)
    assert len(split.train) == TRAINING
    d, kept = s.data, kept or Kept()
    model = build_model(s.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=s.training.seed)
    job = TrainJob(
        preset="test",
        settings=s,
        runtime=start(CPU),
        store=store,
        split=split,
        model=model,
        run_dir=run_dir,
        sink=kept,
    )
    train(job)
    return Run(job, kept, [name for name in store.names if name in split.train])


def read(run: Run, names: Sequence[str]) -> ClipBatch:
    """These clips as one batch."""
    return require_all(collate([run.job.store.read(name) for name in names]))
