"""Test-time adaptation over a stream of clips: predict, score, then adapt, with the frozen model on the same stream."""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import TypeVar

from hopecli.data.loader import collate
from hopecli.data.split import check_skipped, count_defects
from hopecli.engine.adapt import Adapter, adapted_groups, all_finite, only_adapted, swapped
from hopecli.engine.signals import stop_on_signal
from hopecli.engine.tta_clip import StreamClip, make_plan, mean, memory_after, prepare, score
from hopecli.engine.tta_guard import Learned, learn, score_after_update
from hopecli.engine.tta_job import BASELINES, ROLLING, StreamRecord, TtaJob, order_seeds
from hopecli.engine.tta_results import SourceRecord, TtaClip, TtaProgress
from hopecli.engine.tta_source import finite_mean, source_losses
from hopecli.engine.tta_state import (
    START_AGAIN,
    STATE_FILE,
    memory_tensors,
    pack_adapter,
    read_state,
    require_same_stream,
    unpack_adapter,
    write_state,
)
from hopecli.engine.tta_timing import larger, timed
from hopecli.errors import CheckpointError, DataError, SettingsError
from hopecli.models.protocol import PredictorModule

T = TypeVar("T")
SAVING_SHARE = 0.05  # of the stream's time at most: the state of a long stream is large
MEMORY_PROBES = 3  # clips whose peak memory is measured: it does not change after them


def stream(job: TtaJob) -> StreamRecord:
    """Run every order to the end or until a signal, after which the state for --resume is on disk."""
    run = _Stream(job)
    started = time.perf_counter() - run.record.seconds
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_signal())
        for adapter in run.adapters.values():
            stack.enter_context(only_adapted(adapter.model, adapter.parameters))
        run.begin()
        for order, seed in list(enumerate(order_seeds(job.settings)))[run.record.order :]:
            names = list(job.names)
            if seed is not None:
                random.Random(seed).shuffle(names)
            for name in names[run.record.position :]:
                run.clip(order, name)
                run.record.position += 1
                run.measure_source_if_due(order, len(names))
                if run.record.position == len(names):
                    run.end_order(order)
                run.record.seconds = time.perf_counter() - started
                if stop and run.record.order < len(order_seeds(job.settings)):
                    run.record.stopped_by = stop.signal_name
                    run.save()
                    return run.record
                run.save_if_due()
    return run.record


