"""Settings of the predictors: a union tagged by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, Strict

from hopecli.config.schema.base import Multiplier, PositiveInt, Section

Rope = Literal["vjepa2", "exact"]
Multipliers = Annotated[tuple[Multiplier, ...], Strict(False), Field(min_length=1)]
Periods = Annotated[tuple[PositiveInt, ...], Strict(False), Field(min_length=1)]


class ViTACSettings(Section):
    """The V-JEPA 2-AC predictor."""

    kind: Literal["vit_ac"] = Field("vit_ac", description="V-JEPA 2-AC frame-causal ViT")
    width: PositiveInt = Field(384, description="model width")
    depth: PositiveInt = Field(24, description="number of blocks")
    num_heads: PositiveInt = Field(16, description="attention heads")
    mlp_ratio: Multiplier = Field(4.0, description="MLP hidden width / model width")
    mlp: Literal["gelu", "swiglu"] = Field("gelu", description="MLP kind")
    drop_path: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="stochastic depth of the last block; from 0 in the first"
    )
    rope: Rope = Field("vjepa2", description="3D RoPE frequency layout: as published, or exact pairs")
    use_extrinsics: bool = Field(False, description="add the extrinsics token")
    activation_checkpointing: bool = Field(False, description="recompute blocks in the backward pass to save memory")


class ConvLSTMSettings(Section):
    """The ConvLSTM baseline; states and extrinsics are not used."""

    kind: Literal["convlstm"] = Field("convlstm", description="action-conditioned ConvLSTM")
    hidden: PositiveInt = Field(256, description="hidden channels")
    kernel_size: PositiveInt = Field(3, description="gate convolution kernel, odd")


class CopyLastSettings(Section):
    """The identity baseline: the next frame is the frame given."""

    kind: Literal["copy_last"] = Field("copy_last", description="predicts the last frame again; no parameters")


class HopeSettings(Section):
    """AC-HOPE-ViT: self-modifying Titans blocks with a continuum memory (see Nested Learning, section 8)."""

    kind: Literal["hope"] = Field("hope", description="AC-HOPE-ViT")
    width: PositiveInt = Field(384, description="model width")
    depth: PositiveInt = Field(6, description="number of blocks")
    num_heads: PositiveInt = Field(16, description="heads, for RoPE only")
    memory_multiplier: Multiplier = Field(2.0, description="memory hidden width / model width")
    cms_multipliers: Multipliers = Field((4.0, 4.0, 5.0), description="hidden width / model width per CMS level")
    cms_update_periods: Periods = Field((1, 4, 16), description="optimizer steps between updates, per CMS level")
    read: Literal["after_write", "before_write"] = Field("after_write", description="read memory after or before write")
    use_rope: bool = Field(True, description="rotate keys and queries")
    rope: Rope = Field("vjepa2", description="3D RoPE frequency layout: as published, or exact pairs")
    use_extrinsics: bool = Field(False, description="add the extrinsics token")
    activation_checkpointing: bool = Field(False, description="recompute per block and frame in the backward pass")
    truncate_memory_gradient: PositiveInt | None = Field(
        None, description="cut the gradient through memory every n frames; null = never"
    )


ModelSettings = Annotated[
    ViTACSettings | ConvLSTMSettings | CopyLastSettings | HopeSettings,
    Field(discriminator="kind"),
]
