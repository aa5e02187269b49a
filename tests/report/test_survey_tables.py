"""What `hope inspect-data` shows people: tables and picture of a survey whose numbers are all different."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.table import Table
from rich.text import Text

from hopecli.data.survey import (
    ActionFacts,
    DuplicateFacts,
    FeatureFacts,
    Finding,
    Geometry,
    IdFacts,
    MotionFacts,
    Pictures,
    PresetFit,
    StorageFacts,
    Survey,
)
from hopecli.report import survey_plot
from hopecli.report.survey import size, survey_report
from tests.report.examples import cells, pairs, title

SURVEY = Survey(
    folder="clips",
    feature_map="vjepa2_vitl16",
    depth="sample",
    clips=40,
    usable=37,
    content_read=12,
    ids=IdFacts(first=3, last=49, missing=7, gaps=((5, 5), (9, 14))),
    layouts={"[T, N, D]": 30, "[T*N, D]": 10},
    dtypes={"float16": 39, "float32": 1},
    geometry=Geometry(8, 6, (2, 3), 16, {7: 1, 8: 39}, "shape [T, N, D]"),
    checked_frames=8,
    actions=ActionFacts(
        width=2,
        rows={15: 1, 16: 39},
        original_frames=16,
        alignments={"impulse": 39, "per_timestep": 38, "as_is": 0},
        suggested_alignment="impulse",
        suggested_because="because",
        range=((-0.5, 1.25), (-2.0, 3.0)),
        zero_rows=0.9375,
        zero_clips=0.025,
    ),
    states=5,
    extrinsics=1,
    features=FeatureFacts(12, 0.01234, 3.21, -9.5, 11.25, 2, 0.125, (1, 4), 1, (7,)),
    motion=MotionFacts(12, (0.1, 0.25)),
    duplicates=DuplicateFacts(clips=3, alike=2),
    storage=StorageFacts(bytes=5 * 2**20, read_bytes=2**20, read_seconds=0.5, read_bytes_per_second=2.0 * 2**20),
    presets=(),
    findings=(),
    errors=0,
    warnings=0,
    seconds=6.54,
)


def tables(survey: Survey) -> dict[str, Table]:
    """Title -> table."""
    return {title(part): part for part in survey_report(survey) if isinstance(part, Table)}


def verdict(survey: Survey) -> str:
    last = survey_report(survey)[-1]
    assert isinstance(last, Text)
    return last.plain


def test_sizes() -> None:
    assert pairs(tables(SURVEY)["Clips in clips"]) == {
        "clips": "40, ids 3 to 49, 7 ids missing: 5, 9-14",
        "usable": "37 pass training's check for 8 frames",
        "feature map": "vjepa2_vitl16",
        "layouts": "[T, N, D] (30), [T*N, D] (10)",
        "dtypes": "float16 (39), float32 (1)",
        "encoded frames T": "7 in 1 clip, 8 in 39 clips",
        "patches N, grid": "6, 2 x 3",
        "width D": "16",
        "sizes inferred from": "shape [T, N, D]",
        "states, extrinsics": "in 5 and 1 clip",
        "on disk": "5.0 MiB",
        "read rate": "2.0 MiB/s (page cache included)",
        "surveyed in": "6.5 s",
    }


def test_content_and_actions() -> None:
    shown = tables(SURVEY)
    content = pairs(shown["Features of 12 clips (a sample; --deep reads all)"])
    del content[""]
    assert content == {
        "mean, std": "0.0123, 3.2100",
        "range": "-9.5 to 11.25",
        "dead dimensions": "2 of 16: 1, 4",
        "outlier dimensions": "1 with rms over 5x the median: 7",
        "copy-last L1 per horizon": "0.1000  0.2500",
        "duplicates": "3, 2 more look alike (--deep compares them)",
    }
    assert pairs(shown["Actions"]) == {
        "width A": "2",
        "rows": "15 (1), 16 (39)",
        "original frames": "16 (most common)",
        "alignments that fit": "impulse (39), per_timestep (38)",
        "suggested alignment": "impulse: because",
        "range per dimension": "-0.5 to 1.25, -2 to 3",
        "zero actions": "93.8 % of rows, 2.5 % of clips have none other",
    }


def test_rows_that_are_all_alike_and_rows_that_fit_no_rule() -> None:
    alike = replace(SURVEY.actions, rows={16: 40})
    assert pairs(tables(replace(SURVEY, actions=alike))["Actions"])["original frames"] == "16"
    unfit = replace(SURVEY.actions, rows={15: 40}, original_frames=None, alignments={}, suggested_alignment=None)
    shown = pairs(tables(replace(SURVEY, actions=unfit))["Actions"])
    assert (shown["alignments that fit"], shown["suggested alignment"]) == ("none", "none: no rule fits the rows")
    unread = pairs(tables(replace(SURVEY, actions=replace(unfit, width=None, rows={})))["Actions"])
    assert unread["suggested alignment"] == "not measured"


def test_what_could_not_be_measured() -> None:
    unknown = replace(
        SURVEY,
        depth="deep",
        content_read=1,
        ids=IdFacts(3, 49, 0, ()),
        geometry=Geometry(None, 5, None, None, {}, None),
        features=None,
        motion=None,
        storage=StorageFacts(1000, 0, 0.0, None),
    )
    sizes = pairs(tables(unknown)["Clips in clips"])
    assert sizes["clips"] == "40, ids 3 to 49, no gaps"
    assert sizes["patches N, grid"] == "5, not square"
    assert sizes["on disk"] == "1000 B"
    assert {sizes[key] for key in ("encoded frames T", "width D", "sizes inferred from", "read rate")} == {
        "not measured"
    }
    assert pairs(tables(unknown)["Features of 1 clip (all clips)"]) == {"mean, std": "not measured"}


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (5 * 2**40, "5.0 TiB")],
)
def test_sizes_are_in_binary_units(count: int, shown: str) -> None:
    assert size(count) == shown


def test_findings_and_verdict() -> None:
    assert verdict(SURVEY) == "No defects found in 40 clips (12 read whole)."
    names = ("a", "b", "c", "d", "e")
    findings = (
        Finding("error", "truncated", "short", 6, names, "x.npy is short"),
        Finding("warning", "duplicate", "the same", 5, names, "the same as a"),
        Finding("warning", "no_motion", "still", 1, ("a",), "still"),
    )
    found = replace(SURVEY, findings=findings, errors=1, warnings=2)
    assert verdict(found) == "1 kind of error, 2 of warning; 37 of 40 clips usable."
    rows = [[str(cell) for cell in column.cells] for column in tables(found)["Findings"].columns]
    assert rows == [
        ["error", "warning", "warning"],
        ["truncated", "duplicate", "no_motion"],
        ["6", "5", "1"],
        ["a, b, c, d, e, ...", "a, b, c, d, e", "a"],  # dots only where there are clips that are not named
        ["x.npy is short", "the same as a", "still"],
    ]


def test_presets() -> None:
    fits = (
        PresetFit("fitting", True, (), None, 36, 4, (46, 49)),
        PresetFit("changed", False, ("data.grid=2", "data.feature_map=my map"), None, 39, 1, (49, 49)),
        PresetFit("hopeless", False, (), "no square grid", None, None, None),
    )
    assert cells(tables(replace(SURVEY, presets=fits))["Presets on these clips"]) == {
        "fitting": {"fits": "yes", "overrides it needs": "none", "split": "36 train, 4 held out (ids 46 to 49)"},
        "changed": {
            "fits": "no",
            "overrides it needs": "data.grid=2 'data.feature_map=my map'",  # as typed in a shell
            "split": "39 train, 1 held out (ids 49)",
        },
        "hopeless": {"fits": "no", "overrides it needs": "no square grid", "split": "-"},
    }


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would have been saved."""
    kept: list[Any] = []
    monkeypatch.setattr(survey_plot, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def test_picture(drawn: list[Any], tmp_path: Path) -> None:
    actions = np.array([[0.5, -2.0], [1.5, 3.0]], np.float32)
    pca = np.linspace(0.0, 1.0, 12 * 2 * 3 * 3).reshape(12, 2, 3, 3)
    pictures = Pictures(norms=np.array([1.0, 2.0, 2.0]), actions=actions, pca=pca, pca_clip="clip_00003")
    survey_plot.plot_survey(SURVEY, pictures, tmp_path / "x.png")
    norms, motion, pushes, *frames = drawn[0].axes
    assert sum(bar.get_height() for bar in norms.patches) == 3
    (line,) = motion.lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 2], [0.1, 0.25])
    np.testing.assert_array_equal(pushes.collections[0].get_offsets(), actions)
    # Eight of the twelve frames, evenly, the first and the last among them, each under its own number.
    places = [int(axes.get_title().removeprefix("frame ")) for axes in frames]
    assert places == [0, 2, 3, 5, 6, 8, 9, 11]
    for axes, place in zip(frames, places, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), pca[place])


def test_picture_of_actions_of_one_dimension_without_a_sound_clip(drawn: list[Any], tmp_path: Path) -> None:
    pictures = Pictures(norms=np.zeros(0), actions=np.array([[1.0], [2.0], [2.0]]), pca=None, pca_clip=None)
    survey_plot.plot_survey(replace(SURVEY, motion=None), pictures, tmp_path / "x.png")
    _, motion, pushes = drawn[0].axes
    assert list(motion.lines[0].get_xdata()) == []
    assert [int(bar.get_height()) for bar in pushes.patches if bar.get_height()] == [1, 2]
