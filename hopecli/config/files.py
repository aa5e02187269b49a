"""Finding presets and reading their YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from hopecli.errors import SettingsError, accessed


class _Loader(yaml.SafeLoader):
    """Safe YAML with two repairs: 1e-4 is a number (YAML 1.2), and a key given twice is an error."""


_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[str] = set()
    for key_node, _ in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; SettingsError naming `where` when it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SettingsError(f"not valid YAML: {problem}", where=place, fix="fix the line") from error


def preset_folders() -> list[Path]:
    """Folders searched for a preset's name, in order: ./presets, the repository's, the packaged copy."""
    package = Path(__file__).resolve().parents[1]
    return [Path("presets"), package.parent / "presets", package / "_presets"]


def list_presets() -> dict[str, Path]:
    """Preset names and their files; the first folder that has a name wins."""
    found: dict[str, Path] = {}
    for folder in preset_folders():
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def find_preset(name: str, *, beside: Path | None = None) -> Path:
    """The file of a preset given by path or by name; `beside` is searched first (for `extends`)."""
    given = Path(name)
    if given.suffix in (".yaml", ".yml") or given.parent != Path("."):
        for path in [given] if beside is None or given.is_absolute() else [beside / given, given]:
            with accessed(path, kind=SettingsError):
                if path.is_file():
                    return path
        raise SettingsError("no such preset file", where="--preset", value=name, fix="give a path to a .yaml file")
    folders = preset_folders() if beside is None else [beside, *preset_folders()]
    for folder in folders:
        path = folder / f"{name}.yaml"
        if path.is_file():
            return path
    import difflib

    names = list(list_presets())
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise SettingsError(
        "no such preset", where="--preset", value=name, fix=f"{hint}Presets: {', '.join(names) or 'none found'}"
    )
