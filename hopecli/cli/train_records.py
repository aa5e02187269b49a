"""A training run's directory: the lock on it, and the records that are written into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from hopecli.cli.common import environment_facts
from hopecli.errors import FREE_SPACE, written

if TYPE_CHECKING:
    from hopecli.config.schema import Settings
    from hopecli.data.split import Split
    from hopecli.engine.runtime import Runtime
    from hopecli.engine.sink import Sink
    from hopecli.report.lock import RunLock


@contextmanager
def holding(run_dir: Path | None, runtime: Runtime) -> Iterator[RunLock | None]:
    """The lock of a run to resume (on the main process), before anything of it is read: a process that trains in it may
    be about to save and to end."""
    from hopecli.report.lock import RunLock

    locks: list[RunLock] = []

    def take(folder: Path) -> None:
        with written(folder):
            locks.append(RunLock(folder))

    if run_dir is not None:
        runtime.from_main(lambda: take(run_dir))
    try:
        yield locks[0] if locks else None
    finally:
        for lock in locks:
            lock.close()


def open_sinks(
    settings: Settings,
    run_dir: Path,
    split: Split,
    runtime: Runtime,
    *,
    lock: RunLock | None,
    mode: str,
    reason: str,
    first_step: int,
    validates_again: bool,
) -> Sink:
    """The record, the log, and the mirror; nothing on processes other than the main one.

    lock: that of a run to resume (on the main process), None for a new run.
    """
    from hopecli.config.explain import to_tree, to_yaml
    from hopecli.engine.sink import Fanout, NullSink
    from hopecli.report.console import ConsoleSink
    from hopecli.report.files import MetricsFile, require_writable, write_json, write_text
    from hopecli.report.lock import RunLock

    if not runtime.is_main:
        return NullSink()
    name = "environment.json" if lock is None else f"environment.step_{first_step}.json"
    require_writable(run_dir / "checkpoints", fix=FREE_SPACE)  # of a resumed run: not after an hour's work
    with written(run_dir):
        if lock is None:
            write_text(run_dir / "config.yaml", to_yaml(settings))
            write_text(run_dir / "split.json", split.to_json())
        lock = lock or RunLock(run_dir)
        write_json(run_dir / name, environment_facts(runtime))
        console = ConsoleSink(run_dir / "train.log")
        metrics = MetricsFile(run_dir / "metrics.jsonl", keep_until_step=first_step, validates_again=validates_again)
        sinks: list[Sink] = [console, metrics, lock]
    console.message(f"run directory: {run_dir}")
    console.message(reason)
    if mode != "disabled":
        from hopecli.report.wandb_sink import WandbSink

        sinks.append(
            WandbSink(
                mode=mode,
                project=settings.logging.wandb_project,
                entity=settings.logging.wandb_entity,
                run_dir=run_dir,
                config=to_tree(settings),
                say=console.message,
            )
        )
    return Fanout(sinks)
