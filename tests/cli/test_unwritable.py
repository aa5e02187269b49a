"""Folders that cannot be written, or a run that may not be read: one line before any work is done, or, later, nothing
of the work lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from hopecli.data.make_clips import make_clips
from hopecli.errors import CheckpointError
from tests.cli.runner import TINY, Outcome, hope, only_run

QUICK = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]


def error(outcome: Outcome) -> str:
    assert "Traceback" not in outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: "), outcome.err
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = hope(QUICK, folder)
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def blocked(trained: Path) -> Iterator[Path]:
    """The run, whose eval/ and tta/ cannot be made: a file has each name. Unlike permissions this stops root too."""
    run = only_run(trained)
    for name in ("eval", "tta"):
        (run / name).write_text("in the way")
    yield run
    for name in ("eval", "tta"):
        (run / name).unlink()


@pytest.mark.parametrize("where", ["HOPE_RUNS_DIR", "logging.runs_dir"])
def test_a_runs_folder_that_cannot_be_written(where: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    given = {"HOPE_RUNS_DIR": "file/runs"} if where == "HOPE_RUNS_DIR" else {}
    outcome = hope([*QUICK, *([] if given else ["logging.runs_dir=file/runs"])], tmp_path, **given)
    assert outcome.code == 4, outcome.err
    line = error(outcome)
    for word in ("file/runs/quickstart", "cannot be written: Not a directory", "HOPE_RUNS_DIR or logging.runs_dir"):
        assert word in line
    assert outcome.out == ""


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize("mode", [0o500, 0])
def test_a_read_only_or_closed_runs_folder(mode: int, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs").chmod(mode)
    try:
        outcome = hope(QUICK, tmp_path)
        assert outcome.code == 4, outcome.err
        assert "cannot be written: Permission denied" in error(outcome)
    finally:
        (tmp_path / "runs").chmod(0o700)


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_run_whose_checkpoints_cannot_be_written_is_not_trained_first(trained: Path) -> None:
    run = only_run(trained)
    (run / "checkpoints").chmod(0o500)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    try:
        outcome = hope(["train", "--resume", "last"], trained)
    finally:
        (run / "checkpoints").chmod(0o700)
    assert outcome.code == 4, outcome.err
    assert "checkpoints: cannot be written: Permission denied. Make it writable or free disk space" in error(outcome)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    outcome = hope(QUICK, tmp_path)
    assert outcome.code == 3, outcome.err
    line = error(outcome)
    for word in ("cache/physics", "cannot be written", "HOPE_CACHE_DIR"):
        assert word in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["eval", "tta"])
def test_a_run_whose_results_cannot_be_written_is_not_scored_first(command: str, blocked: Path, trained: Path) -> None:
    outcome = hope([command, "--ckpt", str(blocked), "--device", "cpu"], trained)
    assert outcome.code == 4, outcome.err
    line = error(outcome)
    for word in (f"{blocked}/{command}/", "cannot be written: Not a directory", "copy the checkpoint's"):
        assert word in line
    assert outcome.out == ""


@pytest.mark.parametrize("command", ["eval", "tta"])
def test_results_are_shown_when_the_disk_turns_out_full(
    command: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    run = only_run(trained)
    with monkeypatch.context() as full:
        full.setattr("hopecli.report.files.os.replace", no_space)
        outcome = hope([command, "--ckpt", str(run), "--device", "cpu", "--json", "--name", "full"], trained)
    assert outcome.code == 4, outcome.err
    assert "cannot be written: No space left on device" in error(outcome)
    assert json.loads(outcome.out)["clips"] == 2
    assert list((run / command).rglob("full/*")) == []


def test_a_record_that_cannot_be_written_ends_the_run_resumably(tmp_path: Path) -> None:
    """/dev/full accepts no byte, as a disk without room does."""
    from hopecli.engine.results import ValidationRecord
    from hopecli.engine.sink import Fanout
    from hopecli.report.console import ConsoleSink
    from hopecli.report.files import MetricsFile

    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    metrics, log = MetricsFile(tmp_path / "metrics.jsonl"), ConsoleSink(tmp_path / "train.log")
    metrics.file.close()
    metrics.file = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 (closed by the sink)
    sinks = Fanout([metrics, log])
    record = ValidationRecord(1, 0, 2, 0.5, 0.5, [0.5], 0.5, [0.5], 0.1)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be written: No space left on device.*--resume"):
        sinks.validation(record)
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: cannot be written"):
        sinks.close()
    assert log.log is None  # closed all the same


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize("command", [["train", "--resume"], ["eval", "--ckpt"], ["tta", "--ckpt"]])
@pytest.mark.parametrize(
    "closed", ["..", ".", "checkpoints", "checkpoints/last", "checkpoints/last/model.safetensors", "split.json"]
)
def test_the_last_run_when_it_may_not_be_read(closed: str, command: list[str], trained: Path) -> None:
    path = (only_run(trained) / closed).resolve()
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        outcome = hope([*command, "last"], trained)
    finally:
        path.chmod(mode)
    assert outcome.code == 4, outcome.err
    assert f"{path.relative_to(trained.resolve())}: cannot be read: Permission denied" in error(outcome)


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize("command", ["eval", "tta"])
def test_something_named_last_that_may_not_be_looked_at(command: str, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    (tmp_path / "last").symlink_to("closed/run")
    try:
        outcome = hope([command, "--ckpt", "last"], tmp_path)
    finally:
        closed.chmod(0o700)
    assert outcome.code == 4, outcome.err
    assert "error: last: cannot be read: Permission denied" in error(outcome)


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize("command", [["train", "--resume"], ["eval", "--ckpt"], ["tta", "--ckpt"]])
def test_clips_that_may_not_be_read_have_not_gone(command: list[str], tmp_path: Path) -> None:
    """HOPE_DATA_DIR stands in for a folder that is no more, not for one that is closed for now."""
    for folder, seed in (("closed/clips", 1), ("other", 2)):
        make_clips(tmp_path / folder, clips=8, grid=2, dim=8, domain="base", seed=seed)
    assert hope([*QUICK, "--data-dir", "closed/clips"], tmp_path).code == 0
    closed = tmp_path / "closed"
    closed.chmod(0)
    try:
        outcome = hope([*command, "last"], tmp_path, HOPE_DATA_DIR="other")
    finally:
        closed.chmod(0o700)
    assert outcome.code == 3, outcome.err
    assert f"{closed / 'clips'}: cannot be read: Permission denied" in error(outcome)


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_cache_of_somebody_else(tmp_path: Path) -> None:
    """Others' clips may be read; new ones cannot be made beside them."""
    (tmp_path / "cache/physics").mkdir(parents=True)
    (tmp_path / "cache/physics").chmod(0o500)
    outcome = hope(QUICK, tmp_path)
    (tmp_path / "cache/physics").chmod(0o700)
    assert outcome.code == 3, outcome.err
    assert "Permission denied" in error(outcome)
    assert "Choose a writable folder with enough free space (HOPE_CACHE_DIR names the cache)" in error(outcome)
