"""What the fast weights of a HOPE model do on given clips, measured in a pass of its own.

Shapes: B clips, T frames, N patches, D feature width, A action width, C tokens per frame.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from hopecli.models.hope.memory import MEMORY_NAMES, MemoryWeights
from hopecli.models.hope.predictor import HopeMemory, HopePredictor
from hopecli.models.hope.titans import FastWeights, HopeBlock
from hopecli.models.hope.update import surprise


@torch.no_grad()
def diagnostics(
    model: HopePredictor, frames: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None
) -> dict[str, float]:
    """Means over clips, teacher-forced: frames [B, T, N, D], actions, states [B, T, A], extrinsics [B, T, A-1] or None.

    `hope/block_00/eta`, `/alpha`: mean rate and retention. Per memory (k, v, eta, alpha, mem):
    `hope/block_00/mem/surprise`: mean |M(k_i) - M(v_i)| before each write, and `/change`: Frobenius norm of the
    weights' change over the T frames / norm of the initial state, W_in and W_out together.
    """
    sums: dict[str, list[Tensor]] = defaultdict(list)
    memory: HopeMemory = model.initial_state(frames.shape[0])
    for t in range(frames.shape[1]):
        rows = None if extrinsics is None else extrinsics[:, t]
        before = memory.blocks
        _, memory = model.step(frames[:, t], actions[:, t], states[:, t], rows, memory=memory, t=t)
        for i, (block, after) in enumerate(zip(model.blocks(), memory.blocks, strict=True)):
            key = f"hope/block_{i:02d}"
            sums[f"{key}/eta"].append(after.write.eta.mean())
            sums[f"{key}/alpha"].append(after.write.alpha.mean())
            mem = before[i].mem if before else block.start()[1]
            errors = torch.cat([surprise(after.others, after.write), surprise(mem, after.write)], dim=1)  # [B, 5, C]
            for name, error in zip(MEMORY_NAMES, errors.mean(dim=(0, 2)), strict=True):
                sums[f"{key}/{name}/surprise"].append(error)
    for i, (block, after) in enumerate(zip(model.blocks(), memory.blocks, strict=True)):
        for name, change in zip(MEMORY_NAMES, relative_change(block, after).mean(dim=0), strict=True):
            sums[f"hope/block_{i:02d}/{name}/change"].append(change)
    return {key: torch.stack(values).mean().item() for key, values in sums.items()}


@torch.no_grad()
def relative_change(block: HopeBlock, memory: FastWeights) -> Tensor:
    """|W - W_0| / |W_0| of every clip and memory [B, 5], Frobenius norms over W_in and W_out together."""
    start = MemoryWeights(block.memories.w_in, block.memories.w_out)
    now = memory.all()
    change = _norm(MemoryWeights(now.w_in - start.w_in, now.w_out - start.w_out))
    return change / _norm(start)


def _norm(weights: MemoryWeights) -> Tensor:
    """Frobenius norm over the last two axes of both matrices together."""
    return torch.hypot(*(torch.linalg.matrix_norm(weight) for weight in weights))
