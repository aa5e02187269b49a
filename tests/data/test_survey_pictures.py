"""What a survey keeps for its picture: so many points of all clips together, and none where no picture is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.survey_actions import ActionFacts, ActionTally, even_share
from hopecli.data.survey_content import FeatureTally, MotionFacts
from tests.clips import FRAMES, PATCHES, count_rows, make_features, write_clip
from tests.data.surveys import look


@pytest.mark.parametrize(("total", "count"), [(4000, 7), (4000, 4000), (10, 64), (0, 5), (3, 1)])
def test_shares_are_even_and_make_up_the_total(total: int, count: int) -> None:
    shares = [even_share(total, place, count) for place in range(count)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1
    halves = sum(shares[: count // 2]), sum(shares[count // 2 :])
    assert abs(halves[0] - halves[1]) <= 1 + total / count  # no run of clips is left out


@pytest.mark.parametrize(("limit", "kept"), [(1000, None), (40, 40), (8, 8), (3, 3)])
def test_points_of_all_clips_together(
    limit: int, kept: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(10):
        write_clip(tmp_path, number, actions=count_rows(2 * FRAMES) + 1 + number)
    monkeypatch.setattr("hopecli.data.survey_run.SCATTER_POINTS", limit)
    monkeypatch.setattr("hopecli.data.survey_run.NORM_POINTS", limit)
    pictures = look(tmp_path, {"pictures": True}).pictures
    assert pictures is not None
    assert pictures.actions.shape == (kept or 10 * 2 * FRAMES, 2)
    assert pictures.norms.shape == (kept or 10 * PATCHES * FRAMES,)
    assert len(pictures.norms) > 10 or len({*pictures.norms.tolist()}) == len(pictures.norms)  # of several clips


def test_actions_of_one_dimension_keep_it_without_a_point(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path, number, actions=np.zeros((2 * FRAMES, 1), np.float32))
    pictures = look(tmp_path, {"pictures": True}).pictures
    assert pictures is not None
    assert pictures.actions.shape == (0, 1)


def test_without_a_picture_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """80,000 clips left as many arrays behind."""
    actions: list[ActionTally] = []
    features: list[FeatureTally] = []
    facts, motion = ActionTally.facts, FeatureTally.motion

    def action_facts(tally: ActionTally, *rest: Any) -> ActionFacts:
        actions.append(tally)
        return facts(tally, *rest)

    def motion_facts(tally: FeatureTally) -> MotionFacts | None:
        features.append(tally)
        return motion(tally)

    monkeypatch.setattr(ActionTally, "facts", action_facts)
    monkeypatch.setattr(FeatureTally, "motion", motion_facts)
    for number in range(3):
        write_clip(tmp_path, number, features=make_features(number), actions=count_rows(2 * FRAMES) + 1)
    for pictures, arrays in ((False, 0), (True, 3)):
        look(tmp_path, {"pictures": pictures})
        usual = actions.pop().usual
        assert usual is not None
        assert (len(usual.points), len(features.pop().norms)) == (arrays, arrays)
