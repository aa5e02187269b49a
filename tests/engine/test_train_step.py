"""One optimizer step, and what seeds it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from hopecli.config.schema import ObjectiveSettings, OptimizerSettings, ViTACSettings
from hopecli.data.clip import ClipBatch
from hopecli.engine.optim import PeriodicAdamW, parameter_groups
from hopecli.engine.runtime import start
from hopecli.engine.train_step import StepBatch, TrainingObjective, initial_phase, seed_step, train_step
from hopecli.models.build import build_model
from tests.engine.runs import CPU

CLIPS, FRAMES, PATCHES, DIM, ACTIONS = 3, 4, 4, 6, 2
MODEL = ViTACSettings(width=16, depth=1, num_heads=2)
OBJECTIVE = ObjectiveSettings(T_teacher=3, T_rollout=2, loss_weight_teacher=0.5)
OPTIMIZER = OptimizerSettings(lr=0.1, grad_clip=0.5)


def clips(first: int, last: int) -> ClipBatch:
    """Some of three random clips; the third is pushed ten times as hard."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(CLIPS, FRAMES, PATCHES, DIM, generator=generator)
    actions = torch.randn(CLIPS, FRAMES - 1, ACTIONS, generator=generator)
    actions[2] *= 10
    names = tuple(f"clip_{i:05d}" for i in range(CLIPS))
    return ClipBatch(
        features[first:last], actions[first:last], torch.zeros_like(actions[first:last]), None, names[first:last]
    )


def step(
    micro_batches: list[ClipBatch], *, weight: float = 1.0, grad_clip: float | None = OPTIMIZER.grad_clip
) -> tuple[list[float], list[Tensor], int]:
    """Losses and gradient norm, what AdamW knows of the gradients, and clips counted."""
    model = build_model(MODEL, grid=2, embed_dim=DIM, action_dim=ACTIONS, seed=0)
    optimizer = PeriodicAdamW(parameter_groups(model, OPTIMIZER, MODEL), OPTIMIZER, fused=False)
    done = train_step(
        TrainingObjective(model, OBJECTIVE),
        optimizer,
        StepBatch(micro_batches, weight),
        initial_phase(OBJECTIVE),
        runtime=start(CPU),
        grad_clip=grad_clip,
    )
    assert all(p.grad is None for p in model.parameters())  # the next step would add to it
    # Not the weights: AdamW's first step is lr * sign(gradient), whatever its size. Its first moment is 0.1 gradient.
    moments = [optimizer.state[p]["exp_avg"] for group in optimizer.param_groups for p in group["params"]]
    return done.values.tolist(), moments, done.clips


def test_unequal_micro_batches_are_one_batch() -> None:
    whole, gradients, counted = step([clips(0, 3)])
    parts, in_parts, counted_in_parts = step([clips(0, 2), clips(2, 3)])
    assert counted == counted_in_parts == CLIPS
    # 1e-5: float32 sums in another order.
    torch.testing.assert_close(torch.tensor(parts), torch.tensor(whole), rtol=1e-5, atol=0)
    for a, b in zip(in_parts, gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)
    first, last = step([clips(0, 2)])[0], step([clips(2, 3)])[0]
    assert abs(first[0] - last[0]) > 1e-2  # so that their plain mean would be another number


def test_a_process_with_more_clips_than_the_others_counts_more() -> None:
    """In the losses and in the gradients, so that the mean over processes is the mean over clips."""
    plain, gradients, _ = step([clips(0, 2), clips(2, 3)], grad_clip=None)
    heavy, heavier, _ = step([clips(0, 2), clips(2, 3)], grad_clip=None, weight=1.5)
    # 1e-5: float32 products in another order.
    torch.testing.assert_close(torch.tensor(heavy), 1.5 * torch.tensor(plain), rtol=1e-5, atol=0)
    for a, b in zip(heavier, gradients, strict=True):
        torch.testing.assert_close(a, 1.5 * b, rtol=1e-4, atol=1e-7)


def test_a_step_s_random_numbers_are_a_function_of_seed_step_and_process() -> None:
    drawn = set()
    for seed, number, rank in itertools.product(range(3), range(3), range(3)):
        seed_step(seed, number, rank)
        drawn.add(torch.rand(()).item())
    assert len(drawn) == 27
    seed_step(0, 0, 0)
    first = torch.rand(())
    seed_step(0, 0, 0)
    assert torch.equal(torch.rand(()), first)
