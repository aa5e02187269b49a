"""Where hope eval and hope tta write their results."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from hopecli.cli.checkpoints import Trained
from hopecli.cli.common import runs_folder
from hopecli.errors import SettingsError

_NAME_BYTES = 255


def announce_replacing(folder: Path, say: Callable[[str], None], *, resumed: bool = False) -> None:
    """Say so when a folder holds results, or the state of an interrupted stream, that are about to be written again;
    `resumed`: by the command they are of."""
    from hopecli.engine.tta_state import STATE_FILE

    # os.path.isfile, not errors.is_file: what cannot be looked at is no error yet.
    if not resumed and os.path.isfile(folder / "results.json"):
        say(f"note: the results in {folder} will be replaced (--name NAME keeps both)")
    if not resumed and os.path.isfile(folder / STATE_FILE):
        say(f"note: the interrupted stream in {folder} starts again (--resume goes on with it, --name NAME keeps it)")
    for kind in ("eval", "tta"):  # of weights that this command adapts anew
        if os.path.isdir(folder / kind):
            say(f"note: {folder / kind} stays: results of the adapted weights that were here before")


def results_folder(trained: Trained, kind: str, name: str) -> Path:
    """RUN/<kind>/<name>; RUN/tta/<stream>/<kind>/<name> for weights that were adapted there; or for a file on its own
    <runs>/<kind>/<file stem>/<name>."""
    name = _folder_name(name)
    if not name.strip("."):
        raise SettingsError("is not a folder's name", where="--name", value=name, fix="use letters and digits")
    run_dir, file = trained.checkpoint.run_dir, trained.checkpoint.path
    if run_dir is not None and _is_adapted(file, run_dir):
        return file.parent / kind / name
    if run_dir is not None:
        return run_dir / kind / name
    stem = trained.checkpoint.path.stem  # `..` of a file ...safetensors
    return runs_folder(trained.settings) / kind / (stem if stem.strip(".") else "_" * len(stem)) / name


def _folder_name(text: str) -> str:
    """Letters, digits and -_. of a text, others as _. What is too long for a file system ends with a digest instead, so
    that two names stay two."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    encoded = name.encode()
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[: _NAME_BYTES - 9].decode(errors='ignore')}_{digest}"


def _is_adapted(file: Path, run_dir: Path) -> bool:
    """Whether the weights lie in the run's tta folder, which may be a link to another place."""
    named = Path(os.path.abspath(file)).is_relative_to(os.path.abspath(run_dir / "tta"))
    return named or file.resolve().is_relative_to(run_dir.resolve() / "tta")
