"""Presets, checkpoints, settings and names that somebody else has made: one line, nothing that steers the terminal."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hopecli.engine.trained import load_model
from hopecli.errors import CheckpointError
from tests.cli.runner import hope, one_line, small_run
from tests.cli.test_system import in_shell
from tests.clips import write_clips


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("foreign"))


def weights_of(run: Path) -> Path:
    return run / "checkpoints" / "last" / "model.safetensors"


def rewritten(source: Path, target: Path, change: dict[str, Any], **tensors: torch.Tensor) -> Path:
    """A copy of a checkpoint's file with other settings of its model, and more tensors."""
    with safe_open(source, "pt") as archive:
        metadata = archive.metadata()
    settings = json.loads(metadata["settings"])
    settings["model"].update(change)
    save_file({**load_file(source), **tensors}, target, metadata={**metadata, "settings": json.dumps(settings)})
    return target


def test_an_env_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As Notepad saves it; its first line counts, also for the oldest python-dotenv."""
    (tmp_path / ".env").write_text("HOPE_RUNS_DIR=from_file\n", encoding="utf-8-sig")
    assert "from_file: no run of hope train" in one_line(hope(["eval", "--ckpt", "last"], tmp_path))


@pytest.mark.parametrize("ending", ["key: 1\n", "extends: 'x\\e[2J'\n"])
def test_a_preset_cannot_fake_a_line(ending: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text('"a\\e[2Jb\\nerror: fake": 1\n' + ending)
    outcome = hope(["presets", "mine.yaml"], tmp_path)
    assert outcome.code == 2
    assert "\x1b" not in outcome.err
    assert not any(line.startswith("error: fake") for line in outcome.err.splitlines())


def test_settings_and_names_in_a_checkpoint_cannot_either(run: Path, tmp_path: Path) -> None:
    bad = rewritten(weights_of(run), tmp_path / "a.safetensors", {"k\x1b[2J\nerror: fake": 1})
    more = rewritten(weights_of(run), tmp_path / "b.safetensors", {}, **{"x\x1b[2J\nerror: fake": torch.zeros(1)})
    for file in (bad, more):
        outcome = hope(["eval", "--ckpt", str(file)], tmp_path)
        assert outcome.code == 4, outcome.err
        assert "\x1b" not in outcome.err
        assert "error: fake" in one_line(outcome)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": 10**9}, "its settings describe 1000000000 layers, it holds "),
        ({"width": 10**6, "num_heads": 2}, "its weights do not fit the model its settings describe: "),
        ({"width": 32}, "its weights do not fit the model its settings describe: "),
    ],
    ids=["deep", "wide", "other"],
)
def test_a_model_that_no_machine_holds_is_not_built(
    change: dict[str, Any], words: str, run: Path, tmp_path: Path
) -> None:
    """10^6 wide takes 16 TB, and 10^9 layers no end of time."""
    file = rewritten(weights_of(run), tmp_path / "m.safetensors", change)
    outcome = hope(["eval", "--ckpt", str(file)], run.parents[2])
    assert outcome.code == 4, outcome.err
    assert f"{file}: {words}" in outcome.err.splitlines()[-1]
    with pytest.raises(CheckpointError, match=words):
        load_model(str(file))


@pytest.mark.parametrize(("name", "folder"), [("...safetensors", "__"), ("a b.safetensors", "a b")])
def test_results_of_a_file_stay_in_their_folder(name: str, folder: str, run: Path, tmp_path: Path) -> None:
    shutil.copy(weights_of(run), tmp_path / name)
    place = run.parents[2]
    outcome = hope(["eval", "--ckpt", str(tmp_path / name), "--device", "cpu", "--name", "n"], place)
    assert outcome.code == 0, outcome.err
    assert (place / "runs" / "eval" / folder / "n" / "results.json").is_file()


def test_a_folder_of_clips_with_a_long_name(run: Path) -> None:
    """As long as a file's name may be: the results' folder has no room for more in its own."""
    place = run.parents[2]
    clips = "d" * 252
    assert hope(["make-clips", clips, "--clips", "3", "--grid", "2", "--dim", "8", "--seed", "9"], place).code == 0
    evaluated = ["eval", "--ckpt", str(run), "--device", "cpu", "--data-dir", clips, "evaluation.clips=all"]
    for end in (2, 3):  # each in a folder of its own
        assert hope([*evaluated, f"data.clip_end={end}"], place).code == 0
    results = [json.loads(path.read_text()) for path in (run / "eval").glob("*ddd*/results.json")]
    assert sorted(found["clips"] for found in results) == [2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one encoding")
def test_a_name_that_the_locale_lacks(tmp_path: Path) -> None:
    write_clips(tmp_path / "clips_é", range(2))
    old = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    (tmp_path / "mine.yaml").write_text("extends: vjepa2_ac\ndata: {data_dir: clips_é}\n", encoding="utf-8")
    outcome = in_shell('"$@"', tmp_path, "train", "--preset", "mine.yaml", **old)
    assert outcome.code == 3, outcome.err
    assert "cannot be read: the locale has no such characters (set LC_ALL=C.UTF-8)" in one_line(outcome)
