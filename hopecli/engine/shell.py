"""Commands that the user is to type: quoted for the shell of the system."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence


def command_line(words: Sequence[str]) -> str:
    """The words as one line; in double quotes on Windows, whose shells take single quotes literally."""
    return subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
