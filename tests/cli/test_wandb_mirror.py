"""Real runs mirrored to W&B: the mirror holds what the record holds, at steps that never decrease.

W&B drops whatever comes with a step below the last one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hopecli.engine.tta import stream
from hopecli.report.tta import WandbStream
from hopecli.report.wandb_sink import WandbSink
from tests.cli.runner import TINY, hope, only_run, small_run
from tests.engine.streams import make_job, settings, shared_clips
from tests.report.fake_wandb import FakeWandb


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def mirrored(line: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """What W&B should be told for one line of metrics.jsonl."""
    kind, step = line.pop("type"), line.pop("step")
    if kind == "diagnostics":
        return step, line["values"]
    values: dict[str, Any] = {}
    for key, value in line.items():
        if isinstance(value, list):
            values |= {f"{kind}/{key}/{i + 1}": value[i] for i in range(len(value))}
        else:
            values[f"{kind}/{key}"] = value
    return step, values


def test_training(tmp_path: Path, wandb: FakeWandb) -> None:
    # Diagnostics between two reads of the losses: those of the steps before must come first.
    command = ["train", "--preset", "quickstart_hope", "--device", "cpu", *TINY, "--wandb", "offline"]
    command += [
        "training.epochs=1",
        "logging.log_every=4",
        "logging.diagnostics_every=3",
        "logging.wandb_project=worlds",
    ]
    outcome = hope(command, tmp_path, WANDB_ENTITY="team")
    assert outcome.code == 0, outcome.err
    run = only_run(tmp_path)
    record = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["type"] for line in record} == {"train", "validation", "diagnostics"}
    assert wandb.run.logged == [mirrored(line) for line in record]
    steps = [step for step, _ in wandb.run.logged]
    assert steps == sorted(steps)
    (asked,) = wandb.asked
    assert {key: asked[key] for key in ("mode", "project", "entity", "dir", "name")} == {
        "mode": "offline",
        "project": "worlds",
        "entity": "team",
        "dir": str(run.relative_to(tmp_path)),
        "name": f"quickstart_hope/{run.name}",
    }
    assert asked["config"]["logging"]["wandb_project"] == "worlds"
    assert wandb.run.finished == 1


def test_adaptation_over_two_orders(tmp_path: Path, wandb: FakeWandb) -> None:
    sink = WandbSink(mode="offline", project="p", entity=None, run_dir=tmp_path, config={}, say=pytest.fail)
    clips = shared_clips(4)
    job = make_job(settings(orders=2, source_every=2), clips, tmp_path, sink=WandbStream(sink), source=shared_clips(2))
    record = stream(job)
    steps = [step for step, _ in wandb.run.logged]
    assert steps == sorted(steps)
    rows = [(step, values) for step, values in wandb.run.logged if "tta/online" in values]
    assert [(step, values["tta/online"]) for step, values in rows] == [
        (done, row.online) for done, row in enumerate(record.rows, start=1)
    ]
    # Trailing means start anew with each order.
    for i, (_, values) in enumerate(rows):
        recent = record.rows[i // 4 * 4 : i + 1]
        assert values["tta/rolling_online"] == pytest.approx(sum(row.online for row in recent) / len(recent))
        assert values["tta/rolling_frozen"] == pytest.approx(sum(row.frozen for row in recent) / len(recent))
    assert [(step, values["tta/source"]) for step, values in wandb.run.logged if "tta/source" in values] == [
        (4 * point.order + point.clips, point.loss) for point in record.source
    ]


def test_each_stream_under_one_name_is_a_run_of_its_own(tmp_path: Path, wandb: FakeWandb) -> None:
    """W&B would ignore the steps of a second one; the same stream again has the same numbers."""
    run = small_run(tmp_path)
    command = ["tta", "--ckpt", str(run), "--device", "cpu", "--wandb", "offline", "--name", "x"]
    for lr in ("0.001", "0.01", "0.001"):
        outcome = hope([*command, f"adaptation.lr={lr}", "adaptation.steps=1"], tmp_path)
        assert outcome.code == 0, outcome.err
    ids = [asked["id"] for asked in wandb.asked]
    assert ids[0] == ids[2] != ids[1]
    assert {asked["name"] for asked in wandb.asked} == {f"quickstart/{run.name}/tta/x"}
