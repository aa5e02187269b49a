"""A predictor small enough to compute by hand: next frame = scale * frame + first action value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch


class Seen(NamedTuple):
    """What the walk has passed to `step` so far."""

    times: tuple[int, ...] = ()
    inputs: tuple[Tensor, ...] = ()


class Adder:
    """Satisfies the predictor protocol; its memory records every step it was asked for."""

    def __init__(self, scale: float = 1.0):
        self.scale = torch.tensor(scale, dtype=torch.float64, requires_grad=True)

    def initial_state(self, batch_size: int) -> Seen:
        return Seen()

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: Seen, t: int
    ) -> tuple[Tensor, Seen]:
        out = self.scale * frame + action[:, :1, None]
        return out, Seen((*memory.times, t), (*memory.inputs, frame))

    def __call__(self, features: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None) -> Tensor:
        return self.scale * features + actions[:, :, :1, None]


def number_clip(values: list[float], actions: list[float]) -> ClipBatch:
    """One clip of one patch of width 1, so that a frame is a number."""
    features = torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1)
    rows = torch.tensor(actions, dtype=torch.float64).reshape(1, -1, 1)
    return ClipBatch(features, rows, torch.zeros_like(rows), None, ("clip_00000",))
