"""Losses and times of steps, on a clock that is set by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hopecli.engine.meter import Meter, check_finite, check_sound
from hopecli.engine.results import ValidationRecord
from hopecli.engine.runtime import Runtime, start
from hopecli.engine.train_step import StepTensors
from hopecli.errors import DivergedError
from tests.engine.runs import CPU


class Clock:
    """A clock that shows what it is set to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.perf_counter", clock)
    return clock


def add(meter: Meter, step: int, values: list[float], clips: int, data_seconds: float) -> None:
    meter.add(step, 7, 0.25, StepTensors(torch.tensor(values), clips), data_seconds)


def test_every_number_is_in_its_place_and_times_are_shared_by_the_steps(clock: Clock) -> None:
    meter = Meter(start(CPU))
    meter.restart_clock()
    add(meter, 5, [1.0, 2.0, 3.0, 4.0], clips=6, data_seconds=0.5)
    add(meter, 6, [1.5, 2.5, 3.5, 4.5], clips=10, data_seconds=1.25)
    clock.now += 4.0
    one, two = meter.flush()
    # All numbers are exact in binary.
    assert (one.step, one.epoch, one.lr) == (5, 7, 0.25)
    assert (one.loss, one.loss_teacher, one.loss_rollout, one.grad_norm) == (1.0, 2.0, 3.0, 4.0)
    assert (two.loss, two.loss_teacher, two.loss_rollout, two.grad_norm) == (1.5, 2.5, 3.5, 4.5)
    assert one.clips_per_second == two.clips_per_second == 16 / 4
    assert (one.data_seconds, two.data_seconds) == (0.5, 1.25)
    assert one.step_seconds == two.step_seconds == (4 - 0.5 - 1.25) / 2
    assert meter.last_loss == 1.5


def test_the_clock_runs_from_report_to_report(clock: Clock) -> None:
    meter = Meter(start(CPU))
    meter.restart_clock()
    rates = []
    for seconds in (4.0, 2.0):
        add(meter, 1, [1.0] * 4, clips=8, data_seconds=0.0)
        clock.now += seconds
        rates += [record.clips_per_second for record in meter.flush()]
    clock.now += 50.0  # validation and saving
    meter.restart_clock()
    add(meter, 2, [1.0] * 4, clips=8, data_seconds=0.0)
    clock.now += 1.0
    rates += [record.clips_per_second for record in meter.flush()]
    assert rates == [2.0, 4.0, 8.0]
    assert (meter.clips, meter.seconds) == (24, 7.0)
    assert meter.flush() == []


def test_waiting_in_bursts_is_not_taken_for_computing(clock: Clock) -> None:
    """Readers that fall behind hand over several batches at once: long waits take turns with none."""
    meter = Meter(start(CPU))
    meter.restart_clock()
    for step, data_seconds in ((1, 3.0), (2, 0.0)):
        add(meter, step, [1.0] * 4, clips=1, data_seconds=data_seconds)
    clock.now += 4.0
    assert [(record.data_seconds, record.step_seconds) for record in meter.flush()] == [(3.0, 0.5), (0.0, 0.5)]


def test_there_is_no_negative_time(clock: Clock) -> None:
    meter = Meter(start(CPU))
    meter.restart_clock()
    add(meter, 1, [1.0] * 4, clips=1, data_seconds=3.5)
    clock.now += 3.0
    assert [(record.data_seconds, record.step_seconds) for record in meter.flush()] == [(3.5, 0.0)]


class OneOfTwo(Runtime):
    """One of two processes, of which the other one's numbers are larger by 1."""

    @property
    def world(self) -> int:
        return 2

    def sum(self, values: Tensor) -> Tensor:
        return values + (values + 1.0)


def test_two_processes_report_the_mean_of_their_losses_and_all_their_clips(clock: Clock) -> None:
    alone = start(CPU)
    meter = Meter(OneOfTwo(alone.accelerator, alone.choice))
    meter.restart_clock()
    add(meter, 1, [1.0, 2.0, 3.0, 4.0], clips=6, data_seconds=0.5)
    clock.now += 4.0
    (record,) = meter.flush()
    assert (record.loss, record.loss_teacher, record.loss_rollout, record.grad_norm) == (1.5, 2.5, 3.5, 4.5)
    assert record.clips_per_second == 12 / 4
    assert (meter.clips, meter.seconds) == (12, 4.0)


@pytest.mark.parametrize(("place", "what"), [(0, "the loss"), (3, "the gradient norm")])
def test_the_first_step_that_is_not_finite_is_named(place: int, what: str, clock: Clock) -> None:
    meter = Meter(start(CPU))
    for step in (1, 2, 3):
        values = [1.0] * 4
        values[place] = math.nan if step > 1 else 1.0
        add(meter, step, values, clips=1, data_seconds=0.0)
    clock.now += 1.0
    records = meter.flush()
    with pytest.raises(DivergedError, match=f"{what} is not finite at step 2") as raised:
        check_finite(records, scale=None)
    assert "lower optimizer.lr" in str(raised.value.fix)
    with pytest.raises(DivergedError, match="at step 1") as raised:  # no rate can be to blame
        check_finite([replace(records[1], step=1)], scale=None)
    assert "optimizer.lr" not in str(raised.value.fix)
    assert "the loss weights and loss_exp" in str(raised.value.fix)
    if place == 3:
        check_finite(records, scale=1.0)  # a loss scaler skips such a step by itself


def test_a_loss_scaler_that_skips_every_step_is_an_error(clock: Clock) -> None:
    """A run that changes no weight would end as a success."""
    meter = Meter(start(CPU))
    for step, norm in enumerate([1.0, math.inf, math.nan], start=1):
        add(meter, step, [1.0, 1.0, 1.0, norm], clips=1, data_seconds=0.0)
    clock.now += 1.0
    records = meter.flush()
    check_finite(records, scale=2.0**-20)  # one of them had an effect
    check_finite([], scale=2.0**-20)
    check_finite(records[1:], scale=2.0**-9)
    with pytest.raises(DivergedError, match="no longer finite at any loss scale: step 3 changes no weight"):
        check_finite(records[1:], scale=2.0**-10)


def validation(teacher: float, rollout: float) -> ValidationRecord:
    return ValidationRecord(5, 1, 2, teacher, rollout, [rollout], 0.5, [0.5], 1.0)


@pytest.mark.parametrize("place", ["weight", "bias"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(place: str, value: float) -> None:
    model = nn.Linear(2, 2)
    check_sound(model, None, step=3, lr=0.25)
    with torch.no_grad():
        model.get_parameter(place)[1] = value
    for measured in (None, validation(0.5, 0.25)):
        with pytest.raises(DivergedError, match=r"the weights are not finite after step 3 .*lr 0\.25"):
            check_sound(model, measured, step=3, lr=0.25)


@pytest.mark.parametrize(("teacher", "rollout"), [(math.nan, 0.5), (math.inf, 0.5), (0.5, math.nan), (0.5, math.inf)])
def test_each_validation_loss_must_be_finite(teacher: float, rollout: float) -> None:
    model = nn.Linear(2, 2)
    check_sound(model, validation(0.5, 0.25), step=3, lr=0.25)
    with pytest.raises(DivergedError, match="the validation loss is not finite after step 3"):
        check_sound(model, validation(teacher, rollout), step=3, lr=0.25)
