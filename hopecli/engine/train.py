"""The training loop: step, log, evaluate, save. The maths is in train_step()."""

from __future__ import annotations

import time

from hopecli.engine.results import TrainSummary, ValidationRecord
from hopecli.engine.signals import stop_on_signal
from hopecli.engine.train_job import TrainJob
from hopecli.engine.train_run import TrainRun
from hopecli.engine.train_step import initial_phase, seed_step, train_step
from hopecli.models.build import count_parameters
from hopecli.objectives.schedules import phase_at


def train(job: TrainJob) -> TrainSummary:
    """Train to the end, or until a signal: then save and raise StoppedError.

    A model without parameters is validated and saved at step 0, so that it can be evaluated like any other. Raises
    DivergedError, DataError for an unreadable clip (the steps are saved), CheckpointError for what cannot be written.
    """
    s, run = job.settings, TrainRun(job)
    job.sink.begin(first_step=run.first_step, total_steps=job.total_steps, steps_per_epoch=job.steps_per_epoch)
    if run.trainable and run.first_epoch == s.training.epochs:
        job.sink.message(f"all {run.step} steps are done already")
        run.started = time.perf_counter() - run.recorded
    validation = run.validated
    run.meter.restart_clock()
    first = run.first_step + 1
    with stop_on_signal() as stop, run.saving_on_data_error(stop):
        for epoch in range(run.first_epoch, s.training.epochs):
            phase = phase_at(epoch, initial_phase(s.objective), s.objective.curriculum)
            run.announce(epoch, phase)
            for batch in run.batches(epoch):
                lr = run.set_learning_rate()
                seed_step(s.training.seed, run.step, job.runtime.rank)
                tensors = train_step(
                    run.objective, run.optimizer, batch, phase, runtime=job.runtime, grad_clip=s.optimizer.grad_clip
                )
                run.step += 1
                run.meter.add(run.step, epoch, lr, tensors, batch.seconds)
                job.sink.tick(run.step)
                if run.step % s.logging.log_every == 0 or run.step == first:  # the first tells how long all will take
                    run.log()
                if s.logging.diagnostics_every and run.step % s.logging.diagnostics_every == 0:
                    run.log()  # first what came first: W&B drops records older than its newest
                    run.diagnose(batch.micro_batches[0])
                    run.meter.restart_clock()
                if run.step % job.steps_per_epoch:
                    run.save_within_epoch(stop, epoch)
            run.log()
            validation = run.validate(epoch, stop) if job.validates_after(epoch) else None
            run.save(epoch, keep=job.keeps(epoch), validation=validation)
            job.runtime.barrier()
            if run.step < job.total_steps and job.runtime.any(bool(stop)):
                job.runtime.raise_as_one(run.stopped(stop))
            run.meter.restart_clock()
        if not run.trainable:
            validation = run.validate(0, stop)
            run.save(s.training.epochs - 1, keep=False, validation=validation)
            job.runtime.barrier()
    return summary(run, validation)


def summary(run: TrainRun, validation: ValidationRecord | None) -> TrainSummary:
    """What the run came to."""
    job, m = run.job, run.meter
    return TrainSummary(
        run_dir=str(job.run_dir),
        preset=job.preset,
        model=job.settings.model.kind,
        parameters=count_parameters(job.model),
        device=job.runtime.choice.device,
        precision=job.runtime.choice.precision,
        steps=run.step,
        epochs=job.settings.training.epochs,
        train_clips=len(set(job.split.train) - set(job.skipped)),
        held_out_clips=len(set(job.split.held_out) - set(job.skipped)),
        seconds=time.perf_counter() - run.started,
        clips_per_second=m.clips / m.seconds if m.seconds > 0 else None,
        loss=m.last_loss,
        validation=validation,
        skipped_clips=len(job.split.skipped) + len(job.skipped),
        seed=job.settings.training.seed,
    )
