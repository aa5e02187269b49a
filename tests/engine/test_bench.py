"""Benchmarks and probes: what is counted and computed is right, whatever the time it takes."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hopecli.config.load import load_preset
from hopecli.config.schema import Settings
from hopecli.engine import probes
from hopecli.engine.bench import bench, loader_rate, training_flops
from hopecli.engine.bench_advice import Evidence, advise, as_measured, command
from hopecli.engine.bench_machine import COPY_BYTES, MATMUL_SIDE, matmul_rate, measure_in_turn, timed_and_counted
from hopecli.engine.bench_passes import adaptation_pass, inference_passes, training_pass
from hopecli.engine.dry_run import random_batch
from hopecli.engine.runtime import Runtime, start
from hopecli.errors import DataError
from hopecli.hardware import CudaDevice, probe, resolve
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.rollout import recomputed_rollout, rollout
from tests.bench_rollout import main as bench_rollout
from tests.cli.runner import TINY
from tests.clips import count_rows, make_features, write_clip

CPU = torch.device("cpu")


def tiny(*overrides: str) -> Settings:
    return load_preset("quickstart", [*TINY, *overrides]).settings


def build(settings: Settings) -> PredictorModule:
    d = settings.data
    return build_model(settings.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0)


@pytest.fixture(scope="module")
def runtime() -> Runtime:
    return start(resolve("cpu", "fp32", probe()))


@pytest.mark.parametrize("kind", ["vit_ac", "convlstm"])
def test_recomputed_rollout_equals_the_rollout_with_memory(kind: str) -> None:
    settings = tiny() if kind == "vit_ac" else load_preset("quickstart", [*TINY[:4], "model={kind: convlstm}"]).settings
    model, clip = build(settings).double(), random_batch(settings, 2).to(CPU, torch.float64)
    with torch.no_grad():
        a = rollout(model, clip, context_frames=1, horizon=7, normalize_reps=True)
        b = recomputed_rollout(model, clip, horizon=7, normalize_reps=True)
    # float64: the same sums in another order over seven fed-back steps.
    assert torch.allclose(a, b, atol=1e-10)


def test_flops_of_a_matrix_product_and_a_rollout(runtime: Runtime) -> None:
    a = torch.randn(16, 32)
    measured = measure_in_turn({"product": lambda: a @ a.T}, CPU)["product"]
    assert measured.flops == 2 * 16 * 32 * 16
    assert measured.runs >= 1
    settings = tiny()
    passes = inference_passes(build(settings), settings, random_batch(settings, 1), runtime)
    counted = {name: m.flops for name, m in measure_in_turn(passes, CPU).items()}
    assert counted["rollout"] == counted["teacher_forced"]  # carrying memory costs no frame twice
    assert counted["rollout_recomputed"] is not None
    assert counted["rollout"] is not None
    # Linear layers run 28 frames in place of 7, attention 84 frame pairs in place of 28: between 3 and 4 times.
    assert 3.0 < counted["rollout_recomputed"] / counted["rollout"] <= 4.0


def test_training_flops_from_two_shallow_models(runtime: Runtime) -> None:
    settings = tiny("model.depth=4", "model.activation_checkpointing=true")
    training = training_pass(build(settings), settings, random_batch(settings, 1), runtime)
    assert training is not None
    counted = timed_and_counted(training, CPU)[1]
    assert counted is not None
    assert training_flops(settings, random_batch(settings, 1), runtime) == counted


def test_calls_take_turns() -> None:
    seen: list[str] = []
    measure_in_turn({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, CPU)
    assert len(seen) >= 4
    assert seen == ["a", "b"] * (len(seen) // 2)


@pytest.mark.parametrize(
    ("calls", "seconds", "expected"),
    [
        (1, [1.0, 0.5, 0.1, 0.2, 0.3, 0.4], [(0.3, 5)]),  # the first, in which FLOPs are counted, warms up
        (1, [3.0, 2.0], [(2.5, 2)]),
        (1, [9.0], [(9.0, 1)]),
        (2, [9.0, 1.0, 5.0, 2.0], [(7.0, 2), (2.0, 1)]),
    ],
)
def test_medians_of_as_many_runs_as_there_is_time_for(
    calls: int, seconds: list[float], expected: list[tuple[float, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = iter(seconds)
    monkeypatch.setattr("hopecli.engine.bench_machine.timed", lambda call, device: next(taken))
    found = measure_in_turn({str(i): lambda: None for i in range(calls)}, CPU)
    assert [(m.seconds, m.runs) for m in found.values()] == [(pytest.approx(median), n) for median, n in expected]
    assert next(taken, None) is None


def test_matmul_rate_counts_a_multiply_and_an_add(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopecli.engine.bench_machine.timed", lambda call, device: 0.5)
    assert matmul_rate(torch.float32, CPU, 8) == 2 * 8**3 / 0.5


def test_adaptation_changes_layer_norms_alone_and_training_step_keeps_weights(runtime: Runtime) -> None:
    settings = tiny()
    model, clips = build(settings), random_batch(settings, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    adapt = adaptation_pass(model, settings, clips, runtime)
    assert adapt is not None
    adapt()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all("norm" in name for name in changed)
    forward = timed_and_counted(inference_passes(model, settings, clips, runtime)["rollout"], CPU)[1]
    flops = timed_and_counted(adapt, CPU)[1]
    assert flops is not None
    assert forward is not None
    assert flops < 2.5 * forward  # forward and the inputs' gradients; those of the weights would make it three times
    assert {name: p.requires_grad for name, p in model.named_parameters()} == wanted
    train = training_pass(model, settings, clips, runtime)
    assert train is not None
    now = {name: p.detach().clone() for name, p in model.named_parameters()}
    train()
    assert all(torch.equal(p, now[name]) for name, p in model.named_parameters())  # learning rate 0
    assert all(p.grad is None for p in model.parameters())


def test_models_without_the_parts_are_not_measured(runtime: Runtime) -> None:
    settings = load_preset("quickstart", [*TINY[:4], "model={kind: copy_last}"]).settings
    model, clips = build(settings), random_batch(settings, 1)
    assert training_pass(model, settings, clips, runtime) is None
    assert adaptation_pass(model, settings, clips, runtime) is None


def test_bench_of_a_tiny_model(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MATMUL_SIDE, "cpu", 64)
    monkeypatch.setitem(COPY_BYTES, "cpu", 1 << 16)
    said: list[str] = []
    trials = tuple(probes.try_precision(name, "cpu", probe()) for name in probes.PRECISIONS)
    found = bench("quickstart", tiny(), runtime, trials, overrides=TINY, data_dir=None, say=said.append)
    names = ["teacher_forced", "rollout", "rollout_recomputed", "training_step", "adaptation_step"]
    assert [timing.name for timing in found.timings] == names
    for timing in found.timings:
        assert timing.clips_per_second == pytest.approx(1e3 * timing.clips / timing.milliseconds)
        assert timing.flops is not None
        assert timing.matmul_share is not None
        rate = timing.flops / (timing.milliseconds / 1e3)
        assert timing.matmul_share == pytest.approx(rate / found.matmul["fp32"])
    ms = {timing.name: timing.milliseconds for timing in found.timings}
    assert found.rollout_speedup == pytest.approx(ms["rollout_recomputed"] / ms["rollout"])
    assert set(found.matmul) == {trial.precision for trial in trials if trial.usable}
    assert found.loader_clips_per_second is None
    assert found.largest_batch_tried is None
    assert found.command.startswith("hope train --preset quickstart data.physics.clips=20 data.grid=2 ")
    assert said


def test_loader_rate_needs_clips_that_fit(tmp_path: Path) -> None:
    for number in range(40):
        write_clip(tmp_path, number, features=make_features(number, frames=8), actions=count_rows(16))
    settings = tiny("data.embed_dim=4", "data.source=folder", "data.batch_size=20", "data.workers=0")
    started = time.perf_counter()
    rate = loader_rate(settings, tmp_path)
    assert rate >= 40 / (time.perf_counter() - started)  # what is measured lies within; 2 batches would be far below
    with pytest.raises(DataError, match=r"width 4, but data\.embed_dim = 8"):
        loader_rate(tiny("data.source=folder"), tmp_path)


def evidence(changes: dict[str, Any]) -> Evidence:
    base: dict[str, Any] = {
        "precision": "fp32",
        "rates": {"fp32": 1e11, "bf16": 4e11},
        "faster": {},
        "largest_batch": 1000,
        "training_clips_per_second": None,
        "loader_clips_per_second": None,
        "cores": 4,
    }
    return Evidence(**{**base, **changes})


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({"faster": {"bf16": 2.5}}, ["training.precision=bf16"]),
        ({"faster": {"bf16": 1.0}}, []),
        ({"largest_batch": 5}, ["training.accumulate=4"]),  # 16 clips in micro-batches of 4
        ({"largest_batch": 16}, []),
        ({"largest_batch": 0}, []),
        ({"training_clips_per_second": 10.0, "loader_clips_per_second": 3.0}, ["data.workers=4"]),
        ({"training_clips_per_second": 10.0, "loader_clips_per_second": 30.0}, []),
    ],
)
def test_advice_follows_from_the_numbers(changes: dict[str, Any], overrides: list[str]) -> None:
    settings = tiny("data.batch_size=16")
    found, reasons = advise(settings, evidence(changes))
    assert found == overrides
    assert reasons
    load_preset("quickstart", [*TINY, "data.batch_size=16", *found])
    line = command("quickstart", Path("my clips"), found)
    assert line.startswith("hope train --preset quickstart --data-dir 'my clips'")
    assert line.endswith(" ".join(overrides))


def test_the_command_runs_on_what_was_measured() -> None:
    here = replace(probe(), cuda=(), mps=False)
    cpu = resolve("auto", "auto", here)
    assert as_measured(tiny(), cpu, here) == ([], [])
    assert as_measured(tiny("training.device=cpu"), cpu, here) == ([], [])
    found, reasons = as_measured(tiny("training.device=cuda", "training.precision=fp16"), cpu, here)
    assert found == ["training.device=cpu", "training.precision=fp32"]
    assert reasons == [
        "cpu was measured; the settings' training.device=cuda cannot be had here",
        "fp32 was measured; the settings' training.precision=fp16 cannot be had here",
    ]
    gpu = replace(here, cuda_version="12.4", cuda=(CudaDevice("NVIDIA A100", 2**34, (8, 0)),))
    found, reasons = as_measured(tiny(), resolve("cpu", "auto", gpu), gpu)
    assert found == ["training.device=cpu"]
    assert "training.device=auto means cuda here" in reasons[0]
    line = command("./mine.yaml", None, ["training.precision=fp16", "a={b: 1}", "a={c: 2}", "training.precision=bf16"])
    assert line == "hope train --preset ./mine.yaml training.precision=bf16 'a={b: 1}' 'a={c: 2}'"


def test_precisions_are_judged_by_their_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    report = probe()
    good = probes.try_precision("fp32", "cpu", report)
    assert good.usable
    assert good.gradient_error is not None
    # 24-bit mantissa, a few layers: far below the 1e-3 that decides.
    assert good.gradient_error < 1e-5
    refused = probes.try_precision("fp16", "cpu", report)
    assert not refused.usable
    assert "fp16 cannot be used on cpu" in refused.reason


def test_attention_backends_are_tried_with_a_call() -> None:
    math = probes.try_attention("math", CPU, torch.float32)
    assert math.works
    assert math.max_error is not None
    # Softmax averages of numbers near 1 in float32.
    assert math.max_error < 1e-5
    efficient = probes.try_attention("memory-efficient", CPU, torch.float32)
    assert not efficient.works  # there is no such kernel for the CPU
    assert efficient.max_error is None
    assert efficient.reason


def test_flash_attention_note_is_information() -> None:
    report = probe()
    (note,) = probes.notes(report, resolve("cpu", "auto", report))
    assert "FlashAttention" in note
    assert "same results" in note


def test_the_rollout_script_compares_three_equal_rollouts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--preset", "quickstart", "--pairs", "1", "--threads", str(torch.get_num_threads()), *TINY]
    assert bench_rollout(arguments) == 0  # outputs agree
    lines = capsys.readouterr().out.splitlines()
    assert "GFLOP/s before" in lines[1]
    assert [line.split("  ")[0] for line in lines[2:]] == ["cached", "recomputed", "recomputed, one masked call"]
    assert "/ cached 1.00" in lines[2]
