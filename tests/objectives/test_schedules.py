"""The learning rate and the curriculum as functions of step and epoch, against values computed by hand."""

from __future__ import annotations

import pytest

from hopecli.config.load import load_preset
from hopecli.config.schema import CurriculumPhase
from hopecli.objectives.schedules import ObjectivePhase, learning_rate, phase_at, phase_length

START = ObjectivePhase(loss_weight_teacher=1.0, loss_weight_rollout=1.0, T_rollout=2, context_frames=1)


def rate(
    step: int,
    total: int = 10,
    *,
    warmup: float = 0.2,
    decay: float = 0.4,
    lr: float = 1.0,
    first: float = 0.2,
    final: float = 0.0,
) -> float:
    return learning_rate(
        step, total_steps=total, lr=lr, warmup_start_lr=first, final_lr=final, warmup_pct=warmup, decay_pct=decay
    )


def test_warmup_stable_decay() -> None:
    # W = 2: 0.2, 0.6; constant for steps 2 to 5; D = 4: 1, 0.75, 0.5, 0.25 (0 would be step 10).
    expected = [0.2, 0.6, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [rate(s) for s in range(10)] == pytest.approx(expected, rel=1e-12)


def test_final_learning_rate() -> None:
    assert [rate(s, final=0.6) for s in (6, 7, 8, 9)] == pytest.approx([1.0, 0.9, 0.8, 0.7], rel=1e-12)
    assert rate(10, final=0.6) == pytest.approx(0.6)


def test_without_warmup_or_decay_the_phase_is_skipped() -> None:
    assert [rate(s, warmup=0.0, decay=0.0) for s in (0, 5, 9)] == [1.0, 1.0, 1.0]
    assert rate(10, warmup=0.0, decay=0.0) == 1.0
    assert rate(0, warmup=0.0) == 1.0
    assert rate(9, decay=0.0) == 1.0


def test_runs_too_short_for_a_phase_skip_it() -> None:
    assert [rate(s, 4, warmup=0.2, decay=0.2) for s in range(4)] == [1.0] * 4
    # Three steps: int(0.6) = 0 of warmup, int(1.2) = 1 of decay, which starts at the peak.
    assert [rate(s, 3) for s in range(3)] == [1.0] * 3
    assert rate(0, 1) == 1.0


def test_warmup_may_take_the_whole_run() -> None:
    assert [rate(s, 4, warmup=1.0, decay=0.0) for s in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize(("share", "total", "steps"), [(0.29, 100, 29), (0.085, 100, 8), (0.1, 9, 0), (1.0, 7, 7)])
def test_phase_length_is_the_truncated_share(share: float, total: int, steps: int) -> None:
    assert phase_length(share, total) == steps


def test_the_curve_of_vjepa2_ac() -> None:
    s = load_preset("vjepa2_ac").settings

    def at(step: int) -> float:
        return learning_rate(
            step,
            total_steps=1000,
            lr=s.optimizer.lr,
            warmup_start_lr=s.schedule.warmup_start_lr,
            final_lr=s.schedule.final_lr,
            warmup_pct=s.schedule.warmup_pct,
            decay_pct=s.schedule.decay_pct,
        )

    # W = D = 85 of 1000 steps.
    assert at(0) == pytest.approx(7.5e-5)
    assert at(17) == pytest.approx(7.5e-5 + 3.5e-4 * 0.2)
    assert at(85) == at(500) == at(915) == pytest.approx(4.25e-4)
    assert at(999) == pytest.approx(4.25e-4 / 85)


def test_phases_hold_from_their_epoch_and_keep_what_they_do_not_name() -> None:
    curriculum = [
        CurriculumPhase(epoch=2, loss_weight_teacher=0.5),
        CurriculumPhase(epoch=4, T_rollout=3, context_frames=2),
        CurriculumPhase(epoch=5, loss_weight_teacher=0.0, loss_weight_rollout=2.0),
    ]
    half = ObjectivePhase(0.5, 1.0, 2, 1)
    longer = ObjectivePhase(0.5, 1.0, 3, 2)
    expected = [START, START, half, half, longer, ObjectivePhase(0.0, 2.0, 3, 2)]
    assert [phase_at(epoch, START, curriculum) for epoch in range(6)] == expected
    assert phase_at(99, START, curriculum) == expected[-1]


def test_without_a_curriculum_nothing_changes() -> None:
    assert phase_at(50, START, []) == START


def test_the_curriculum_of_vjepa2_ac() -> None:
    curriculum = load_preset("vjepa2_ac").settings.objective.curriculum
    weights = [phase_at(epoch, START, curriculum).loss_weight_teacher for epoch in (0, 6, 7, 10, 11, 29)]
    assert weights == [1.0, 1.0, 0.7, 0.7, 0.3, 0.3]
