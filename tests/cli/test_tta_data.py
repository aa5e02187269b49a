"""Which clips and which precision `hope tta` takes: source clips, precision flag, clips of an earlier adaptation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, hope, one_line, only_run

FAST = ["adaptation.steps=1", "adaptation.lr=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, beside it folders of clips: ice (3), walls (4) and base (5), with ids from 0."""
    folder = tmp_path_factory.mktemp("tta_data")
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.val_split=0.3", "training.epochs=1"]
    assert hope(command, folder).code == 0
    for count, domain in ((3, "ice"), (4, "walls"), (5, "base")):
        make_clips(folder / domain, clips=count, grid=2, dim=8, domain=domain, seed=1)
    return only_run(folder)


def result(run: Path, command: str, ckpt: Path, *arguments: str) -> dict[str, Any]:
    """What a command says of a checkpoint; folders of clips lie in the working directory."""
    outcome = hope([command, "--ckpt", str(ckpt), "--device", "cpu", "--json", *arguments], run.parents[2])
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


@pytest.mark.parametrize(
    ("arguments", "clips", "label"),
    [
        (["--source-data-dir", "base"], 5, "base"),
        (
            ["--source-data-dir", "base", "data.clip_start=1", "data.clip_end=3"],
            5,
            "base",
        ),  # ids of the stream's folder
        (["--source-data-dir", "base", "adaptation.source_clips=2"], 2, "base"),
        ([], 6, "held out from training"),
        (["adaptation.source_clips=2"], 2, "held out from training"),
    ],
)
def test_source_clips(run: Path, arguments: list[str], clips: int, label: str) -> None:
    found = result(run, "tta", run, "--data-dir", "walls", *FAST, *arguments)
    assert (found["forgetting"]["clips"], found["forgetting"]["source"]) == (clips, label)
    assert found["clips"] == (2 if "data.clip_start=1" in arguments else 4)


def test_precision_is_that_of_the_adaptation(run: Path) -> None:
    """The run was trained in fp32; the flag is not of training.precision."""
    losses = []
    for precision in ("bf16", "fp32"):
        found = result(run, "tta", run, "--data-dir", "walls", *FAST, "--precision", precision)
        assert found["precision"] == precision
        assert found["protocol"]["precision"] == precision
        losses.append(found["loss_frozen"]["mean"])
    assert losses[0] != losses[1]
    # bf16 keeps 8 bits of a number; the frozen model is otherwise the same
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_weights_adapted_twice_remember_both_streams(run: Path) -> None:
    once = run / "tta/once/adapted.safetensors"
    result(run, "tta", run, "--data-dir", "ice", *FAST, "--name", "once")
    assert result(run, "eval", once, "--data-dir", "walls")["overlap_with_training"] == 0
    result(run, "tta", once, "--data-dir", "walls", *FAST, "--name", "twice")
    twice = once.parent / "tta/twice/adapted.safetensors"
    seen = {name: result(run, "eval", twice, "--data-dir", name)["overlap_with_training"] for name in ("ice", "walls")}
    assert seen == {"ice": 3, "walls": 4}


def test_an_episode_per_clip_says_that_online_is_frozen(run: Path) -> None:
    command = ["tta", "--ckpt", str(run), "--device", "cpu", "--data-dir", "ice", *FAST, "--name", "episodes", "--json"]
    outcome = hope([*command, "adaptation.reset_per_clip=true"], run.parents[2])
    assert "so online equals frozen; adaptation.mode=sequential adapts within a clip" in outcome.err
    found = json.loads(outcome.out)
    assert found["loss_online"] == found["loss_frozen"]
    for other in ([], ["adaptation.reset_per_clip=true", "adaptation.mode=sequential"]):
        assert "so online equals frozen" not in hope([*command, *other], run.parents[2]).err


def test_settings_without_effect_are_said(run: Path) -> None:
    """Those of the command line only, in one line with the reason of each."""
    command = ["tta", "--ckpt", str(run), "--device", "cpu", "--data-dir", "ice", *FAST, "--name", "idle"]
    given = ["adaptation.backprop_through_time=true", "adaptation={betas: [0.8, 0.9]}", "adaptation.reset_every=2"]
    outcome = hope([*command, *given, "adaptation.mode=sequential", "adaptation.optimizer=sgd"], run.parents[2])
    (note,) = (line for line in outcome.err.splitlines() if "without effect" in line)
    for reason in (
        "adaptation.backprop_through_time (adaptation.mode=sequential feeds no prediction back)",
        "adaptation.betas (adaptation.optimizer=sgd)",
        "adaptation.reset_every (without --baselines periodic_reset)",
    ):
        assert reason in note
    assert note.count("adaptation.lr") == note.count("adaptation.steps") == 0
    used = [*given, "--baselines", "periodic_reset", "adaptation.optimizer=adam"]
    assert "without effect" not in hope([*command, *used], run.parents[2]).err
    preset = ["--preset", "test_ac_predictor_tta", "adaptation.mode=sequential", "adaptation.optimizer=sgd"]
    assert "without effect" not in hope([*command, *preset], run.parents[2]).err  # its betas are not the command's


