"""hope hw-info through the real command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from tests.cli.runner import TINY, hope


def test_banner_and_what_it_rests_on(tmp_path: Path) -> None:
    outcome = hope(["hw-info", "--device", "cpu"], tmp_path)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "Hardware Detection"
    assert [line.split(":")[0].strip() for line in lines[1:4]] == ["Device", "Precision", "Accelerator"]
    for word in ("RAM", "torch", " core", " thread", "MPS", "CUDA", "flash", "math", "bf16", "fp16", "note: Flash"):
        assert word in outcome.out
    assert "Recommended" not in outcome.out
    assert outcome.err == ""  # nothing is a warning
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object(tmp_path: Path) -> None:
    outcome = hope(["hw-info", "--device", "cpu", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert list(found) == [
        "hardware",
        "choice",
        "surroundings",
        "precisions",
        "predictors",
        "attention",
        "notes",
        "bench",
    ]
    assert found["bench"] is None
    assert found["choice"]["device"] == "cpu"
    assert {trial["precision"]: trial["usable"] for trial in found["precisions"]}["fp32"]
    assert {trial["predictor"]: trial["works"] for trial in found["predictors"]} == {
        "vit_ac": True,
        "convlstm": True,
        "hope": True,
    }
    assert {trial["backend"]: trial["works"] for trial in found["attention"]}["math"]


def test_bench_of_a_tiny_model_with_clips(tmp_path: Path) -> None:
    assert hope(["make-clips", "clips", "--clips", "6", "--grid", "2", "--dim", "8"], tmp_path).code == 0
    command = ["hw-info", "--device", "cpu", "--bench", "--data-dir", "clips", *TINY[1:]]
    outcome = hope(command, tmp_path)
    assert outcome.code == 0, outcome.err
    assert "Recommended" in outcome.out
    assert "hope train --preset quickstart --data-dir clips" in outcome.out
    for row in ("teacher-forced pass", "rollout with memory", "training step", "adaptation step", "loader"):
        assert row in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]
    outcome = hope([*command, "--json"], tmp_path)
    assert outcome.out.count("\n") == 1
    assert json.loads(outcome.out)["bench"]["loader_clips_per_second"] > 0


def test_the_recommended_command_runs(tmp_path: Path) -> None:
    """The preset is a file that no name finds, and asks for a device that is not there."""
    lines = ["extends: quickstart", "training:", "  device: cuda", "  epochs: 1"]
    (tmp_path / "mine.yaml").write_text("\n".join(lines) + "\n")
    command = ["hw-info", "--device", "cpu", "--bench", "--preset", "./mine.yaml", *TINY, "training.epochs=1", "--json"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 0, outcome.err
    words = shlex.split(json.loads(outcome.out)["bench"]["command"])
    assert words[:4] == ["hope", "train", "--preset", "./mine.yaml"]
    assert "training.device=cpu" in words
    trained = hope(words[1:], tmp_path)
    assert trained.code == 0, trained.err


def test_mistakes(tmp_path: Path) -> None:
    assert hope(["hw-info", "--preset", "quickstart"], tmp_path).code == 2
    assert hope(["hw-info", "--device", "cpu", "--precision", "fp16"], tmp_path).code == 5
    assert hope(["hw-info", "--device", "foo"], tmp_path).code == 2
    assert hope(["hw-info", "--precision", "foo"], tmp_path).code == 2
    assert hope(["hw-info", "--bench", "--device", "cpu", "--preset", "nope"], tmp_path).code == 2
    assert hope(["hw-info", "--bench", "--device", "cpu", "--data-dir", "nowhere"], tmp_path).code == 3
