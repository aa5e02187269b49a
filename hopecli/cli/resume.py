"""Which run 'last' is, and which checkpoint of a run `hope train --resume` goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hopecli.cli.common import is_dated, override, runs_folder, started
from hopecli.errors import CheckpointError, HopeError, SettingsError, accessed, is_dir, is_file

if TYPE_CHECKING:
    from hopecli.config.schema import Settings


def find_run(given: str, overrides: Sequence[str]) -> tuple[Path, Path]:
    """The run directory and the checkpoint to go on from: a run's newest, a checkpoint directory of a run, or 'last',
    the run that was started last where `overrides` put runs."""
    if given == "last":
        run_dir = newest_run(overrides)
        return run_dir, run_dir
    path = Path(given)
    with accessed(path, kind=CheckpointError):
        if is_file(path / "config.yaml"):
            if not is_dir(path / "checkpoints"):
                raise CheckpointError(
                    "the run ended before its first checkpoint was written", where=given, fix="start it again"
                )
            return path, path
        run_dir = path.absolute().parent.parent
        if is_file(path / "trainer.pt") and is_file(run_dir / "config.yaml"):
            return run_dir, path
    raise CheckpointError(
        "not a run directory", where="--resume", value=given, fix="give a run's folder, or one of its checkpoints"
    )


def require_own(run_dir: Path, checkpoint: Settings, free: tuple[str, ...]) -> None:
    """CheckpointError when a checkpoint in a run was trained otherwise than the run's config.yaml says, in any key but
    those that begin with one of `free`."""
    from hopecli.config.explain import to_tree
    from hopecli.config.load import load_preset
    from hopecli.config.mistakes import flat

    file = run_dir / "config.yaml"
    with accessed(file, kind=CheckpointError):
        file.open("rb").close()
    try:
        recorded = load_preset(str(file)).settings
    except SettingsError as error:
        raise CheckpointError(f"does not hold a run's settings: {error}", where=str(file), fix="restore it") from error
    run, own = flat(to_tree(recorded)), flat(to_tree(checkpoint))
    for key in [*run, *own]:
        if run.get(key) != own.get(key) and not key.startswith(("description", *free)):
            raise CheckpointError(
                f"the checkpoint is of another run: its {key} is {own.get(key)}",
                where=str(file),
                value=run.get(key),
                fix="restore the run's own checkpoints and config.yaml",
            )


def newest_run(overrides: Sequence[str]) -> Path:
    """The run that was started last where `overrides` put runs; CheckpointError without one, or when it has no
    checkpoint yet: an earlier run would be taken for it."""
    from hopecli.config.load import load_tree, overridden
    from hopecli.engine.saved_weights import find_weights

    given = overridden(overrides).get("logging.runs_dir")  # no other setting can be judged without the run's own
    where = [] if given is None else [override("logging.runs_dir", given)]
    folder = runs_folder(load_tree({}, where, name="last", origin="default").settings)
    with accessed(folder, kind=CheckpointError):
        runs = [p.parent for p in folder.glob("*/*/config.yaml") if is_file(p.parent / "split.json")]
    if not runs:
        _require_readable(folder)
        raise CheckpointError("no run of hope train", where=str(folder), fix="train one, or give its directory")
    newest = _started_last(runs)
    try:
        find_weights(str(newest))
    except CheckpointError as error:
        _require_readable(newest / "checkpoints")
        if isinstance(error.__cause__, OSError):  # it may be there
            raise
        what = "the newest run has no checkpoint: it ended before its first one was written, or is about to write it"
        raise CheckpointError(what, where=str(newest), fix="start it again, or give another run's directory") from error
    return newest


def _started_last(runs: Sequence[Path]) -> Path:
    """By the date in its name or, of a run that was renamed, the time it recorded; CheckpointError when two are equally
    new, as a run and its copy are."""
    dated = [run for run in runs if is_dated(run.name)]
    renamed = max((run for run in runs if run not in dated), key=lambda run: (_recorded(run), run.name), default=None)
    if not dated:
        assert renamed is not None
        return renamed
    latest = max(started(run.name) for run in dated)
    newest = [run for run in dated if started(run.name) == latest]
    own = [run for run in newest if run.name == f"{latest[0]}-{latest[1]}" or run.name == latest[0]]
    if len(own) > 1 or (not own and len(newest) > 1):
        names = " and ".join(str(run) for run in sorted(own or newest)[:2])
        raise CheckpointError("two runs were started last", where=names, fix="give the directory of one of them")
    found = (own or newest)[0]
    if renamed is not None and _recorded(renamed) > _recorded(found) > 0.0:
        return renamed
    return found


def _recorded(run: Path) -> float:
    """When a run was started, as its environment.json says, in seconds; 0 where that cannot be read."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        facts = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        return datetime.fromisoformat(facts["time"]).timestamp()
    return 0.0


def note_stand_in(given: str, found: Path, say: Callable[[str], None]) -> None:
    """Say so when an epoch's checkpoint, or a loose file, stands in for the `last` of a run."""
    path = Path(given)
    usual = (path, path / found.name, *(path / "checkpoints" / name / found.name for name in ("last", ".last.old")))
    if found not in usual:
        say(f"note: {path} has no checkpoint `last`: {found} is used")
    elif found == path / found.name and os.path.isdir(path / "checkpoints"):
        say(f"note: {path} has no checkpoint of its own: {found}, which lies in it, is used")


def note_going_back(run_dir: Path, step: int, say: Callable[[str], None]) -> None:
    """Say so when a run goes on from an earlier checkpoint than its last."""
    from hopecli.engine.saved_weights import opened, read_metadata

    last = run_dir / "checkpoints" / "last" / "model.safetensors"
    with suppress(HopeError), opened(last) as (archive, _):
        newest = read_metadata(last, archive.metadata())[1].get("step", step)
        if newest > step:
            say(
                f"note: the run goes back from step {newest} to {step}: what it recorded and saved after it is replaced"
            )


def _require_readable(folder: Path) -> None:
    """CheckpointError when a part of the folder, or of a folder in it, may not be read: a search passes over it."""
    for part in (folder, *folder.glob("*"), *folder.glob("*/*")):
        with accessed(part, kind=CheckpointError), suppress(FileNotFoundError, NotADirectoryError):
            os.scandir(part).close()
