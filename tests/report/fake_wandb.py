"""A stand-in for the `wandb` module, which needs a network: it keeps what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass
class FakeRun:
    """What one run was sent: (step, values) in order, and how often it was finished."""

    logged: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    finished: int = 0
    broken: Exception | None = None

    def log(self, values: dict[str, Any], *, step: int) -> None:
        if self.broken is not None:
            raise self.broken
        self.logged.append((step, values))

    def finish(self) -> None:
        if self.broken is not None:
            raise self.broken
        self.finished += 1


class FakeWandb(ModuleType):
    """The two names that are used of wandb; `refused` makes init raise."""

    def __init__(self, refused: Exception | None = None):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)  # accelerate looks for it to see what is installed
        self.refused = refused
        self.asked: list[dict[str, Any]] = []
        self.run = FakeRun()

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **asked: Any) -> FakeRun:
        self.asked.append(asked)
        if self.refused is not None:
            raise self.refused
        return self.run
