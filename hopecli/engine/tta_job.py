"""What a test-time adaptation stream is given, and what it has measured so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hopecli.config.schema import Settings
from hopecli.data.store import Sample
from hopecli.engine.runtime import Runtime
from hopecli.engine.sink import StreamSink
from hopecli.engine.tta_results import SourceRecord, TtaClip
from hopecli.models.protocol import PredictorModule

ROLLING = 50
BASELINES = ("frozen", "periodic_reset")


class ClipReader(Protocol):
    """Reads one clip of a folder by name; DataError when it cannot be used."""

    folder: Path

    def read(self, name: str) -> Sample: ...


@dataclass
class TtaJob:
    """Everything a stream needs, built by the command. `model` has the checkpoint's weights, on the device.

    source: clips whose loss shows forgetting, or None. identity: what an interrupted stream must share to be resumed.
    left_out: clips that are not in the stream, with reasons; data.max_skipped counts their defects too. marks: the
    fingerprints of the clips by name, as they were when the stream was started.
    """

    settings: Settings
    runtime: Runtime
    model: PredictorModule
    clips: ClipReader
    names: Sequence[str]
    sink: StreamSink
    folder: Path
    source: tuple[ClipReader, Sequence[str]] | None = None
    baselines: Sequence[str] = ("frozen",)
    identity: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    left_out: dict[str, str] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)


@dataclass
class StreamRecord:
    """What a stream has measured so far; `order` and `position` are the next clip's."""

    order: int = 0
    position: int = 0
    rows: list[TtaClip] = field(default_factory=list)
    source: list[SourceRecord] = field(default_factory=list)
    source_before: list[float] = field(default_factory=list)
    source_after: list[list[float]] = field(default_factory=list)
    frozen: dict[str, list[float]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    restarts: int = 0
    periodic_restarts: int = 0
    bytes_adapted: int | None = None
    bytes_frozen: int | None = None
    seconds: float = 0.0
    stopped_by: str | None = None


def order_seeds(settings: Settings) -> list[int | None]:
    """The seed of every order; None is the clips' own order."""
    a = settings.adaptation
    if a.orders == 1:
        return [a.order_seed]
    return [(a.order_seed or 0) + i for i in range(a.orders)]
