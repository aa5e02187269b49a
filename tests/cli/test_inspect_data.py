"""hope inspect-data through the real command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hopecli.config.load import load_preset
from hopecli.data.split import make_split
from hopecli.data.store import ClipStore
from tests.broken_clips import write_broken_folder
from tests.cli.runner import TINY, environment, hope, one_line, only_run
from tests.clips import count_rows, make_features, write_clip
from tests.data.io_errors import fail_reading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 clips from hope make-clips in `clips`, made under this working directory."""
    place = tmp_path_factory.mktemp("inspect")
    command = ["make-clips", "clips", "--clips", "20", "--grid", "2", "--dim", "8", "--seed", "3"]
    assert hope(command, place).code == 0
    return place


def inspect(place: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
    outcome = hope(["inspect-data", *arguments, "--json"], place)
    assert outcome.code == code, outcome.err
    assert outcome.out.count("\n") == 1
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return [(str(path), path.lstat().st_mtime_ns) for path in [folder, *sorted(folder.rglob("*"))]]


def test_healthy_clips_and_copy_last_as_eval_reports_it(folder: Path) -> None:
    before = snapshot(folder / "clips")
    found = inspect(folder, "clips")
    assert found["findings"] == []
    assert found["actions"]["suggested_alignment"] == "impulse"
    assert found["geometry"]["grid"] == [2, 2]
    train = ["train", "--preset", "quickstart", "--device", "cpu", "--data-dir", "clips", *TINY, "training.epochs=1"]
    assert hope(train, folder).code == 0
    evaluate = ["eval", "--ckpt", str(only_run(folder)), "--device", "cpu", "--data-dir", "clips", "--json"]
    outcome = hope([*evaluate, "evaluation.clips=all"], folder)
    assert outcome.code == 0, outcome.err
    results = json.loads(outcome.out)
    assert results["clips"] == found["motion"]["clips"] == 20
    row = next(row for row in results["rows"] if row["name"] == "copy_last")
    reported = [horizon["mean"] for horizon in row["l1_per_horizon"]]
    # The same float32 operations in batches of another size: rounding is about 1e-8.
    assert found["motion"]["copy_last_l1"] == pytest.approx(reported, abs=1e-6)
    assert inspect(folder, "clips", "--deep")["motion"] == found["motion"]
    assert snapshot(folder / "clips") == before


def test_presets_need_just_the_overrides_listed(folder: Path) -> None:
    fits = {fit["name"]: fit for fit in inspect(folder, "clips")["presets"]}
    assert "test_ac_predictor" not in fits  # evaluates only
    assert fits["ac_predictor"]["overrides"] == [
        "data.grid=2",
        "data.embed_dim=8",
        "data.action_dim=2",
        "data.batch_size=18",
    ]
    for name in ("ac_predictor", "quickstart", "vjepa2_ac"):
        fit = fits[name]
        assert not fit["fits"]
        settings = load_preset(name, ["data.source=folder", *fit["overrides"]]).settings
        split = make_split(ClipStore(folder / "clips", settings.data, use_extrinsics=False))
        assert (len(split.train), len(split.held_out)) == (fit["train_clips"], fit["held_out_clips"])
        assert fit["held_out_ids"] == [int(split.held_out[0][5:]), int(split.held_out[-1][5:])]
        assert settings.data.batch_size <= len(split.train)


def test_a_preset_that_fits_as_it_is(tmp_path: Path) -> None:
    assert hope(["make-clips", "clips", "--clips", "18", "--grid", "4", "--dim", "64"], tmp_path).code == 0
    fits = {fit["name"]: fit for fit in inspect(tmp_path, "clips")["presets"]}
    assert fits["quickstart"]["fits"]
    assert fits["quickstart"]["overrides"] == []
    assert not fits["vjepa2_ac"]["fits"]


def test_windows_are_cut_to_clips_one_frame_shorter(tmp_path: Path) -> None:
    for number in range(20):
        write_clip(tmp_path / "clips", number, features=make_features(number, frames=7), actions=count_rows(14))
    (tmp_path / "presets").mkdir()
    windows = "T_teacher: 7\n  T_rollout: 5\n  context_frames: 3\n"
    (tmp_path / "presets/mine.yaml").write_text(f"extends: quickstart\nobjective:\n  {windows}")
    fits = {fit["name"]: fit for fit in inspect(tmp_path, "clips")["presets"]}
    wanted = ["data.num_timesteps=7", "objective.T_teacher=6"]
    assert {*wanted, "objective.T_rollout=4"} <= set(fits["mine"]["overrides"])  # after 3 frames of context
    assert {*wanted, "objective.T_rollout=6"} <= set(fits["quickstart"]["overrides"])
    assert (fits["mine"]["problem"], fits["quickstart"]["problem"]) == (None, None)


def test_broken_clips_exit_with_the_data_code_and_print_each_finding_once(tmp_path: Path) -> None:
    expected = write_broken_folder(tmp_path / "clips")
    before = snapshot(tmp_path / "clips")
    found = inspect(tmp_path, "clips", "--sample", "100", code=3)
    assert {f["code"]: f["count"] for f in found["findings"]} == {code: len(clips) for code, clips in expected.items()}
    outcome = hope(["inspect-data", "clips", "--sample", "100"], tmp_path)
    assert outcome.code == 3
    lines = [line.split() for line in outcome.out.splitlines()]
    shown = [words[1] for words in lines if words[:1] in (["error"], ["warning"])]
    assert sorted(shown) == sorted(expected)
    assert "[T, N, D]" in outcome.out  # not taken for markup
    assert snapshot(tmp_path / "clips") == before


def test_warnings_only_count_when_strict(folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(folder / "clips", tmp_path / "clips")
    shutil.copytree(folder / "clips/clip_00000", tmp_path / "clips/clip_00099")
    found = inspect(tmp_path, "clips")
    assert [(f["code"], f["severity"]) for f in found["findings"]] == [("duplicate", "warning")]
    inspect(tmp_path, "clips", "--strict", code=3)


def test_picture_outside_the_folder_only(folder: Path) -> None:
    outcome = hope(["inspect-data", "clips", "--plot", "picture.png"], folder)
    assert outcome.code == 0, outcome.err
    assert (folder / "picture.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    for place, what in (
        ("clips/p.png", "nothing is written"),
        ("clips/clip_00000/p.png", "nothing is"),
        ("p.txt", ".png"),
    ):
        refused = hope(["inspect-data", "clips", "--plot", place], folder)
        assert refused.code == 2
        assert what in refused.err
        assert not (folder / place).exists()


def test_folder_from_the_environment_and_missing_folders(folder: Path) -> None:
    outcome = hope(["inspect-data", "--json"], folder, HOPE_DATA_DIR="clips")
    assert outcome.code == 0
    assert json.loads(outcome.out)["clips"] == 20
    assert hope(["inspect-data"], folder).code == 2
    missing = hope(["inspect-data", "nowhere"], folder)
    assert missing.code == 3
    assert missing.err.count("\n") == 1


def test_every_code_is_in_the_help(folder: Path) -> None:
    from hopecli.data.survey import CODES

    text = hope(["inspect-data", "--help"], folder).out
    words = set(text.replace(",", " ").replace(".", " ").split())
    assert set(CODES) <= words


def test_a_picture_that_cannot_be_written_is_refused_before_the_survey(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    for place in (tmp_path / "file" / "p.png", tmp_path / "folder.png"):
        outcome = hope(["inspect-data", "clips", "--plot", str(place), "--json"], folder)
        assert outcome.code == 2
        assert f"--plot {place}: cannot be written" in one_line(outcome)
        assert "surveyed" not in outcome.err


def test_the_survey_is_shown_when_the_picture_turns_out_unwritable(folder: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        outcome = hope(["inspect-data", "clips", "--plot", "large.png", "--json"], folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outcome.code == 2
    assert json.loads(outcome.out)["clips"] == 20
    assert outcome.err.splitlines()[-1].startswith("error: --plot large.png: cannot be written: File too large")
    assert not list(folder.glob("*large.png*"))


def test_frames_that_the_user_asks_for_are_not_lowered(folder: Path) -> None:
    assert inspect(folder, "clips", "--num-timesteps", "8")["errors"] == 0
    found = inspect(folder, "clips", "--num-timesteps", "9", code=3)
    assert [(f["code"], f["count"]) for f in found["findings"]] == [("too_few_frames", 20)]
    assert (found["checked_frames"], found["usable"]) == (9, 0)


def test_two_clips_with_one_number_fit_no_preset(tmp_path: Path) -> None:
    assert hope(["make-clips", "clips", "--clips", "18", "--grid", "4", "--dim", "64"], tmp_path).code == 0
    (tmp_path / "clips" / "clip_3").mkdir()
    for fit in inspect(tmp_path, "clips", code=3)["presets"]:
        assert not fit["fits"]
        assert "the same number" in fit["problem"]


def test_a_disk_that_fails_is_a_finding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_reading(monkeypatch, folder / "clips/clip_00004/feature_maps/vjepa2_vitl16.npy")
    found = inspect(folder, "clips", code=3)
    assert [(f["code"], f["clips"]) for f in found["findings"]] == [("unreadable", ["clip_00004"])]
    assert found["usable"] == 19
    assert "data.on_error=skip" in next(fit["overrides"] for fit in found["presets"] if fit["name"] == "quickstart")


def test_a_grid_that_is_no_square_is_said_alike_in_training(tmp_path: Path) -> None:
    for number in range(4):
        write_clip(tmp_path / "clips", number, features=np.ones((8, 3, 5, 8), np.float16), actions=np.eye(16, 2))
    said = "features have 3x5 patches, but predictors need a square grid (gh = gw)"
    found = inspect(tmp_path, "clips", code=3)
    assert [(f["code"], f["example"]) for f in found["findings"]] == [("grid", f"{said} (got [8, 3, 5, 8])")]
    assert {fit["problem"] for fit in found["presets"]} == {
        "its predictor needs a square grid of patches (gh = gw), not 3x5"
    }
    outcome = hope(["train", "--preset", "quickstart", "--device", "cpu", "--data-dir", "clips", *TINY], tmp_path)
    assert outcome.code == 3
    assert said in one_line(outcome)
    assert "data.grid" not in one_line(outcome)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process's own peak is what the system tells")
def test_the_peak_memory_is_not_that_of_whoever_starts_the_command(tmp_path: Path) -> None:
    write_clip(tmp_path / "clips", 1)
    held = np.ones(2**30, np.uint8)  # as a notebook may hold
    command = [sys.executable, "-m", "hopecli.cli.main", "inspect-data", "clips"]
    run = subprocess.run(command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True)
    peak = re.search(r"peak memory (\d+) MiB", run.stderr)
    assert peak is not None, run.stderr
    assert int(peak[1]) < held.nbytes / 2**20
