"""Training settings that have no effect because of others."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hopecli.config.schema import CopyLastSettings, HopeSettings, ObjectiveSettings, Settings
from hopecli.objectives.schedules import CHANGEABLE

OF_LEARNING = ("optimizer.", "schedule.", "objective.", "training.epochs", "training.accumulate")
# What a model without parameters uses of these: what it is evaluated by, and what is said of other models elsewhere.
_USED = (
    "objective.normalize_reps",
    "objective.context_frames",
    "objective.T_",
    "optimizer.titan_lr_scale",
    "optimizer.cms_lr_scale",
    "optimizer.memory_weight_decay",
)


def replaced_settings(objective: ObjectiveSettings) -> dict[str, str]:
    """Dotted keys of the objective whose value the curriculum replaces from the first epoch on -> by what."""
    first = next((phase for phase in objective.curriculum if phase.epoch == 0), None)
    if first is None:
        return {}
    changes = {key: getattr(first, key) for key in CHANGEABLE}
    ways = dict.fromkeys(CHANGEABLE, "change it, or drop it with objective.curriculum=[]")
    ways["context_frames"] = "validation and hope eval use it"
    return {
        f"objective.{key}": f"objective.curriculum begins with {key}: {value:g}; {ways[key]}"
        for key, value in changes.items()
        if value is not None and value != getattr(objective, key)
    }


def idle_settings(asked: Collection[str], settings: Settings) -> dict[str, str]:
    """Those of the dotted keys `asked` that change nothing in this training run -> the setting that makes them idle."""
    idle = dict(_idle(settings))
    if isinstance(settings.model, CopyLastSettings):
        why = "a copy_last model has no parameters to train"
        idle |= {key: why for key in asked if key.startswith(OF_LEARNING) and not key.startswith(_USED)}
    else:
        idle |= replaced_settings(settings.objective)
    return {key: idle[key] for key in asked if key in idle}


def _idle(s: Settings) -> Iterator[tuple[str, str]]:
    if s.schedule.warmup_pct == 0.0:
        yield "schedule.warmup_start_lr", "schedule.warmup_pct=0"
    if s.schedule.decay_pct == 0.0:
        yield "schedule.final_lr", "schedule.decay_pct=0: the learning rate stays at its peak"
    if s.data.action_alignment != "per_timestep":
        yield "data.action_reduce", f"data.action_alignment={s.data.action_alignment}"
    if s.data.on_error == "error":
        yield "data.max_skipped", "data.on_error=error"
    if s.training.save_every == 0:
        yield "training.keep_last", "training.save_every=0"
    if isinstance(s.model, HopeSettings) and not s.model.use_rope:
        for key in ("model.rope", "model.num_heads"):
            yield key, "model.use_rope=false"
