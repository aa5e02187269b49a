"""Settings of a run: training loop, evaluation, test-time adaptation and logging."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hopecli.config.schema.base import Betas, Count, NonNegativeFloat, PositiveFloat, PositiveInt, Resamples, Section

Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
ADAPT_GROUPS = ("layernorm", "attn_proj", "bias", "mlp_out")


class TrainingSettings(Section):
    """The training loop."""

    epochs: PositiveInt = Field(10, description="passes over the training clips")
    accumulate: PositiveInt = Field(1, description="micro-batches a process's share of a global batch is split into")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        42, description="seed of initialisation, order and stochastic depth"
    )
    device: Device = Field("auto", description="auto, cuda, mps or cpu")
    precision: Precision = Field("auto", description="auto, fp32, bf16 or fp16")
    cpu_threads: PositiveInt | None = Field(
        None, description="threads on a CPU, at most; null = every core, or OMP_NUM_THREADS"
    )
    evaluate_every: Count = Field(1, description="epochs between validations; 0 = only at the end")
    save_every: Count = Field(1, description="epochs between kept checkpoints; 0 = only `last`")
    save_minutes: PositiveFloat | None = Field(30.0, description="time after which `last` is saved within an epoch")
    keep_last: PositiveInt | None = Field(3, description="kept epoch checkpoints; null = all")


class EvaluationSettings(Section):
    """What `hope eval` measures; clips come in id order, never shuffled."""

    batch_size: PositiveInt = Field(32, description="clips per forward pass")
    precision: Precision = Field("fp32", description="precision of the forward pass")
    context_frames: PositiveInt | None = Field(
        None, description="true frames before the rollout; null = objective.context_frames"
    )
    T_rollout: PositiveInt | None = Field(
        None, description="rollout steps; null = as many as data.num_timesteps leaves"
    )
    clips: Literal["auto", "held_out", "all"] = Field(
        "auto", description="auto = the held-out part of the training folder, all clips of any other"
    )
    bootstrap_samples: Resamples = Field(2000, description="resamples for the 95 % intervals")
    seed: Count = Field(0, description="seed of the shuffled-action row and of the bootstrap")
    num_worst_clips: Count = Field(0, description="sort per_clip.csv worst first and list this many")


class AdaptationSettings(Section):
    """What `hope tta` does, one clip at a time."""

    mode: Literal["full_rollout", "sequential"] = Field("full_rollout", description="adapt on the rollout or per frame")
    adapt: str = Field("layernorm", description="none, or groups joined by +: layernorm, attn_proj, bias, mlp_out")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adamw", description="optimizer of the adapted weights")
    lr: NonNegativeFloat = Field(5.0e-4, description="learning rate")
    betas: Betas = Field((0.9, 0.999), description="Adam betas")
    weight_decay: NonNegativeFloat = Field(0.0, description="weight decay")
    steps: Count = Field(5, description="gradient steps per clip (full_rollout) or per frame (sequential)")
    grad_clip: PositiveFloat | None = Field(5.0, description="gradient norm limit; null = no clipping")
    reset_per_clip: bool = Field(False, description="restore weights, optimizer and memory before each clip")
    backprop_through_time: bool = Field(False, description="let gradients flow through fed-back predictions")
    memory: Literal["reset", "carry"] = Field("reset", description="keep HOPE or ConvLSTM memory from clip to clip")
    context_frames: PositiveInt = Field(1, description="true frames before the rollout")
    T_rollout: PositiveInt | None = Field(
        None, description="rollout steps; null = as many as data.num_timesteps leaves"
    )
    precision: Precision = Field("fp32", description="precision of the passes")
    order_seed: Count | None = Field(
        None, description="seed of the stream's order; null = clip id order (with orders above 1: 0)"
    )
    orders: PositiveInt = Field(1, description="how many seeded orders to repeat the stream in")
    reset_every: PositiveInt = Field(100, description="clips between resets of the periodic_reset baseline")
    seed: Count = Field(0, description="seed of the bootstrap")
    source_every: Count = Field(0, description="clips between source-loss measurements; 0 = before and after only")
    save_every: Count = Field(50, description="clips between writes of the state for --resume; 0 = only where it stops")
    source_clips: PositiveInt = Field(64, description="source clips used for forgetting")
    bootstrap_samples: Resamples = Field(2000, description="resamples for the 95 % intervals")


class LoggingSettings(Section):
    """Records and mirrors."""

    runs_dir: str | None = Field(None, description="where runs are written; null = HOPE_RUNS_DIR or ./runs")
    log_every: PositiveInt = Field(10, description="steps between reads of the losses from the device")
    diagnostics_every: Count = Field(0, description="steps between memory diagnostics of HOPE; 0 = off")
    wandb: Literal["auto", "online", "offline", "disabled"] = Field("auto", description="auto = online only with a key")
    wandb_project: str | None = Field(None, description="null = WANDB_PROJECT or hopecli")
    wandb_entity: str | None = Field(None, description="null = WANDB_ENTITY")
