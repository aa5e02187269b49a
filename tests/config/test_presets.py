"""Every preset loads and opens with its command; the numbers of the protocol are in the resolved settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from hopecli.config.explain import to_tree
from hopecli.config.load import load_preset

PRESETS = Path(__file__).resolve().parents[2] / "presets"
FILES = sorted(PRESETS.rglob("*.yaml"))

SHARED = {
    "data.num_timesteps": 8,
    "data.grid": 16,
    "data.embed_dim": 1024,
    "data.feature_map": "vjepa2_vitl16",
    "data.workers": 8,
    "data.clip_start": None,
    "data.clip_end": None,
    "model.kind": "vit_ac",
    "model.width": 384,
    "model.depth": 24,
    "model.num_heads": 16,
    "model.mlp_ratio": 4.0,
    "model.drop_path": 0.1,
    "model.rope": "vjepa2",
    "model.activation_checkpointing": True,
    "objective.T_teacher": 7,
    "objective.T_rollout": 7,
    "objective.context_frames": 1,
    "objective.normalize_reps": True,
    "objective.loss_exp": 1.0,
    "objective.loss_weight_teacher": 1.0,
    "objective.loss_weight_rollout": 1.0,
    "optimizer.betas": [0.9, 0.999],
    "training.seed": 42,
}
NUMBERS: dict[str, dict[str, Any]] = {
    "vjepa2_ac": {
        **SHARED,
        "data.action_dim": 2,
        "data.batch_size": 64,
        "optimizer.lr": 4.25e-4,
        "optimizer.weight_decay": 0.04,
        "optimizer.grad_clip": 1.01,
        "schedule.warmup_start_lr": 7.5e-5,
        "schedule.final_lr": 0.0,
        "schedule.warmup_pct": 0.085,
        "schedule.constant_pct": 0.83,
        "schedule.decay_pct": 0.085,
        "training.epochs": 30,
    },
    "ac_predictor": {
        **SHARED,
        "data.action_dim": 7,
        "data.batch_size": 32,
        "optimizer.lr": 1e-4,
        "optimizer.weight_decay": 0.05,
        "training.epochs": 10,
    },
    "test_ac_predictor": {
        "evaluation.batch_size": 32,
        "evaluation.precision": "fp32",
        "evaluation.context_frames": 1,
        "evaluation.T_rollout": 7,
    },
}


def preset_id(path: Path) -> str:
    return path.relative_to(PRESETS).with_suffix("").as_posix()


@pytest.mark.parametrize("path", FILES, ids=preset_id)
def test_preset_loads_and_opens_with_its_command(path: Path) -> None:
    resolved = load_preset(str(path))
    assert resolved.settings.description
    assert resolved.settings.data.clip_start is None
    assert resolved.settings.data.clip_end is None
    command = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(rf"# hope [a-z-]+ .*--preset {preset_id(path)}( .*)?", command), command


@pytest.mark.parametrize(
    ("preset", "key", "expected"), [(p, key, value) for p, values in NUMBERS.items() for key, value in values.items()]
)
def test_numbers_of_the_protocol(preset: str, key: str, expected: object) -> None:
    node: Any = to_tree(load_preset(preset).settings)
    for part in key.split("."):
        node = node[part]
    assert node == expected


def test_curriculum_of_vjepa2_ac() -> None:
    curriculum = load_preset("vjepa2_ac").settings.objective.curriculum
    assert [(phase.epoch, phase.loss_weight_teacher) for phase in curriculum] == [(0, 1.0), (7, 0.7), (11, 0.3)]
    named = {key for phase in curriculum for key, value in phase.model_dump().items() if value is not None}
    assert named == {"epoch", "loss_weight_teacher"}
