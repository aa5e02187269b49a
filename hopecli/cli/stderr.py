"""A stderr that may be lost (its reader has gone, the disk is full, the terminal is closed) without ending a run."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO, cast


class LosableStream:
    """`stream`, whose first failing write is also its last: messages are never worth a checkpoint."""

    def __init__(self, stream: TextIO):
        self.stream, self.lost = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        if not self.lost:
            try:
                return self.stream.write(text)
            except OSError:
                self._lose()
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self.lost:
            try:
                self.stream.flush()
            except OSError:
                self._lose()

    def _lose(self) -> None:
        """What is still buffered must go somewhere: the interpreter's last flush would change the exit code."""
        self.lost = True
        with contextlib.suppress(OSError, ValueError):  # a stream without a descriptor, as tests have
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)


def prepare_stderr() -> None:
    """From here on nothing that is written to sys.stderr (by us, rich, warnings, W&B) can fail."""
    if sys.stderr is None:  # closed by the caller: a file opened later would take its number and receive our lines
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
    if not isinstance(sys.stderr, LosableStream):
        sys.stderr = cast(TextIO, LosableStream(sys.stderr))
