"""The training loop: what each setting does to the steps, checked on whole tiny runs.

Tolerance 1e-5 relative, unless said otherwise: float32 losses of order one, sums in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.engine.results import DiagnosticsRecord, ValidationRecord
from hopecli.models.build import build_model
from hopecli.models.hope.diagnostics import diagnostics
from hopecli.models.hope.predictor import HopePredictor
from hopecli.models.protocol import PredictorModule
from tests.engine.runs import FRAMES, Kept, Run, read, run, write_random_clips

WHOLE = {"batch_size": 4}  # all training clips: the order does not matter
HOPE = {
    "kind": "hope",
    "width": 16,
    "depth": 1,
    "num_heads": 2,
    "memory_multiplier": 1.0,
    "cms_multipliers": [1.0],
    "cms_update_periods": [1],
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_clips(tmp_path_factory.mktemp("clips"))


def at_the_start(of: Run) -> PredictorModule:
    """The run's model before its first step."""
    s = of.job.settings
    d = s.data
    return build_model(s.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=s.training.seed)


def forced(model: PredictorModule, batch: ClipBatch, frames: int) -> Tensor:
    """Predictions of frames 1..`frames` from the true ones, without normalisation."""
    with torch.no_grad():
        return model(batch.features[:, :frames], batch.actions[:, :frames], batch.states[:, :frames])


def rolled(model: PredictorModule, batch: ClipBatch, context: int, horizon: int) -> Tensor:
    """Each prediction of the rollout from scratch: the last frame of a parallel call on true frames and own
    predictions, without normalisation."""
    frames = batch.features[:, :context]
    for _ in range(horizon):
        frames = torch.cat([frames, forced(model, ClipBatch(frames, *rest(batch)), frames.shape[1])[:, -1:]], dim=1)
    return frames[:, context:]


def rest(batch: ClipBatch) -> tuple[Tensor, Tensor, Tensor | None, tuple[str, ...]]:
    return batch.actions, batch.states, batch.extrinsics, batch.names


def expected_lr(step: int, steps: int) -> float:
    """The protocol's curve from 0.001 to 0.005 in a quarter of the run, then down to 0.002 in the last third."""
    warmup, decay = int(0.25 * steps), int(steps / 3)
    if step < warmup:
        return 0.001 + (0.005 - 0.001) * step / warmup
    if step < steps - decay:
        return 0.005
    return 0.005 + (0.002 - 0.005) * (step - (steps - decay)) / decay


