"""Clips that turn out to be unreadable while they are read, known alike on every process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hopecli.config.schema import DataSettings
from hopecli.data.split import check_skipped
from hopecli.engine.runtime import Runtime
from hopecli.errors import DataError


class Skips:
    """What becomes of clips that cannot be read: the first is raised, or with data.on_error "skip" all are noted.

    Every process reads its own clips, so `agree` must be called on all of them together; a single process agrees at
    once. `reasons`: clip -> why it was left out.
    """

    def __init__(
        self,
        settings: DataSettings,
        *,
        clips: int,
        before: int = 0,
        folder: Path,
        runtime: Runtime,
        say: Callable[[str], None],
        reasons: dict[str, str] | None = None,
    ):
        """`clips`: how many data.max_skipped is a share of, `before`: how many of them were left out already.

        `say` takes a line per clip, on the main process.
        """
        self.settings, self.clips, self.before, self.folder = settings, clips, before, folder
        self.runtime, self.say = runtime, say
        self.reasons: dict[str, str] = {} if reasons is None else reasons
        self.failure: DataError | None = None
        self._new: list[tuple[str, str, str]] = []

    def note(self, error: DataError) -> str:
        """The name of the clip whose error this is; raises it when clips may not be skipped, DataError when too many
        were."""
        if self.settings.on_error == "error":
            raise error
        name = error.where or str(error)
        self._new.append((name, error.what, str(error)))
        if self.runtime.world == 1:
            self.agree()
        return name

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Put aside a DataError of one process among several, until all of them can end with it."""
        try:
            yield
        except DataError as error:
            if self.runtime.world == 1:
                raise
            self.failure = self.failure or error

    def raise_failure(self) -> NoReturn:
        """Raise what some process has failed with; to be called on all of them."""
        mine = [] if self.failure is None else [(self.failure.what, self.failure.where, self.failure.fix)]
        what, where, fix = self.runtime.gather(mine)[0]
        self.runtime.raise_as_one(DataError(what, where=where, fix=fix))

    def agree(self) -> None:
        """Share what was noted; DataError, on every process, when one failed or more than data.max_skipped are left
        out."""
        news, failures = self.runtime.host_sum(len(self._new), self.failure is not None)
        if failures:
            self.raise_failure()
        if not news:
            return
        for name, what, text in self.runtime.gather(self._new):
            if name not in self.reasons:
                self.reasons[name] = what
                if self.runtime.is_main:
                    self.say(f"skipping {text}")
        self._new.clear()
        try:
            check_skipped(self.before + len(self.reasons), self.clips, self.settings.max_skipped, str(self.folder))
        except DataError as error:
            self.runtime.raise_as_one(error)
