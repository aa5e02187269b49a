"""Where the engine sends what happens; report/ implements it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from hopecli.engine.results import DiagnosticsRecord, StepRecord, ValidationRecord
from hopecli.engine.tta_results import SourceRecord, TtaClip, TtaProgress


class Sink(Protocol):
    """Receives a run's events on the main process, in order."""

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Training starts at `first_step` of `total_steps`."""

    def tick(self, step: int) -> None:
        """`step` optimizer steps are done; called every step, carries no losses."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Losses of the steps since the last call, read from the device in one go."""

    def validation(self, record: ValidationRecord) -> None:
        """A validation is done."""

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        """Memory diagnostics of one step."""

    def message(self, text: str) -> None:
        """One line for the user and the log."""

    def close(self) -> None:
        """No more events; flush."""


class NullSink:
    """Drops everything."""

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None: ...

    def tick(self, step: int) -> None: ...

    def steps(self, records: Sequence[StepRecord]) -> None: ...

    def validation(self, record: ValidationRecord) -> None: ...

    def diagnostics(self, record: DiagnosticsRecord) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...


def close_all(sinks: Sequence[Sink | StreamSink]) -> None:
    """Close in order, the others also when one cannot write its last lines; then its error is raised."""
    with ExitStack() as stack:
        for sink in reversed(sinks):
            stack.callback(sink.close)


class Fanout:
    """Sends every event to several sinks, in order."""

    def __init__(self, sinks: Sequence[Sink]):
        self.sinks = tuple(sinks)

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        for sink in self.sinks:
            sink.begin(first_step=first_step, total_steps=total_steps, steps_per_epoch=steps_per_epoch)

    def tick(self, step: int) -> None:
        for sink in self.sinks:
            sink.tick(step)

    def steps(self, records: Sequence[StepRecord]) -> None:
        for sink in self.sinks:
            sink.steps(records)

    def validation(self, record: ValidationRecord) -> None:
        for sink in self.sinks:
            sink.validation(record)

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        for sink in self.sinks:
            sink.diagnostics(record)

    def message(self, text: str) -> None:
        for sink in self.sinks:
            sink.message(text)

    def close(self) -> None:
        close_all(self.sinks)


class StreamSink(Protocol):
    """Receives the events of a test-time adaptation stream, in order."""

    def begin(self, *, done: int, total: int) -> None:
        """The stream starts after `done` of `total` clips (all orders together)."""

    def clip(self, row: TtaClip, progress: TtaProgress) -> None:
        """One clip was scored and learned."""

    def source(self, record: SourceRecord) -> None:
        """The source clips were scored."""

    def message(self, text: str) -> None:
        """One line for the user."""

    def close(self) -> None:
        """No more events."""


class NullStreamSink:
    """Drops everything."""

    def begin(self, *, done: int, total: int) -> None: ...

    def clip(self, row: TtaClip, progress: TtaProgress) -> None: ...

    def source(self, record: SourceRecord) -> None: ...

    def message(self, text: str) -> None: ...

    def close(self) -> None: ...
