"""training.cpu_threads: how many threads a small model computes with on a CPU, unless there are fewer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.cli.runner import TINY, Outcome, hope, only_run

QUICK = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "training.epochs=1"]
ONE, TWO = "1 process, 1 CPU thread", "1 process, 2 CPU threads"


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def ran(arguments: list[str], folder: Path) -> Outcome:
    """On a machine that gives torch two threads, however many cores it has."""
    torch.set_num_threads(2)
    outcome = hope(arguments, folder)
    assert outcome.code == 0, outcome.err
    return outcome


@pytest.mark.parametrize(
    ("asked", "shown", "used"),
    [
        ([], ONE, 1),  # quickstart's own
        (["training.cpu_threads=null"], TWO, 2),
        (["training.cpu_threads=5"], TWO, 2),
    ],
)
def test_a_run_takes_as_many_threads_as_it_says_at_most(
    asked: list[str], shown: str, used: int, tmp_path: Path
) -> None:
    assert f"{shown}\n" in ran([*QUICK, "--dry-run", *asked], tmp_path).err
    assert torch.get_num_threads() == used


def test_what_is_done_with_a_run_takes_its_threads_unless_told(tmp_path: Path) -> None:
    ran(QUICK, tmp_path)
    run = str(only_run(tmp_path))
    for command in (["eval", "--ckpt"], ["tta", "adaptation.steps=1", "--ckpt"], ["train", "--resume"]):
        assert f"{ONE}\n" in ran([*command, run], tmp_path).err
        assert f"{TWO}\n" in ran([*command, run, "training.cpu_threads=null"], tmp_path).err


@pytest.mark.slow
def test_a_benchmark_is_measured_with_the_threads_of_the_preset(tmp_path: Path) -> None:
    command = ["hw-info", "--bench", "--device", "cpu", "--json", *TINY]
    assert "note: measured with training.cpu_threads=1" in ran(command, tmp_path).err
    assert torch.get_num_threads() == 1
    assert "cpu_threads" not in ran([*command, "training.cpu_threads=2"], tmp_path).err
