"""What `hope train` says of its settings before it begins: what does nothing, and where numbers may be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hopecli.config.load import Resolved
    from hopecli.engine.runtime import Runtime


def say_notes(resolved: Resolved, runtime: Runtime, *, resume: str | None) -> None:
    """Say it where a device may add up the weight gradients of this run wrongly, and what does nothing.

    resume: what --resume names, None for a new run.
    """
    from hopecli.config.load import COMMAND_LINE
    from hopecli.engine.long_sums import long_sums_note
    from hopecli.engine.model_notes import drop_path_note, rope_note, unlearned_frames_note
    from hopecli.engine.train_idle import idle_settings, replaced_settings
    from hopecli.report.console import say

    if not runtime.is_main:
        return
    settings, origins = resolved.settings, resolved.origins
    notes = [rope_note(settings.model), drop_path_note(settings.model), unlearned_frames_note(settings)]
    for note in (long_sums_note(settings, runtime.choice), *notes):
        if note is not None:
            say(note)
    asked = [key for key, origin in origins.items() if origin == COMMAND_LINE]
    idle = idle_settings(asked, settings)
    if resume not in (None, "last") and "logging.runs_dir" in asked:
        idle["logging.runs_dir"] = "a run goes on where it is"
    if origins["objective.curriculum"] != COMMAND_LINE:  # a preset's own value meets the phases of the one it extends
        replaced = replaced_settings(settings.objective)
        idle |= {key: why for key, why in replaced.items() if origins[key] == resolved.name}
    if idle:
        say(f"note: without effect on training: {', '.join(f'{key} ({why})' for key, why in idle.items())}")
