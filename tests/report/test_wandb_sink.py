"""The W&B mirror: what it is asked for, every value at its step, and that its failure stops nothing."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hopecli.engine.results import DiagnosticsRecord
from hopecli.engine.tta_results import SourceRecord
from hopecli.errors import AbortedError, SettingsError
from hopecli.report.tta import WandbStream
from hopecli.report.wandb_sink import WandbSink, resolve_mode
from tests.report.examples import CLIP, PROGRESS, VALIDATION, step_record
from tests.report.fake_wandb import FakeWandb

NO_KEY = "W&B: off (no WANDB_API_KEY; metrics.jsonl is the record)"


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a key."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def open_sink(said: list[str], *, mode: str = "offline", entity: str | None = None) -> WandbSink:
    return WandbSink(
        mode=mode,
        project="worlds",
        entity=entity,
        run_dir=Path("runs/quickstart/2026-01-02_03:04:05"),
        config={"model": {"kind": "hope"}},
        say=said.append,
    )


def test_without_a_key_auto_is_off_and_online_is_refused(home: Path) -> None:
    assert resolve_mode("auto") == ("disabled", NO_KEY)
    with pytest.raises(SettingsError, match="there is no W&B key"):
        resolve_mode("online")
    assert resolve_mode("offline") == ("offline", "W&B: offline")
    assert resolve_mode("disabled") == ("disabled", "W&B: disabled")


def test_with_a_key_auto_is_online(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    assert resolve_mode("auto") == ("online", "W&B: online (a key was found)")
    assert resolve_mode("online") == ("online", "W&B: online")
    assert resolve_mode("offline")[0] == "offline"


@pytest.mark.parametrize(
    ("wanted", "mode"),
    [("offline", "offline"), ("Dryrun", "offline"), ("disabled", "disabled"), ("online", "online"), ("", "online")],
)
def test_auto_follows_wandb_mode(home: Path, monkeypatch: pytest.MonkeyPatch, wanted: str, mode: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    monkeypatch.setenv("WANDB_MODE", wanted)
    found, why = resolve_mode("auto")
    assert found == mode
    assert (f"(WANDB_MODE={wanted.lower()})" in why) == (mode != "online")
    assert resolve_mode("online")[0] == "online"  # what the command asks for wins


@pytest.mark.parametrize(("host", "mode"), [("api.wandb.ai", "online"), ("example.org", "disabled")])
def test_a_netrc_entry_of_wandb_is_a_key(home: Path, host: str, mode: str) -> None:
    file = home / ".netrc"
    file.write_text(f"machine {host}\n  login user\n  password k\n")
    file.chmod(0o600)  # one that others can read is refused
    assert resolve_mode("auto")[0] == mode


def test_a_netrc_entry_is_for_the_server_in_use(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "keys"
    file.write_text("machine ml.corp.example:8080\n  login user\n  password k\n")  # `wandb login` keeps the port
    file.chmod(0o600)
    monkeypatch.setenv("NETRC", "~/keys")
    assert resolve_mode("auto")[0] == "disabled"
    monkeypatch.setenv("WANDB_BASE_URL", "https://ml.corp.example:8080/path")
    assert resolve_mode("auto")[0] == "online"
    for other in ("https://other.example", "https://ml.corp.example", "http://[no-address"):
        monkeypatch.setenv("WANDB_BASE_URL", other)
        assert resolve_mode("auto")[0] == "disabled"


def test_a_damaged_netrc_is_no_key(home: Path) -> None:
    file = home / ".netrc"
    file.write_bytes(b"machine api.wandb.ai\n  login user\n  password \xff\n")
    file.chmod(0o600)
    assert resolve_mode("auto")[0] == "disabled"


@pytest.mark.parametrize("mode", ["online", "offline"])
@pytest.mark.parametrize("entity", [None, "team"])
def test_what_is_asked_for(wandb: FakeWandb, mode: str, entity: str | None) -> None:
    open_sink([], mode=mode, entity=entity)
    assert wandb.asked == [
        {
            "mode": mode,
            "project": "worlds",
            "entity": entity,
            "dir": "runs/quickstart/2026-01-02_03:04:05",
            "id": "quickstart-2026-01-02_03-04-05",
            "name": "quickstart/2026-01-02_03:04:05",
            "resume": "allow",
            "config": {"model": {"kind": "hope"}},
            "settings": {"init_timeout": 60, "silent": True},
        }
    ]


def test_ids_hold_what_wandb_takes(wandb: FakeWandb) -> None:
    WandbSink(
        mode="offline",
        project="worlds",
        entity=None,
        run_dir=Path("x"),
        config={},
        say=print,
        label="a%b#c/d;e/tta/all_ice",
        mark="0123abcd",
    )
    (asked,) = wandb.asked
    assert (asked["id"], asked["name"]) == ("a%b-c-d-e-tta-all_ice-0123abcd", "a%b#c/d;e/tta/all_ice")


def test_training_is_mirrored_value_for_value(wandb: FakeWandb) -> None:
    said: list[str] = []
    sink = open_sink(said)
    sink.begin(first_step=28, total_steps=30, steps_per_epoch=10)
    sink.steps([step_record(29), replace(step_record(30), loss_rollout=float("nan"))])
    sink.diagnostics(DiagnosticsRecord(30, {"hope/block_01/m_k/surprise": 0.75, "hope/block_01/m_k/change": 0.125}))
    sink.validation(VALIDATION)
    sink.close()
    constant = {"train/epoch": 1, "train/clips_per_second": 56.78}
    constant |= {"train/data_seconds": 0.012, "train/step_seconds": 0.345}
    assert wandb.run.logged == [
        (
            29,
            {
                **constant,
                "train/loss": 29.11111,
                "train/loss_teacher": 29.22222,
                "train/loss_rollout": 29.33333,
                "train/lr": 29 * 1.234e-4,
                "train/grad_norm": 29.44444,
            },
        ),
        (
            30,
            {
                **constant,
                "train/loss": 30.11111,
                "train/loss_teacher": 30.22222,
                "train/loss_rollout": None,
                "train/lr": 30 * 1.234e-4,
                "train/grad_norm": 30.44444,
            },
        ),
        (30, {"hope/block_01/m_k/surprise": 0.75, "hope/block_01/m_k/change": 0.125}),
        (
            30,
            {
                "validation/epoch": 2,
                "validation/clips": 17,
                "validation/loss_teacher": 0.15,
                "validation/loss_rollout": 0.3,
                "validation/rollout_per_horizon/1": 0.2,
                "validation/rollout_per_horizon/2": 0.4,
                "validation/copy_last": 0.5,
                "validation/copy_last_per_horizon/1": 0.25,
                "validation/copy_last_per_horizon/2": 0.75,
                "validation/seconds": 6.54,
            },
        ),
    ]
    assert (wandb.run.finished, said) == (1, [])


def test_a_stream_is_mirrored_value_for_value(wandb: FakeWandb) -> None:
    stream = WandbStream(open_sink([]))
    stream.begin(done=7, total=10)
    stream.source(SourceRecord(order=1, clips=3, loss=0.25))
    stream.clip(replace(CLIP, periodic_reset=None, after_update=None), PROGRESS)
    stream.source(SourceRecord(order=1, clips=4, loss=0.375))
    stream.close()
    assert wandb.run.logged == [
        (7, {"tta/source": 0.25}),
        (
            8,
            {
                "tta/order": 1,
                "tta/position": 4,
                "tta/online": 0.51,
                "tta/frozen": 0.62,
                "tta/gain": 0.11,
                "tta/copy_last": 0.73,
                "tta/grad_norm": 1.2,
                "tta/grad_norm_clipped": 0.9,
                "tta/drift": 0.034,
                "tta/ms": 12.346,
                "tta/ms_frozen": 5.679,
                "tta/steps_done": 2,
                "tta/steps_skipped": 3,
                "tta/rolling_online": 0.5,
                "tta/rolling_frozen": 0.625,
            },
        ),
        (8, {"tta/source": 0.375}),
    ]
    assert wandb.run.finished == 1


def test_a_run_that_cannot_start_is_said_once_and_mirrors_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb(refused=RuntimeError("no\n  route"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    said: list[str] = []
    sink = open_sink(said)
    sink.validation(VALIDATION)
    sink.close()
    assert said == ["W&B: turned off for this run (no route); metrics.jsonl goes on"]
    assert (fake.run.logged, fake.run.finished) == ([], 0)


def test_a_run_that_breaks_is_said_once_and_left_alone(wandb: FakeWandb) -> None:
    said: list[str] = []
    sink = open_sink(said)
    sink.diagnostics(DiagnosticsRecord(1, {"a": 1.0}))
    wandb.run.broken = OSError("disk full")
    sink.diagnostics(DiagnosticsRecord(2, {"a": 2.0}))
    wandb.run.broken = None
    sink.diagnostics(DiagnosticsRecord(3, {"a": 3.0}))
    sink.close()
    assert said == ["W&B: turned off for this run (disk full); metrics.jsonl goes on"]
    assert (wandb.run.logged, wandb.run.finished) == ([(1, {"a": 1.0})], 0)


def test_a_run_that_cannot_finish_is_said(wandb: FakeWandb) -> None:
    said: list[str] = []
    sink = open_sink(said)
    wandb.run.broken = OSError("disk full")
    sink.close()
    assert said == ["W&B: turned off for this run (disk full); metrics.jsonl goes on"]


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_ctrl_c_pressed_twice_within_a_call_aborts(wandb: FakeWandb, call: str) -> None:
    said: list[str] = []
    aborted = AbortedError("aborted: Ctrl-C was pressed twice")  # raised by a signal handler, wherever Python is then

    def mirror() -> None:
        wandb.refused = aborted if call == "init" else None
        sink = open_sink(said)
        wandb.run.broken = aborted
        sink.close() if call == "finish" else sink.validation(VALIDATION)

    with pytest.raises(AbortedError):
        mirror()
    assert said == []


def test_wandb_itself_takes_it_all_offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in accepts anything; wandb does not, and its refusal would only turn the mirror off."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    said: list[str] = []
    run_dir = home / "quickstart" / "2026-01-02_03:04:05"
    run_dir.mkdir(parents=True)
    sink = WandbSink(mode="offline", project="worlds", entity=None, run_dir=run_dir, config={"a": 1}, say=said.append)
    assert sink.run is not None, said
    try:
        sink.steps([step_record(29), step_record(30)])
        sink.validation(VALIDATION)
        sink.diagnostics(DiagnosticsRecord(31, {"hope/change": 0.125}))  # the summary holds the steps before the last
        summary = dict(sink.run.summary)
    finally:
        sink.close()
    assert said == []
    assert (summary["_step"], summary["train/loss"]) == (30, 30.11111)
    assert summary["validation/rollout_per_horizon/2"] == 0.4
    assert len(list(run_dir.glob("wandb/offline-run-*/run-quickstart-2026-01-02_03-04-05.wandb"))) == 1
