"""How many steps an epoch has, for every number of processes."""

from __future__ import annotations

import pytest

from hopecli.engine.train_job import steps_per_epoch
from hopecli.errors import SettingsError
from tests.engine.runs import settings


@pytest.mark.parametrize(("batch", "clips", "world", "steps"), [(4, 18, 1, 4), (6, 18, 3, 3), (18, 18, 2, 1)])
def test_the_last_incomplete_batch_is_dropped(batch: int, clips: int, world: int, steps: int) -> None:
    assert steps_per_epoch(settings({"data": {"batch_size": batch}}), clips, world) == steps


@pytest.mark.parametrize(
    ("batch", "accumulate", "world", "fix"),
    [
        (4, 1, 3, "Use 3"),
        (4, 2, 3, "Use 6"),
        (4, 2, 4, "Use 8"),
        (19, 1, 1, "Use at most 18"),
        (20, 1, 4, "Use at most 16"),
        (24, 8, 3, "Use data.batch_size=18 training.accumulate=1"),
        (20, 2, 12, "Use data.batch_size=12 training.accumulate=1"),
        (19, 1, 19, "Use at most 18 processes"),
    ],
)
def test_a_batch_that_does_not_fit_says_which_does(batch: int, accumulate: int, world: int, fix: str) -> None:
    s = settings({"data": {"batch_size": batch}, "training": {"accumulate": accumulate}})
    with pytest.raises(SettingsError, match=r"data\.batch_size: ") as raised:
        steps_per_epoch(s, 18, world)
    assert raised.value.exit_code == 2
    assert str(raised.value).endswith(fix)
