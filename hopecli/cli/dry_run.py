"""hope train --dry-run: what a run would be, with one forward and backward measured; writes no files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hopecli.config.load import Resolved
    from hopecli.config.schema import Settings
    from hopecli.data.clip import ClipBatch
    from hopecli.data.store import ClipStore, Sample
    from hopecli.engine.results import DryRun
    from hopecli.engine.runtime import Runtime

# A CPU needs about a minute per pass over a handful of full-size clips, and holds them all in memory.
CPU_CLIPS = 2


def dry_run_report(resolved: Resolved, runtime: Runtime, *, json: bool) -> None:
    """Measure and show."""
    with runtime.raising_as_one():
        result = measure(resolved, runtime)
    if not runtime.is_main:
        return
    from hopecli.report.console import show
    from hopecli.report.tables import dry_run_table

    show(result, lambda measured: [dry_run_table(measured)], json=json)


def measure(resolved: Resolved, runtime: Runtime) -> DryRun:
    """Build the model, read (or draw) one batch and pass it once."""
    from hopecli.engine.dry_run import forward_backward, heaviest_phase, static_bytes
    from hopecli.engine.model_notes import length_notes
    from hopecli.engine.results import DryRun
    from hopecli.engine.train_job import steps_per_epoch
    from hopecli.models.build import build_model, count_parameters
    from hopecli.report.console import say

    s = resolved.settings
    d = s.data
    model = build_model(s.model, grid=d.grid, embed_dim=d.embed_dim, action_dim=d.action_dim, seed=s.training.seed)
    micro = max(1, d.batch_size // (runtime.world * s.training.accumulate))
    wanted = min(micro, CPU_CLIPS) if runtime.device.type == "cpu" else micro
    batch, train_clips, held_out, source = _batch(s, wanted, say if runtime.is_main else lambda text: None)
    steps = None if train_clips is None else steps_per_epoch(s, train_clips, runtime.world)
    for note in length_notes(s, None if steps is None else steps * s.training.epochs):
        if runtime.is_main:
            say(note)
    if runtime.is_main:
        say(f"{count_parameters(model):,} parameters built; one forward and backward pass, batch {len(batch)}")
    epoch, phase = heaviest_phase(s)
    if epoch and runtime.is_main:
        say(f"note: the pass is that of epoch {epoch + 1}, the largest one of objective.curriculum")
    measured = forward_backward(model, s, batch, runtime, phase)
    per_clip, static = measured.activation_bytes_per_clip, static_bytes(model, s)
    return DryRun(
        preset=resolved.name,
        model=s.model.kind,
        parameters=count_parameters(model),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        data=source,
        train_clips=train_clips,
        held_out_clips=held_out,
        global_batch=d.batch_size,
        micro_batch=micro,
        steps_per_epoch=steps,
        total_steps=None if steps is None else steps * s.training.epochs,
        batch=len(batch),
        seconds=measured.seconds,
        loss=measured.loss,
        grad_norm=measured.grad_norm,
        static_bytes=static,
        activation_bytes_per_clip=per_clip,
        estimated_bytes=None if per_clip is None else static + per_clip * micro,
        device=runtime.choice.device,
        precision=runtime.choice.precision,
    )


def _batch(s: Settings, clips: int, say: Callable[[str], None]) -> tuple[ClipBatch, int | None, int | None, str]:
    """A batch with the numbers of training and held-out clips where there are clips; says what a run would of them."""
    from hopecli.cli.common import open_store
    from hopecli.cli.train_clips import warn_of_inputs
    from hopecli.data.folder import clip_names, select_ids
    from hopecli.data.loader import collate, require_all
    from hopecli.data.split import make_split, split_ids, too_few
    from hopecli.data.store import ClipStore
    from hopecli.engine.dry_run import random_batch

    if s.data.source == "physics":  # a few clips in a temporary folder instead of filling the cache
        from hopecli.data.make_clips import make_clips

        selected = select_ids(range(s.data.physics.clips), s.data, where="the built-in clips")
        if len(selected) < 2:
            raise too_few("the built-in clips", len(selected), "widen data.clip_start and data.clip_end")
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / "clips"
            p, grid, dim = s.data.physics, s.data.grid, s.data.embed_dim
            make_clips(made, clips=clips, grid=grid, dim=dim, domain=p.domain, seed=p.seed, dtype=p.dtype)
            store = ClipStore(made, s.data, use_extrinsics=s.use_extrinsics)
            batch = require_all(collate([store.read(name) for name in clip_names(made).values()]))
        train, held_out = split_ids(selected, s.data.val_split)
        return batch, len(train), len(held_out), "built-in clips"
    if s.data.data_dir is None:
        return random_batch(s, clips), None, None, "random numbers (no --data-dir given)"
    store = open_store(s, lambda text: None)
    split = make_split(store)
    for name, reason in split.skipped.items():
        say(f"{name} would be skipped: {reason}")
    warn_of_inputs(store, split.train, s, say)
    batch = require_all(collate(_first_readable(store, split.train, clips, say)))
    return batch, len(split.train), len(split.held_out), str(store.folder)


def _first_readable(store: ClipStore, names: Sequence[str], clips: int, say: Callable[[str], None]) -> list[Sample]:
    """The first `clips` clips; with data.on_error=skip those that can be read, the others are said."""
    from hopecli.errors import DataError

    found: list[Sample] = []
    for name in names:
        if len(found) == clips:
            break
        try:
            found.append(store.read(name))
        except DataError as error:
            if store.settings.on_error == "error":
                raise
            say(f"{name} would be skipped: {error.what}")
    if not found:
        raise DataError("none of the clips can be read", where=str(store.folder), value=f"{len(names)} clips")
    return found
