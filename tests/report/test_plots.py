"""Pictures: the numbers that are drawn, read from the figure instead of its file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.colors import to_hex

from hopecli.engine.results import Interval
from hopecli.report import plots, tta
from tests.report.examples import EVAL, TTA


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that would have been saved."""
    kept: list[Any] = []
    for module in (plots, tta):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def lines(axes: Any) -> dict[str, tuple[list[float], list[float]]]:
    """Label -> x and y."""
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}


def band(collection: Any) -> dict[float, tuple[float, float]]:
    """x -> lowest and highest y of a filled band."""
    (path,) = collection.get_paths()
    ys: dict[float, list[float]] = {}
    for x, y in path.vertices:
        ys.setdefault(float(x), []).append(float(y))
    return {x: (min(found), max(found)) for x, found in ys.items()}


def test_error_against_horizon(figures: list[Any], tmp_path: Path) -> None:
    plots.plot_error_against_horizon(EVAL, tmp_path / "x.png")
    (axes,) = figures[0].axes
    assert lines(axes) == {
        "model": ([1, 2], [x.mean for x in EVAL.rows[0].l1_per_horizon]),
        "copy-last": ([1, 2], [x.mean for x in EVAL.rows[1].l1_per_horizon]),
    }
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    for line, filled, base in zip(axes.lines, axes.collections, (1.0, 2.0), strict=True):
        assert band(filled) == {
            1.0: pytest.approx((base + 0.017, base + 0.025)),
            2.0: pytest.approx((base + 0.057, base + 0.065)),
        }
        assert to_hex(filled.get_facecolor()[0]) == to_hex(line.get_color())
    assert axes.get_xlabel() == "rollout step (encoded frames)"
    assert axes.get_title() == "hope: 17 clips, held out from training"
    assert axes.get_ylim()[0] == 0
    assert axes.get_ylabel() == "L1 in the normalised space"
    plots.plot_error_against_horizon(replace(EVAL, normalize_reps=False), tmp_path / "x.png")
    assert figures[1].axes[0].get_ylabel() == "L1"


def test_one_clip_has_no_band(figures: list[Any], tmp_path: Path) -> None:
    row = replace(EVAL.rows[0], l1_per_horizon=[Interval(0.25, None, None), Interval(0.5, None, None)])
    plots.plot_error_against_horizon(replace(EVAL, rows=[row]), tmp_path / "x.png")
    (filled,) = figures[0].axes[0].collections
    assert band(filled) == {1.0: (0.25, 0.25), 2.0: (0.5, 0.5)}


def test_stream(figures: list[Any], tmp_path: Path) -> None:
    tta.plot_stream(TTA, tmp_path / "x.png")
    upper, lower = figures[0].axes
    assert lines(upper) == {
        "frozen": ([1, 2, 3], TTA.rolling_frozen),
        "adapted, online": ([1, 2, 3], TTA.rolling_online),
    }
    assert upper.get_title() == "hope: layernorm, sgd lr 0.02, 2 steps, memory carry"
    source, before = lower.lines
    # The first order only: the second starts from the checkpoint again.
    assert (list(source.get_xdata()), list(source.get_ydata())) == ([0, 3], [0.4, 0.45])
    assert set(before.get_ydata()) == {0.4}
    assert lower.get_xlim() == upper.get_xlim()


def test_stream_without_source(figures: list[Any], tmp_path: Path) -> None:
    tta.plot_stream(replace(TTA, forgetting=None), tmp_path / "x.png")
    lower = figures[0].axes[1]
    assert not lower.lines
    assert [text.get_text() for text in lower.texts] == ["source loss not measured"]


def test_pictures_are_written(tmp_path: Path) -> None:
    plots.plot_error_against_horizon(EVAL, tmp_path / "eval.png")
    tta.plot_stream(TTA, tmp_path / "tta.png")
    for name in ("eval.png", "tta.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_pictures_do_not_depend_on_the_settings_of_matplotlib(tmp_path: Path) -> None:
    """A matplotlibrc of somebody who writes papers; without LaTeX on the machine nothing would be drawn at all."""
    theirs: dict[Any, Any] = {
        "text.usetex": True,
        "font.size": 20.0,
        "axes.grid": True,
        "savefig.bbox": "tight",
        "figure.dpi": 20.0,
    }
    given: dict[str, dict[Any, Any]] = {"plain": {}, "theirs": theirs}
    for folder, settings in given.items():
        (tmp_path / folder).mkdir()
        with matplotlib.rc_context(settings):
            plots.plot_error_against_horizon(EVAL, tmp_path / folder / "eval.png")
            tta.plot_stream(TTA, tmp_path / folder / "tta.png")
            assert {key: matplotlib.rcParams[key] for key in settings} == settings  # as they were, afterwards
    for name in ("eval.png", "tta.png"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()


def test_a_stream_without_adapted_weights_names_no_optimizer(figures: list[Any], tmp_path: Path) -> None:
    protocol = {**TTA.protocol, "adapt": "none"}
    tta.plot_stream(replace(TTA, protocol=protocol), tmp_path / "x.png")
    assert figures[0].axes[0].get_title() == "hope: no weights adapted, memory carry"
