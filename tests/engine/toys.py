"""Models whose predictions are known by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from hopecli.models.protocol import PredictorModule


class ActionAsFrame(PredictorModule):
    """Predicts a frame filled with the sum of the actions so far."""

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size)

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        memory = memory + action.sum(dim=-1)
        return memory[:, None, None].expand_as(frame), memory


class ModeRecorder(ActionAsFrame):
    """Notes at every step whether it is in training mode, where stochastic depth would drop blocks, and whether a graph
    is built, whose memory would grow with the horizon."""

    def __init__(self, *, embed_dim: int, action_dim: int, grid: int):
        super().__init__(embed_dim=embed_dim, action_dim=action_dim, grid=grid)
        self.modes: list[bool] = []
        self.graphs: list[bool] = []

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        self.modes.append(self.training)
        self.graphs.append(torch.is_grad_enabled())
        return super().step(frame, action, state_vec, extrinsics, memory=memory, t=t)
