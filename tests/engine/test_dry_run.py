"""What a dry run expects a model to need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hopecli.config.load import load_preset
from hopecli.config.schema import CopyLastSettings, HopeSettings, Settings, ViTACSettings
from hopecli.engine.dry_run import forward_backward, heaviest_phase, random_batch, static_bytes
from hopecli.engine.optim import PeriodicAdamW, parameter_groups
from hopecli.engine.runtime import start
from hopecli.engine.train_step import TrainingObjective, initial_phase
from hopecli.models.build import build_model
from tests.cli.runner import TINY, environment, hope
from tests.engine.runs import CPU


def test_trained_weights_count_four_times_and_frozen_ones_once() -> None:
    settings = Settings(model=ViTACSettings(width=16, depth=1, num_heads=2))
    model = build_model(settings.model, grid=2, embed_dim=6, action_dim=3, seed=0)
    frozen = 2 * 16 + 16  # the encoder of extrinsics that are not used
    everything = sum(p.numel() for p in model.parameters())
    # float32: a weight, its gradient and AdamW's two moments.
    assert static_bytes(model, settings) == 4 * (4 * (everything - frozen) + frozen)
    assert static_bytes(model.bfloat16(), settings) == 2 * (4 * (everything - frozen) + frozen)
    copy_last = build_model(CopyLastSettings(), grid=2, embed_dim=6, action_dim=3, seed=0)
    assert static_bytes(copy_last, Settings(model=CopyLastSettings())) == 0


def test_what_training_of_hope_holds_is_counted() -> None:
    """Counted from a training step: weights, gradients, moments and the gradients that wait for a level's period."""
    settings = Settings(model=HopeSettings(width=16, depth=1, num_heads=2, cms_update_periods=(1, 2, 3)))
    model = build_model(settings.model, grid=2, embed_dim=6, action_dim=2, seed=0)
    groups = parameter_groups(model, settings.optimizer, settings.model)
    optimizer = PeriodicAdamW(groups, settings.optimizer, fused=False)
    for step in range(6):  # after five, all levels have stepped and the two slower ones wait
        for p in model.parameters():
            p.grad = torch.ones_like(p) if p.requires_grad else None
        if step < 5:
            optimizer.step()
    assert len(optimizer.hold.accumulated) == 4  # matrices and vectors of two levels
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    tensors += [x for state in optimizer.state.values() for key, x in state.items() if key != "step"]
    tensors += [x for sums in optimizer.hold.accumulated.values() for x in sums]
    assert static_bytes(model, settings) == sum(x.numel() * x.element_size() for x in tensors)


def test_a_pass_is_one_of_training_and_leaves_no_gradient() -> None:
    s = load_preset("quickstart", [*TINY, "model.drop_path=0"]).settings
    model = build_model(s.model, grid=2, embed_dim=8, action_dim=s.data.action_dim, seed=0)
    batch = random_batch(s, 2)
    found = forward_backward(model, s, batch, start(CPU), initial_phase(s.objective))
    assert all(p.grad is None for p in model.parameters())
    total, _, _ = TrainingObjective(model, s.objective)(batch, initial_phase(s.objective))
    total.backward()
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    # The same float32 pass; only the norm is summed in another order.
    assert found.loss == pytest.approx(float(total.detach()), rel=1e-6)
    assert found.grad_norm == pytest.approx(float(gradient.norm()), rel=1e-5)


@pytest.mark.parametrize(
    ("curriculum", "epoch", "steps"),
    [
        ("[]", 0, 2),
        ("[{epoch: 0, T_rollout: 5}]", 0, 5),
        ("[{epoch: 1, T_rollout: 5}, {epoch: 2, T_rollout: 3}]", 1, 5),
        ("[{epoch: 1, T_rollout: 5}, {epoch: 4, T_rollout: 7}]", 1, 5),  # four epochs: the last does not come
        ("[{epoch: 1, T_rollout: 5, loss_weight_rollout: 0}]", 0, 2),
        ("[{epoch: 1, T_rollout: 4, loss_weight_teacher: 0}]", 0, 2),
    ],
)
def test_the_heaviest_phase_of_a_run_is_measured(curriculum: str, epoch: int, steps: int) -> None:
    base = ["training.epochs=4", "objective.T_rollout=2", f"objective.curriculum={curriculum}"]
    found, phase = heaviest_phase(load_preset("quickstart", base).settings)
    assert (found, phase.T_rollout) == (epoch, steps)


def test_the_dry_run_says_which_phase_it_is(tmp_path: Path) -> None:
    longer = ["objective.T_rollout=1", "objective.curriculum=[{epoch: 1, T_rollout: 7}]"]
    outcome = hope(["train", "--preset", "quickstart", "--device", "cpu", "--dry-run", *TINY, *longer], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "note: the pass is that of epoch 2, the largest one of objective.curriculum" in outcome.err.splitlines()


@pytest.mark.slow
def test_what_torch_loads_once_is_no_memory_of_a_clip(tmp_path: Path) -> None:
    """In a process of its own, where nothing is loaded yet: activation checkpointing imports about 170 MiB."""
    command = [sys.executable, "-m", "hopecli.cli.main", "train", "--preset", "quickstart", "--device", "cpu"]
    command += ["--dry-run", "--json", "model.activation_checkpointing=true"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
    per_clip = json.loads(run.stdout)["activation_bytes_per_clip"]
    # 3 to 4 MiB when measured; two clips share whatever else a first pass takes.
    assert per_clip is None or per_clip < 30 * 2**20