def test_each_epoch_has_its_weights_and_each_step_its_learning_rate(clips: Path, tmp_path: Path) -> None:
    curriculum = [
        {"epoch": 2, "loss_weight_teacher": 0.25, "loss_weight_rollout": 2.0},
        {"epoch": 4, "loss_weight_teacher": 0.0},
    ]
    done = run(
        clips,
        tmp_path,
        objective={"curriculum": curriculum},
        optimizer={"lr": 0.005},
        schedule={
            "warmup_start_lr": 0.001,
            "final_lr": 0.002,
            "warmup_pct": 0.25,
            "constant_pct": 5 / 12,
            "decay_pct": 1 / 3,
        },
        training={"epochs": 6},
    )
    records = done.kept.records
    assert [(r.step, r.epoch) for r in records] == [(i + 1, i // 2) for i in range(12)]
    weights = [(1.0, 1.0)] * 4 + [(0.25, 2.0)] * 4 + [(0.0, 2.0)] * 4
    for record, (teacher, rollout) in zip(records, weights, strict=True):
        assert record.loss == pytest.approx(teacher * record.loss_teacher + rollout * record.loss_rollout, rel=1e-5)
        assert abs(record.loss_teacher - record.loss_rollout) > 1e-3  # so that the weights cannot be exchanged
    # float64 throughout
    assert [r.lr for r in records] == pytest.approx([expected_lr(i, 12) for i in range(12)], rel=1e-12)
    assert done.job.model.training


def test_the_losses_of_a_step_are_those_of_the_settings(clips: Path, tmp_path: Path) -> None:
    done = run(
        clips,
        tmp_path,
        data=WHOLE,
        objective={"normalize_reps": False, "loss_exp": 2.0, "T_teacher": 2, "T_rollout": 3, "context_frames": 2},
    )
    model, batch = at_the_start(done), read(done, done.job.split.train)
    (record,) = done.kept.records
    h = batch.features
    teacher = (forced(model, batch, 2) - h[:, 1:3]).square().mean() / 2
    rollout = (rolled(model, batch, 2, 3) - h[:, 2:5]).square().mean() / 2
    assert record.loss_teacher == pytest.approx(teacher.item(), rel=1e-5)
    assert record.loss_rollout == pytest.approx(rollout.item(), rel=1e-5)


def change(done: Run) -> float:
    """How far the run moved the weights, as one vector."""
    before = dict(at_the_start(done).named_parameters())
    moved = [(p - before[name]).norm() for name, p in done.job.model.named_parameters()]
    return torch.stack(moved).norm().item()


def test_gradients_are_clipped_at_the_limit_of_the_settings(clips: Path, tmp_path: Path) -> None:
    # Adam divides a first gradient g by |g| + eps: with eps 1 and g far below it, the step is lr * g.
    optimizer: dict[str, Any] = {"lr": 0.5, "eps": 1.0, "weight_decay": 0.0, "grad_clip": 1e-2}
    flat = {"warmup_pct": 0.0, "constant_pct": 1.0, "decay_pct": 0.0}
    done = run(clips, tmp_path / "clipped", data=WHOLE, optimizer=optimizer, schedule=flat)
    (record,) = done.kept.records
    assert record.grad_norm > 0.1  # as measured before clipping
    assert change(done) == pytest.approx(0.5 * 1e-2, rel=0.01)  # |g| / eps is below 1 %
    free = run(clips, tmp_path / "free", data=WHOLE, optimizer={**optimizer, "grad_clip": None}, schedule=flat)
    assert change(free) > 5 * change(done)


def test_the_order_of_clips_follows_the_epoch_and_the_seed(clips: Path, tmp_path: Path) -> None:
    orders = []
    for seed in (1, 2):
        order = run(clips, tmp_path / str(seed), training={"epochs": 4, "seed": seed, "evaluate_every": 0}).order
        epochs = [order[i : i + 4] for i in range(0, 16, 4)]
        assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
        orders.append(epochs)
    for epochs in orders:
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert orders[0] != orders[1]


def test_every_step_is_seeded_by_seed_and_step(clips: Path, tmp_path: Path) -> None:
    seeds = [run(clips, tmp_path / str(seed), training={"seed": seed}).kept.step_seeds for seed in (1, 2)]
    assert len({seed for steps in seeds for seed in steps}) == 4
    again = run(clips, tmp_path / "again", training={"seed": 1}).kept.step_seeds
    assert again == seeds[0]


@pytest.mark.parametrize(
    ("save_every", "kept"), [(3, ["epoch_0003", "epoch_0006", "epoch_0007", "last"]), (0, ["last"])]
)
def test_validations_and_checkpoints_have_their_own_periods(
    save_every: int, kept: list[str], clips: Path, tmp_path: Path
) -> None:
    done = run(
        clips,
        tmp_path,
        training={"epochs": 7, "evaluate_every": 2, "save_every": save_every, "keep_last": None},
    )
    assert [(v.epoch, v.step) for v in done.kept.validations] == [(1, 4), (3, 8), (5, 12), (6, 14)]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == kept


def test_validation_scores_the_rest_of_each_clip_in_the_space_of_the_losses(clips: Path, tmp_path: Path) -> None:
    context = 2
    done = run(
        clips,
        tmp_path,
        objective={"normalize_reps": False, "context_frames": context, "T_teacher": 3, "T_rollout": 1},
        optimizer={"lr": 0.01},
    )
    (record,) = done.kept.validations
    batch, model = read(done, done.job.split.held_out), done.job.model.eval()
    h = batch.features.numpy().astype(np.float64)
    horizon = FRAMES - context
    copied = np.abs(h[:, context:] - h[:, context - 1 : context]).mean(axis=(0, 2, 3))
    predicted = rolled(model, batch, context, horizon).numpy()
    own = np.abs(predicted - h[:, context:]).mean(axis=(0, 2, 3))
    teacher = np.abs(forced(model, batch, 3).numpy() - h[:, 1:4]).mean()
    assert record.clips == 2
    assert record.copy_last_per_horizon == pytest.approx(copied, rel=1e-5)
    assert record.rollout_per_horizon == pytest.approx(own, rel=1e-5)
    assert record.loss_rollout == pytest.approx(own.mean(), rel=1e-5)
    assert record.loss_teacher == pytest.approx(teacher, rel=1e-5)


class Slow(Kept):
    """Whatever the run does takes no time by the clock but what is said here: a second per step, hours for the rest."""

    now = 0.0

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        self.now += 1e4

    def tick(self, step: int) -> None:
        self.now += 1.0

    def validation(self, record: ValidationRecord) -> None:
        self.now += 1e4

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        self.now += 1e4


def test_only_steps_count_as_training_time(clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr("time.perf_counter", lambda: slow.now)
    run(clips, tmp_path, kept=slow, data=WHOLE, model=HOPE, training={"epochs": 3}, logging={"diagnostics_every": 2})
    # Four clips per step; exact, as all these numbers are in binary.
    assert [record.clips_per_second for record in slow.records] == [4.0] * 3


@pytest.mark.parametrize("normalised", [True, False])
def test_diagnostics_are_measured_in_the_space_of_the_losses(normalised: bool, clips: Path, tmp_path: Path) -> None:
    done = run(
        clips,
        tmp_path,
        data=WHOLE,
        model=HOPE,
        objective={"normalize_reps": normalised},
        optimizer={"lr": 0.0},  # the model stays what it was
        training={"epochs": 3},
        logging={"diagnostics_every": 2},
    )
    (record,) = done.kept.measured
    assert record.step == 2
    batch, model = read(done, done.job.split.train), at_the_start(done)
    assert isinstance(model, HopePredictor)
    x = batch.features[:, :-1].double()
    h = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    expected = diagnostics(model, (h if normalised else x).float(), batch.actions, batch.states)
    # 1e-4: changes of the memory are differences of float32 weights.
    assert record.values == pytest.approx(expected, rel=1e-4)
