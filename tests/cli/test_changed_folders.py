"""A folder of clips that changes after training: what is scored, what shows forgetting, and what is said."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, Outcome, evaluate, hope, only_run

CLIPS, HELD_OUT = 12, [f"clip_{number:05d}" for number in range(8, 12)]
TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.batch_size=2", "data.val_split=0.3"]
FEATURES = "feature_maps/vjepa2_vitl16.npy"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run on a folder that any test may change; beside it folders of other clips."""
    make_clips(tmp_path / "clips", clips=CLIPS, grid=2, dim=8, domain="base", seed=1)
    for domain in ("ice", "walls"):
        make_clips(tmp_path / domain, clips=CLIPS, grid=2, dim=8, domain=domain, seed=1)
    outcome = hope([*TRAIN, "--data-dir", "clips", "training.epochs=1"], tmp_path)
    assert outcome.code == 0, outcome.err
    return only_run(tmp_path)


def ran(
    run: Path, command: str, *arguments: str, folder: Path | None = None, standing_in: str | None = None
) -> Outcome:
    """The command; `standing_in`: HOPE_DATA_DIR."""
    here, extra = folder or run.parents[2], {} if standing_in is None else {"HOPE_DATA_DIR": standing_in}
    outcome = hope([command, "--ckpt", str(run), "--device", "cpu", "--json", *arguments], here, **extra)
    assert outcome.code == 0, outcome.err
    return outcome


def adapted(run: Path, *arguments: str, standing_in: str | None = None) -> tuple[dict[str, Any], str]:
    outcome = ran(run, "tta", "--data-dir", "walls", "adaptation.steps=1", *arguments, standing_in=standing_in)
    result: dict[str, Any] = json.loads(outcome.out)
    return result, outcome.err


@pytest.mark.parametrize("how", ["moved", "replaced"])
def test_clips_that_have_the_names_of_held_out_ones_are_no_source(how: str, run: Path) -> None:
    clips = run.parents[2] / "clips"
    assert adapted(run)[0]["forgetting"]["clips"] == len(HELD_OUT)
    clips.rename(clips.with_name("gone"))
    if how == "replaced":
        shutil.copytree(clips.with_name("ice"), clips)
    found, err = adapted(run, standing_in="ice" if how == "moved" else None)
    assert found["forgetting"] is None
    assert "note: forgetting is not measured: the checkpoint's held-out clips are not in " in err
    if how == "moved":
        found, _ = adapted(run, standing_in="gone")
        assert found["forgetting"]["clips"] == len(HELD_OUT)


def test_held_out_clips_alone_are_a_source(run: Path) -> None:
    """No training clip is left to recognise the folder by."""
    clips = run.parents[2] / "clips"
    before = adapted(run)[0]["forgetting"]["before"]
    for name in json.loads((run / "split.json").read_text())["train"]:
        shutil.rmtree(clips / name)
    found, _ = adapted(run)
    assert found["forgetting"]["before"] == before
    clips.rename(clips.with_name("gone"))  # clips of these names elsewhere may be any
    for name in json.loads((run / "split.json").read_text())["train"]:
        shutil.rmtree(clips.with_name("ice") / name)
    assert adapted(run, standing_in="ice")[0]["forgetting"] is None


def test_a_damaged_source_clip_is_left_out_when_clips_may_be(run: Path) -> None:
    os.truncate(run.parents[2] / "clips" / HELD_OUT[0] / FEATURES, 300)
    found, err = adapted(run)
    assert found["forgetting"] is None
    assert "note: forgetting is not measured: " in err
    shutil.rmtree(run.parents[2] / "clips" / HELD_OUT[1])
    found, err = adapted(run, "data.on_error=skip", "data.max_skipped=0.4")
    assert found["forgetting"]["clips"] == len(HELD_OUT) - 2
    assert f"note: 2 held-out clips left out of forgetting, the first {HELD_OUT[1]}: it is not in the folder" in err


def test_held_out_clips_that_are_gone_are_said_and_listed(run: Path) -> None:
    clips = run.parents[2] / "clips"
    lost = HELD_OUT[1:3]
    for name in lost:
        (clips / name).rename(run.parents[2] / name)
    reasons = dict.fromkeys(lost, "it is not in the folder")
    outcome = ran(run, "eval")
    assert json.loads(outcome.out)["skipped_clips"] == reasons
    for name in lost:
        assert f"note: held-out {name} is left out: it is not in the folder" in outcome.err
    assert evaluate(run, "data.clip_end=9", "--name", "range")["skipped_clips"] == {}  # nobody asked for them
    # A run that goes on without them writes them down; they are used again when they are back.
    skip = ["data.on_error=skip", "data.max_skipped=0.5"]
    assert hope(["train", "--resume", str(run), *skip], run.parents[2]).code == 0
    assert lost == [*json.loads((run / "split.json").read_text())["skipped"]]
    for name in lost:
        (run.parents[2] / name).rename(clips / name)
    outcome = ran(run, "eval")
    assert (json.loads(outcome.out)["clips"], json.loads(outcome.out)["skipped_clips"]) == (len(HELD_OUT), {})
    assert "left out" not in outcome.err


