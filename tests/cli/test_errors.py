"""A user's mistake is one clear line on stderr and the documented exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, hope, one_line, only_run

LONG = "x" * 300
QUICK = ["train", "--preset", "quickstart", "--device", "cpu", *TINY]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["tain"], 2, ["No such command 'tain'", "'train'"]),
        (["train", "--bogus"], 2, ["hope train: No such option", "--bogus", "hope train --help"]),
        (["train", "--seed", "x"], 2, ["--seed", "integer"]),
        (["eval", "--ckpt"], 2, ["--ckpt", "requires an argument"]),
        (["train"], 2, ["no preset is given", "quickstart"]),
        (["train", "quickstart"], 2, ["no preset is given", "Did you mean --preset quickstart?"]),
        (["train", "data.batch_size=2", "quikstart"], 2, ["no preset is given", "Did you mean --preset quickstart?"]),
        (
            ["presets", "--diff", "my preset.yaml"],
            2,
            ["Give the other preset too: hope presets NAME --diff 'my preset"],
        ),
        (["train", "walls"], 2, ["no preset is given", "presets: "]),
        (["train", "--preset", "quickstrt"], 2, ["quickstrt", "Did you mean quickstart"]),
        (["train", "--preset", "quickstart", "data.batchsize=4"], 2, ["data.batchsize", "nearest: data.batch_size"]),
        (["train", "--preset", "vjepa2_ac"], 3, ["--data-dir", "HOPE_DATA_DIR", "clip_00001/feature_maps"]),
        (["train", "--preset", "vjepa2_ac", "--data-dir", "absent"], 3, ["absent", "no such folder"]),
        (["train", "--preset", "quickstart", "--device", "tpu"], 2, ["training.device", "tpu"]),
        (["train", "--preset", "quickstart", "--device", "cpu", "--precision", "fp16"], 5, ["fp16", "cpu"]),
        ([*QUICK, "data.batch_size=40"], 2, ["data.batch_size", "18 training clips"]),
        (["train", "--preset", "quickstart", "data.batch_size=9", "training.accumulate=2"], 2, ["must divide"]),
        (["train", "--preset", "quickstart", "--seed", "9999999999"], 2, ["training.seed", "9999999999"]),
        (["eval"], 2, ["--ckpt"]),
        (["eval", "--ckpt", "absent"], 4, ["absent", "no such file"]),
        (["eval", "--ckpt", "."], 4, ["no checkpoint in it"]),
        (["train", "--preset", "vjepa2_ac", "--data-dir", LONG], 3, [LONG]),  # the system itself refuses the name
        (["train", "--preset", f"{LONG}.yaml"], 2, [LONG]),
        (["train", "--resume", LONG], 4, [LONG]),
        (["eval", "--ckpt", LONG], 4, [LONG]),
        (["inspect-data", LONG], 3, [LONG]),
        (["presets", "absent"], 2, ["absent"]),
        (["make-clips", "out", "--domain", "icy"], 2, ["icy", "ice"]),
        (["make-clips", "out", "--clips", "0"], 2, ["clips"]),
    ],
)
def test_mistakes(arguments: list[str], code: int, words: list[str], tmp_path: Path) -> None:
    outcome = hope(arguments, tmp_path)
    assert outcome.code == code, outcome.err
    line = one_line(outcome)
    for word in words:
        assert word in line
    assert not (tmp_path / "runs").exists()


def test_cuda_that_is_not_there(tmp_path: Path) -> None:
    import torch

    outcome = hope(["train", "--preset", "quickstart", "--device", "cuda", *TINY], tmp_path)
    if torch.cuda.is_available():
        assert outcome.code == 0
    else:
        assert outcome.code == 5
        assert "no CUDA device" in one_line(outcome)


def test_diverged_run_exits_6_and_keeps_its_record(tmp_path: Path) -> None:
    outcome = hope([*QUICK, "optimizer.lr=1e30", "optimizer.grad_clip=null"], tmp_path)
    assert outcome.code == 6
    assert "not finite at step" in one_line(outcome)
    assert (only_run(tmp_path) / "metrics.jsonl").read_text().count("\n") >= 1


def test_a_step_that_breaks_the_model_is_never_saved(tmp_path: Path) -> None:
    """The last step of an epoch: its loss is from before it, so only validation and the weights can tell."""
    flat = ["schedule.warmup_pct=0.0", "schedule.constant_pct=1.0", "schedule.decay_pct=0.0", "data.batch_size=18"]
    outcome = hope([*QUICK, *flat, "optimizer.lr=1e30", "--json"], tmp_path)
    assert outcome.code == 6, outcome.err
    assert "not finite after step 1" in one_line(outcome)
    assert not (only_run(tmp_path) / "checkpoints").exists()


def test_broken_clip_is_skipped_on_request_and_listed(tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=10, grid=2, dim=8, domain="base", seed=1)
    (tmp_path / "clips/clip_00004/actions_states/actions.npy").unlink()
    command = [*QUICK, "--data-dir", "clips", "training.epochs=1"]
    outcome = hope(command, tmp_path)
    assert outcome.code == 3
    assert "clip_00004" in one_line(outcome)
    assert "actions.npy is missing" in one_line(outcome)
    outcome = hope([*command, "data.on_error=skip", "data.max_skipped=0.2"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert "clip_00004" in (only_run(tmp_path) / "split.json").read_text()


def test_no_command_shows_the_commands(tmp_path: Path) -> None:
    outcome = hope([], tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    for command in ("train", "eval", "tta", "inspect-data", "hw-info"):
        assert f"\n  {command} " in outcome.err


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """Above the line, and with the code, that there are without it."""
    command = ["train", "--preset", "vjepa2_ac"]
    plain, shown = hope(command, tmp_path), hope([*command, "--debug"], tmp_path)
    assert (plain.code, shown.code) == (3, 3)
    assert "Traceback" not in plain.err
    head, _, tail = shown.err.partition("Traceback (most recent call last):")
    assert f"{head}{tail.splitlines()[-1]}\n" == plain.err
    assert "hopecli.errors.DataError: " in tail


@pytest.mark.usefixtures("permissions_obeyed")
@pytest.mark.parametrize(("part", "words"), [(".", ["clips: cannot"]), ("clip_00002", ["clip_00002", "vjepa2_vitl16"])])
def test_clips_that_may_not_be_read(part: str, words: list[str], tmp_path: Path) -> None:
    make_clips(tmp_path / "clips", clips=6, grid=2, dim=8, domain="base", seed=1)
    closed = tmp_path / "clips" / part
    closed.chmod(0)
    try:
        outcome = hope([*QUICK, "--data-dir", "clips"], tmp_path)
    finally:
        closed.chmod(0o700)
    assert outcome.code == 3, outcome.err
    line = one_line(outcome)
    for word in (*words, "cannot be read: Permission denied"):
        assert word in line
