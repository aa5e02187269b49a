"""`hope` as torchrun starts it, on a machine so busy that the process group's threads run long after what they did.

When the run is over they get what is left of one CPU (SCHED_IDLE), and there is one more exchange.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hopecli.cli.main import entry_point
from hopecli.engine.runtime import Runtime

close = Runtime.close


def close_with_late_threads(self: Runtime) -> None:
    """Runtime.close() right after an exchange whose threads are late."""
    threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
    assert len(threads) > 1, "the process group has none"
    with contextlib.suppress(OSError):  # a sandbox without such priorities: they are as late as they are
        for thread in threads:
            os.sched_setaffinity(thread, {min(os.sched_getaffinity(0))})
            if thread != os.getpid():  # the main thread's
                os.sched_setscheduler(thread, os.SCHED_IDLE, os.sched_param(0))
    self.host_sum(1.0)
    close(self)


if __name__ == "__main__":
    Runtime.close = close_with_late_threads  # type: ignore[method-assign]
    entry_point()
