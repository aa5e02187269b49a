"""Rules between settings, beyond each field's own bounds. All are reported together with the field errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from hopecli.config.mistakes import Problem
from hopecli.config.schema import ConvLSTMSettings, HopeSettings, ModelSettings, Settings, ViTACSettings
from hopecli.config.schema.data import GRIDS, WIDTHS
from hopecli.config.schema.running import ADAPT_GROUPS


def cross_checks(s: Settings) -> Iterator[Problem]:
    """Every broken rule between fields of otherwise valid settings."""
    yield from _data(s)
    yield from _model(s)
    yield from _objective(s)
    shares = (s.schedule.warmup_pct, s.schedule.constant_pct, s.schedule.decay_pct)
    if not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        yield Problem(
            "schedule.warmup_pct",
            " + ".join(str(x) for x in shares),
            f"warmup_pct + constant_pct + decay_pct must sum to 1, not {sum(shares):g}",
            of=("schedule.constant_pct", "schedule.decay_pct"),
        )
    if s.data.batch_size % s.training.accumulate:
        message = f"must divide data.batch_size = {s.data.batch_size}"
        yield Problem("training.accumulate", s.training.accumulate, message, of=("data.batch_size",))
    yield from _windows(s)
    asked = s.adaptation.adapt.split("+")
    if asked != ["none"] and not set(asked) <= set(ADAPT_GROUPS):
        yield Problem(
            "adaptation.adapt",
            s.adaptation.adapt,
            f"must be none, or one or more of {', '.join(ADAPT_GROUPS)} joined by +",
        )


def _data(s: Settings) -> Iterator[Problem]:
    d = s.data
    if d.clip_start is not None and d.clip_end is not None and d.clip_start >= d.clip_end:
        message = f"must be above clip_start = {d.clip_start} (it is exclusive)"
        yield Problem("data.clip_end", d.clip_end, message, of=("data.clip_start",))
    if d.data_dir == "":  # no min_length: with one, pydantic takes no path that is not UTF-8
        yield Problem("data.data_dir", "", "is empty; null = none")
    elif d.data_dir is not None and d.source == "physics":
        message = "source: physics makes its own clips; use source: folder"
        yield Problem("data.data_dir", d.data_dir, message, of=("data.source",))
    if d.source == "physics":
        of = ("data.source",)
        if d.action_dim != 2:
            yield Problem("data.action_dim", d.action_dim, "must be 2 for source: physics (a 2D push)", of)
        if d.action_alignment != "impulse":
            yield Problem("data.action_alignment", d.action_alignment, "must be impulse for source: physics", of)
        if d.num_timesteps > 8:
            message = "must be at most 8 for source: physics (16 frames)"
            yield Problem("data.num_timesteps", d.num_timesteps, message, of)
        for key, value, (least, most) in (("data.grid", d.grid, GRIDS), ("data.embed_dim", d.embed_dim, WIDTHS)):
            if not least <= value <= most:
                limit = f"at least {least}" if value < least else f"at most {most}"
                yield Problem(key, value, f"must be {limit} for source: physics", of)
        if d.feature_map != "vjepa2_vitl16":
            yield Problem("data.feature_map", d.feature_map, "must be vjepa2_vitl16 for source: physics", of)


def _model(s: Settings) -> Iterator[Problem]:
    m = s.model
    if isinstance(m, ViTACSettings | HopeSettings):
        if m.width % m.num_heads:
            message = f"must be a multiple of num_heads = {m.num_heads}"
            yield Problem("model.width", m.width, message, of=("model.num_heads",))
        if m.use_extrinsics and s.data.source == "physics":
            message = "the clips of data.source: physics have no extrinsics"
            yield Problem("model.use_extrinsics", True, message, of=("data.source",))
        if m.use_extrinsics and s.data.action_dim < 2:
            message = "extrinsics have action_dim - 1 values, so action_dim >= 2"
            yield Problem("model.use_extrinsics", True, message, of=("data.action_dim",))
    yield from _hidden_widths(m)
    if isinstance(m, HopeSettings) and len(m.cms_multipliers) != len(m.cms_update_periods):
        yield Problem(
            "model.cms_update_periods",
            list(m.cms_update_periods),
            f"needs one period per CMS level: {len(m.cms_multipliers)} as in cms_multipliers",
            of=("model.cms_multipliers",),
        )
    if s.logging.diagnostics_every and not isinstance(m, HopeSettings):
        message = "only model.kind hope has diagnostics"
        yield Problem("logging.diagnostics_every", s.logging.diagnostics_every, message, of=("model.kind",))
    if isinstance(m, ConvLSTMSettings) and m.kernel_size % 2 == 0:
        yield Problem("model.kernel_size", m.kernel_size, "must be odd, so that the grid keeps its size")


def _hidden_widths(m: ModelSettings) -> Iterator[Problem]:
    """A hidden layer has at least one unit; its width is truncated, and SwiGLU cuts it to 2/3."""
    least = 2 if isinstance(m, ViTACSettings) and m.mlp == "swiglu" else 1
    if isinstance(m, ViTACSettings):
        ratios = {"mlp_ratio": [m.mlp_ratio]}
    elif isinstance(m, HopeSettings):
        ratios = {"memory_multiplier": [m.memory_multiplier], "cms_multipliers": list(m.cms_multipliers)}
    else:
        return
    for key, values in ratios.items():
        if any(int(value * m.width) < least for value in values):
            message = f"leaves a hidden layer without a unit: at least {least} / width = {least} / {m.width}"
            yield Problem(
                f"model.{key}", values if key == "cms_multipliers" else values[0], message, of=("model.width",)
            )


def _objective(s: Settings) -> Iterator[Problem]:
    o, frames = s.objective, s.data.num_timesteps
    if o.T_teacher > frames - 1:
        message = f"must be at most data.num_timesteps - 1 = {frames - 1}"
        yield Problem("objective.T_teacher", o.T_teacher, message, of=("data.num_timesteps",))
    epochs = [phase.epoch for phase in o.curriculum]
    if any(a >= b for a, b in itertools.pairwise(epochs)):
        yield Problem("objective.curriculum", epochs, "epochs must ascend", of=("objective.curriculum[].epoch",))
    horizon, context = o.T_rollout, o.context_frames
    lengths = ("objective.T_rollout", "objective.context_frames")
    weights = ("objective.loss_weight_teacher", "objective.loss_weight_rollout")
    idle = "both loss weights are 0: nothing would be learned"
    teacher, rollout = o.loss_weight_teacher, o.loss_weight_rollout
    if horizon + context > frames:
        yield _window("objective.T_rollout", horizon, context, frames, of=lengths)
    first = next((phase for phase in o.curriculum if phase.epoch == 0), None)
    replaced = first is not None and (first.loss_weight_teacher, first.loss_weight_rollout) != (None, None)
    if teacher + rollout == 0.0 and not replaced:
        yield Problem("objective.loss_weight_rollout", 0.0, idle, of=weights)
    for i, phase in enumerate(o.curriculum):
        before = horizon + context
        horizon = phase.T_rollout if phase.T_rollout is not None else horizon
        context = phase.context_frames if phase.context_frames is not None else context
        teacher = phase.loss_weight_teacher if phase.loss_weight_teacher is not None else teacher
        rollout = phase.loss_weight_rollout if phase.loss_weight_rollout is not None else rollout
        key = f"objective.curriculum[{i}]"
        if horizon + context > frames and horizon + context != before:
            name = "context_frames" if phase.T_rollout is None else "T_rollout"
            yield _window(f"{key}.{name}", horizon, context, frames, of=(*lengths, *map(_phases, lengths)))
        if teacher + rollout == 0.0:
            name = "loss_weight_teacher" if phase.loss_weight_rollout is None else "loss_weight_rollout"
            yield Problem(f"{key}.{name}", 0.0, idle, of=(*weights, *map(_phases, weights)))


def _windows(s: Settings) -> Iterator[Problem]:
    frames = s.data.num_timesteps
    e, a = s.evaluation, s.adaptation
    context = e.context_frames if e.context_frames is not None else s.objective.context_frames
    if e.T_rollout is not None and e.T_rollout + context > frames:
        contexts = ("evaluation.context_frames", "objective.context_frames")
        yield _window("evaluation.T_rollout", e.T_rollout, context, frames, of=contexts)
    elif e.T_rollout is None and e.context_frames is not None and context >= frames:
        yield _context("evaluation", context, frames)
    if a.T_rollout is not None and a.T_rollout + a.context_frames > frames:
        of = ("adaptation.context_frames",)
        yield _window("adaptation.T_rollout", a.T_rollout, a.context_frames, frames, of=of)
    elif a.T_rollout is None and a.context_frames >= frames:
        yield _context("adaptation", a.context_frames, frames)


def _context(section: str, context: int, frames: int) -> Problem:
    """A context that leaves no frame to predict, where the number of predicted ones is not given."""
    message = f"must be at most data.num_timesteps - 1 = {frames - 1}"
    return Problem(f"{section}.context_frames", context, message, (f"{section}.T_rollout", "data.num_timesteps"))


def _phases(key: str) -> str:
    """An objective's key in the phases of its curriculum."""
    return key.replace("objective.", "objective.curriculum[].")


def _window(key: str, horizon: int, context: int, frames: int, *, of: tuple[str, ...]) -> Problem:
    message = f"T_rollout + context_frames = {horizon + context} exceeds num_timesteps = {frames}"
    value = context if key.endswith("context_frames") else horizon
    return Problem(key, value, message, (*of, "data.num_timesteps"))
