"""hope tta through the real command line."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from hopecli.config.load import load_preset
from hopecli.data.make_clips import make_clips
from tests.cli.runner import TINY, environment, hope, only_run

ROOT = Path(__file__).resolve().parents[2]
ICE = ["data.source=physics", "data.physics.domain=ice", "data.physics.clips=6", "data.physics.seed=1"]
FAST = ["adaptation.steps=2", "adaptation.lr=0.01"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tta")
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, "data.val_split=0.3"]
    assert hope(command, folder).code == 0
    return only_run(folder)


def command(run: Path, *arguments: str) -> list[str]:
    return ["tta", "--ckpt", str(run), "--device", "cpu", "--json", *arguments]


def adapt(run: Path, *arguments: str) -> dict[str, Any]:
    outcome = hope(command(run, *arguments), run.parents[2])
    assert outcome.code == 0, outcome.err
    result: dict[str, Any] = json.loads(outcome.out)
    return result


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "per_clip.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_without_a_learning_rate_it_is_eval_bit_for_bit(run: Path) -> None:
    outcome = hope(
        ["eval", "--ckpt", str(run), "--device", "cpu", "--name", "one", "evaluation.batch_size=1", *ICE],
        run.parents[2],
    )
    assert outcome.code == 0, outcome.err
    expected = {row["clip"]: row for row in rows(run / "eval/one")}
    adapt(run, "--name", "zero", *ICE, "adaptation.lr=0.0", "adaptation.order_seed=3")
    found = rows(run / "tta/zero")
    assert [row["clip"] for row in found] != sorted(expected)
    assert len(found) == 6
    for row in found:
        for column in ("online", "frozen", "after_update"):
            assert row[column] == expected[row["clip"]]["l1"]  # the same digits
        assert row["copy_last"] == expected[row["clip"]]["l1_copy_last"]
        assert float(row["drift"]) == 0.0


def test_files_and_results(run: Path) -> None:
    results = adapt(run, *ICE, *FAST, "--baselines", "frozen,periodic_reset", "adaptation.reset_every=2")
    folder = run / "tta/all_physics_ice_seed1"
    assert json.loads((folder / "results.json").read_text()) == results
    assert (folder / "stream.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not (folder / "stream.pt").exists()
    found = rows(folder)
    online, frozen = (np.array([float(row[key]) for row in found]) for key in ("online", "frozen"))
    assert results["complete"] is True
    assert results["clips"] == 6
    assert results["difference"]["mean"] == pytest.approx(float((online - frozen).mean()))
    assert [float(row["gain"]) for row in found] == pytest.approx((frozen - online).tolist())
    assert results["loss_after_update"]["mean"] < results["loss_online"]["mean"]
    assert "saw its own targets" in results["after_update_note"]
    assert results["steps_done"] == 12
    assert results["adapted_parameters"] == 5 * 2 * 16 - 2 * 2 * 16  # norm1, norm2, predictor_norm of one block
    assert results["forgetting"]["clips"] == 6  # held out from training, found without being asked
    assert results["forgetting"]["source"] == "held out from training"
    held_out = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--json", "--name", "source"], run.parents[2])
    model = next(row for row in json.loads(held_out.out)["rows"] if row["name"] == "model")
    assert results["forgetting"]["before"] == pytest.approx(model["l1"]["mean"], rel=1e-5)  # another batch size
    assert results["periodic_reset"]["mean"] != results["loss_online"]["mean"]
    assert results["protocol"]["adapt"] == "layernorm"
    assert results["loss_exp"] == 1.0
    assert results["read_as"]["action_alignment"] == "impulse"
    assert results["read_as"]["feature_map"] == "vjepa2_vitl16"


def test_adapted_weights_can_be_evaluated(run: Path) -> None:
    results = adapt(run, *ICE, *FAST, "--name", "weights")
    file = run / "tta/weights/adapted.safetensors"
    adapted, trained = load_file(file), load_file(run / "checkpoints/last/model.safetensors")
    changed = {name for name in trained if not np.array_equal(adapted[name].numpy(), trained[name].numpy())}
    assert changed == {name for name in trained if "norm" in name}
    with safe_open(file, framework="pt") as archive:
        info = json.loads(archive.metadata()["info"])
    assert info["tta"]["protocol"] == results["protocol"]
    outcome = hope(["eval", "--ckpt", str(file), "--device", "cpu", "--json", "--name", "adapted"], run.parents[2])
    assert outcome.code == 0, outcome.err
    model = next(row for row in json.loads(outcome.out)["rows"] if row["name"] == "model")
    # The held-out clips under the adapted weights are the source loss after; another batch size.
    assert model["l1"]["mean"] == pytest.approx(results["forgetting"]["after"], rel=1e-5)
    assert model["l1"]["mean"] != pytest.approx(results["forgetting"]["before"], rel=1e-5)
    # On the stream itself the adapted weights have seen every target.
    outcome = hope(["eval", "--ckpt", str(file), "--device", "cpu", "--json", *ICE], run.parents[2])
    assert outcome.code == 0, outcome.err
    seen = results["clips"]
    assert json.loads(outcome.out)["overlap_with_training"] == seen
    assert f"warning: the checkpoint was trained or adapted on {seen} of these {seen} clips" in outcome.err


def test_resetting_per_clip_saves_the_checkpoint_with_and_without_a_source(run: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "source", clips=2, grid=2, dim=8, domain="base", seed=8)
    arguments = ["--source-data-dir", str(tmp_path / "source"), *FAST, "adaptation.reset_per_clip=true"]
    adapt(run, *arguments, "--name", "with_source")
    adapt(run, *arguments[2:], "--name", "no_source")  # held-out clips on their own have none
    assert json.loads((run / "tta/no_source/results.json").read_text())["forgetting"] is None
    files = [run / f"tta/{name}/adapted.safetensors" for name in ("with_source", "no_source")]
    files.append(run / "checkpoints/last/model.safetensors")
    one, two, start = (load_file(file) for file in files)
    assert all(np.array_equal(one[key].numpy(), start[key].numpy()) for key in start)
    assert all(np.array_equal(two[key].numpy(), start[key].numpy()) for key in start)
    with safe_open(files[0], framework="pt") as archive:
        tta = json.loads(archive.metadata()["info"])["tta"]
    assert "the checkpoint's" in tta["weights"]
    assert tta["fingerprints"] == []  # these weights have seen no clip of the stream


def test_source_folder_orders_and_tables(run: Path, tmp_path: Path) -> None:
    make_clips(tmp_path / "source", clips=3, grid=2, dim=8, domain="base", seed=8)
    arguments = [*ICE, *FAST, "--source-data-dir", str(tmp_path / "source"), "--name", "orders", "adaptation.orders=2"]
    arguments += ["adaptation.source_every=4", "logging.log_every=3"]
    results = adapt(run, *arguments)
    assert [point["clips"] for point in results["forgetting"]["trace"]] == [0, 4, 6, 4, 6]
    assert [order["order_seed"] for order in results["orders"]] == [0, 1]
    found = rows(run / "tta/orders")
    assert [row["order"] for row in found] == ["0"] * 6 + ["1"] * 6
    assert [row["clip"] for row in found[:6]] != [row["clip"] for row in found[6:]]
    shown = hope([a for a in command(run, *arguments) if a != "--json"], run.parents[2])
    assert shown.code == 0, shown.err
    assert "adapted, online" in shown.out
    assert "after update (saw its targets)" in shown.out
    assert "source loss" in shown.out
    assert "clip 3/12  mean of last 3: online" in shown.err
    assert "source loss after 4 clips (order 2)" in shown.err
    assert "\x1b" not in shown.err  # plain lines off a terminal


def test_the_held_out_part_is_no_source_for_itself(run: Path) -> None:
    results = adapt(run, *FAST)
    assert results["clips_from"] == "held out from training"
    assert results["forgetting"] is None


@pytest.mark.slow
def test_a_signal_keeps_what_was_scored_and_resume_goes_on(run: Path) -> None:
    many = ["data.source=physics", "data.physics.domain=ice", "data.physics.clips=60", "data.physics.seed=2"]
    many += [*FAST, "logging.log_every=1"]
    whole = adapt(run, *many, "--name", "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "hopecli.cli.main", *command(run, *many, "--name", "part")],
        cwd=run.parents[2],
        env={**environment(run.parents[2]), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("clip 3/60"):
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert "go on with the same command and --resume" in err.lower()
    part = json.loads(out)
    assert part["complete"] is False
    assert 3 <= part["clips"] < 60
    assert json.loads((run / "tta/part/results.json").read_text()) == part
    for key, value in (
        ("adaptation.lr", "0.02"),
        ("data.action_reduce", "mean"),
    ):
        other = hope(command(run, *many, "--name", "part", "--resume", f"{key}={value}"), run.parents[2])
        assert other.code == 4
        assert f"the interrupted stream had another {key} " in other.err
    resumed = adapt(run, *many, "--name", "part", "--resume")
    assert resumed["complete"] is True
    for key in ("loss_online", "difference", "loss_after_update", "per_step", "drift", "forgetting", "share_worse"):
        assert resumed[key] == whole[key]
    timeless = [{k: v for k, v in row.items() if not k.startswith("ms")} for row in rows(run / "tta/part")]
    assert timeless == [{k: v for k, v in row.items() if not k.startswith("ms")} for row in rows(run / "tta/whole")]
    one, two = (load_file(run / f"tta/{name}/adapted.safetensors") for name in ("part", "whole"))
    assert all(np.array_equal(one[key].numpy(), two[key].numpy()) for key in one)
    again = hope(command(run, *many, "--name", "part", "--resume"), run.parents[2])
    assert again.code == 4
    assert "no interrupted stream" in again.err


@pytest.mark.slow
def test_a_killed_stream_goes_on(run: Path) -> None:
    """By SIGKILL, which leaves no time to save: the state of a few clips before is on disk."""
    many = ["data.source=physics", "data.physics.domain=ice", "data.physics.clips=30", "data.physics.seed=2", *FAST]
    many += ["adaptation.orders=2", "logging.log_every=1", "adaptation.save_every=4"]
    whole = adapt(run, *many, "--name", "not_killed")
    assert not (run / "tta/not_killed/stream.pt").exists()
    process = subprocess.Popen(
        [sys.executable, "-m", "hopecli.cli.main", *command(run, *many, "--name", "killed")],
        cwd=run.parents[2],
        env={**environment(run.parents[2]), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("clip") and (run / "tta/killed/stream.pt").exists():
            process.kill()
            break
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "tta/killed/results.json").exists()
    dropped = run.with_name("dropped")
    shutil.copytree(run, dropped)
    again = hope(command(dropped, *many[:4], *FAST, "data.clip_end=2", "--name", "killed"), run.parents[2])
    assert again.code == 0, again.err
    assert f"the interrupted stream in {dropped / 'tta/killed'} starts again (--resume goes on with it" in again.err
    resumed = hope(command(run, *many, "--name", "killed", "--resume", "adaptation.save_every=0"), run.parents[2])
    assert "starts again" not in resumed.err
    assert resumed.code == 0, resumed.err
    first = next(line for line in resumed.err.splitlines() if line.startswith("clip "))
    assert int(first.split()[1].split("/")[0]) > 4
    for key in ("loss_online", "difference", "per_step", "drift", "orders"):
        assert json.loads(resumed.out)[key] == whole[key]


def test_mirrors_to_wandb_without_an_account(run: Path) -> None:
    adapt(run, *ICE, *FAST, "--wandb", "offline", "--name", "mirrored")
    assert list((run / "tta/mirrored/wandb").glob("offline-run-*"))


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (
            ["adaptation.adapt=layernorm+norms"],
            2,
            "must be none, or one or more of layernorm, attn_proj, bias, mlp_out",
        ),
        (["adaptation.memory=carry"], 2, "a vit_ac model has no memory to carry"),
        (["--baselines", "rdumb"], 2, "Choose from frozen, periodic_reset"),
        (["--resume", "--name", "never"], 4, "no interrupted stream"),
        (["adaptation.lr=1e38"], 2, "a step this long overflows float32"),
        (["adaptation.T_rollout=8"], 2, "exceeds num_timesteps"),
        (["--wandb", "online"], 2, "there is no W&B key"),
        (["--source-data-dir", "nowhere"], 3, "no such folder"),
    ],
)
def test_mistakes(run: Path, arguments: list[str], code: int, text: str) -> None:
    outcome = hope(command(run, *ICE, *arguments), run.parents[2])
    assert outcome.code == code, outcome.err
    assert text in outcome.err
    assert "Traceback" not in outcome.err


def test_one_process_only_and_a_checkpoint(run: Path) -> None:
    outcome = hope(command(run, *ICE), run.parents[2], WORLD_SIZE="2", RANK="0")
    assert outcome.code == 2
    assert "on one process" in outcome.err
    assert hope(["tta"], run.parents[2]).code == 2


def test_presets_hold_the_protocol(run: Path) -> None:
    for name, adapt_groups, lr in (
        ("test_ac_predictor_tta", "layernorm", 5e-4),
        ("test_ac_predictor_tta_extended", "layernorm+attn_proj", 2e-4),
    ):
        a = load_preset(name).settings.adaptation
        assert (a.adapt, a.lr, a.mode, a.steps, a.optimizer) == (adapt_groups, lr, "full_rollout", 5, "adamw")
        assert (a.betas, a.grad_clip, a.reset_per_clip) == ((0.9, 0.999), 5.0, False)
        assert (a.precision, a.context_frames, a.T_rollout) == ("fp32", 1, 7)
    results = adapt(run, "--preset", "test_ac_predictor_tta_extended", *ICE)
    assert results["protocol"]["lr"] == 2e-4
    assert (run / "tta/test_ac_predictor_tta_extended_all_physics_ice_seed1/results.json").is_file()
