"""Signals ask once and abort the second time."""

from __future__ import annotations

import os
import signal
import time

import pytest

from hopecli.engine.signals import ONE_PRESS_SECONDS, stop_on_signal
from hopecli.errors import AbortedError, StoppedError

WARNINGS = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, *WARNINGS])
def test_the_first_signal_is_a_request(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert stop.signal_name == number.name
    assert signal.getsignal(number) is before
    assert StoppedError("").exit_code == 75


def test_the_second_ctrl_c_aborts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # the same press, passed on by a launcher
        assert stop
        time.sleep(1.1 * ONE_PRESS_SECONDS)
        with pytest.raises(AbortedError) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_after_sigterm_is_still_a_request() -> None:
    """A launcher may send both; only a person presses Ctrl-C twice."""
    with stop_on_signal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_name == "SIGINT"


@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_stays_with_whoever_takes_it(number: signal.Signals) -> None:
    """Such as a launcher that runs us as a function and puts the job into the queue again itself."""
    taken: list[int] = []
    before = signal.signal(number, lambda number, frame: taken.append(number))
    try:
        with stop_on_signal() as stop:
            os.kill(os.getpid(), number)
            assert not stop
            assert taken == [number]
    finally:
        signal.signal(number, before)
