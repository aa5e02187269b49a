"""A disk that fails once: whichever call it is, one line with a documented exit code, and no work is lost.

Each command runs again and again; the first time its first call of a kind on the runs folder fails, then its second,
until it makes no more of them.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.runner import TINY, Outcome, hope, only_run

# pathlib of 3.12 passes over a folder that it cannot list, that of 3.14 over why what it made before is no folder.
REASONS = ("Input/output error", "no run of hope train", "cannot be written: File exists")
CALLS = ["open", "os.open", "stat", "scandir", "mkdir", "replace", "unlink"]
WEIGHTS = "checkpoints/last/model.safetensors"
TRAIN = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.keep_last=1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run of two epochs."""
    folder = tmp_path_factory.mktemp("trained")
    outcome = hope(TRAIN, folder)
    assert outcome.code == 0, outcome.err
    return folder


@contextmanager
def failing(name: str, number: int, folder: Path) -> Iterator[list[str]]:
    """The call `number` of a function on something in `folder` is an I/O error; yields the path, once it has come."""
    modules = (builtins, io) if name == "open" else (os,)  # pathlib has it from io
    name = name.removeprefix("os.")
    real: Callable[..., Any] = getattr(modules[0], name)
    left, failed = number, []

    def call(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if not isinstance(path, int) and Path(os.path.abspath(path)).is_relative_to(folder):
            left -= 1
            if left == 0:
                failed.append(str(path))
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in modules:
            patch.setattr(module, name, call)
        yield failed


def every_failure(command: list[str], name: str, folder: Path, prepare: Callable[[], None]) -> Iterator[Outcome]:
    """The outcome of the command with the first call failing, the second, and so on."""
    number, failed = 0, ["to begin with"]
    while failed:
        number += 1
        prepare()
        with failing(name, number, folder / "runs") as failed:
            outcome = hope(command, folder)
        if failed:
            assert "Traceback" not in outcome.err
            assert outcome.code in (0, 3, 4), (failed, outcome.err)
            if outcome.code:
                line = outcome.err.splitlines()[-1]
                assert line.startswith("error: "), (failed, outcome.err)
                assert any(reason in line for reason in REASONS), (failed, outcome.err)
            yield outcome
    assert number > 1 or name != "replace"  # some commands, and pathlib of some versions, do without the others


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("command", ["eval", "tta"])
def test_results(command: str, name: str, trained: Path) -> None:
    """Of a command that fails no file is left but whole ones."""
    run = only_run(trained)
    words = [command, "--ckpt", "last" if command == "eval" else str(run), "--device", "cpu", "--name", "part"]
    results = run / command / "part"
    for outcome in every_failure(words, name, trained, lambda: shutil.rmtree(results, ignore_errors=True)):
        left = {path.name for path in results.iterdir()} if results.is_dir() else set()
        whole = {"results.json", "per_clip.csv", "error_against_horizon.png", "stream.png", "adapted.safetensors"}
        assert left <= {*whole, "stream.pt"}
        assert outcome.code or "results.json" in left


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_training(name: str, trained: Path, tmp_path: Path) -> None:
    """A run that has a checkpoint goes on from it and ends with the weights of the one that never failed."""
    expected = load_file(only_run(trained) / WEIGHTS)
    shutil.copytree(trained / "cache", tmp_path / "cache")
    resumed = 0
    for outcome in every_failure(TRAIN, name, tmp_path, lambda: shutil.rmtree(tmp_path / "runs", ignore_errors=True)):
        if outcome.code and list((tmp_path / "runs").glob("*/*/checkpoints/epoch_0001")):
            outcome = hope(["train", "--resume", "last"], tmp_path)
            assert outcome.code == 0, outcome.err
            resumed += 1
        if outcome.code == 0:
            found = load_file(only_run(tmp_path) / WEIGHTS)
            assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert resumed > 0 or name != "replace"
