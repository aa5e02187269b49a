"""What the commands share: options, overrides from flags, folders from the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hopecli.errors import DeviceError, SettingsError, is_dir, written

if TYPE_CHECKING:
    from hopecli.config.schema import Settings, TrainingSettings
    from hopecli.data.store import ClipStore
    from hopecli.engine.runtime import Runtime
    from hopecli.hardware import DeviceChoice

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, dotted keys and YAML values: data.batch_size=16"),
]
OtherOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, dotted keys and YAML values: evaluation.batch_size=16"),
]
StreamOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, dotted keys and YAML values: adaptation.lr=1e-3"),
]
OtherDataDir = Annotated[
    str | None,
    typer.Option("--data-dir", help="Folder of clips (else the one trained on, HOPE_DATA_DIR where that has gone)."),
]
DataDir = Annotated[str | None, typer.Option("--data-dir", help="Folder of clips (else HOPE_DATA_DIR).")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cuda, mps or cpu.")]
PrecisionOption = Annotated[str | None, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, nothing else there.")]


STAMP_LENGTH = len("2001-01-01_00-00-00")  # of the date and time that name a run


def complete_presets(incomplete: str) -> list[str]:
    """Preset names for shell completion."""
    from hopecli.config.files import list_presets

    return [name for name in list_presets() if name.startswith(incomplete)]


def override(key: str, value: Any) -> str:
    """KEY=VALUE with the value as YAML."""
    from hopecli.config.yaml_text import inline_yaml

    return f"{key}={inline_yaml(value)}"


def expanded(path: str, where: str) -> Path:
    """A path with its ~ put in full; SettingsError naming `where` it was given when there is none or no such user."""
    if not path:
        raise SettingsError("is empty", where=where, value=path, fix="name a folder")
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise SettingsError("no such home folder", where=where, value=path, fix="write the path in full") from error


def data_overrides(data_dir: str | None) -> list[str]:
    """--data-dir also switches the built-in clips off."""
    if data_dir is None:
        return []
    return [override("data.source", "folder"), override("data.data_dir", str(expanded(data_dir, "--data-dir")))]


def gives_clips(overrides: Sequence[str]) -> bool:
    """Whether overrides say where the clips are."""
    from hopecli.config.load import overridden

    return not overridden(overrides).keys().isdisjoint(("data.source", "data.data_dir"))


def check_built_in(settings: Settings, overrides: Sequence[str]) -> None:
    """SettingsError for overrides of built-in clips where a folder's are used that nobody asked for: they would be the
    wrong ones. A note where the folder was asked for as well."""
    from hopecli.config.load import overridden
    from hopecli.report.console import say

    idle = ", ".join(key for key in overridden(overrides) if key.startswith("data.physics."))
    if not idle or settings.data.source != "folder":
        return
    if not gives_clips(overrides):
        fix = "add data.source=physics, or leave it out"
        raise SettingsError("has no effect on the clips of a folder (data.source=folder)", where=idle, fix=fix)
    say(f"note: the clips of a folder do not use {idle}")


def _gone(folder: str) -> bool:
    """Whether a folder is no longer there. One that may not be looked at counts as there; its reader says why not."""
    try:
        return not is_dir(folder)
    except OSError:
        return False


def with_data_folder(settings: Settings, *, recorded: bool = False) -> Settings:
    """Settings whose data folder comes from HOPE_DATA_DIR when nothing else gives one, or when the one that a run
    `recorded` is not there (any more). It is made absolute, so that a run can be gone on with from any directory."""
    given, known = settings.data.data_dir, os.environ.get("HOPE_DATA_DIR")
    if known and (given is None or (recorded and _gone(given))):
        given = known
    if settings.data.source != "folder" or given is None:
        return settings
    folder = str(expanded(given, "HOPE_DATA_DIR" if given == known else "data.data_dir").absolute())
    return settings.model_copy(update={"data": settings.data.model_copy(update={"data_dir": folder})})


def runs_folder(settings: Settings | None = None) -> Path:
    """logging.runs_dir (of settings, where there are any), else HOPE_RUNS_DIR, else ./runs; ~ is put in full."""
    given = settings.logging.runs_dir if settings is not None else None
    if given:
        return expanded(given, "logging.runs_dir")
    return expanded(os.environ.get("HOPE_RUNS_DIR") or "runs", "HOPE_RUNS_DIR")


def start_runtime(
    training: TrainingSettings, precision: str, device: str | None = None, *, resumed: bool = False
) -> Runtime:
    """Resolve device (None: training's) and precision, show the banner on the main process, start the Accelerator.

    resumed: the precision is that of a run which goes on, and stays.
    """
    check_launch()
    import torch

    from hopecli.engine.runtime import start
    from hopecli.hardware import probe, resolve
    from hopecli.report.console import hardware_banner, say

    try:
        choice = resolve(device or training.device, precision, probe())
    except DeviceError as error:
        if not resumed or error.where != "--precision":
            raise
        fix = "go on with the run on a device that has it, or start a new run"
        raise DeviceError(error.what, where="training.precision", value=error.value, fix=fix) from error
    limit_threads(training, choice)
    runtime = start(choice)
    if runtime.is_main:
        say(hardware_banner(choice, processes=runtime.world, threads=torch.get_num_threads()))
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if tasks not in ("1", "") and "WORLD_SIZE" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0":
        say(f"note: each of the {tasks} tasks that srun started is a run of its own; torchrun shares one among them")
    return runtime


def limit_threads(training: TrainingSettings, choice: DeviceChoice) -> bool:
    """Compute on training.cpu_threads at most where the CPU computes; whether that made them fewer."""
    import torch

    wanted, given = training.cpu_threads, torch.get_num_threads()
    if choice.device != "cpu" or wanted is None or wanted >= given:
        return False
    torch.set_num_threads(wanted)
    return True


def require_right_numbers(kind: str, runtime: Runtime, *, learning: bool) -> None:
    """DeviceError where a predictor of this kind computes wrong numbers on the run's device; see the engine's."""
    from hopecli.engine import predictor_trials

    predictor_trials.require_right_numbers(kind, runtime.choice, learning=learning)


def check_launch() -> None:
    """SettingsError when the variables of torchrun are half there, or another launcher's: libraries would fail on them
    one by one."""
    variables = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    fix = "start with torchrun --nproc_per_node N -m hopecli.cli.main ..., or unset WORLD_SIZE, RANK and LOCAL_RANK"
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        value = os.environ.get(name)
        if value is not None and not value.strip().lstrip("-").isdecimal():
            raise SettingsError("must be a whole number", where=name, value=value, fix=fix)
    for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):  # Accelerate would wait for the others
        value = os.environ.get(name, "1").strip()
        if value.isdecimal() and int(value) > 1 and "WORLD_SIZE" not in os.environ:
            mpi = "start with torchrun --nproc_per_node N -m hopecli.cli.main ..., or unset it"
            raise SettingsError("processes that MPI started cannot work together", where=name, value=value, fix=mpi)
    missing = [name for name in variables if not os.environ.get(name)]
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if missing and (several or int(os.environ.get("LOCAL_RANK", "-1")) >= 0):
        where = "WORLD_SIZE" if several else "LOCAL_RANK"
        raise SettingsError(f"is set without {', '.join(missing)}", where=where, fix=fix)


def environment_facts(runtime: Runtime) -> dict[str, Any]:
    """What environment.json records: command, versions, machine, and the device chosen."""
    import dataclasses
    import sys
    from importlib.metadata import version

    from hopecli import __version__
    from hopecli.hardware import probe

    return {
        "command": ["hope", *sys.argv[1:]],
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "hopecli": __version__,
        "accelerate": version("accelerate"),
        "numpy": version("numpy"),
        "processes": runtime.world,
        "hardware": dataclasses.asdict(probe()),
        "choice": dataclasses.asdict(runtime.choice),
    }


def started(name: str) -> tuple[str, int]:
    """When the run with this folder name started, to sort by: its second, and its number within that second."""
    second, number = name[:STAMP_LENGTH], name[STAMP_LENGTH + 1 :]
    return second, int(number) if number.isdecimal() else 1


def is_dated(name: str) -> bool:
    """Whether a folder has the name of a run, and not one that a user gave it."""
    try:
        datetime.strptime(name[:STAMP_LENGTH], "%Y-%m-%d_%H-%M-%S")
    except ValueError:
        return False
    return True


def make_run_dir(parent: Path) -> Path:
    """A new folder <date-time> in `parent`, numbered when two runs start in one second."""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    with written(parent, fix="make it writable, or choose another folder with HOPE_RUNS_DIR or logging.runs_dir"):
        parent.mkdir(parents=True, exist_ok=True)
        for suffix in ["", *(f"-{i}" for i in range(2, 1000))]:
            folder = parent / f"{stamp}{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    raise AssertionError("a thousand runs started in one second")


def open_store(settings: Settings, say: Callable[[str], None]) -> ClipStore:
    """The clips of these settings; built-in ones are made where they are not in the cache."""
    from hopecli.data.source import clips_folder
    from hopecli.data.store import ClipStore

    return ClipStore(clips_folder(settings.data, say), settings.data, use_extrinsics=settings.use_extrinsics)
