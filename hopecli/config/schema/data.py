"""Settings of the clips: where they are, their sizes, how actions align, which ones train and which validate."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hopecli.config.schema.base import Count, PositiveInt, Section

ActionAlignment = Literal["impulse", "per_timestep", "as_is"]
Domain = Literal["base", "scaling", "ice", "walls", "rotation", "compositional"]

MOST_CLIPS, GRIDS, WIDTHS = 100_000, (2, 64), (4, 16_384)  # of built-in clips


class PhysicsSettings(Section):
    """The built-in clips of `data.source: physics`; grid and width come from data.grid and data.embed_dim."""

    clips: Annotated[int, Field(ge=2, le=MOST_CLIPS)] = Field(2048, description="number of clips to make")
    domain: Domain = Field("base", description="base, scaling, ice, walls, rotation or compositional")
    seed: Count = Field(0, description="seed of the simulated scenes")
    dtype: Literal["float16", "float32"] = Field("float16", description="stored feature dtype")


class DataSettings(Section):
    """Clips of precomputed features with actions."""

    source: Literal["folder", "physics"] = Field("folder", description="clips on disk, or the built-in simulation")
    data_dir: str | None = Field(None, description="folder of clip_NNNNN folders; --data-dir or HOPE_DATA_DIR set it")
    physics: PhysicsSettings = Field(PhysicsSettings(), description="the built-in clips, for source: physics")
    feature_map: str = Field("vjepa2_vitl16", min_length=1, description="feature file name without .npy")
    num_timesteps: Annotated[int, Field(ge=2, le=10**9)] = Field(
        8, description="encoded frames used per clip (2 original each)"
    )
    grid: PositiveInt = Field(16, description="patches per side; a frame has grid * grid patches")
    embed_dim: Annotated[int, Field(ge=2, le=10**9)] = Field(1024, description="feature width D")
    action_dim: PositiveInt = Field(7, description="action width A (states have the same width)")
    action_alignment: ActionAlignment = Field("impulse", description="how action rows become transitions")
    action_reduce: Literal["last", "mean", "sum"] = Field("last", description="rows of a tubelet, for per_timestep")
    clip_start: Count | None = Field(None, description="first clip id, inclusive; null = no lower bound")
    clip_end: Count | None = Field(None, description="last clip id, exclusive; null = no upper bound")
    val_split: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.1, description="last share of clip ids held out")
    on_short: Literal["error", "skip"] = Field("error", description="clips with fewer than num_timesteps frames")
    on_error: Literal["error", "skip"] = Field("error", description="clips that cannot be read or do not fit")
    max_skipped: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.01, description="share of clips that may be skipped")
    batch_size: PositiveInt = Field(32, description="global batch size: clips per optimizer step, over all processes")
    workers: Count = Field(8, description="loader processes; at most the cores that the process may use")
