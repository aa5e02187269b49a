"""What all settings sections share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, Strict, field_validator


class Section(BaseModel):
    """A frozen group of settings: unknown keys are errors and values are not coerced (true is not 1, "4" is not 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _no_nul(cls, value: Any) -> Any:
        """Paths and names end up in calls of the system, which take no NUL."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a NUL character")
        return value


Share = Annotated[float, Field(ge=0.0, le=1.0)]
# No setting comes near the upper bound; without one a slip of the keyboard overflows inside a library.
PositiveInt = Annotated[int, Field(gt=0, le=10**9)]
Count = Annotated[int, Field(ge=0, le=10**9)]
PositiveFloat = Annotated[float, Field(gt=0.0)]
Multiplier = Annotated[float, Field(gt=0.0, le=1e4)]  # of a width
Resamples = Annotated[int, Field(ge=100, le=10**6)]
NonNegativeFloat = Annotated[float, Field(ge=0.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
Betas = Annotated[tuple[Beta, Beta], Strict(False)]  # YAML has lists, not tuples
