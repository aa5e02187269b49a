"""The `hope` command: the list of commands, .env, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from hopecli.cli.eval import eval_command
from hopecli.cli.hw_info import hw_info_command
from hopecli.cli.inspect_data import inspect_data_command
from hopecli.cli.make_clips import make_clips_command
from hopecli.cli.presets import presets_command
from hopecli.cli.stderr import prepare_stderr
from hopecli.cli.system import drop_stdout, explained, prepare_stdout, require_working_directory
from hopecli.cli.train import train_command
from hopecli.cli.tta import tta_command
from hopecli.errors import (
    CHECK_ACCESS,
    AbortedError,
    HopeError,
    SettingsError,
    StoppedError,
    is_first_here,
    one_of_several,
    printable,
)

SILENT_SECONDS = 10.0  # more than processes of one machine are apart when they read the same settings and files
TOGETHER_SECONDS = 2.0  # more than they are apart where they have just met; torchrun waits for it after a signal
FPMATH = {"ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"}  # the second is the older name
_UsageError: Any = typer.BadParameter.__base__  # Typer exports it under no name of its own

app = typer.Typer(
    name="hope",
    help="Train, evaluate and adapt action-conditioned latent world models on clips of V-JEPA 2 features.",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from hopecli import __version__

        typer.echo(f"hopecli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error (any position).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(SettingsError.exit_code)
    require_working_directory()


app.command("train")(train_command)
app.command("eval")(eval_command)
app.command("tta")(tta_command)
app.command("make-clips")(make_clips_command)
app.command("inspect-data")(inspect_data_command)
app.command("hw-info")(hw_info_command)
app.command("presets")(presets_command)


def entry_point() -> NoReturn:
    """`hope` as a process: main(), after which nothing can change the exit code or print a traceback."""
    _say_what_ends_us()
    from hopecli.engine.signals import WARNINGS  # while nothing is lost by it: _leave() is in haste

    last = _End()
    atexit.register(last)  # registered first, so called last
    try:
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
            if getattr(end, "together", False):  # torchrun ends all when one ends: not before the main one has spoken
                time.sleep(TOGETHER_SECONDS)
    except KeyboardInterrupt:  # one more while main() was ending
        code = AbortedError.exit_code
    last.code = code
    _leave(code, WARNINGS)


def _prepare_torch() -> None:
    """How torch's threads behave, unless told otherwise; before torch is imported.

    Waiting OpenMP threads spin shortly: with GNU OpenMP's default a small model takes more than ten times as long
    beside a busy process. With all cores free this took up to twice as long on one machine, no longer on another
    (README). A count of 0 halves the speed of small models.
    Where a container or batch system grants less than the cores that torch sees, there is a thread for each CPU of
    the quota: more of them only use it up sooner, waiting for each other.

    And fp32 means fp32: oneDNN's convolutions would round to bfloat16 or TF32 where the environment asks for it. It
    reads that once, when torch is loaded.
    """
    from hopecli.hardware import cores_within_quota

    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    cores = cores_within_quota()
    if cores is not None and "MKL_NUM_THREADS" not in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    for name in FPMATH.intersection(os.environ):
        os.environ[name] = "STRICT"


def _say_what_ends_us() -> None:
    """One line before SIGTERM or SIGHUP ends the process as it would anyway; training and new clips handle them better.

    An exception instead would get lost while modules are imported. Under torchrun nothing may delay the end: a process
    that waits for another runs no handlers.
    """
    if one_of_several():
        return
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # `nohup` ignores it, and so do we
            signal.signal(number, _end_with_a_line)


def _end_with_a_line(number: int, frame: FrameType | None) -> None:
    """Handler of a signal that ends the process."""
    with contextlib.suppress(Exception):  # the signal may have come in the middle of another line
        print(f"stopped: {signal.Signals(number).name}; only complete files are kept", file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and its exit code, a traceback only with --debug."""
    prepare_stderr()
    debug = "--debug" in sys.argv[1:]
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        prepare_stdout()
        _load_env()
        _prepare_torch()
        code = _run()
        sys.stdout.flush()  # a full disk must be found here, not when the interpreter ends
    except HopeError as error:
        _let_the_first_speak()
        stopped = isinstance(error, StoppedError | AbortedError)
        if debug and not stopped:
            traceback.print_exc()
        _die(f"{'stopped' if stopped else 'error'}: {error}", error.exit_code)
    except KeyboardInterrupt:
        _die_of_interrupt()
    except BrokenPipeError:
        drop_stdout()  # its reader has gone
        raise SystemExit(1) from None
    except Exception as error:
        known = explained(error)
        _let_the_first_speak()
        if _interrupted(error):
            _die_of_interrupt()
        if debug:
            traceback.print_exc()
        if known is not None:
            _die(f"error: {known}", known.exit_code)
        text = " ".join(str(error).split())[:500]
        more = "" if debug else ". Run again with --debug for the traceback"
        _die(f"unexpected error: {type(error).__name__}: {text}{more}", 1)
    if code:
        raise SystemExit(code)


