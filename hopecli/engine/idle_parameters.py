"""Which settings give some parameters no gradient in a step: DistributedDataParallel has to be told."""

from __future__ import annotations

from hopecli.config.schema import HopeSettings, ModelSettings, ObjectiveSettings
from hopecli.engine.train_step import initial_phase
from hopecli.objectives.schedules import ObjectivePhase, phase_at


def leaves_parameters_idle(model: ModelSettings, objective: ObjectiveSettings) -> bool:
    """Whether there is a phase in which no loss reaches a memory's initial state, or what writes a memory, of HOPE.

    A cut gradient (truncate_memory_gradient) reaches the initial state only from the first frames, and with
    `read: before_write` what a frame has written is read by later frames only.
    """
    if not isinstance(model, HopeSettings):
        return False
    return any(_idle(model, learned) for learned in learned_frames(objective))


def learned_frames(objective: ObjectiveSettings) -> list[set[int]]:
    """Per phase the frames (from 0) from whose predictions of the next frame it learns, in either of its passes."""
    start = initial_phase(objective)
    phases = [start, *(phase_at(change.epoch, start, objective.curriculum) for change in objective.curriculum)]
    return [_learned(phase, objective.T_teacher) for phase in phases]


def _learned(phase: ObjectivePhase, teacher: int) -> set[int]:
    frames = set(range(teacher)) if phase.loss_weight_teacher > 0 else set()
    if phase.loss_weight_rollout > 0:
        frames |= {phase.context_frames - 1 + step for step in range(phase.T_rollout)}
    return frames


def _idle(model: HopeSettings, learned: set[int]) -> bool:
    uncut = model.truncate_memory_gradient or max(learned) + 1  # frames that a gradient through the memory spans
    starts = min(learned) < uncut
    writes = model.read == "after_write" or any(frame % uncut for frame in learned)
    return not (starts and writes)
