"""Clips that break, or are mended, while a run is interrupted: it goes on with what is left, as data.on_error says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, Outcome, hope, one_line, only_run
from tests.cli.test_resume import start
from tests.data.io_errors import fail_reading

TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "--data-dir", "clips", "data.batch_size=1"]
SKIP = ["data.on_error=skip", "data.max_skipped=0.2"]
FEATURES = "feature_maps/vjepa2_vitl16.npy"


def truncate(clip: Path) -> None:
    os.truncate(clip / FEATURES, 300)


def lose_actions(clip: Path) -> None:
    (clip / "actions_states/actions.npy").unlink()


def spoil(clip: Path) -> bytes:
    """Write a NaN, which only reading all of a clip finds, and return what was there."""
    before = (clip / FEATURES).read_bytes()
    features = np.load(clip / FEATURES)
    features[2, 1, 5] = np.nan
    np.save(clip / FEATURES, features)
    return before


def resumed(folder: Path, *arguments: str) -> Outcome:
    return hope(["train", "--resume", "last", "--json", *arguments], folder)


def listed(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((only_run(folder) / "split.json").read_text())["skipped"]
    return found


@pytest.fixture
def ended(tmp_path: Path) -> Path:
    """A folder with a run that clip_00003 ended in its first epoch, with the steps before it saved, and mended."""
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    before = spoil(tmp_path / "clips/clip_00003")
    outcome = hope([*TRAIN, "data.workers=0"], tmp_path)
    assert outcome.code == 3
    assert "is saved; go on with" in outcome.err
    (tmp_path / "clips/clip_00003" / FEATURES).write_bytes(before)
    return tmp_path


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "truncated: "),
        (lose_actions, "missing_actions: "),
        (shutil.rmtree, "missing: not in the folder"),
        (spoil, "not_finite: features hold NaN"),
    ],
)
@pytest.mark.parametrize("clip", ["clip_00005", "clip_00009"])  # trained on, and held out
def test_a_run_goes_on_without_a_clip_that_is_lost(
    damage: Callable[[Path], None], reason: str, clip: str, ended: Path
) -> None:
    damage(ended / "clips" / clip)
    refused = resumed(ended)
    assert refused.code in (3, 4)
    assert clip in one_line(refused)
    few = resumed(ended, "data.on_error=skip", "data.max_skipped=0.09")
    assert few.code == 3
    if clip == "clip_00009":  # the only one held out
        assert "one of them held out" in one_line(resumed(ended, *SKIP))
        return
    outcome = resumed(ended, *SKIP)
    assert outcome.code == 0, outcome.err
    assert f"1 clip of the run skipped, the first {clip}: {reason}" in outcome.err
    found = json.loads(outcome.out)
    assert (found["train_clips"], found["held_out_clips"], found["skipped_clips"]) == (8, 1, 1)
    assert found["steps"] == 2 * 9  # the order of the others is that of a run without the damage
    assert list(listed(ended)) == [clip]


def test_a_clip_that_broke_twice(ended: Path) -> None:
    """It ended the run, was mended (other content than at the start), and is lost later."""
    assert resumed(ended).code == 0
    truncate(ended / "clips/clip_00003")
    assert resumed(ended, *SKIP).code == 0
    assert list(listed(ended)) == ["clip_00003"]


def test_a_skipped_clip_that_is_mended_is_used_again(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    before = {n: spoil(tmp_path / f"clips/clip_0000{n}") for n in (3, 8)}
    outcome = hope([*TRAIN, "data.val_split=0.2", "data.on_error=skip", "data.max_skipped=0.2"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert list(listed(tmp_path)) == ["clip_00003", "clip_00008"]
    record = json.loads((only_run(tmp_path) / "split.json").read_text())
    assert record["unreadable"] == ["clip_00003"]  # those of the training clips, whose content is not sure any more
    for n, content in before.items():
        assert json.loads(resumed(tmp_path).out)["skipped_clips"] == len(listed(tmp_path))
        (tmp_path / f"clips/clip_0000{n}" / FEATURES).write_bytes(content)
    outcome = resumed(tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert (found["train_clips"], found["held_out_clips"], found["skipped_clips"]) == (8, 2, 0)
    assert listed(tmp_path) == {}
    truncate(tmp_path / "clips/clip_00004")
    np.save(tmp_path / "clips/clip_00005" / FEATURES, np.load(tmp_path / "clips/clip_00006" / FEATURES))
    outcome = resumed(tmp_path)  # skipping, as the run was started: one is lost, another is not what it was
    assert outcome.code == 4
    assert "(got 'clip_00005 has other content')" in one_line(outcome)


def test_a_clip_left_out_at_the_start_stays_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its disk failed then and works again; the others keep the sides that were made without it."""
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    with monkeypatch.context() as patch:
        fail_reading(patch, tmp_path / "clips/clip_00005" / FEATURES)
        assert hope([*TRAIN, *SKIP], tmp_path).code == 0
    whole = tmp_path / "clips/clip_00007/actions_states/actions.npy"
    new = tmp_path / "clips/clip_00010"
    outcome = resumed(tmp_path)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["train_clips"] == 8
    assert list(listed(tmp_path)) == ["clip_00005"]
    shutil.copytree(whole.parents[1], new)
    outcome = resumed(tmp_path)
    assert outcome.code == 4
    assert "(got 'clip_00010 is new')" in one_line(outcome)


