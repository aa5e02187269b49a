"""Weights that another process replaces while they are read: one version of the file, whole, or one clear error."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from hopecli.engine import saved_weights
from hopecli.engine.checkpoint import Checkpoint, duplicate_checkpoint, load_checkpoint
from hopecli.errors import CheckpointError
from tests.engine.test_checkpoint import save

ROOT = Path(__file__).resolve().parents[2]
REPLACE = """
import sys
from itertools import cycle
from pathlib import Path
from tests.engine.test_checkpoint import save
print("goes", flush=True)
for step in cycle([1, 2]):
    save(Path(sys.argv[1]) / "last", value=float(step), step=step)
"""


def two_versions(folder: Path) -> Path:
    """Checkpoints whose weights hold the number of their step, 1 and 2, and `last`, a copy of the first."""
    for step in (1, 2):
        save(folder / f"epoch_{step}", value=float(step), step=step)
    duplicate_checkpoint(folder / "epoch_1", folder / "last")
    return folder / "last"


@contextmanager
def replacing(folder: Path) -> Iterator[None]:
    """Another process saves weights of step 1 and of step 2 as `last`, again and again."""
    command = [sys.executable, "-c", REPLACE, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "goes\n"
            yield
            assert other.poll() is None
        finally:
            other.kill()


def is_whole(checkpoint: Checkpoint) -> bool:
    return bool((checkpoint.weights["a.weight"] == checkpoint.info["step"]).all())


@pytest.mark.slow
def test_a_checkpoint_is_read_whole_while_a_run_replaces_it(tmp_path: Path) -> None:
    """Without a look at the file 239 of 21,816 such reads ended in an error, and 150 took metadata and weights of two
    files."""
    last = two_versions(tmp_path)
    seen: set[int] = set()
    with replacing(tmp_path):
        begun = time.monotonic()
        while time.monotonic() < begun + (1.5 if len(seen) == 2 else 60.0):
            checkpoint = load_checkpoint(str(last))
            assert is_whole(checkpoint)
            seen.add(checkpoint.info["step"])
    assert seen == {1, 2}


def before_opening(monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]) -> None:
    """Have `act` happen once the file was found, right before safe_open opens it."""
    real = saved_weights.safe_open

    def safe_open(*args: Any, **kwargs: Any) -> Any:
        act()
        return real(*args, **kwargs)

    monkeypatch.setattr(saved_weights, "safe_open", safe_open)


@pytest.mark.parametrize("times", [1, 5])
def test_the_newer_one_is_read_when_the_file_was_replaced(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = two_versions(tmp_path)
    left = [times]

    def replace() -> None:
        if left[0]:
            left[0] -= 1
            duplicate_checkpoint(tmp_path / f"epoch_{2 - left[0] % 2}", last)

    before_opening(monkeypatch, replace)
    checkpoint = load_checkpoint(str(last))
    assert left == [0]
    assert checkpoint.info["step"] == 2
    assert is_whole(checkpoint)


def test_one_that_is_replaced_again_and_again_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = two_versions(tmp_path)
    others = cycle([tmp_path / "epoch_2", tmp_path / "epoch_1"])
    before_opening(monkeypatch, lambda: duplicate_checkpoint(next(others), last))
    with pytest.raises(CheckpointError, match=r"removed or replaced while it was being read\. Try again") as raised:
        load_checkpoint(str(last))
    assert raised.value.exit_code == 4


def test_one_that_is_removed_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = two_versions(tmp_path)
    before_opening(monkeypatch, lambda: (last / saved_weights.WEIGHTS).unlink(missing_ok=True))
    with pytest.raises(CheckpointError, match="last: no checkpoint in it"):
        load_checkpoint(str(last))


def test_one_that_is_without_its_name_for_a_moment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than the newest of an epoch, of which `last` may be a later state."""
    last = two_versions(tmp_path / "checkpoints")
    for given in (last, tmp_path):
        last.rename(tmp_path / "aside")
        monkeypatch.setattr(time, "sleep", lambda seconds: seconds and (tmp_path / "aside").rename(last))
        assert load_checkpoint(str(given)).info == {"step": 1}


def test_without_a_last_one_the_newest_of_an_epoch_is_taken(tmp_path: Path) -> None:
    for epoch in (2, 9999, 10_000):  # which comes before epoch_9999 in the alphabet
        save(tmp_path / f"checkpoints/epoch_{epoch:04d}", step=epoch)
    assert load_checkpoint(str(tmp_path)).info == {"step": 10_000}
    save(tmp_path / "checkpoints/last", step=1)
    assert load_checkpoint(str(tmp_path)).info == {"step": 1}
