"""Whether a training run's checkpoints fit on its disk: asked before the work, not at its first save."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hopecli.errors import CheckpointError, nearest_existing

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.models.protocol import PredictorModule

_MOMENTS = 2 * 4  # bytes per trained number: AdamW's two averages, float32
_SUM = 4  # and where it waits for its group's turn, the gradients since the last one


def require_space(folder: Path, settings: Settings, model: PredictorModule, *, new: bool) -> str | None:
    """A line for the user when the checkpoints of a new run may not all fit on the disk of `folder`.

    CheckpointError when not even one does: the first save would fail, and the steps before it be lost.
    """
    from hopecli.engine.optim import waiting_parameters
    from hopecli.report.survey import size

    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    one = weights + _MOMENTS * sum(p.numel() for p in model.parameters() if p.requires_grad)
    one += _SUM * sum(p.numel() for p in waiting_parameters(model, settings.optimizer, settings.model))
    try:
        disk = shutil.disk_usage(nearest_existing(folder))
    except OSError:  # whoever writes there says so
        return None
    if not disk.total:  # some network disks do not say
        return None
    if one > disk.free:
        what = f"a checkpoint needs {size(one)}, but the disk has {size(disk.free)} free"
        elsewhere = ", or choose another folder with HOPE_RUNS_DIR or logging.runs_dir" if new else ""
        raise CheckpointError(what, where=str(folder), fix=f"free disk space{elsewhere}")
    kept = _kept(settings)
    if not new or (kept + 1) * one <= disk.free:  # a new one is whole before the oldest is deleted
        return None
    many = f"the run's checkpoints ({kept} kept) need {size((kept + 1) * one)}, and the disk has {size(disk.free)} free"
    return f"note: {many}: free disk space, or lower training.keep_last"


def _kept(settings: Settings) -> int:
    """How many checkpoints the end of a run finds: `last` is the newest of those kept, or alone."""
    t = settings.training
    written = -(-t.epochs // t.save_every) if t.save_every else 1
    return written if t.keep_last is None else min(written, t.keep_last)
