"""Tiny models and in-memory streams for the tests of test-time adaptation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hopecli.config.schema import Settings
from hopecli.data.store import Sample
from hopecli.engine.runtime import Runtime, start
from hopecli.engine.sink import NullStreamSink, StreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_job import StreamRecord, TtaJob
from hopecli.engine.tta_summary import StreamFacts
from hopecli.errors import DataError
from hopecli.hardware import probe, resolve
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule

FRAMES, PATCHES, WIDTH, ACTIONS = 4, 4, 6, 2
MODELS: dict[str, dict[str, Any]] = {
    "vit_ac": {"kind": "vit_ac", "width": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0},
    "hope": {
        "kind": "hope",
        "width": 12,
        "depth": 2,
        "num_heads": 2,
        "memory_multiplier": 1.0,
        "cms_multipliers": (1.0, 1.0),
        "cms_update_periods": (1, 4),
    },
    "convlstm": {"kind": "convlstm", "hidden": 5, "kernel_size": 3},
    "copy_last": {"kind": "copy_last"},
}

FACTS = StreamFacts("ckpt", "clips", "all", None, {}, "source", 10)
CONTINUAL: list[tuple[str, dict[str, Any]]] = [
    ("vit_ac", {}),
    ("vit_ac", {"mode": "sequential", "steps": 1}),
    ("vit_ac", {"adapt": "layernorm+attn_proj", "backprop_through_time": True}),
    ("hope", {"memory": "carry"}),
    ("hope", {"memory": "carry", "adapt": "none"}),
    ("hope", {"memory": "carry", "mode": "sequential", "steps": 1, "adapt": "layernorm+mlp_out"}),
    ("convlstm", {"memory": "carry", "adapt": "bias"}),
]


def settings(kind: str = "vit_ac", model: Mapping[str, Any] | None = None, /, **adaptation: Any) -> Settings:
    """Settings of a tiny model of that kind, under this adaptation section."""
    return Settings.model_validate(
        {
            "data": {
                "num_timesteps": FRAMES,
                "grid": 2,
                "embed_dim": WIDTH,
                "action_dim": ACTIONS,
                "workers": 0,
                "on_error": "skip",
                "max_skipped": 0.5,
            },
            "model": {**MODELS[kind], **(model or {})},
            "objective": {"T_teacher": FRAMES - 1, "T_rollout": FRAMES - 1},
            "adaptation": {"lr": 1e-2, "steps": 2, **adaptation},
        }
    )


def build(s: Settings) -> PredictorModule:
    """The model, with random weights also where the initialisation is zero or one, so that every part matters."""
    model = build_model(s.model, grid=2, embed_dim=WIDTH, action_dim=ACTIONS, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model.eval()


def sample(name: str, seed: int) -> Sample:
    """A clip of pure noise: nothing about it can be predicted, so that only a leak improves on it."""
    generator = torch.Generator().manual_seed(seed)
    return Sample(
        name,
        torch.randn(FRAMES, PATCHES, WIDTH, generator=generator),
        torch.randn(FRAMES - 1, ACTIONS, generator=generator),
        torch.zeros(FRAMES - 1, ACTIONS),
        None,
    )


def shared(name: str, seed: int) -> Sample:
    """A clip that is mostly the same as every other: there is something to learn from clip to clip."""
    common, own = sample(name, 1234), sample(name, seed)
    features = torch.randn(FRAMES, PATCHES, WIDTH, generator=torch.Generator().manual_seed(7)) + 0.2 * own.features
    return Sample(name, features, common.actions, own.states, None)


class Clips:
    """Clips by name; one whose features are None cannot be read."""

    def __init__(self, samples: Mapping[str, Sample | None]):
        self.samples, self.folder = dict(samples), Path("clips")

    def read(self, name: str) -> Sample:
        found = self.samples[name]
        if found is None:
            raise DataError("cannot be read", where=name)
        return found


def noise_clips(count: int) -> dict[str, Sample | None]:
    return {f"clip_{i:05d}": sample(f"clip_{i:05d}", i) for i in range(count)}


def shared_clips(count: int) -> dict[str, Sample | None]:
    return {f"clip_{i:05d}": shared(f"clip_{i:05d}", i) for i in range(count)}


@cache
def cpu() -> Runtime:
    """One runtime for all: starting it takes longer than a tiny stream."""
    return start(resolve("cpu", "fp32", probe()))


def make_job(
    s: Settings,
    samples: Mapping[str, Sample | None],
    folder: Path,
    *,
    sink: StreamSink | None = None,
    source: Mapping[str, Sample | None] | None = None,
    baselines: tuple[str, ...] = ("frozen",),
    resume: bool = False,
) -> TtaJob:
    """A job over the clips in the order of the mapping."""
    return TtaJob(
        settings=s,
        runtime=cpu(),
        model=build(s),
        clips=Clips(samples),
        names=list(samples),
        sink=sink or NullStreamSink(),
        folder=folder,
        source=None if source is None else (Clips(source), list(source)),
        baselines=baselines,
        resume=resume,
    )


def run(
    s: Settings, samples: Mapping[str, Sample | None], folder: Path
) -> tuple[StreamRecord, dict[str, torch.Tensor]]:
    """What a stream measured, and the model's weights after it."""
    job = make_job(s, samples, folder)
    record = stream(job)
    return record, {name: value.clone() for name, value in job.model.state_dict().items()}


def online(record: StreamRecord) -> dict[str, float]:
    """The score of record by clip."""
    return {row.clip: row.online for row in record.rows}


def measured(record: StreamRecord) -> list[dict[str, Any]]:
    """All that must not depend on the machine's speed."""
    return [{k: v for k, v in vars(row).items() if k not in ("ms", "ms_frozen")} for row in record.rows]


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
