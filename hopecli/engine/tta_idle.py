"""Adaptation settings that have no effect because of others."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hopecli.config.schema import Settings
from hopecli.engine.optim import Group

OF_UPDATES = ("optimizer", "lr", "betas", "weight_decay", "grad_clip", "backprop_through_time")
OF_CHANGES = ("optimizer", "betas", "weight_decay")  # the others still show in the gradient norms


def idle_settings(
    asked: Collection[str], settings: Settings, groups: Sequence[Group], baselines: Collection[str]
) -> dict[str, str]:
    """Those of the dotted keys `asked` that change nothing in this stream -> the setting that makes them idle.

    groups: what is adapted. baselines: those asked for.
    """
    a = settings.adaptation
    idle: dict[str, str] = {}
    causes = (
        ("adaptation.adapt=none", a.adapt == "none", (*OF_UPDATES, "steps")),
        ("adaptation.steps=0", a.steps == 0, OF_UPDATES),
        ("adaptation.lr=0", a.lr == 0.0, OF_CHANGES),
    )
    resets = ["reset_every", *(["reset_per_clip"] if a.reset_per_clip else [])]
    unchanged = resets if a.memory == "reset" else []
    for why, still, keys in causes:
        if still:
            idle = dict.fromkeys((*keys, *unchanged), why) | idle
    if a.optimizer == "sgd":
        idle.setdefault("betas", "adaptation.optimizer=sgd")
    if a.weight_decay > 0.0 and not any(group.weight_decay > 0.0 for group in groups):
        idle.setdefault("weight_decay", f"adaptation.adapt={a.adapt} has 1-D weights only, which never decay")
    if a.backprop_through_time:
        if a.mode == "sequential":
            idle.setdefault("backprop_through_time", "adaptation.mode=sequential feeds no prediction back")
        elif (a.T_rollout or settings.data.num_timesteps - a.context_frames) == 1:
            idle.setdefault("backprop_through_time", "one rollout step feeds no prediction back")
    if "periodic_reset" not in baselines:
        idle["reset_every"] = "without --baselines periodic_reset"
    if a.reset_per_clip:
        idle.setdefault("reset_every", "adaptation.reset_per_clip=true")
        if a.memory == "carry":
            idle["memory"] = "adaptation.reset_per_clip=true"
    return {key: idle[name] for key in asked if (name := key.removeprefix("adaptation.")) != key and name in idle}
