"""The README's Python, on a run of every kind of model: it is what the commands compute."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from hopecli.config.load import load_tree
from hopecli.data.loader import collate, require_all
from hopecli.data.store import ClipStore
from hopecli.engine.checkpoint import load_checkpoint
from hopecli.objectives.rollout import normalise
from tests.cli.runner import TINY, eval_row, evaluate, hope, only_run
from tests.cli.test_models import KINDS, command

ROOT = Path(__file__).resolve().parents[2]


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(
    ("preset", "normalised"),
    [("quickstart", True), ("quickstart", False), ("quickstart_convlstm", True), ("quickstart_hope", True)],
)
def test_python_of_the_readme_rolls_out_as_evaluation_does(preset: str, normalised: bool, tmp_path: Path) -> None:
    train = command(preset) if preset in KINDS else ["train", "--preset", preset, "--device", "cpu", *TINY]
    assert hope([*train, f"objective.normalize_reps={normalised}"], tmp_path).code == 0
    run = only_run(tmp_path)
    code, _ = python_blocks()
    (clips,) = (tmp_path / "cache" / "physics").iterdir()
    split = json.loads((run / "split.json").read_text())
    settings = load_tree(load_checkpoint(str(run)).settings, name="run", origin="run").settings
    store = ClipStore(clips, settings.data, use_extrinsics=False)
    batch = require_all(collate([store.read(split["held_out"][0])]))
    h = normalise(batch.features.float(), enabled=normalised)[0]
    # The clip's own frame and actions in place of random ones; everything else is as printed.
    for printed, own in (
        ('"RUN"', repr(str(run))),
        ("torch.randn(16, 7, d.action_dim)", "actions.expand(16, -1, -1)"),
        ("normalise(torch.randn(d.grid**2, d.embed_dim), enabled=normalised)", "first"),
        ("    for t in range", "    predictions = []\n    for t in range"),
    ):
        assert printed in code
        code = code.replace(printed, own)
    code += "        predictions.append(frame[3])\n"
    names: dict[str, Any] = {"actions": batch.actions[:, :7], "first": h[0]}
    exec(code, names)
    predicted = torch.stack(names["predictions"])
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    (rows,) = (run / "eval").glob("*/per_clip.csv")
    lines = [line.split(",") for line in rows.read_text().splitlines()]
    row = dict(zip(lines[0], next(line for line in lines if split["held_out"][0] in line), strict=True))
    # 1e-5: float32, and another batch size
    assert (predicted - h[1:]).abs().mean().item() == pytest.approx(float(row["l1"]), rel=1e-5)


def test_python_of_the_readme_compares_two_runs_clip_by_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, code = python_blocks()
    results = []
    for name, width in (("RUN_A", 16), ("RUN_B", 32)):
        train = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, f"logging.runs_dir={name}"]
        assert hope([*train, f"model.width={width}"], tmp_path).code == 0
        (run,) = (tmp_path / name / "quickstart").iterdir()
        results.append(evaluate(run))
        assert name in code
        code = code.replace(name, str(run))
    names: dict[str, Any] = {}
    exec(code, names)
    means = [eval_row(result, "model")["l1"]["mean"] for result in results]
    assert means[0] != means[1]
    assert names["differences"].shape == (results[0]["clips"],)
    assert names["differences"].mean() == pytest.approx(means[0] - means[1], abs=1e-9)  # float64 sums of float32 losses
    shown = capsys.readouterr().out
    assert shown.startswith("Interval(mean=")
    assert shown.split()[-1] == str((names["differences"] < 0).mean())
