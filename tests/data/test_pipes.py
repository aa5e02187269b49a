"""A pipe or device in place of an array is an unreadable clip; nobody waits for what it may say one day."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopecli.data.headers import ClipProblem, read_header
from hopecli.data.make_clips import make_clips
from tests.alarm import within
from tests.cli.runner import TINY, hope

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")

ACTIONS, FEATURES = "actions_states/actions.npy", "feature_maps/vjepa2_vitl16.npy"


@pytest.fixture(params=[ACTIONS, FEATURES])
def pipe(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A named pipe among the files of otherwise sound clips; who opens it waits for ever, here until an alarm."""
    make_clips(tmp_path / "clips", clips=20, grid=2, dim=8, domain="base", seed=0)
    path = tmp_path / "clips" / "clip_00003" / str(request.param)
    path.unlink()
    os.mkfifo(path)

    with within(100, "it waits for the pipe"):
        yield path


def test_inspect_data(pipe: Path, tmp_path: Path) -> None:
    outcome = hope(["inspect-data", "clips", "--deep", "--json"], tmp_path)
    assert outcome.code == 3, outcome.err
    (found,) = [finding for finding in json.loads(outcome.out)["findings"] if finding["severity"] == "error"]
    assert (found["code"], found["clips"]) == ("unreadable", ["clip_00003"])
    assert f"{pipe.name} is a pipe or device, not a file" in found["example"]


def test_train(pipe: Path, tmp_path: Path) -> None:
    command = ["train", "-p", "quickstart", "--device", "cpu", "--data-dir", "clips", *TINY]
    outcome = hope(command, tmp_path)
    assert (outcome.code, outcome.out) == (3, "")
    assert f"{pipe.name} is a pipe or device, not a file" in outcome.err.splitlines()[-1]
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.1", "training.epochs=1"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "1 clip skipped" in outcome.err


def test_links(tmp_path: Path) -> None:
    """To a device: refused. To a file: as good as the file."""
    (tmp_path / "features.npy").symlink_to("/dev/null")
    with pytest.raises(ClipProblem, match="is a pipe or device") as caught:
        read_header(tmp_path / "features.npy", clip="clip_00001")
    assert caught.value.code == "unreadable"
    make_clips(tmp_path / "clips", clips=1, grid=2, dim=8, domain="base", seed=0)
    (tmp_path / "link.npy").symlink_to(tmp_path / "clips/clip_00000" / FEATURES)
    assert read_header(tmp_path / "link.npy", clip="clip_00001").shape == (8, 4, 8)
