"""Defaults that protocol.md, README.md and a field's own description promise: what a preset does not say, it gets.

Presets leave them out on purpose, so that a default changed by the way would change their numbers without a word.
"""

from __future__ import annotations

from typing import Any

import pytest

from hopecli.config.explain import to_tree
from hopecli.config.load import load_preset
from hopecli.config.mistakes import flat
from hopecli.config.schema import Settings
from hopecli.errors import SettingsError

PROMISED: dict[str, Any] = {
    # Clips: one push at row 1, nothing skipped or padded unless asked for.
    "data.source": "folder",
    "data.physics.clips": 2048,
    "data.physics.domain": "base",
    "data.physics.seed": 0,
    "data.physics.dtype": "float16",
    "data.feature_map": "vjepa2_vitl16",
    "data.num_timesteps": 8,
    "data.grid": 16,
    "data.embed_dim": 1024,
    "data.action_dim": 7,
    "data.action_alignment": "impulse",
    "data.action_reduce": "last",
    "data.clip_start": None,
    "data.clip_end": None,
    "data.val_split": 0.1,
    "data.on_short": "error",
    "data.on_error": "error",
    "data.max_skipped": 0.01,
    "data.batch_size": 32,
    "data.workers": 8,
    # The V-JEPA 2-AC losses on layer-normed features.
    "objective.normalize_reps": True,
    "objective.loss_exp": 1.0,
    "objective.loss_weight_teacher": 1.0,
    "objective.loss_weight_rollout": 1.0,
    "objective.T_teacher": 7,
    "objective.T_rollout": 7,
    "objective.context_frames": 1,
    # AdamW, warmup-stable-decay down to zero.
    "optimizer.lr": 1e-4,
    "optimizer.weight_decay": 0.05,
    "optimizer.betas": [0.9, 0.999],
    "optimizer.eps": 1e-8,
    "optimizer.grad_clip": 1.0,
    "optimizer.memory_weight_decay": 0.0,
    "schedule.final_lr": 0.0,
    "training.epochs": 10,
    "training.seed": 42,
    "training.accumulate": 1,
    "training.evaluate_every": 1,
    "training.save_minutes": 30.0,
    "training.keep_last": 3,
    # Evaluation in full precision, over all frames.
    "evaluation.precision": "fp32",
    "evaluation.context_frames": None,
    "evaluation.T_rollout": None,
    "evaluation.clips": "auto",
    "evaluation.bootstrap_samples": 2000,
    "evaluation.seed": 0,
    # Adaptation: continual, five AdamW steps on the LayerNorms after each clip, no gradient through fed-back frames.
    "adaptation.mode": "full_rollout",
    "adaptation.adapt": "layernorm",
    "adaptation.optimizer": "adamw",
    "adaptation.lr": 5e-4,
    "adaptation.betas": [0.9, 0.999],
    "adaptation.weight_decay": 0.0,
    "adaptation.steps": 5,
    "adaptation.grad_clip": 5.0,
    "adaptation.reset_per_clip": False,
    "adaptation.backprop_through_time": False,
    "adaptation.memory": "reset",
    "adaptation.context_frames": 1,
    "adaptation.precision": "fp32",
    "adaptation.order_seed": None,
    "adaptation.orders": 1,
    "adaptation.reset_every": 100,
    "adaptation.source_clips": 64,
    "adaptation.bootstrap_samples": 2000,
    "adaptation.seed": 0,
    "logging.wandb": "auto",
}


def test_defaults_are_as_promised() -> None:
    tree = flat(to_tree(Settings()))
    assert {key: tree[key] for key in PROMISED} == PROMISED


@pytest.mark.parametrize(
    ("allowed", "refused"),
    [
        ("training.seed=2147483647", "training.seed=2147483648"),  # torch and numpy take no more
        ("training.seed=0", "training.seed=-1"),
        ("data.val_split=0.99", "data.val_split=1.0"),
        ("data.val_split=0.01", "data.val_split=0.0"),
        ("data.max_skipped=0.0", "data.max_skipped=1.0"),
        ("data.num_timesteps=2", "data.num_timesteps=1"),
        ("model.drop_path=0.0", "model.drop_path=1.0"),
        ("evaluation.bootstrap_samples=100", "evaluation.bootstrap_samples=99"),
        ("optimizer.lr=0.0", "optimizer.lr=-1e-9"),
        ("adaptation.steps=0", "adaptation.steps=-1"),
    ],
)
def test_the_last_value_that_is_allowed(allowed: str, refused: str) -> None:
    shorter = ["objective.T_teacher=1", "objective.T_rollout=1"]  # for the clips of two frames
    load_preset("ac_predictor", [*shorter, allowed])
    with pytest.raises(SettingsError, match=refused.partition("=")[0].replace(".", r"\.")):
        load_preset("ac_predictor", [*shorter, refused])
