"""How clips become numbers: the settings that results name, so that only what was read alike is compared."""

from __future__ import annotations

from typing import Any

from hopecli.config.schema import Settings

READING = (
    "feature_map",
    "num_timesteps",
    "grid",
    "embed_dim",
    "action_dim",
    "action_alignment",
    "action_reduce",
)


def reading(settings: Settings) -> dict[str, Any]:
    """The data settings that decide what numbers a clip becomes, wherever it lies; for built-in clips also those that
    they are made by."""
    made = {"physics"} if settings.data.source == "physics" else set()
    return settings.data.model_dump(mode="json", include={*READING, *made})


def unscored(section: str, *, frames: int, context: int, horizon: int) -> str | None:
    """A line for the user when more frames are read than `section` (evaluation, adaptation) uses; None otherwise."""
    used, key = context + horizon, f"{section}.T_rollout"
    if used >= frames:
        return None
    return (
        f"note: clips are read with {frames} frames, of which only the first {used} are used: {key}={horizon} "
        f"({key}=null scores all)"
    )
