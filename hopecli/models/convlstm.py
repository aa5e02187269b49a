"""The action-conditioned ConvLSTM baseline: one convolutional LSTM cell between two 1x1 convolutions.

Shapes: B clips, N = g * g patches, D feature width, A action width, H hidden channels.
Source: Shi et al. (2015), Eq. 3 without peepholes; the prediction is a residual on the frame.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hopecli.models.protocol import PredictorModule


class LSTMState(NamedTuple):
    """Hidden and cell maps after the last frame, each [B, H, g, g]."""

    hidden: Tensor
    cell: Tensor


class ConvLSTMCell(nn.Module):
    """All four gates from one convolution; its output channels are ordered i, f, g, o."""

    def __init__(self, *, input_dim: int, hidden: int, kernel_size: int):
        super().__init__()
        self.conv_gates = nn.Conv2d(input_dim + hidden, 4 * hidden, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor, state: LSTMState) -> LSTMState:
        """x [B, input_dim, g, g] and the previous state -> the next state."""
        gates = self.conv_gates(torch.cat([x, state.hidden], dim=1))  # [B, 4H, g, g]
        i, f, g, o = gates.chunk(4, dim=1)  # input gate, forget gate, candidate cell, output gate
        cell = f.sigmoid() * state.cell + i.sigmoid() * g.tanh()
        return LSTMState(o.sigmoid() * cell.tanh(), cell)


class ConvLSTM(PredictorModule):
    """z_t + decoder(h_t); states and extrinsics are not used. `kernel_size` must be odd, so that maps keep their size.

    At initialisation the decoder is zero: the model starts as copy_last.
    """

    carries_memory = True

    def __init__(self, *, embed_dim: int, action_dim: int, grid: int, hidden: int, kernel_size: int):
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size {kernel_size} is even")
        super().__init__(embed_dim=embed_dim, action_dim=action_dim, grid=grid)
        self.hidden = hidden
        self.encoder = nn.Conv2d(embed_dim, hidden, 1)
        self.conv_lstm = ConvLSTMCell(input_dim=hidden + action_dim, hidden=hidden, kernel_size=kernel_size)
        self.decoder = nn.Conv2d(hidden, embed_dim, 1)
        nn.init.zeros_(self.decoder.weight)
        assert self.decoder.bias is not None
        nn.init.zeros_(self.decoder.bias)

    def initial_state(self, batch_size: int) -> LSTMState:
        """Zero maps in the parameters' dtype and device."""
        zeros = self.encoder.weight.new_zeros(batch_size, self.hidden, self.grid, self.grid)
        return LSTMState(zeros, zeros)

    def step(
        self,
        frame: Tensor,
        action: Tensor,
        state_vec: Tensor,
        extrinsics: Tensor | None,
        *,
        memory: LSTMState,
        t: int,
    ) -> tuple[Tensor, LSTMState]:
        """See `Predictor.step`."""
        maps = frame.mT.unflatten(-1, (self.grid, self.grid))  # [B, D, g, g]
        tiled = action[:, :, None, None].expand(-1, -1, self.grid, self.grid)  # [B, A, g, g]
        memory = self.conv_lstm(torch.cat([self.encoder(maps), tiled.to(maps.dtype)], dim=1), memory)
        return frame + self.decoder(memory.hidden).flatten(2).mT, memory
