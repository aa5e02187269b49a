"""How much faster a rollout is with the key/value cache: `python tests/bench_rollout.py [--pairs N] [--threads N]`.

Times on the CPU, in turn and in one process: the rollout with its cache, the same rollout running the whole past at
each step, and that once more with one masked attention call over the past, as V-JEPA 2-AC was published. Exits 1 when
their outputs differ by more than 1e-5.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from hopecli.config.load import load_preset
from hopecli.data.clip import ClipBatch
from hopecli.engine.bench_machine import MATMUL_SIDE, matmul_rate, timed
from hopecli.engine.dry_run import random_batch
from hopecli.models.build import build_model
from hopecli.objectives.rollout import normalise, recomputed_rollout, rollout
from tests.masked_attention import one_masked_call

TOLERANCE = 1e-5  # float32 rounding over the horizon; predictions are layer-normed, so of size 1
CPU = torch.device("cpu")


def rollouts(preset: str, overrides: list[str]) -> dict[str, Callable[[], Tensor]]:
    """The three ways to roll out a preset's model [1, H, N, D], batch 1, from one context frame."""
    s = load_preset(preset, overrides).settings
    d, horizon = s.data, s.data.num_timesteps - 1
    model = build_model(s.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=0).eval()
    raw = random_batch(s, 1)
    clip = ClipBatch(normalise(raw.features), raw.actions, raw.states, raw.extrinsics, raw.names)

    def cached() -> Tensor:
        return rollout(model, clip, context_frames=1, horizon=horizon, normalize_reps=True)

    def recomputed() -> Tensor:
        return recomputed_rollout(model, clip, horizon=horizon, normalize_reps=True)

    def masked() -> Tensor:
        with one_masked_call():
            return recomputed()

    return {"cached": cached, "recomputed": recomputed, "recomputed, one masked call": masked}


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    """Print matmul rate, seconds and ratios; 0 when the outputs agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="vjepa2_ac")
    parser.add_argument("--pairs", type=int, default=5, help="rounds in which each is timed once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    calls = rollouts(asked.preset, asked.overrides)
    outputs = {name: call() for name, call in calls.items()}  # also the warm-up
    errors = {name: (output - outputs["cached"]).abs().max().item() for name, output in outputs.items()}
    before = matmul_rate(torch.float32, CPU, MATMUL_SIDE["cpu"])
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(asked.pairs):
        for name, call in calls.items():
            seconds[name].append(timed(call, CPU))
    after = matmul_rate(torch.float32, CPU, MATMUL_SIDE["cpu"])
    print(f"{asked.preset}, batch 1, {asked.threads} threads, {asked.pairs} rounds, torch {torch.__version__}")
    print(f"matmul {before / 1e9:.0f} GFLOP/s before, {after / 1e9:.0f} after")
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds["cached"], strict=True)]
        print(
            f"{name:28} {statistics.median(times):7.3f} s ({min(times):.3f} to {max(times):.3f})"
            f"  / cached {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            f"  largest difference {errors[name]:.1e}"
        )
    return 0 if max(errors.values()) <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
