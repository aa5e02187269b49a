"""Run directories that users rename, copy and put files into: no other weights or split is taken than they think."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hopecli.engine.checkpoint import load_checkpoint
from tests.cli.runner import TINY, Outcome, evaluate, hope, one_line, only_run

TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a run of 18 training clips, of epochs 1 and 2."""
    folder = tmp_path_factory.mktemp("lived")
    assert hope(TRAIN, folder).code == 0
    return folder


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be lived in."""
    return shutil.copytree(trained, tmp_path / "place")


def weights(run: Path, name: str = "last") -> Path:
    return run / "checkpoints" / name / "model.safetensors"


def look(place: Path, *arguments: str) -> tuple[Outcome, dict[str, Any]]:
    outcome = hope(["eval", "--device", "cpu", "--json", *arguments], place)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return outcome, found


def test_weights_of_another_run_are_not_judged_by_the_split_they_lie_in(place: Path) -> None:
    """Held out there are 10 clips, of which these weights were trained on 8."""
    run = only_run(place)
    other = json.loads(hope([*TRAIN, "data.val_split=0.5", "logging.runs_dir=other", "--json"], place).out)["run_dir"]
    guest = place / other / "checkpoints" / "guest"
    shutil.copytree(run / "checkpoints" / "epoch_0002", guest)
    shutil.copy(weights(run), place / other / "guest.safetensors")
    own = evaluate(run)
    for given in (guest, place / other / "guest.safetensors"):
        outcome, found = look(place, "--ckpt", str(given))
        assert "was not trained on the split of the run it lies in" in outcome.err
        assert (found["clips"], found["clips_from"]) == (2, "held out from training")
        assert found["rows"][0] == own["rows"][0]
        outcome, found = look(place, "--ckpt", str(given), "evaluation.clips=all")
        assert (found["clips"], found["overlap_with_training"]) == (20, 18)
    assert look(place, "--ckpt", other)[1]["clips"] == 10


def test_weights_put_into_a_run_are_not_the_runs(place: Path) -> None:
    run = only_run(place)
    shutil.copy(weights(run, "epoch_0001"), run / "model.safetensors")
    outcome, found = look(place, "--ckpt", str(run))
    assert found["step"] == 8
    assert "has no checkpoint" not in outcome.err
    assert hope(["train", "--resume", str(run)], place).code == 0
    outcome, found = look(place, "--ckpt", str(run / "model.safetensors"))
    assert found["step"] == 4
    for folder in (run / "checkpoints").iterdir():
        shutil.rmtree(folder)
    outcome, found = look(place, "--ckpt", str(run))
    assert found["step"] == 4
    assert "has no checkpoint of its own" in outcome.err


def test_an_epoch_that_stands_in_for_the_last_checkpoint_is_named(place: Path) -> None:
    run = only_run(place)
    shutil.rmtree(run / "checkpoints/last")
    shutil.rmtree(run / "checkpoints/epoch_0002")
    line = f"has no checkpoint `last`: {weights(run, 'epoch_0001')} is used"
    outcome, found = look(place, "--ckpt", str(run))
    assert line in outcome.err
    assert found["step"] == 4
    (run / "checkpoints/last").symlink_to(place / "gone")  # of a disk that is no longer there
    resumed = hope(["train", "--resume", str(run)], place)
    assert resumed.code == 0, resumed.err
    assert line in resumed.err
    assert load_checkpoint(str(weights(run))).info["step"] == 8
    assert not (run / "checkpoints/last").is_symlink()


def test_going_back_to_an_earlier_checkpoint_is_said(place: Path) -> None:
    run = only_run(place)
    outcome = hope(["train", "--resume", str(run / "checkpoints/epoch_0001")], place)
    assert outcome.code == 0, outcome.err
    assert "note: the run goes back from step 8 to 4: what it recorded and saved after it is replaced" in outcome.err
    assert "goes back" not in hope(["train", "--resume", str(run)], place).err


def test_a_renamed_run_is_still_the_last(place: Path) -> None:
    older = only_run(place)
    recorded = older / "environment.json"
    recorded.write_text(json.dumps({**json.loads(recorded.read_text()), "time": "2020-01-01T00:00:01+00:00"}))
    older.rename(older.with_name("2020-01-01_00-00-00"))
    newest = Path(json.loads(hope([*TRAIN, "training.epochs=1", "--json"], place).out)["run_dir"])
    shutil.copytree(place / newest, place / "runs/quickstart/copy")  # as new, but not its name
    assert hope(["eval", "--ckpt", "last", "--device", "cpu"], place).err.startswith(f"checkpoint: {newest}\n")
    shutil.rmtree(place / "runs/quickstart/copy")
    (place / newest).rename(place / "runs/quickstart/best")
    found = hope(["eval", "--ckpt", "last", "--device", "cpu"], place)
    assert found.err.startswith("checkpoint: runs/quickstart/best\n")


@pytest.mark.parametrize("command", [["train", "--resume", "last"], ["eval", "--ckpt", "last"]])
def test_a_run_and_its_copy_are_not_told_apart(command: list[str], place: Path) -> None:
    run = only_run(place)
    shutil.copytree(run, run.with_name(f"{run.name}_backup"))  # not a name that hope gives
    outcome = hope(command, place)
    assert outcome.code == 0, outcome.err
    assert f"{run.name}_backup" not in outcome.err
    shutil.copytree(run.parent, place / "runs/quickstart_backup")
    outcome = hope(command, place)
    assert outcome.code == 4
    names = f"runs/quickstart/{run.name} and runs/quickstart_backup/{run.name}"
    assert one_line(outcome) == f"error: {names}: two runs were started last. Give the directory of one of them"


def test_a_description_may_be_edited(place: Path) -> None:
    config = only_run(place) / "config.yaml"
    text = config.read_text()
    assert "\ndescription: " in f"\n{text}"
    lines = ["description: my best one" if line.startswith("description: ") else line for line in text.splitlines()]
    config.write_text("\n".join(lines) + "\n")
    outcome = hope(["train", "--resume", str(config.parent)], place)
    assert outcome.code == 0, outcome.err
