"""Which clips a folder has, by the numbers in their names, and which of them the settings select."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from hopecli.config.schema import DataSettings
from hopecli.errors import DataError, accessed, is_dir

CLIP_NAME = re.compile(r"clip_([0-9]+)\Z")
EXPECTED_TREE = (
    "expected DIR/clip_00001/feature_maps/<feature_map>.npy [T*N, D] and "
    "DIR/clip_00001/actions_states/actions.npy [T_original, A]"
)


def numbered_clips(folder: Path) -> list[tuple[int, str]]:
    """(id, name) of every clip folder, ascending; DataError when the folder or its clips are missing."""
    with accessed(folder, kind=DataError):
        if not is_dir(folder):
            fix = f"check the path; {EXPECTED_TREE}"
            raise DataError("no such folder of clips", where=str(folder), fix=fix)
        with os.scandir(folder) as entries:
            matches = [(CLIP_NAME.match(entry.name), entry) for entry in entries]
            found = [(int(match.group(1)), entry.name) for match, entry in matches if match and _is_clip(entry)]
    if not found:
        raise DataError("no clip_NNNNN folders in it", where=str(folder), fix=EXPECTED_TREE)
    return sorted(found)


def _is_clip(entry: os.DirEntry[str]) -> bool:
    """A folder, or a link that leads nowhere: a clip of a lost mount must be found missing, not left out unseen."""
    try:
        return entry.is_dir() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:  # a link to itself, or into a mount that has gone
        return True


def clip_names(folder: Path) -> dict[int, str]:
    """Clip folders by numeric id, in ascending order; DataError when there are none or two share an id."""
    found: dict[int, str] = {}
    for number, name in numbered_clips(folder):
        if number in found:
            names = f"{found[number]} and {name}"
            raise DataError("two clips have the same id", where=str(folder), value=names, fix="rename one of them")
        found[number] = name
    return found


def within(number: int, settings: DataSettings) -> bool:
    """Whether clip_start <= id < clip_end."""
    start, end = settings.clip_start, settings.clip_end
    return (start is None or number >= start) and (end is None or number < end)


def select_ids(ids: Iterable[int], settings: DataSettings, *, where: str) -> list[int]:
    """Those of the ids with clip_start <= id < clip_end, ascending; DataError, naming `where`, when there are none."""
    known = sorted(ids)
    chosen = [i for i in known if within(i, settings)]
    if not chosen:
        start, end = settings.clip_start, settings.clip_end
        bounds = [
            f"data.{key}={value}" for key, value in (("clip_start", start), ("clip_end", end)) if value is not None
        ]
        raise DataError(
            f"no clip has an id within {' '.join(bounds)}",
            where=where,
            value=f"ids {known[0]} to {known[-1]}",
            fix="change data.clip_start or data.clip_end",
        )
    return chosen
