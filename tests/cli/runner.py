"""Runs the real command line, in this process (fast) or in one of its own (signals, several processes)."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Small enough for seconds, large enough to have every part: 20 clips, 18 training, 4 steps per epoch.
TINY = [
    "data.physics.clips=20",
    "data.grid=2",
    "data.embed_dim=8",
    "data.batch_size=4",
    "model.width=16",
    "model.depth=1",
    "model.num_heads=2",
    "training.epochs=2",
    "training.evaluate_every=1",
    "training.save_every=1",
    "logging.log_every=2",
]


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def environment(folder: Path) -> dict[str, str]:
    """The test machine's environment without the user's settings and a launcher's; caches go to `folder`."""
    theirs = ("HOPE_", "WANDB_", "ACCELERATE_", "XDG_")
    launchers = ("MASTER_", "WORLD_SIZE", "RANK", "LOCAL_", "PMI_", "OMPI_", "SLURM_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith((*theirs, *launchers))}
    return {
        **kept,
        "HOPE_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),
        "COLUMNS": "160",
    }


def hope(arguments: Sequence[str], folder: Path, **extra: str) -> Outcome:
    """`hope ARGUMENTS` with `folder` as working directory and `extra` environment variables."""
    from hopecli.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with (
        _place(folder, {**environment(folder), **extra}),
        _argv(arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0 if exit_.code is None else 1
    return Outcome(code, out.getvalue(), err.getvalue())


def evaluate(run: Path, *arguments: str) -> dict[str, Any]:
    """results.json of `hope eval` on a run, which must succeed."""
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--json", *arguments], run.parents[2])
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def eval_row(results: dict[str, Any], name: str) -> dict[str, Any]:
    """The row of that name."""
    found: dict[str, Any] = next(r for r in results["rows"] if r["name"] == name)
    return found


def hope_on_two(arguments: Sequence[str], folder: Path, module: str = "hopecli.cli.main") -> Outcome:
    """The same under torchrun (gloo), as two processes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*launcher, "-m", module, *arguments],
        cwd=folder,
        env={**environment(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@contextlib.contextmanager
def _place(folder: Path, variables: dict[str, str]) -> Iterator[None]:
    before, here = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _argv(arguments: Sequence[str]) -> Iterator[None]:
    before = sys.argv
    sys.argv = ["hope", *arguments]
    try:
        yield
    finally:
        sys.argv = before


def only_run(folder: Path) -> Path:
    """The one run directory under `folder`/runs."""
    runs = sorted((folder / "runs").glob("*/*/config.yaml"))
    assert len(runs) == 1, runs
    return runs[0].parent


def small_run(folder: Path, *overrides: str) -> Path:
    """A run of one epoch on built-in clips in `folder`."""
    outcome = hope(
        ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1", *overrides], folder
    )
    assert outcome.code == 0, outcome.err
    return only_run(folder)


def one_line(outcome: Outcome) -> str:
    """The error, after checking that it stands alone below the banner."""
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    lines = outcome.err.splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    assert errors == [len(lines) - 1], outcome.err
    return lines[-1]