def test_many_held_out_clips_that_are_gone_are_said_in_one_line(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=CLIPS, grid=2, dim=8, domain="base", seed=1)
    assert hope([*TRAIN, "--data-dir", "clips", "training.epochs=1", "data.val_split=0.5"], tmp_path).code == 0
    for number in range(7, CLIPS):
        shutil.rmtree(tmp_path / f"clips/clip_{number:05d}")
    err = ran(only_run(tmp_path), "eval").err
    assert err.count("left out") == 1
    assert "note: 5 held-out clips are left out, the first clip_00007: it is not in the folder" in err


def test_unreadable_clips_were_not_trained_on(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=CLIPS, grid=2, dim=8, domain="base", seed=1)
    file = tmp_path / "clips/clip_00003" / FEATURES
    np.save(file, np.full_like(np.load(file), np.nan))
    skip = ["data.on_error=skip", "data.max_skipped=0.2"]
    assert hope([*TRAIN, "--data-dir", "clips", "training.epochs=1", *skip], tmp_path).code == 0
    run = only_run(tmp_path)
    for command in ("eval", "tta"):
        found = json.loads(
            ran(run, command, "evaluation.clips=all", *(["adaptation.steps=1"] * (command == "tta"))).out
        )
        assert (found["clips"], found["overlap_with_training"]) == (11, 7), command


def test_states_that_appear_while_a_run_is_interrupted(run: Path) -> None:
    again = ["train", "--resume", str(run)]
    assert "states.npy" not in hope(again, run.parents[2]).err
    for clip in (run.parents[2] / "clips").glob("clip_*"):
        np.save(clip / "actions_states/states.npy", np.ones((16, 2), np.float32))
    outcome = hope(again, run.parents[2])
    assert outcome.code == 0, outcome.err
    assert "warning: 8 of 8 training clips have a states.npy, but it was trained on clips without" in outcome.err


def test_states_that_some_clips_never_had(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=CLIPS, grid=2, dim=8, domain="base", seed=1)
    for number in range(0, CLIPS, 2):
        np.save(tmp_path / f"clips/clip_{number:05d}/actions_states/states.npy", np.ones((16, 2), np.float32))
    assert hope([*TRAIN, "--data-dir", "clips", "training.epochs=1"], tmp_path).code == 0
    err = hope(["train", "--resume", "last"], tmp_path).err
    assert "warning: 4 of 8 training clips lack the states.npy of the others: zeros stand in" in err
    assert err.count("states.npy") == 1


def test_the_flag_wins_over_the_override_in_every_command(run: Path) -> None:
    both = ["--data-dir", "ice", "data.data_dir=walls"]
    assert json.loads(ran(run, "eval", *both).out)["data"].endswith("ice")
    printed = hope([*TRAIN, *both, "--print-config"], run.parents[2]).out
    assert f"data_dir: {run.parents[2] / 'ice'}\n" in printed


def test_a_run_whose_checkpoints_lie_elsewhere_is_still_a_run(run: Path) -> None:
    scratch = run.parents[2] / "scratch"
    (run / "checkpoints").rename(scratch)
    (run / "checkpoints").symlink_to(scratch)
    ran(run, "eval")
    assert (run / "eval/held_out/results.json").is_file()


def test_a_linked_folder_of_streams_is_that_of_the_run(run: Path) -> None:
    """Results of adapted weights do not replace those of the trained ones, nor a stream its own checkpoint."""
    adapted(run, "--name", "stream")
    scratch = run.parents[2] / "scratch"
    (run / "tta").rename(scratch)
    (run / "tta").symlink_to(scratch)
    weights = run / "tta/stream/adapted.safetensors"
    before = weights.read_bytes()
    ran(weights, "eval", folder=run.parents[2])
    assert not (run / "eval").exists()
    assert (run / "tta/stream/eval/held_out/results.json").is_file()
    ran(weights, "tta", "--data-dir", "ice", "adaptation.steps=1", "--name", "stream", folder=run.parents[2])
    assert weights.read_bytes() == before
    assert (run / "tta/stream/tta/stream/results.json").is_file()


def test_a_link_to_itself_is_a_clip_that_cannot_be_read(run: Path) -> None:
    clips = run.parents[2] / "ice"
    (clips / "clip_00100").symlink_to("clip_00100")
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--data-dir", "ice"], run.parents[2])
    assert outcome.code == 3
    assert "clip_00100" in outcome.err
    skip = ["data.on_error=skip", "data.max_skipped=0.2", "--data-dir", "ice"]
    assert list(json.loads(ran(run, "eval", *skip).out)["skipped_clips"]) == ["clip_00100"]


def test_the_baseline_without_states_is_not_warned_of_them(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=CLIPS, grid=2, dim=8, domain="base", seed=1)
    for number in (0, 11):
        np.save(tmp_path / f"clips/clip_{number:05d}/actions_states/states.npy", np.ones((16, 2), np.float32))
    command = [part for part in TRAIN if not part.startswith("model.")]
    model = ["model={kind: convlstm}", "model.hidden=8", "--data-dir", "clips", "training.epochs=1"]
    outcome = hope([*command, *model], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "states.npy" not in outcome.err + ran(only_run(tmp_path), "eval").err
