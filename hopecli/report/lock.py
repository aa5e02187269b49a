"""One training at a time in a run directory: two would overwrite each other's checkpoints and record."""

from __future__ import annotations

import sys
from pathlib import Path

from hopecli.engine.sink import NullSink
from hopecli.errors import CheckpointError


class RunLock(NullSink):
    """Holds the run from construction to `close`, or to the end of the process however it ends.

    The system's lock on the run's config.yaml, so that nothing is left behind; none on Windows, nor on a file system
    without locks.
    """

    def __init__(self, run_dir: Path):
        """CheckpointError when another process trains there."""
        self.file = open(run_dir / "config.yaml", "rb")  # noqa: SIM115 (closed in close())
        if sys.platform == "win32":
            return
        import fcntl

        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise CheckpointError(
                "another process is training in it", where=str(run_dir), fix="wait for it, or stop it first"
            ) from error
        except OSError:  # locks are not supported there: go on as without
            return

    def close(self) -> None:
        """Release the run."""
        self.file.close()