def _interrupted(error: BaseException | None) -> bool:
    """Whether an error came of Ctrl-C: some libraries put one of their own on top of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _run() -> int:
    """The exit code; what Typer would print itself is raised as ours: a wrong command line, Ctrl-C."""
    try:
        code: int | None = app(prog_name="hope", standalone_mode=False)  # of a typer.Exit: commands return nothing
    except typer.Abort as abort:  # Ctrl-C in older versions of Typer
        raise KeyboardInterrupt from abort
    except _UsageError as error:
        place = error.ctx.command_path if error.ctx is not None else "hope"
        raise SettingsError(error.format_message(), where=place, fix=f"see {place} --help") from error
    if code == AbortedError.exit_code:  # Ctrl-C in newer ones
        raise KeyboardInterrupt
    return code or 0


def _load_env() -> None:
    """Load .env of the working directory; real environment variables win."""
    if os.path.isfile(".env"):
        from dotenv import load_dotenv

        try:
            load_dotenv(".env", override=False, encoding="utf-8-sig")
        except OSError as error:
            raise SettingsError(f"cannot be read: {error.strerror or error}", where=".env", fix=CHECK_ACCESS) from error
        except ValueError as error:  # not UTF-8, or a value that the system takes for no variable
            fix = "write NAME=value lines in UTF-8"
            raise SettingsError(f"cannot be read: {error}", where=".env", fix=fix) from error


def _let_the_first_speak() -> None:
    """Under torchrun every process finds a mistake of the command line or of a file by itself, before they have met.

    The first one of the machine says it; when it ends torchrun ends the others, which wait for that. One that is still
    there afterwards is alone with its error, and says it.
    """
    met = "torch.distributed" in sys.modules and sys.modules["torch.distributed"].is_initialized()
    if not is_first_here() and not met:
        time.sleep(SILENT_SECONDS)


def _die_of_interrupt() -> NoReturn:
    """Ctrl-C comes to every process of torchrun; the first one of the machine says it."""
    if not is_first_here():
        raise SystemExit(AbortedError.exit_code)
    _die("stopped: interrupted; only complete files are kept", AbortedError.exit_code)


def _die(message: str, code: int) -> NoReturn:
    print(printable(message), file=sys.stderr, flush=True)
    raise SystemExit(code)


def _leave(code: int, warnings: tuple[str, ...]) -> NoReturn:
    """End the process with `code`; from here on a signal only skips waiting for threads and the exit functions: what
    was asked for is done, and a batch system's warning must not make a failed run of it."""

    def at_once(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(code)

    names = ("SIGINT",) if one_of_several() else ("SIGINT", "SIGTERM", "SIGHUP", *warnings)  # torchrun may not wait
    for number in [getattr(signal, name) for name in names if hasattr(signal, name)]:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL, _end_with_a_line):
            signal.signal(number, at_once)  # others are ignored by the caller's wish, or taken
    raise SystemExit(code)


class _End:
    """The last of the exit functions."""

    code: int | None = None  # None: an error of our own has left entry_point() with its traceback

    def __call__(self) -> None:
        """End the process, before Python takes itself down: it would run no handlers meanwhile, so that a signal would
        kill the process and hide the code.

        And the threads of torchrun's process group live as long as a module that exchanges gradients: one that lets go
        of a tensor while Python takes itself down aborts the process, which torchrun takes for a run that failed.
        """
        if self.code is not None:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(self.code)


if __name__ == "__main__":
    entry_point()
