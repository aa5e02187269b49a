"""Result files: written beside their final name and renamed, so that no partial file is ever seen."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hopecli.engine.results import DiagnosticsRecord, StepRecord, ValidationRecord, to_tree
from hopecli.errors import THEN_RESUME, CheckpointError, accessed, nearest_existing, written

# A path may hold bytes that are not UTF-8; our files are UTF-8 whatever is named in them.
ESCAPED = "backslashreplace"
ELSEWHERE = "make it writable, or copy the checkpoint's model.safetensors elsewhere and give that file"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write into; it takes the name when the block ends well, else it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_writable(folder: Path, *, fix: str = ELSEWHERE) -> None:
    """CheckpointError before the work rather than after it when `folder` cannot be written; nothing is left behind."""
    with written(folder, fix=fix), tempfile.TemporaryFile(dir=nearest_existing(folder)):
        pass


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, making its folder."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=ESCAPED)


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    """Write a JSON object; NaN is refused, since JSON has none."""
    write_text(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows with the columns of the first; None and numbers that are not finite become empty fields."""
    rows = [{key: None if _is_not_finite(value) else value for key, value in row.items()} for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class MetricsFile:
    """metrics.jsonl: one JSON object per step, validation and diagnosis, the record that all mirrors copy."""

    def __init__(self, path: Path, *, keep_until_step: int = 0, validates_again: bool = False):
        """When the training begins, lines of steps after `keep_until_step` (from a run that went on past its last
        checkpoint) are dropped, so that a resumed run writes the file an uninterrupted one would have; the validation
        of that step too when it begins with it (`validates_again`). Not before: a resume that is refused changes
        nothing."""
        self.path, self.keep_until_step, self.validates_again = path, keep_until_step, validates_again
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None:
        with accessed(self.path, kind=CheckpointError):
            text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(f"{line}\n" for line in text.splitlines() if self._keeps(line))  # no torn line
        if kept == text:
            return
        with written(self.path, fix=THEN_RESUME):
            self.file.close()
            write_text(self.path, kept)
            self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close())

    def _keeps(self, line: str) -> bool:
        step = _step_of(line)
        again = self.validates_again and step == self.keep_until_step and '"type": "validation"' in line
        return step <= self.keep_until_step and not again

    def tick(self, step: int) -> None: ...

    def steps(self, records: Sequence[StepRecord]) -> None:
        self._write("train", records)

    def validation(self, record: ValidationRecord) -> None:
        self._write("validation", [record])

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        self._write("diagnostics", [record])

    def message(self, text: str) -> None: ...

    def _write(self, kind: str, records: Sequence[Any]) -> None:
        with written(self.path, fix=THEN_RESUME):
            self.file.writelines(json.dumps({"type": kind, **to_tree(record)}) + "\n" for record in records)
            self.file.flush()

    def close(self) -> None:
        with written(self.path, fix=THEN_RESUME):
            self.file.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a torn line


def as_json(result: Any) -> str:
    """One JSON object for stdout."""
    tree = to_tree(result) if dataclasses.is_dataclass(result) else result
    return json.dumps(tree, allow_nan=False)
