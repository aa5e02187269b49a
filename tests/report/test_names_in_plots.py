"""Names of folders and models reach pictures as they are, whatever they hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hopecli.data.make_clips import make_clips
from hopecli.report import plots, tta
from tests.cli.runner import TINY, evaluate, hope, only_run
from tests.report.examples import EVAL, TTA

ODD = [r"d$1_$2", r"$\frac{$", "d\udcff"]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Texts of the figures that are written."""
    from matplotlib.text import Text

    kept: list[str] = []
    save = plots.save_figure

    def save_and_keep(figure: Any, path: Path) -> None:
        save(figure, path)
        kept.extend(text.get_text() for text in figure.findobj(Text))

    for module in (plots, tta):
        monkeypatch.setattr(module, "save_figure", save_and_keep)
    return kept


@pytest.mark.parametrize("name", ODD)
def test_results(name: str, texts: list[str], tmp_path: Path) -> None:
    plots.plot_error_against_horizon(replace(EVAL, clips_from=name), tmp_path / "eval.png")
    tta.plot_stream(replace(TTA, model=name), tmp_path / "tta.png")
    shown = name.replace("\udcff", r"\udcff")
    assert f"hope: 17 clips, {shown}" in texts
    assert f"{shown}: layernorm, sgd lr 0.02, 2 steps, memory carry" in texts


def test_eval_of_such_a_folder(tmp_path: Path) -> None:
    assert hope(["train", "-p", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"], tmp_path).code == 0
    make_clips(tmp_path / ODD[0], clips=3, grid=2, dim=8, domain="base", seed=0)
    results = evaluate(only_run(tmp_path), "--data-dir", str(tmp_path / ODD[0]), "evaluation.clips=all")
    assert ODD[0] in results["clips_from"]
