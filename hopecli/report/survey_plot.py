"""The survey of a folder of clips as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hopecli.data.survey import Pictures, Survey
from hopecli.report.console import counted
from hopecli.report.plots import new_figure, own_settings, save_figure

PCA_FRAMES = 8


@own_settings()
def plot_survey(survey: Survey, pictures: Pictures, path: Path) -> None:
    """Feature norms, motion per horizon, actions, and one clip's features over time as PCA images."""
    figure, _ = new_figure(11.0, 6.2)
    figure.clear()
    top, bottom = figure.subfigures(2, 1, height_ratios=[2, 1])
    norms, motion, actions = top.subplots(1, 3)
    _norms(norms, pictures.norms)
    _motion(motion, survey)
    _actions(actions, pictures.actions)
    _pca(bottom, pictures)
    top.suptitle(f"{counted(survey.clips, 'clip')}, {survey.content_read} read whole")
    save_figure(figure, path)


def _pca(figure: Any, pictures: Pictures) -> None:
    if pictures.pca is None:
        figure.suptitle("no sound clip to show over time", fontsize=9)
        return
    frames = _some_frames(len(pictures.pca))
    figure.suptitle(f"{pictures.pca_clip}: first three principal components over time", fontsize=9)
    for axes, frame in zip(figure.subplots(1, len(frames), squeeze=False)[0], frames, strict=True):
        axes.imshow(pictures.pca[frame], interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(f"frame {frame}", fontsize=8)


def _some_frames(length: int) -> list[int]:
    return sorted({round(t) for t in np.linspace(0, length - 1, min(PCA_FRAMES, length))})


def _norms(axes: Any, norms: np.ndarray) -> None:
    axes.hist(norms, bins=60, color="tab:blue")
    axes.set_xlabel("norm of a patch feature")
    axes.set_ylabel("patches sampled")
    axes.set_title("feature norms")


def _motion(axes: Any, survey: Survey) -> None:
    values = () if survey.motion is None else survey.motion.copy_last_l1
    axes.plot(range(1, len(values) + 1), values, marker="o", color="tab:orange")
    axes.set_xlabel("horizon (encoded frames)")
    axes.set_ylabel("copy-last L1, normalised space")
    axes.set_ylim(bottom=0)
    axes.set_title("motion: what a model must beat")


def _actions(axes: Any, actions: np.ndarray) -> None:
    if actions.shape[1] > 1:
        axes.scatter(actions[:, 0], actions[:, 1], s=5, alpha=0.5, color="tab:green")
        axes.set_xlabel("action 0")
        axes.set_ylabel("action 1")
        axes.set_aspect("equal", adjustable="datalim")
    else:
        axes.hist(actions[:, 0], bins=40, color="tab:green")
        axes.set_xlabel("action 0")
    axes.set_title("non-zero actions")
