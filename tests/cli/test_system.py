"""What the machine refuses (a readable .env, room on stdout, memory, a folder) is one line with a documented code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import ROOT, TINY, Outcome, environment, hope, one_line

HOPE = [sys.executable, "-m", "hopecli.cli.main"]


def in_shell(script: str, folder: Path, *arguments: str, **extra: str) -> Outcome:
    """`script` of sh, whose "$@" is `hope ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        ["sh", "-c", script, "sh", *HOPE, *arguments],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(ROOT), **extra},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("content", [b"\xff=1\n", b"HOPE_RUNS_DIR=\xff\n", b"HOPE_RUNS_DIR=a\0b\n"])
@pytest.mark.parametrize("command", [["--help"], ["presets"]])
def test_a_bad_env_file(command: list[str], content: bytes, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(content)
    outcome = hope(command, tmp_path)
    assert outcome.code == 2
    assert ".env: cannot be read" in one_line(outcome)


@pytest.mark.parametrize(("variables", "used"), [({}, "from_file"), ({"HOPE_RUNS_DIR": "from_shell"}, "from_shell")])
def test_the_environment_comes_before_the_env_file(variables: dict[str, str], used: str, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("HOPE_RUNS_DIR=from_file\n")
    outcome = hope(["eval", "--ckpt", "last"], tmp_path, **variables)
    assert outcome.code == 4
    assert f"{used}: no run of hope train" in one_line(outcome)


@pytest.mark.parametrize("command", [["presets"], ["presets", "--json"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_traceback(command: list[str], tmp_path: Path) -> None:
    outcome = in_shell('{ "$@"; echo $? >code; } | true', tmp_path, *command)
    assert (tmp_path / "code").read_text() == "1\n"
    assert outcome.err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("buffer", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("command", ["presets", "--help", "train -p quickstart --print-config"])
def test_a_full_stdout(command: str, buffer: dict[str, str], tmp_path: Path) -> None:
    outcome = in_shell('exec "$@" >/dev/full', tmp_path, *command.split(), **buffer)
    assert outcome.code == 1
    assert one_line(outcome).startswith("error: stdout: cannot be written: No space left on device")
    assert len(outcome.err.splitlines()) == 1


def test_a_closed_stdout(tmp_path: Path) -> None:
    outcome = in_shell('exec "$@" >&-', tmp_path, "presets")
    assert outcome.code == 2
    assert "stdout: is closed" in one_line(outcome)


def test_a_closed_stderr_hides_messages_only(tmp_path: Path) -> None:
    outcome = in_shell('exec "$@" 2>&-', tmp_path, "presets", "absent")
    assert (outcome.code, outcome.out, outcome.err) == (2, "", "")
    assert "vjepa2_ac" in in_shell('exec "$@" 2>&-', tmp_path, "presets").out


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    outcome = in_shell('cd gone && rmdir ../gone && exec "$@"', tmp_path, "train", "-p", "quickstart", "--dry-run")
    assert outcome.code == 2
    assert "working directory: cannot be used" in one_line(outcome)


def test_too_little_memory_for_the_model(tmp_path: Path) -> None:
    command = ["train", "-p", "quickstart", "--device", "cpu", *TINY]
    outcome = hope([*command, "model.width=1000000000", "data.embed_dim=1024"], tmp_path)
    assert outcome.code == 5
    for words in ("not enough memory", "tried to allocate", "activation_checkpointing"):
        assert words in one_line(outcome)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE: must be a whole number (got 'abc')"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK: is set without WORLD_SIZE, RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "WORLD_SIZE: is set without MASTER_ADDR, MASTER_PORT"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "processes that MPI started cannot work together"),
        ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "error: PMI_SIZE: processes that MPI started cannot"),  # srun --mpi=pmi2
    ],
)
def test_half_a_launch(extra: dict[str, str], words: str, tmp_path: Path) -> None:
    for command in (["train", "-p", "quickstart", "--dry-run", *TINY], ["tta", "--ckpt", "RUN"], ["hw-info"]):
        outcome = hope(command, tmp_path, **extra)
        assert outcome.code == 2
        alone = command[0] == "tta" and extra.get("WORLD_SIZE") == "2"  # a stream takes one process, however started
        assert ("on one process" if alone else words) in one_line(outcome)


def test_tasks_of_srun_are_told_once_that_they_share_nothing(tmp_path: Path) -> None:
    words = "note: each of the 4 tasks that srun started is a run of its own"
    launched = {"WORLD_SIZE": "1", "RANK": "0"}  # a torchrun of one process
    first, fourth = {"SLURM_PROCID": "0"}, {"SLURM_PROCID": "3"}
    for extra, said in ((first, 1), (fourth, 0), ({**first, **launched}, 0)):
        command = ["train", "-p", "quickstart", "--device", "cpu", "--dry-run", *TINY]
        outcome = hope(command, tmp_path, SLURM_STEP_NUM_TASKS="4", **extra)
        assert (outcome.code, outcome.err.count(words)) == (0, said)


@pytest.mark.parametrize(("given", "words"), [("", "is empty"), ("~nobody-here/x", "no such home folder")])
def test_a_data_folder_that_is_none(given: str, words: str, tmp_path: Path) -> None:
    outcome = hope(["train", "-p", "quickstart", "--data-dir", given], tmp_path)
    assert outcome.code == 2
    assert f"--data-dir: {words} (got '{given}')" in one_line(outcome)


@pytest.mark.parametrize(
    ("command", "extra", "where"),
    [
        (["inspect-data", "~nobody-here/x"], {}, "DIR"),
        (["hw-info", "--bench", "--data-dir", "~nobody-here/x"], {}, "--data-dir"),
        (["train", "-p", "quickstart", *TINY], {"HOPE_CACHE_DIR": "~nobody-here/x"}, "the cache"),
    ],
)
def test_a_home_folder_that_is_none(command: list[str], extra: dict[str, str], where: str, tmp_path: Path) -> None:
    outcome = hope(command, tmp_path, **extra)
    assert outcome.code == 2
    assert f"error: {where}: no such home folder (got '~nobody-here/x')" in outcome.err.splitlines()[-1]


def test_runs_folder_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hopecli.cli.common import runs_folder
    from hopecli.config.schema import LoggingSettings, Settings

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPE_RUNS_DIR", "~/mine")
    assert runs_folder() == runs_folder(Settings()) == tmp_path / "mine"
    assert runs_folder(Settings(logging=LoggingSettings(runs_dir="~/other"))) == tmp_path / "other"
    monkeypatch.setenv("HOPE_RUNS_DIR", "")
    assert runs_folder() == Path("runs")


# A signal when the command is done: while the interpreter waits for a thread, or calls the exit functions.
LATE = """
import atexit, os, signal, threading, time
from hopecli.cli.main import entry_point

def send():
    os.kill(os.getpid(), signal.{signal})
    time.sleep(30)

def late():
    while threading.main_thread().is_alive():  # until the interpreter waits for this thread
        time.sleep(0.01)
    {send}

threading.Thread(target=late).start()
entry_point()
"""


@pytest.mark.parametrize(("arguments", "code"), [(["presets"], 0), (["presets", "absent"], 2)])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"])
@pytest.mark.parametrize("send", ["send()", "atexit.register(send)"])
def test_a_signal_after_the_command(send: str, name: str, arguments: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LATE.format(signal=name, send=send), *arguments],
        cwd=tmp_path,
        env={**environment(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),  # the shell may ignore it for all
    )
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (code != 0), done.stderr
    assert ("vjepa2_ac" in done.stdout) == (code == 0)


@pytest.mark.parametrize(("arguments", "code"), [(["presets"], 0), (["presets", "absent"], 2)])
def test_nothing_that_was_printed_is_lost(arguments: list[str], code: int, tmp_path: Path) -> None:
    """The process does not wait for Python to take itself down."""
    outcome, expected = in_shell('"$@"', tmp_path, *arguments), hope(arguments, tmp_path)
    assert outcome == expected
    assert outcome.code == code
    assert ("vjepa2_ac" in outcome.out) == (code == 0)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ({}, "1000 3"),
        ({"OMP_WAIT_POLICY": "active"}, "None 3"),
        ({"GOMP_SPINCOUNT": "7", "OMP_NUM_THREADS": "5"}, "7 5"),
        ({"MKL_NUM_THREADS": "5"}, "1000 None"),
        ({".env": "OMP_NUM_THREADS=4"}, "1000 4"),
        ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16", ".env": "DNNL_DEFAULT_FPMATH_MODE=ANY"}, "1000 3 STRICT STRICT"),
    ],
)
def test_threads_wait_briefly_and_fit_the_cpu_quota_unless_told(
    given: dict[str, str], used: str, tmp_path: Path
) -> None:
    """On a machine that is described: 64 cores, of which a container may use 2.5. And fp32 is never less."""
    machine = "from hopecli import hardware as h; h.allowed_cores, h.cpu_quotas = lambda: 64, lambda: [2.5];"
    fpmath = "*(os.environ[n] for n in sorted(os.environ)[::-1] if n.endswith('FPMATH_MODE'))"
    shown = f"print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('OMP_NUM_THREADS'), {fpmath})"
    main = f"from hopecli.cli import main as m; run = m._run; m._run = lambda: [run(), {shown}][0];"
    theirs = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    variables = {k: v for k, v in environment(tmp_path).items() if k not in theirs}
    (tmp_path / ".env").write_text(given.get(".env", ""))
    done = subprocess.run(
        [sys.executable, "-c", f"import os; {machine} {main} m.entry_point()", "presets"],
        cwd=tmp_path,
        env={**variables, **given, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == used


@pytest.mark.parametrize(
    ("first", "code", "line"),
    [
        (KeyboardInterrupt, 130, "stopped: interrupted; only complete files are kept"),
        (KeyError, 1, "unexpected error: ValueError: an open handle. Run again with --debug for the traceback"),
    ],
)
def test_an_error_of_a_library_on_top_of_an_interrupt(
    first: type[BaseException], code: int, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As zipfile and torch make them; any other error of a library is unexpected."""

    def closed_in_the_midst(*arguments: object, **named: object) -> None:
        try:
            raise first
        finally:
            raise ValueError("an\nopen handle")

    monkeypatch.setattr("numpy.save", closed_in_the_midst)
    outcome = hope(["make-clips", "clips", "--clips", "1", "--grid", "2", "--dim", "8"], tmp_path)
    assert outcome.code == code
    assert outcome.err.splitlines()[-1] == line
    assert "Traceback" not in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/tmp").is_dir(), reason="no short folder for temporary files")
def test_a_long_path_for_temporary_files(tmp_path: Path) -> None:
    """A socket's path has at most 107 bytes; a reader without one left the run waiting for ever."""
    temporary = tmp_path / ("job" * 20) / ("step" * 15)
    temporary.mkdir(parents=True)
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.workers=1"]
    outcome = in_shell('exec "$@"', tmp_path, *command, TMPDIR=str(temporary))
    assert outcome.code == 0, outcome.err
    assert "processes read clips" not in outcome.err
    assert list(temporary.glob("pymp-*")) == []


@pytest.mark.parametrize("way", ["FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_a_launcher_that_splits_the_model_is_refused(way: str, tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    outcome = hope(command, tmp_path, **{f"ACCELERATE_USE_{way}": "true"})
    assert outcome.code == 5
    assert one_line(outcome).startswith(
        f"error: ACCELERATE_USE_{way}: each process holds the whole model; it cannot be split (got 'true'). Unset it"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "value"), [("USE_CPU", "maybe"), ("USE_SAGEMAKER", "true")])
def test_settings_of_a_launcher_that_cannot_be_used(name: str, value: str, tmp_path: Path) -> None:
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
    outcome = hope(command, tmp_path, **{f"ACCELERATE_{name}": value})
    assert outcome.code == 5
    assert one_line(outcome).startswith(f"error: ACCELERATE_{name}: Accelerate cannot use these settings: ")
