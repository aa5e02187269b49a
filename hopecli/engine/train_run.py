"""The moving parts of a training run: model, optimizer, batches, records and checkpoints of the loop in train()."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, NoReturn

from hopecli.config.explain import to_tree
from hopecli.data.clip import ClipBatch
from hopecli.data.loader import EpochBatches, load_batches, stand_in
from hopecli.data.split import count_defects
from hopecli.engine.checkpoint import TRAINER, duplicate_checkpoint, remove_old, save_checkpoint
from hopecli.engine.evaluate import EvalPlan, score_clips, validation_record
from hopecli.engine.idle_parameters import leaves_parameters_idle
from hopecli.engine.meter import Meter, check_finite, check_sound
from hopecli.engine.optim import PeriodicAdamW, parameter_groups
from hopecli.engine.results import DiagnosticsRecord, ValidationRecord
from hopecli.engine.saved_weights import OTHER_CHECKPOINT
from hopecli.engine.signals import StopRequest
from hopecli.engine.skips import Skips
from hopecli.engine.train_job import TrainJob
from hopecli.engine.train_step import StepBatch, TrainingObjective
from hopecli.errors import CheckpointError, DataError, HopeError, StoppedError, command_line
from hopecli.models.hope.diagnostics import diagnostics
from hopecli.models.hope.predictor import HopePredictor
from hopecli.objectives.rollout import normalise
from hopecli.objectives.schedules import ObjectivePhase, learning_rate


class TrainRun:
    """What a run holds between its steps, and what the loop does with it."""

    def __init__(self, job: TrainJob):
        self.job, s = job, job.settings
        self.step, self.saved, self.saved_at = 0, 0, time.perf_counter()
        self.started, self.recorded = self.saved_at, 0.0  # as if all sessions of the run were one
        self.validated: ValidationRecord | None = None
        accelerator = job.runtime.accelerator
        self.meter = Meter(job.runtime)
        self.skips = Skips(
            s.data,
            clips=len(job.split.train) + len(job.split.held_out) + len(job.split.skipped),
            before=count_defects(job.split.skipped),
            folder=job.store.folder,
            runtime=job.runtime,
            say=job.skipping,
            reasons=job.skipped,
        )
        o = s.objective
        self.plan = EvalPlan(
            context_frames=o.context_frames,
            horizon=s.data.num_timesteps - o.context_frames,
            T_teacher=o.T_teacher,
            normalize_reps=o.normalize_reps,
        )
        self.trainable = any(p.requires_grad for p in job.model.parameters())
        if not self.trainable:
            return
        self.job.model.train()
        groups = parameter_groups(job.model, s.optimizer, s.model)
        # The fused step applies the loss scaler inside its kernel, after a slow group's gradients were put aside.
        self.raw_optimizer = PeriodicAdamW(groups, s.optimizer, fused=job.runtime.choice.precision != "fp16")
        if leaves_parameters_idle(s):
            job.runtime.allow_idle_parameters()
        self.objective, self.optimizer = accelerator.prepare(
            TrainingObjective(job.model, s.objective), self.raw_optimizer
        )
        if job.resumed is not None:
            self._restore(job.resumed)
            job.resumed = None  # the optimizer has its own copy of the moments

    def _restore(self, state: dict[str, Any]) -> None:
        """Go on from the trainer's state of a checkpoint; CheckpointError when it is that of another run."""
        try:
            self.raw_optimizer.load_state_dict(state["optimizer"])
        except ValueError as error:
            what = f"{TRAINER} does not fit this run: {error}"
            raise CheckpointError(what, where=str(self.job.run_dir), fix=OTHER_CHECKPOINT) from error
        self.step = self.saved = state["step"]
        self.meter.last_loss = state.get("loss")  # absent in a run of an earlier version, as the next
        self.recorded = state.get("seconds", 0.0)
        self.started -= self.recorded
        self.validated = ValidationRecord(**state["validation"]) if state.get("validation") else None
        scaler = self.job.runtime.accelerator.scaler
        if scaler is not None and state.get("scaler"):
            scaler.load_state_dict(state["scaler"])

    def set_learning_rate(self) -> float:
        """The schedule's learning rate for the step to come."""
        s = self.job.settings
        lr = learning_rate(
            self.step,
            total_steps=self.job.total_steps,
            lr=s.optimizer.lr,
            warmup_start_lr=s.schedule.warmup_start_lr,
            final_lr=s.schedule.final_lr,
            warmup_pct=s.schedule.warmup_pct,
            decay_pct=s.schedule.decay_pct,
        )
        self.raw_optimizer.set_learning_rate(lr)
        return lr

    @property
    def first_step(self) -> int:
        """Steps that were done before this process; all of them when there is nothing to train."""
        return self.step if self.trainable else self.job.total_steps

    @property
    def first_epoch(self) -> int:
        """The epoch to go on in: the last one done, when its validation is still to come."""
        done, steps = divmod(self.first_step, self.job.steps_per_epoch)
        waiting = self.step > 0 and steps == 0 and self.validated is None and self.job.validates_after(done - 1)
        return done - waiting

    def announce(self, epoch: int, phase: ObjectivePhase) -> None:
        """Say what the curriculum changes: the weighted loss then jumps though nothing has been learned or lost."""
        curriculum = self.job.settings.objective.curriculum
        if self.trainable and any(change.epoch == epoch for change in curriculum):
            self.job.sink.message(
                f"epoch {epoch + 1}: loss_weight_teacher {phase.loss_weight_teacher:g}, loss_weight_rollout "
                f"{phase.loss_weight_rollout:g}, context_frames {phase.context_frames}, T_rollout {phase.T_rollout}"
            )

    def batches(self, epoch: int) -> Iterator[StepBatch]:
        """The global batch of each remaining step of an epoch, this process's part of it.

        A clip that may not be skipped ends the run on every process, before the step.
        """
        job, s = self.job, self.job.settings
        sampler = EpochBatches(
            clips=len(job.split.train),
            global_batch=s.data.batch_size,
            seed=s.training.seed,
            epoch=epoch,
            first_step=self.step - epoch * job.steps_per_epoch,
            accumulate=s.training.accumulate,
            rank=job.runtime.rank,
            world=job.runtime.world,
        )
        if not len(sampler):
            return
        loader = load_batches(job.store, job.split.train, sampler, pin_memory=job.runtime.pin_memory)
        for _ in range(len(sampler) // s.training.accumulate):
            waiting = time.perf_counter()
            clips: list[ClipBatch] = []
            with self.skips.failing_together():
                loaded = [next(loader) for _ in range(s.training.accumulate)]
                missing = [self.skips.note(error) for part in loaded for error in part.errors]
                clips = [part.clips for part in loaded if part.clips is not None]
                if not clips:  # a step needs something on every process: the others would wait for this one
                    clips = [stand_in(job.store, job.split.train, missing[-1])]
            here = sum(len(part) for part in clips)
            everywhere, failures = job.runtime.host_sum(here, self.skips.failure is not None)
            if failures:
                self.job.sink.steps(self.meter.flush())
                self.skips.raise_failure()
            yield StepBatch(clips, here * job.runtime.world / everywhere, time.perf_counter() - waiting)

    def log(self) -> None:
        """Send pending steps to the sink, then stop if one diverged."""
        records = self.meter.flush()
        self.job.sink.steps(records)
        self.skips.agree()
        scaler = self.job.runtime.accelerator.scaler
        with self.job.runtime.raising_as_one():
            check_finite(records, scale=None if scaler is None else scaler.get_scale())

    def diagnose(self, clips: ClipBatch) -> None:
        """Send the memory diagnostics of a micro-batch to the sink."""
        job = self.job
        assert isinstance(job.model, HopePredictor)
        if job.runtime.is_main:
            batch = clips.to(job.runtime.device)
            frames = normalise(batch.features[:, :-1], enabled=job.settings.objective.normalize_reps)
            with job.runtime.autocast():
                values = diagnostics(job.model, frames, batch.actions, batch.states, batch.extrinsics)
            job.sink.diagnostics(DiagnosticsRecord(self.step, values))

    def validate(self, epoch: int, stop: StopRequest) -> ValidationRecord:
        """Score the held-out clips. A signal in between saves the steps; the resumed run begins with the validation."""
        if self.job.runtime.any(self.trainable and self.save_is_due()):
            self.save(epoch, keep=False, validation=None)
        job, started = self.job, time.perf_counter()
        size = max(1, job.settings.data.batch_size // (job.runtime.world * job.settings.training.accumulate))
        scores = score_clips(
            job.model,
            job.store,
            job.split.held_out,
            self.plan,
            job.runtime,
            batch_size=size,
            skips=self.skips,
            between=(lambda: self.stop_if_asked(stop, epoch)) if self.trainable else None,
        )
        record = validation_record(scores, step=self.step, epoch=epoch, seconds=time.perf_counter() - started)
        job.sink.validation(record)
        return record

    def save(self, epoch: int, *, keep: bool, validation: ValidationRecord | None) -> None:
        """Write `last`, and before it epoch_NNNN when this one is kept: a run killed in between makes both again."""
        job = self.job
        lr = self.raw_optimizer.param_groups[0]["lr"] if self.trainable else 0.0
        with job.runtime.raising_as_one():
            check_sound(job.model, validation, step=self.step, lr=lr)
        if job.runtime.is_main:
            folder = job.run_dir / "checkpoints"
            scaler = job.runtime.accelerator.scaler
            trainer: dict[str, Any] = {
                "step": self.step,
                "optimizer": self.raw_optimizer.state_dict() if self.trainable else {},
                "scaler": None if scaler is None else scaler.state_dict(),
                "loss": self.meter.last_loss,
                "seconds": time.perf_counter() - self.started,
                "validation": None if validation is None else asdict(validation),
            }
            kept = folder / f"epoch_{epoch + 1:04d}"
            job.keep_split(job)  # first: the checkpoint names its hash
            save_checkpoint(
                kept if keep else folder / "last",
                weights=job.model.state_dict(),
                settings=to_tree(job.settings),
                info={
                    "preset": job.preset,
                    "step": self.step,
                    "epoch": epoch,
                    "split": job.split.hash,
                    "processes": job.runtime.world,
                    "states": job.store.sampled_states(job.split.train)[0] > 0,
                },
                trainer=trainer,
            )
            if keep:
                duplicate_checkpoint(kept, folder / "last")
                remove_old(folder, job.settings.training.keep_last)
        self.saved, self.saved_at = self.step, time.perf_counter()

    def save_is_due(self) -> bool:
        """Whether the last checkpoint is `training.save_minutes` old: what a crash within a long epoch may cost."""
        minutes = self.job.settings.training.save_minutes or float("inf")
        return time.perf_counter() - self.saved_at >= 60 * minutes

    @contextmanager
    def saving_on_data_error(self, stop: StopRequest) -> Iterator[None]:
        """Keep the steps taken so far when a clip ends the run: once it is mended the run can go on.

        Nothing here waits for the other processes: it may be an error of this one alone. A reader that died of the
        signal which stops the run (Windows sends Ctrl-C to every process of a console) is no error.
        """
        try:
            yield
        except DataError as error:
            if error.where in self.job.split.train:
                self.job.unreadable.add(error.where)
            with suppress(HopeError):  # the clip's error is the one to show
                if self.job.runtime.world == 1:
                    self.log()
            with suppress(HopeError):
                if self.job.runtime.is_main and self.step > self.saved:
                    self.save((self.step - 1) // self.job.steps_per_epoch, keep=False, validation=None)
                    self.job.sink.message(f"the checkpoint of step {self.step} is saved; go on with {self._resume()}")
            if stop and error.where == "data.workers" and 0 < self.saved == self.step and self.job.runtime.world == 1:
                raise self.stopped(stop) from error
            raise

    def _resume(self) -> str:
        return f"{self.job.runtime.command} train --resume {command_line([str(self.job.run_dir)])}"

    def save_within_epoch(self, stop: StopRequest, epoch: int) -> None:
        """Save when it is due on one of the processes; then raise StoppedError as `stop_if_asked` does."""
        stopping, due = self.job.runtime.host_sum(bool(stop), self.save_is_due())
        if stopping:
            self._stop(stop, epoch)
        if due:
            self.log()
            self.save(epoch, keep=False, validation=None)
            self.meter.restart_clock()

    def stop_if_asked(self, stop: StopRequest, epoch: int) -> None:
        """Save and raise StoppedError, on every process, when a signal has asked one of them to stop."""
        if self.job.runtime.any(bool(stop)):
            self._stop(stop, epoch)

    def _stop(self, stop: StopRequest, epoch: int) -> NoReturn:
        self.log()
        self.save(epoch, keep=False, validation=None)
        self.job.runtime.barrier()
        self.job.runtime.raise_as_one(self.stopped(stop))

    def stopped(self, stop: StopRequest) -> StoppedError:
        """What to tell the user after a signal; the checkpoint has been written."""
        what = f"stopped by {stop.signal_name or 'a signal'} after step {self.step} of {self.job.total_steps}"
        return StoppedError(f"{what}; the checkpoint is saved", fix=f"go on with: {self._resume()}")
