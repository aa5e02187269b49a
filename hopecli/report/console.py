"""The terminal: results on stdout, everything else on stderr; bars only on a terminal, NO_COLOR honoured by rich."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from hopecli.engine.results import DiagnosticsRecord, StepRecord, ValidationRecord
from hopecli.errors import THEN_RESUME, is_first, printable, written
from hopecli.hardware import DeviceChoice
from hopecli.report.files import ESCAPED, as_json

PLAIN_WIDTH = 160


def make_console(*, stderr: bool) -> Console:
    """A console on stdout or stderr that shows texts as they are; off a terminal it is wide enough that no table is
    cut, and stderr, which shows progress, is plain there.

    FORCE_COLOR and TTY_COMPATIBLE, which CI services set, would have rich take a log for a terminal and draw bars.
    """
    on_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(
        stderr=stderr,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
        width=None if on_terminal else PLAIN_WIDTH,
        force_terminal=False if stderr and not on_terminal else None,
    )


def draws_bars(console: Console) -> bool:
    """Whether a bar can be drawn again and again: TERM=dumb (an editor's shell) would show it once, at the end."""
    return console.is_terminal and not console.is_dumb_terminal


def show(result: Any, tables: Callable[[Any], Iterable[RenderableType]], *, json: bool) -> None:
    """A command's result on stdout: what `tables` makes of it, or one JSON object and nothing else."""
    if json:
        print(as_json(result))
        return
    console = make_console(stderr=False)
    for table in tables(result):
        console.print(table, soft_wrap=isinstance(table, Text) and table.no_wrap is True)


def say(text: str) -> None:
    """One line on stderr, of the main process only where torchrun has started several."""
    if is_first():
        print(printable(text), file=sys.stderr, flush=True)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun: 1 clip, 2 clips."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def hardware_banner(choice: DeviceChoice, *, processes: int, threads: int) -> str:
    """The lines shown before a run."""
    return "\n".join(
        [
            "Hardware Detection",
            f"  Device:      {choice.device} - {choice.device_label} ({choice.device_reason})",
            f"  Precision:   {choice.precision} ({choice.precision_reason})",
            f"  Accelerator: {counted(processes, 'process', 'processes')}, {counted(threads, 'CPU thread')}",
        ]
    )


class ConsoleSink:
    """Shows a training run on stderr and keeps the plain lines in train.log."""

    def __init__(self, log_file: Path | None):
        self.console = make_console(stderr=True)
        self.log: TextIO | None = None
        if log_file is not None:
            self.log = open(log_file, "a", encoding="utf-8", errors=ESCAPED)  # noqa: SIM115 (closed in close())
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.total_steps = 0

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        self.total_steps = total_steps
        if draws_bars(self.console):
            self.progress = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=8),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=self.console,
            )
            self.task = self.progress.add_task("training", total=total_steps, completed=first_step)
            self.progress.start()

    def tick(self, step: int) -> None:
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=step)

    def steps(self, records: Sequence[StepRecord]) -> None:
        if not records:
            return
        r = records[-1]
        data = sum(x.data_seconds for x in records) / len(records)
        work = sum(x.step_seconds for x in records) / len(records)
        text = (
            f"loss {r.loss:.4f}  lr {r.lr:.2e}  {r.clips_per_second:.3g} clips/s  "
            f"data {1e3 * data:.0f} ms  step {1e3 * work:.0f} ms"
        )
        remaining = (self.total_steps - r.step) * (data + work)
        line = f"step {r.step}/{self.total_steps}  epoch {r.epoch + 1}  {text}  ETA {_duration(remaining)}"
        if self.progress is not None and self.task is not None:
            brief = f"loss {r.loss:.4f} lr {r.lr:.1e} {r.clips_per_second:.3g} clips/s data/step"
            self.progress.update(self.task, description=f"{brief} {1e3 * data:.0f}/{1e3 * work:.0f} ms")
            self._keep(line)
        else:
            self.message(line)

    def validation(self, record: ValidationRecord) -> None:
        ratio = f", ratio {record.loss_rollout / record.copy_last:.3f}" if record.copy_last > 0 else ""
        self.message(
            f"validation after epoch {record.epoch + 1}: rollout {record.loss_rollout:.4f} "
            f"(copy-last {record.copy_last:.4f}{ratio}), teacher-forced {record.loss_teacher:.4f}, "
            f"{counted(record.clips, 'clip')} in {record.seconds:.1f} s"
        )

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        """Kept in metrics.jsonl only: too many numbers for a line."""

    def message(self, text: str) -> None:
        self.console.print(printable(text), markup=False, soft_wrap=True)
        self._keep(text)

    def _keep(self, text: str) -> None:
        if self.log is not None:
            stamp = datetime.datetime.now().isoformat(timespec="seconds")
            with written(self.log.name, fix=THEN_RESUME):
                self.log.write(f"{stamp} {text}\n")
                self.log.flush()

    def close(self) -> None:
        if self.progress is not None:
            self.progress.refresh()
            self.progress.stop()
            self.progress = None
        if self.log is not None:
            log, self.log = self.log, None
            with written(log.name, fix=THEN_RESUME):
                log.close()


def _duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
