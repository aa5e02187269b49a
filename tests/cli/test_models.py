"""Every model kind goes through the same commands: training, resume, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hopecli.config.load import load_tree
from hopecli.engine.checkpoint import load_checkpoint, load_into
from hopecli.models.build import build_model
from hopecli.models.hope.memory import MEMORY_NAMES
from hopecli.models.protocol import PredictorModule
from tests.cli.runner import TINY, hope, only_run

DATA = [text for text in TINY if not text.startswith("model.")]
KINDS = {
    "quickstart_hope": ["model.width=16", "model.depth=2", "model.num_heads=2", "model.cms_update_periods=[1,2,3]"],
    "quickstart_convlstm": ["model.hidden=8"],
}


def command(preset: str, *more: str) -> list[str]:
    return ["train", "--preset", preset, "--device", "cpu", *DATA, *KINDS[preset], *more]


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["type"] == "train"]


@pytest.mark.parametrize("preset", KINDS)
def test_train_eval_and_baseline_rows(preset: str, tmp_path: Path) -> None:
    outcome = hope([*command(preset), "--json"], tmp_path)
    assert outcome.code == 0, outcome.err
    run = only_run(tmp_path)
    outcome = hope(["eval", "--ckpt", str(run), "--device", "cpu", "--json"], tmp_path)
    results = json.loads(outcome.out)
    assert [row["name"] for row in results["rows"]] == ["model", "copy_last", "zero_action", "shuffled_action"]
    assert json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss_rollout"] == pytest.approx(
        results["rows"][0]["l1"]["mean"], rel=1e-5
    )


def test_resume_in_the_middle_of_an_update_period_is_bit_identical(tmp_path: Path) -> None:
    """4 steps per epoch and periods 1, 2, 3: after epoch 1 the third level waits with one gradient."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    assert hope(command("quickstart_hope"), tmp_path / "whole").code == 0
    whole = only_run(tmp_path / "whole")
    assert hope(command("quickstart_hope"), tmp_path / "parts").code == 0
    parts = only_run(tmp_path / "parts")
    checkpoints = parts / "checkpoints"
    (checkpoints / "last").rename(checkpoints / "gone")  # as if the run had died after epoch 1
    (checkpoints / "epoch_0001").rename(checkpoints / "last")
    state = torch.load(checkpoints / "last/trainer.pt", weights_only=True)
    assert state["optimizer"]["accumulated"]
    outcome = hope(["train", "--resume", str(parts)], tmp_path / "parts")
    assert outcome.code == 0, outcome.err
    assert losses(parts) == losses(whole)
    a, b = (load_file(run / "checkpoints/last/model.safetensors") for run in (whole, parts))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_periods_hold_under_accumulation_and_bf16(tmp_path: Path) -> None:
    """Level 2 (period 3) moves at steps 3 and 6 and nowhere else, whatever the micro-batches and the precision."""
    more = ["data.batch_size=8", "training.accumulate=2", "training.precision=bf16", "training.epochs=7"]
    more += ["training.keep_last=null", "data.val_split=0.5"]  # 10 training clips: one step per epoch
    assert hope(command("quickstart_hope", *more), tmp_path).code == 0
    folder = only_run(tmp_path) / "checkpoints"
    states = [load_file(folder / f"epoch_{i:04d}/model.safetensors") for i in range(1, 8)]
    for level, period in enumerate((1, 2, 3)):
        key = f"hope_blocks.0.cms.{level}.fc1.weight"
        moved = [step + 1 for step in range(1, 7) if not torch.equal(states[step][key], states[step - 1][key])]
        assert moved == [step for step in range(2, 8) if step % period == 0]


def test_diagnostics_are_logged_on_request(tmp_path: Path) -> None:
    assert hope(command("quickstart_hope", "logging.diagnostics_every=4"), tmp_path).code == 0
    lines = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if line["type"] == "diagnostics"]
    assert [line["step"] for line in found] == [4, 8]
    for name in MEMORY_NAMES:
        assert found[0]["values"][f"hope/block_01/{name}/surprise"] > 0
        assert found[0]["values"][f"hope/block_01/{name}/change"] > 0
    outcome = hope(["train", "--preset", "quickstart", "logging.diagnostics_every=4"], tmp_path)
    assert outcome.code == 2
    assert "only model.kind hope" in outcome.err


def test_copy_last_is_saved_untrained_and_equals_its_own_baseline(tmp_path: Path) -> None:
    outcome = hope(["train", "--preset", "quickstart", "model.kind=copy_last", "--device", "cpu", *DATA], tmp_path)
    assert outcome.code == 0, outcome.err
    outcome = hope(["eval", "--ckpt", str(only_run(tmp_path)), "--device", "cpu", "--json"], tmp_path)
    model, copy_last = json.loads(outcome.out)["rows"][:2]
    # The model's output is normalised once more: float32 rounding.
    assert model["l1"]["mean"] == pytest.approx(copy_last["l1"]["mean"], rel=1e-5)
    assert json.loads(outcome.out)["parameters"] == 0


@pytest.mark.slow
def test_fast_weights_stay_bounded_after_training(tmp_path: Path) -> None:
    """64 frames of random input: the norms settle instead of growing.

    A write contracts (rates in (0, 1), unit inputs) and adds a bounded signal, so the norms approach a plateau: 10
    times the start is above it (5.7 times was measured at initialisation) and far below a runaway, which would also
    grow by far more than 1.5 in the second half.
    """
    assert hope(command("quickstart_hope", "training.epochs=4"), tmp_path).code == 0
    checkpoint = load_checkpoint(str(only_run(tmp_path)))
    settings = load_tree(checkpoint.settings, name="run", origin="run").settings
    model = build_model(settings.model, grid=2, embed_dim=8, action_dim=2, seed=0)
    load_into(model, checkpoint)
    norms = fast_weight_norms(model, frames=64)
    print("norms relative to the first frame:", norms[::16].tolist())
    assert torch.isfinite(norms).all()
    assert norms.max() < 10 * norms[0].max()
    assert (norms[-1] < 1.5 * norms[31]).all()


@torch.no_grad()
def fast_weight_norms(model: PredictorModule, *, frames: int) -> torch.Tensor:
    """|W_in| and |W_out| of all memories of all blocks after each frame of random input [frames, 2]."""
    generator = torch.Generator().manual_seed(0)
    memory = model.initial_state(1)
    rows = []
    for t in range(frames):
        frame = torch.randn(1, model.num_patches, model.embed_dim, generator=generator)
        action = torch.randn(1, model.action_dim, generator=generator)
        _, memory = model.step(frame, action, torch.zeros_like(action), None, memory=memory, t=t)
        weights = [block.all() for block in memory.blocks]
        rows.append([sum(w.w_in.norm() ** 2 for w in weights) ** 0.5, sum(w.w_out.norm() ** 2 for w in weights) ** 0.5])
    return torch.tensor(rows)
