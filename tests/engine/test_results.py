"""Results as JSON: what could not be measured is null, everything else stays as it is."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from hopecli.engine.results import ValidationRecord, to_tree


def test_numbers_that_json_has_not_become_null() -> None:
    record = ValidationRecord(
        step=3,
        epoch=0,
        clips=2,
        loss_teacher=math.nan,
        loss_rollout=0.5,
        rollout_per_horizon=[0.25, math.inf, -math.inf, math.nan],
        copy_last=math.inf,
        copy_last_per_horizon=[0.0, 1.5],
        seconds=-math.inf,
    )
    tree = to_tree(record)
    assert tree == {
        "step": 3,
        "epoch": 0,
        "clips": 2,
        "loss_teacher": None,
        "loss_rollout": 0.5,
        "rollout_per_horizon": [0.25, None, None, None],
        "copy_last": None,
        "copy_last_per_horizon": [0.0, 1.5],
        "seconds": None,
    }
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree


@dataclass(frozen=True)
class Nested:
    """As a benchmark holds its timings."""

    parts: tuple[Nested, ...] = ()
    value: float | None = None


def test_a_tuple_is_a_list_whose_numbers_are_cleaned_too() -> None:
    tree = to_tree(Nested((Nested(value=math.inf), Nested(value=0.5))))
    assert [part["value"] for part in tree["parts"]] == [None, 0.5]
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
