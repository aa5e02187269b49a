"""Settings of the loss, its curriculum, the optimizer and the learning-rate schedule."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Strict

from hopecli.config.schema.base import Betas, Count, NonNegativeFloat, PositiveFloat, PositiveInt, Section, Share


class CurriculumPhase(Section):
    """From `epoch` on the keys named hold; null keeps the value of the phase before."""

    epoch: Count = Field(description="first epoch of the phase, from 0")
    loss_weight_teacher: NonNegativeFloat | None = Field(None, description="weight of the teacher-forced loss")
    loss_weight_rollout: NonNegativeFloat | None = Field(None, description="weight of the rollout loss")
    T_rollout: PositiveInt | None = Field(None, description="autoregressive steps")
    context_frames: PositiveInt | None = Field(None, description="true frames before the rollout")


class ObjectiveSettings(Section):
    """The V-JEPA 2-AC losses."""

    normalize_reps: bool = Field(True, description="LayerNorm features and predictions (eps 1e-5, no gain)")
    loss_exp: PositiveFloat = Field(1.0, description="exponent p of mean(|x|^p)/p; 1 is L1")
    loss_weight_teacher: NonNegativeFloat = Field(1.0, description="weight of the teacher-forced loss")
    loss_weight_rollout: NonNegativeFloat = Field(1.0, description="weight of the rollout loss")
    T_teacher: PositiveInt = Field(7, description="frames in the teacher-forced pass")
    T_rollout: PositiveInt = Field(7, description="autoregressive steps")
    context_frames: PositiveInt = Field(1, description="true frames before the rollout")
    curriculum: Annotated[tuple[CurriculumPhase, ...], Strict(False)] = Field(
        (), description="changes of weights, T_rollout or context_frames from an epoch on"
    )


class OptimizerSettings(Section):
    """AdamW; no weight decay on biases, norms and 1-D parameters."""

    lr: NonNegativeFloat = Field(1.0e-4, description="peak learning rate")
    weight_decay: NonNegativeFloat = Field(0.05, description="decoupled weight decay of matrices")
    betas: Betas = Field((0.9, 0.999), description="AdamW betas")
    eps: Annotated[float, Field(ge=1e-30)] = Field(1.0e-8, description="AdamW epsilon")
    grad_clip: PositiveFloat | None = Field(1.0, description="global gradient norm limit; null = no clipping")
    titan_lr_scale: NonNegativeFloat = Field(1.0, description="lr factor of HOPE memories")
    cms_lr_scale: NonNegativeFloat = Field(1.0, description="lr factor of CMS levels")
    memory_weight_decay: NonNegativeFloat = Field(0.0, description="weight decay of HOPE memories")


class ScheduleSettings(Section):
    """Warmup-stable-decay over all global steps; the three shares sum to 1."""

    warmup_start_lr: NonNegativeFloat = Field(0.0, description="learning rate at step 0")
    final_lr: NonNegativeFloat = Field(0.0, description="learning rate at the end")
    warmup_pct: Share = Field(0.1, description="share of steps warming up")
    constant_pct: Share = Field(0.8, description="share of steps at the peak")
    decay_pct: Share = Field(0.1, description="share of steps decaying")
