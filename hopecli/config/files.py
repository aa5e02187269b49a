"""Finding presets and reading their files."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from hopecli.config.keys import closest
from hopecli.config.yaml_text import parse_yaml
from hopecli.errors import CHECK_ACCESS, SettingsError, accessed, is_file


def preset_folders() -> list[Path]:
    """Folders searched for a preset's name, in order: ./presets, the repository's, the packaged copy."""
    package = Path(__file__).resolve().parents[1]
    return [Path("presets"), package.parent / "presets", package / "_presets"]


def list_presets() -> dict[str, Path]:
    """Preset names and their files; the first folder that has a name wins, with a file before what is none."""
    found: dict[str, Path] = {}
    for folder in preset_folders():
        paths: list[Path] = []
        with suppress(OSError):  # find_preset says which folder cannot be read
            paths = sorted(path for path in folder.glob("*.yaml") if not path.name.startswith("."))
        for path in paths:
            if path.stem not in found or (os.path.isfile(path) and not os.path.isfile(found[path.stem])):
                found[path.stem] = path
    return dict(sorted(found.items()))


def find_preset(name: str, *, extending: Path | None = None, where: str = "--preset") -> Path:
    """The file of a preset given by path or by name; `where` gave it.

    extending: the preset whose parent is wanted. Beside it is searched first, and another preset of its name goes
    before itself: one's own `quickstart` may extend the packaged one.
    """
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or given.parent != Path("."):
        for path in [given] if extending is None or given.is_absolute() else [extending.parent / given, given]:
            with accessed(path, kind=SettingsError):
                if is_file(path):
                    return path
        raise SettingsError("no such preset file", where=where, value=name, fix="give a path to a .yaml file")
    folders = preset_folders() if extending is None else [extending.parent, *preset_folders()]
    closed: OSError | None = None
    itself: Path | None = None
    for folder in folders:
        path = folder / f"{name}.yaml"
        try:
            if is_file(path):
                if extending is None or path.resolve() != extending.resolve():
                    return path
                itself = path
        except OSError as error:  # another folder may have it; a name too long for a file is in none
            closed = closed if error.errno == errno.ENAMETOOLONG else error
    if itself is not None:
        return itself
    if closed is not None:
        reason = f"cannot be read: {closed.strerror or closed}"
        raise SettingsError(reason, where=str(closed.filename), fix=CHECK_ACCESS) from closed
    names = list(list_presets())
    near = closest(name, names, 0.6)
    hint = f"did you mean {near}? " if near else ""
    fix = f"{hint}Presets: {', '.join(names) or 'none found'}"
    raise SettingsError("no such preset", where=where, value=name, fix=fix)


def read_preset(path: Path) -> dict[str, Any]:
    """What one preset file says, its parents left out."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise SettingsError(f"cannot be read: {reason or error}", where=str(path), fix="check the file") from error
    tree = parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError("must be a mapping of sections", where=str(path), value=type(tree).__name__)
    return tree
