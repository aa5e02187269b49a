"""Pictures of results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hopecli.engine.results import EvalResults
from hopecli.report.console import counted
from hopecli.report.files import ESCAPED, replacing
from hopecli.report.tables import ROW_TITLES


@contextmanager
def own_settings() -> Iterator[None]:
    """Draw with matplotlib's defaults, alike on all machines: a user's matplotlibrc may ask for LaTeX, which need not
    be installed, and takes a % or _ in a text for its own."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def new_figure(width: float, height: float, rows: int = 1) -> tuple[Any, Any]:
    """A figure and its axes that needs no display: matplotlib is used without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1)


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG atomically; texts are drawn as they are."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):  # names of folders and clips may hold anything
        text.set_parse_math(False)  # a $ would start a formula
        shown = text.get_text().encode("utf-8", ESCAPED).decode()
        if shown != text.get_text():  # bytes that are no UTF-8 have no glyph
            text.set_text(shown)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


@own_settings()
def plot_error_against_horizon(results: EvalResults, path: Path) -> None:
    """Rollout L1 of the model and every baseline at each horizon, with 95 % bands."""
    figure, axes = new_figure(6.4, 4.2)
    steps = list(range(1, results.T_rollout + 1))
    for row in results.rows:
        means = [x.mean for x in row.l1_per_horizon]
        style = "-" if row.name == "model" else "--"
        (line,) = axes.plot(steps, means, style, marker="o", markersize=3, label=ROW_TITLES.get(row.name, row.name))
        low = [m if x.low is None else x.low for x, m in zip(row.l1_per_horizon, means, strict=True)]
        high = [m if x.high is None else x.high for x, m in zip(row.l1_per_horizon, means, strict=True)]
        axes.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_xlabel("rollout step (encoded frames)")
    axes.set_ylabel("L1 in the normalised space" if results.normalize_reps else "L1")
    axes.set_title(f"{results.model}: {counted(results.clips, 'clip')}, {results.clips_from}")
    axes.set_xticks(steps)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    save_figure(figure, path)
