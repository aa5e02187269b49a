"""Frame-causal attention as one masked call, as V-JEPA 2-AC was published: the reference for the call per frame.

Shapes: B clips, H heads, L queries, P keys, hd channels per head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.models import attention


def masked_attention(q: Tensor, k: Tensor, v: Tensor, *, tokens_per_frame: int) -> Tensor:
    """Attention output [B, H, L, hd] for the last L of the P tokens in k and v [B, H, P, hd]."""
    frame = torch.arange(k.shape[2], device=q.device) // tokens_per_frame  # [P]
    visible = frame[-q.shape[2] :, None] >= frame[None]  # [L, P]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)


@contextmanager
def one_masked_call() -> Iterator[None]:
    """Every ViT attends with one masked call while the block runs."""
    own = attention.frame_causal_attention
    attention.frame_causal_attention = masked_attention
    try:
        yield
    finally:
        attention.frame_causal_attention = own