class _Stream:
    """The moving parts of one stream."""

    def __init__(self, job: TtaJob):
        self.job, s = job, job.settings
        self.plan = make_plan(s.adaptation, s.objective, s.data.num_timesteps)
        if self.plan.carry and not job.model.carries_memory:
            raise SettingsError(
                f"a {s.model.kind} model has no memory to carry from clip to clip",
                where="adaptation.memory",
                value="carry",
                fix="use adaptation.memory=reset",
            )
        unknown = sorted(set(job.baselines) - set(BASELINES))
        if unknown:
            raise SettingsError(
                "unknown baseline", where="--baselines", value=unknown[0], fix=f"choose from {', '.join(BASELINES)}"
            )
        job.model.eval()
        self.adapters = {"adapted": self._adapter(job.model)}
        if "periodic_reset" in job.baselines:
            self.adapters["periodic_reset"] = self._adapter(copy.deepcopy(job.model))
        self.main = self.adapters["adapted"]
        self.record = StreamRecord()
        self.unreadable: set[str] = set()  # clips that ended the stream
        self.saved_at, self.saving_seconds = time.perf_counter(), 0.0
        if job.resume:
            self._resume()
        self.learned = Counter(row.order for row in self.record.rows)  # clips of each order
        self.steps_skipped = sum(row.steps_skipped for row in self.record.rows)

    def _adapter(self, model: PredictorModule) -> Adapter:
        a = self.job.settings.adaptation
        return Adapter(model, adapted_groups(model, a.adapt, self.job.settings.model, a.weight_decay), a)

    def begin(self) -> None:
        """Announce the stream; the source loss before it, unless a resumed stream has it."""
        r, total = self.record, len(self.job.names) * len(order_seeds(self.job.settings))
        self.job.sink.begin(done=r.order * len(self.job.names) + r.position, total=total)
        if self.job.source is not None and not r.source_before:
            r.source_before = source_losses(self.job, self.main, self.plan)
            if not math.isfinite(finite_mean(r.source_before)):
                raise DataError("none of the source clips could be read and scored", where="--source-data-dir")
            self._note_source(0, 0, r.source_before)

    def clip(self, order: int, name: str) -> None:
        """Predict, score, then adapt on one clip; one that cannot be scored is counted and left out."""
        job, plan, record = self.job, self.plan, self.record
        try:
            loaded = collate([job.clips.read(name)]).clips
        except DataError as error:
            self._leave_out(name, error)
            return
        assert loaded is not None
        given = prepare(loaded, plan, job.runtime)
        if name not in record.frozen:
            with swapped(self.main, self.main.initial):
                loss, ms, size = self._timed(lambda: score(self.main.model, given, plan, job.runtime, None))
            record.frozen[name] = [loss, ms]
            record.bytes_frozen = larger(record.bytes_frozen, size)
        frozen, ms_frozen = record.frozen[name]
        if not math.isfinite(frozen):
            self._skip(name, "its loss under the frozen model is not finite")
            return
        a = job.settings.adaptation
        periodic = None
        if "periodic_reset" in self.adapters:
            adapter = self.adapters["periodic_reset"]
            if self.learned[order] % a.reset_every == 0:
                adapter.reset()
            baseline = learn(adapter, given, frozen, plan, job.runtime)
            score_after_update(adapter, given, baseline, plan, job.runtime)
            self._observe(adapter, given)
            record.periodic_restarts += self._say_restarts(name, "periodic_reset", baseline)
            periodic = baseline.online
        learned, ms, size = self._timed(lambda: learn(self.main, given, frozen, plan, job.runtime))
        after = score_after_update(self.main, given, learned, plan, job.runtime)
        record.restarts += self._say_restarts(name, "adapted", learned)
        online, updates = learned.online, learned.updates
        _, ms_observe, _ = self._timed(lambda: self._observe(self.main, given))
        record.bytes_adapted = larger(record.bytes_adapted, size)
        row = TtaClip(
            order=order,
            position=record.position,
            clip=name,
            online=online,
            frozen=frozen,
            copy_last=given.copy_last,
            after_update=after,
            gain=frozen - online,
            periodic_reset=periodic,
            grad_norm=updates.mean_norm(clipped=False),
            grad_norm_clipped=updates.mean_norm(clipped=True),
            drift=self.main.drift(),
            ms=ms + ms_observe,
            ms_frozen=ms_frozen,
            steps_done=updates.done,
            steps_skipped=updates.skipped,
            step_losses=[outcome.loss for outcome in updates.outcomes],
        )
        if a.reset_per_clip:  # now, so that whatever looks at the weights between clips finds the checkpoint's
            for adapter in self.adapters.values():
                adapter.reset()
        record.rows.append(row)
        self.learned[order] += 1
        self.steps_skipped += row.steps_skipped
        job.sink.clip(row, self._progress(order))

    def _say_restarts(self, name: str, which: str, learned: Learned) -> int:
        if learned.restarts:
            message = f"{name}: the {which} prediction is not finite; starting again from the checkpoint"
            self.job.sink.message(message)
        return learned.restarts

    def _observe(self, adapter: Adapter, given: StreamClip) -> None:
        if self.plan.carry:
            memory = memory_after(adapter, given, self.plan, self.job.runtime)
            if all_finite(memory_tensors(memory)):
                adapter.memory = memory

    def _leave_out(self, name: str, error: DataError) -> None:
        """A clip that cannot be read ends the stream, which can go on from there; data.on_error and data.max_skipped
        say how many are left out instead."""
        job, d, skipped = self.job, self.job.settings.data, self.record.skipped
        bad = count_defects(job.left_out) + len(skipped.keys() | {name})
        try:
            if d.on_error == "error":
                raise error
            check_skipped(bad, len(job.left_out) + len(job.names), d.max_skipped, str(job.clips.folder))
        except DataError:
            self.unreadable.add(name)
            if self.record.rows:
                self.save()
                job.sink.message("the stream up to this clip is saved; once the clip is mended, go on with --resume")
            raise
        self._skip(name, error.what)

    def _skip(self, name: str, reason: str) -> None:
        if name not in self.record.skipped:
            self.job.sink.message(f"{name} is left out: {reason}")
        self.record.skipped[name] = reason

    def measure_source_if_due(self, order: int, clips: int) -> None:
        """The source loss every `source_every` clips; the end of an order has its own."""
        every, done = self.job.settings.adaptation.source_every, self.record.position
        if self.job.source is not None and every and done % every == 0 and done < clips:
            self._note_source(order, done, source_losses(self.job, self.main, self.plan))

    def end_order(self, order: int) -> None:
        """The source loss after an order; then, unless it was the last, back to the checkpoint for the next one."""
        r, last = self.record, order + 1 == len(order_seeds(self.job.settings))
        if self.job.source is not None:
            r.source_after.append(source_losses(self.job, self.main, self.plan))
            self._note_source(order, r.position, r.source_after[-1])
        r.order = order + 1
        if not last:
            r.position = 0
            for adapter in self.adapters.values():
                adapter.reset()

    def _note_source(self, order: int, clips: int, losses: list[float]) -> None:
        record = SourceRecord(order, clips, finite_mean(losses))
        self.record.source.append(record)
        self.job.sink.source(record)

    def _progress(self, order: int) -> TtaProgress:
        recent = [row for row in self.record.rows[-ROLLING:] if row.order == order]
        names = len(self.job.names)
        return TtaProgress(
            done=order * names + self.record.position + 1,
            total=names * len(order_seeds(self.job.settings)),
            window=len(recent),
            online=mean([row.online for row in recent]),
            frozen=mean([row.frozen for row in recent]),
            drift=recent[-1].drift,
            steps_skipped=self.steps_skipped,
            clips_skipped=len(self.record.skipped),
        )

    def _timed(self, work: Callable[[], T]) -> tuple[T, float, int | None]:
        """As `timed`, with the memory of the first clips."""
        return timed(work, self.job.runtime.device, probe=len(self.record.rows) < MEMORY_PROBES)

    def save_if_due(self) -> None:
        """Keep the state every `save_every` clips, against a crash; less often where that would take long."""
        every = self.job.settings.adaptation.save_every
        since = time.perf_counter() - self.saved_at
        if every and self.record.position % every == 0 and self.saving_seconds <= SAVING_SHARE * since:
            self.save()

    def save(self) -> None:
        """Keep all that --resume needs."""
        r, started = self.record, time.perf_counter()
        write_state(
            self.job.folder,
            {
                "identity": self.job.identity,
                "adapters": {name: pack_adapter(adapter) for name, adapter in self.adapters.items()},
                "record": {**asdict(r), "stopped_by": None},
                "clips": dict(self.job.marks),
                "left_out": dict(self.job.left_out),
                "unreadable": sorted(self.unreadable),
            },
        )
        self.saved_at = time.perf_counter()
        self.saving_seconds = self.saved_at - started

    def _resume(self) -> None:
        state = read_state(self.job.folder)
        job = self.job
        require_same_stream(state, job.identity, folder=job.clips.folder, marks=job.marks, left_out=job.left_out)
        self.unreadable |= set(state.get("unreadable", ()))
        for name, adapter in self.adapters.items():
            try:
                unpack_adapter(adapter, state["adapters"][name], self.job.runtime.device)
            except ValueError as error:
                what = f"{STATE_FILE} does not fit this stream: {error}"
                raise CheckpointError(what, where=str(self.job.folder), fix=START_AGAIN) from error
        record = state["record"]
        rows = [TtaClip(**row) for row in record.pop("rows")]
        source = [SourceRecord(**point) for point in record.pop("source")]
        self.record = StreamRecord(**record, rows=rows, source=source)
