"""copy_last: the next frame is the frame given. A model kind without parameters, evaluated like any other.

Shapes: B clips, N patches, D feature width.
"""

from __future__ import annotations

from torch import Tensor

from hopecli.models.protocol import PredictorModule


class CopyLast(PredictorModule):
    """Predicts the frame it is given; in a rollout that is the last known true frame at every step."""

    carries_memory = False

    def initial_state(self, batch_size: int) -> None:
        """There is nothing to remember."""
        return None

    def step(
        self, frame: Tensor, action: Tensor, state_vec: Tensor, extrinsics: Tensor | None, *, memory: None, t: int
    ) -> tuple[Tensor, None]:
        """See `Predictor.step`."""
        return frame.clone(), None  # like any predictor's, a tensor of its own
