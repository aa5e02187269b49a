"""Sizes of a model, and lengths of a run, with which a part of the model or of the clips does nothing."""

from __future__ import annotations

from hopecli.config.schema import CopyLastSettings, HopeSettings, ModelSettings, Settings, ViTACSettings
from hopecli.engine.idle_parameters import learned_frames
from hopecli.engine.train_step import phases_of
from hopecli.models.rope import part_width


def rope_note(model: ModelSettings) -> str | None:
    """A line for the user where heads are too narrow for 3D RoPE, or for its two layouts to differ; else None."""
    if not (isinstance(model, ViTACSettings) or (isinstance(model, HopeSettings) and model.use_rope)):
        return None
    channels = model.width // model.num_heads
    heads = f"heads of {channels} channels (model.width / model.num_heads)"
    if part_width(channels) == 0:
        lost = ": the model knows no positions" if isinstance(model, ViTACSettings) else ""
        return f"note: 3D RoPE turns nothing in {heads}, it needs 6{lost}"
    if model.rope == "exact" and part_width(channels) == 2:
        return f"note: in {heads} model.rope=exact is the same as vjepa2; they differ from 12 channels on"
    return None


def drop_path_note(model: ModelSettings) -> str | None:
    """A line for the user where stochastic depth is asked of a model whose only block is the first; else None."""
    if isinstance(model, ViTACSettings) and model.drop_path > 0.0 and model.depth == 1:
        return "note: model.drop_path does nothing with model.depth=1: it is 0 in the first block"
    return None


def still_levels_note(model: ModelSettings, total_steps: int) -> str | None:
    """A line for the user where a run ends before a level of HOPE's continuum memory has taken a step; else None."""
    if not isinstance(model, HopeSettings):
        return None
    still = [period for period in model.cms_update_periods if period > total_steps]
    if not still:
        return None
    return (
        f"note: CMS levels of model.cms_update_periods {', '.join(map(str, still))} take no step in a run of "
        f"{total_steps}: they keep their initial weights"
    )


def length_notes(settings: Settings, total_steps: int | None) -> list[str]:
    """Lines for the user where a run ends before something that was asked for; total_steps None: not known."""
    epochs, every = settings.training.epochs, settings.logging.diagnostics_every
    still = None if total_steps is None else still_levels_note(settings.model, total_steps)
    notes = [] if still is None else [still]
    late = [phase.epoch for phase in settings.objective.curriculum if phase.epoch >= epochs]
    if late and not isinstance(settings.model, CopyLastSettings):
        notes.append(f"note: training.epochs={epochs} ends before the curriculum's phase of epoch {late[0]}")
    if total_steps is not None and every > total_steps:
        notes.append(f"note: logging.diagnostics_every={every}: a run of {total_steps} steps has no diagnostics")
    return notes


def unlearned_frames_note(settings: Settings) -> str | None:
    """A line for the user where clips are read with more frames than any phase of the objective learns from; else None.

    Validation and evaluation roll out over all of them.
    """
    o, frames = settings.objective, settings.data.num_timesteps
    phases = [phase for _, phase in phases_of(settings)]
    learned = 2 + max(max(learned_frames(phase, o.T_teacher)) for phase in phases)  # it is predicted from, and target
    if learned >= frames:
        return None
    horizon = frames - max(o.context_frames, *(phase.context_frames for phase in phases))
    steps = f"objective.T_rollout={horizon}"
    if any(phase.T_rollout != o.T_rollout for phase in phases):
        steps = f"T_rollout={horizon} in objective.curriculum"
    return (
        f"note: clips are read with {frames} frames, of which training learns from the first {learned} only: to learn "
        f"from all set objective.T_teacher={frames - 1} and {steps}"
    )
