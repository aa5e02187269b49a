"""What the machine can refuse a command: memory, a place for its output, a working directory."""

from __future__ import annotations

import contextlib
import io
import os
import sys

from hopecli.errors import DeviceError, HopeError, SettingsError

# Torch says most of these with a plain RuntimeError; its own class for it must not be imported here.
_NO_MEMORY = (
    "can't allocate memory",
    "defaultcpuallocator",
    "out of memory",
    "not enough memory",
    "cublas_status_alloc_failed",
    "storage size calculation overflowed",
)


def prepare_stdout() -> None:
    """SettingsError when stdout is closed; a character that the terminal cannot show is escaped, never an error."""
    if sys.stdout is None:
        raise SettingsError("is closed", where="stdout", fix="send it somewhere, for instance > /dev/null")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_stdout() -> None:
    """Send what is left for stdout nowhere, so that the interpreter does not fail on it when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_working_directory() -> None:
    """SettingsError when the working directory was deleted (importing torch there ends the process)."""
    try:
        os.getcwd()
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(
            f"cannot be used: {reason}", where="working directory", fix="change to one that exists"
        ) from error


def explained(error: Exception) -> HopeError | None:
    """The user's words for an error that no command expects but the machine gives: no memory, no room for stdout."""
    text = " ".join(str(error).split())
    torch_says = isinstance(error, RuntimeError) and any(words in text.lower() for words in _NO_MEMORY)
    if torch_says or isinstance(error, MemoryError):
        return DeviceError(
            "not enough memory",
            value=text.rpartition("DefaultCPUAllocator: ")[2][:200] or None,
            fix="take a smaller batch (training: data.batch_size, or a larger training.accumulate; hope eval: "
            "evaluation.batch_size) or bf16 precision, or train a smaller model or one with "
            "model.activation_checkpointing=true",
        )
    if isinstance(error, OSError) and error.filename is None and _stdout_fails():
        drop_stdout()
        reason = error.strerror or str(error)
        return HopeError(f"cannot be written: {reason}", where="stdout", fix="free disk space or send it elsewhere")
    return None


def _stdout_fails() -> bool:
    """Whether stdout still refuses what is waiting to be written; without a buffer nothing waits, so it is taken to."""
    with contextlib.suppress(ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            return True
    return getattr(sys.stdout, "write_through", False)
