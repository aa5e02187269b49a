"""The initialisation that V-JEPA 2-AC was published with, checked for one parameter."""

from __future__ import annotations

import pytest
from torch import Tensor


def check_initial(name: str, p: Tensor, *, std: float = 0.02) -> None:
    """Norms are the identity, biases zero but for those of the encoders; of weights, at least 8,064, `std` is known."""
    if "norm" in name:
        assert p.eq(float(name.endswith("weight"))).all(), name
    elif name.endswith("encoder.bias"):
        # 128 draws: the standard error of a std is 6 %, four of them
        assert p.std().item() == pytest.approx(0.02, rel=0.25), name
    elif name.endswith("bias"):
        assert not p.any(), name
    else:
        # at least 8,064 draws: standard error 0.8 %, five of them
        assert p.std().item() == pytest.approx(std, rel=0.04), name
