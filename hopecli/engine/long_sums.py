"""Weight gradients that sum over more rows than some Apple GPUs add up right."""

from __future__ import annotations

import torch

from hopecli.config.schema import HopeSettings, Settings, ViTACSettings
from hopecli.hardware import DeviceChoice

# Matrix products of M1 and M2 GPUs over more rows may add what lies in memory behind their operands: nothing small
# shows it, and a large product only sometimes (pytorch issues 193487, 195163).
MOST_ROWS = 32_766
PLAIN_FIXED = "2.14"  # torch's own kernels since then, but for batched products, which only HOPE's gradients sum long


def long_sums_note(settings: Settings, choice: DeviceChoice, version: str = torch.__version__) -> str | None:
    """A line for the user where the weight gradients of a micro-batch would sum over more rows; None where not."""
    s, d = settings, settings.data
    plain_fixed = torch.torch_version.TorchVersion(version) >= PLAIN_FIXED
    if isinstance(s.model, HopeSettings):
        frames = 1
    elif isinstance(s.model, ViTACSettings) and not plain_fixed:
        o = s.objective
        weights = [o.loss_weight_teacher, *(phase.loss_weight_teacher for phase in o.curriculum)]
        frames = o.T_teacher if any(weights) else 1  # the parallel pass where it is learned, else a step
    else:
        return None
    per_clip = frames * (d.grid * d.grid + (3 if s.use_extrinsics else 2))
    rows = d.batch_size // s.training.accumulate * per_clip
    if choice.device != "mps" or rows <= MOST_ROWS:
        return None
    divisors = (n for n in range(1, d.batch_size + 1) if d.batch_size % n == 0)
    enough = next((n for n in divisors if d.batch_size // n * per_clip <= MOST_ROWS), None)
    return (
        f"note: M1 and M2 GPUs can add up products of more than {MOST_ROWS:,} rows wrongly; here weight gradients sum "
        f"over {rows:,}" + ("" if enough is None else f" (training.accumulate={enough} keeps below)")
    )