def test_clips_that_were_adapted_on_are_no_source(run: Path, tmp_path: Path) -> None:
    """Neither those of this stream nor those that the weights were adapted on before."""
    (own,) = (run.parents[2] / "cache" / "physics").iterdir()
    everything = [*FAST, "--name", "everything"]
    assert result(run, "tta", run, "evaluation.clips=all", *everything)["forgetting"] is None
    found = result(run, "tta", run, "evaluation.clips=all", "data.clip_end=16", *everything)["forgetting"]
    assert (found["clips"], found["source"]) == (4, "held out from training, without 2 in the stream or adapted on")

    result(run, "tta", run, *FAST, "--name", "held_out")
    adapted = run / "tta/held_out/adapted.safetensors"
    outcome = hope(["eval", "--ckpt", str(adapted), "--device", "cpu", "--json"], run.parents[2])
    found = json.loads(outcome.out)  # on all clips: each was trained or adapted on
    assert found["overlap_with_training"] == found["clips"] == 20
    reason = "none of the 6 held-out clips is left (the weights were adapted on it): all other clips are taken"
    assert f"note: {reason}" in outcome.err.splitlines()
    only = ["eval", "--ckpt", str(adapted), "--device", "cpu", "evaluation.clips=held_out"]
    refused = hope(only, run.parents[2])
    assert refused.code == 2
    assert "none of the 6 held-out clips is left: the weights were adapted on it" in refused.err
    assert result(run, "tta", adapted, "--data-dir", "walls", *FAST)["forgetting"] is None
    given = ["--data-dir", "walls", *FAST, "--source-data-dir", str(own), "adaptation.source_clips=16"]
    found = result(run, "tta", adapted, *given)["forgetting"]
    assert (found["clips"], found["source"]) == (
        14,
        f"{own}, without 6 in the stream or adapted on, 14 of 14 trained on",
    )
    same = ["tta", "--ckpt", str(run), "--device", "cpu", "--data-dir", "walls", "--source-data-dir", "walls", *FAST]
    outcome = hope(same, run.parents[2])
    assert outcome.code == 2
    assert "--source-data-dir: all of its clips are in the stream" in outcome.err


def test_a_clip_that_cannot_be_read_ends_the_stream_or_is_left_out(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "clips"
    make_clips(folder, clips=4, grid=2, dim=8, domain="ice", seed=1)
    without = result(run, "tta", run, "--data-dir", str(folder), *FAST, "--name", "without")
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    bad = folder / "clip_00900"
    shutil.copytree(folder / names[0], bad)
    features = np.load(bad / "feature_maps/vjepa2_vitl16.npy")
    features.reshape(-1)[-1] = np.nan
    np.save(bad / "feature_maps/vjepa2_vitl16.npy", features)
    arguments = ["--data-dir", str(folder), *FAST, "--name", "with", "adaptation.order_seed=null"]
    outcome = hope(["tta", "--ckpt", str(run), "--device", "cpu", "--json", *arguments], run.parents[2])
    assert outcome.code == 3
    assert "clip_00900" in one_line(outcome)
    skip = ["data.on_error=skip", "data.max_skipped=0.2"]
    results = result(run, "tta", run, *arguments, *skip, "--resume")
    assert list(results["skipped_clips"]) == ["clip_00900"]
    assert results["loss_online"] == without["loss_online"]
    one, two = (load_file(run / f"tta/{name}/adapted.safetensors") for name in ("with", "without"))
    assert all(np.array_equal(one[key].numpy(), two[key].numpy()) for key in one)


def test_replaced_results_leave_no_weights_of_other_settings(run: Path) -> None:
    """adapted.safetensors is of the results beside it, and evaluations of earlier weights are named."""
    folder, stream = run / "tta/again", ["--data-dir", "ice", *FAST, "--name", "again"]
    result(run, "tta", run, *stream)
    result(run, "eval", folder / "adapted.safetensors", "--data-dir", "walls", "--name", "walls")
    outcome = hope(["tta", "--ckpt", str(run), "--device", "cpu", *stream, "adaptation.adapt=none"], run.parents[2])
    assert outcome.code == 0, outcome.err
    said = f"note: {folder / 'eval'} stays: results of the adapted weights that were here before"
    assert said in outcome.err.splitlines()
    assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["protocol"]["adapt"] == "none"
    assert sorted(path.name for path in folder.iterdir()) == ["eval", "per_clip.csv", "results.json", "stream.png"]


def test_a_folder_that_is_not_utf8(run: Path) -> None:
    shutil.copytree(run.parents[2] / "ice", run.parents[2] / "odd\udcff")
    assert result(run, "tta", run, "--data-dir", "odd\udcff", *FAST)["clips"] == 3
