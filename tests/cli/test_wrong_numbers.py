"""Commands that run a model ask first whether this device computes it right, and end where it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.engine import long_sums, predictor_trials
from hopecli.errors import DeviceError
from hopecli.hardware import DeviceChoice
from tests.cli.runner import TINY, hope, only_run

TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


def test_train_eval_and_tta_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is described: there is none here that computes wrongly."""
    assert hope(TRAIN, tmp_path).code == 0
    run = only_run(tmp_path)
    before = sorted(run.rglob("*"))
    asked: list[tuple[str, bool]] = []

    def wrong(kind: str, choice: DeviceChoice, *, learning: bool) -> None:
        asked.append((kind, learning))
        raise DeviceError("wrong numbers", where="--device", value=choice.device, fix="use another")

    monkeypatch.setattr(predictor_trials, "require_right_numbers", wrong)
    scored = ["--ckpt", str(run), "--device", "cpu"]
    commands = [
        [*TRAIN, "logging.runs_dir=others"],
        ["train", "--resume", str(run)],
        [*TRAIN, "--dry-run"],
        ["eval", *scored],
        ["tta", *scored],
        ["tta", *scored, "adaptation.adapt=none"],
    ]
    for command in commands:
        outcome = hope(command, tmp_path)
        assert outcome.code == 5, command
        assert outcome.err.splitlines()[-1] == "error: --device: wrong numbers (got 'cpu'). Use another"
    assert asked == [("vit_ac", learning) for learning in (True, True, True, False, True, False)]
    assert sorted(run.rglob("*")) == before
    assert not (tmp_path / "others").exists()


def test_training_says_where_sums_are_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_sums, "long_sums_note", lambda settings, choice: f"note: {settings.data.batch_size} clips")
    outcome = hope([*TRAIN, "--dry-run"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "note: 4 clips" in outcome.err.splitlines()
