"""Which settings give some parameters no gradient in a step: DistributedDataParallel has to be told."""

from __future__ import annotations

from hopecli.config.schema import HopeSettings, Settings
from hopecli.engine.train_step import phases_of
from hopecli.objectives.schedules import ObjectivePhase


def leaves_parameters_idle(settings: Settings) -> bool:
    """Whether training goes through a phase in which no loss reaches a memory's initial state, or what writes a memory,
    of HOPE.

    A cut gradient (truncate_memory_gradient) reaches the initial state only from the first frames, and with
    `read: before_write` what a frame has written is read by later frames only.
    """
    model, teacher = settings.model, settings.objective.T_teacher
    if not isinstance(model, HopeSettings):
        return False
    return any(_idle(model, learned_frames(phase, teacher)) for _, phase in phases_of(settings))


def learned_frames(phase: ObjectivePhase, teacher: int) -> set[int]:
    """The frames (from 0) from whose predictions of the next frame a phase learns, in either of its passes; teacher:
    frames in the teacher-forced one."""
    frames = set(range(teacher)) if phase.loss_weight_teacher > 0 else set()
    if phase.loss_weight_rollout > 0:
        frames |= {phase.context_frames - 1 + step for step in range(phase.T_rollout)}
    return frames


def _idle(model: HopeSettings, learned: set[int]) -> bool:
    uncut = model.truncate_memory_gradient or max(learned) + 1  # frames that a gradient through the memory spans
    starts = min(learned) < uncut
    writes = model.read == "after_write" or any(frame % uncut for frame in learned)
    return not (starts and writes)
