"""Progress of work in stages, on stderr."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from hopecli.report.console import draws_bars, make_console, say

# Off a terminal long work says where it is, but not so often that a log fills up.
LINE_SECONDS = 10.0


class StageProgress:
    """One bar with an ETA per stage on a terminal, else a line on stderr every ten seconds."""

    def __init__(self) -> None:
        self.console = make_console(stderr=True)
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.stage, self.started, self.said = "", 0.0, 0.0

    def __enter__(self) -> StageProgress:
        if draws_bars(self.console):
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            self.bars = Progress(*columns, console=self.console)
            self.bars.start()
        return self

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started, self.said = stage, now, now
        if self.bars is not None:
            if stage not in self.tasks:
                self.tasks[stage] = self.bars.add_task(stage, total=total)
            self.bars.update(self.tasks[stage], completed=done)
        elif now - self.said >= LINE_SECONDS:
            self.said = now
            say(f"{stage}: {done} of {total}, ETA {(now - self.started) / done * (total - done):.0f} s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