def killed_at(folder: Path, epoch: int, *arguments: str) -> None:
    """Train until this epoch is validated, and kill."""
    process = start([*TRAIN, "training.epochs=100000", *arguments], folder)
    assert process.stderr is not None
    assert any(f"validation after epoch {epoch}:" in line for line in process.stderr)
    process.kill()
    process.communicate(timeout=300)


@pytest.mark.slow
def test_a_killed_run_knows_what_it_skipped(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    before = spoil(tmp_path / "clips/clip_00003")
    killed_at(tmp_path, 2, *SKIP)
    assert list(listed(tmp_path)) == ["clip_00003"]
    clip = tmp_path / "clips/clip_00003"
    (clip / FEATURES).write_bytes(before)
    process = start(["train", "--resume", "last"], tmp_path)
    assert process.stderr is not None
    assert any("validation after epoch" in line for line in process.stderr)
    assert any("validation after epoch" in line for line in process.stderr)  # the first one's checkpoint is written
    process.kill()
    process.communicate(timeout=300)
    assert listed(tmp_path) == {}
    truncate(clip)  # lost for good, with checkpoints that know it mended
    process = start(["train", "--resume", "last"], tmp_path)
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "step " in line:
            break
    process.kill()
    process.communicate(timeout=300)
    assert any("1 clip of the run skipped, the first clip_00003: truncated" in line for line in lines), lines


def test_a_lost_clip_comes_back_only_as_what_it_was(ended: Path) -> None:
    clip = ended / "clips/clip_00005"
    shutil.move(clip, ended / "aside")
    assert resumed(ended, *SKIP).code == 0
    shutil.copytree(ended / "clips/clip_00007", clip)
    outcome = resumed(ended)
    assert outcome.code == 4
    assert "(got 'clip_00005 has other content')" in one_line(outcome)
    shutil.rmtree(clip)
    shutil.move(ended / "aside", clip)
    outcome = resumed(ended)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["skipped_clips"] == 0


def test_the_share_is_one_of_all_clips_of_the_run(tmp_path: Path) -> None:
    """As it was while the run went on: short ones, left out at the start, are among them."""
    make_clips(tmp_path / "clips", clips=20, grid=2, dim=8, domain="base", seed=1)
    for n in range(10, 20):
        file = tmp_path / f"clips/clip_{n:05d}" / FEATURES
        np.save(file, np.load(file)[:4])
        actions = tmp_path / f"clips/clip_{n:05d}/actions_states/actions.npy"
        np.save(actions, np.load(actions)[:8])
    skip = ["data.on_short=skip", "data.on_error=skip", "data.max_skipped=0.05"]
    assert hope([*TRAIN, *skip], tmp_path).code == 0
    lose_actions(tmp_path / "clips/clip_00005")
    outcome = resumed(tmp_path)
    assert outcome.code == 0, outcome.err
    assert "1 clip of the run skipped, the first clip_00005: missing_actions" in outcome.err
