"""From a preset's name and KEY=VALUE overrides to validated settings, with the origin of every value.

All mistakes are reported in one SettingsError: key, value, what is allowed, nearest valid key.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hopecli.config.checks import Problem, cross_checks
from hopecli.config.files import find_preset, parse_yaml
from hopecli.config.keys import names_beside, nearest_key, valid_keys
from hopecli.config.schema import Settings
from hopecli.errors import SettingsError

Tree = dict[str, Any]
Origins = dict[str, str]
DEFAULT, COMMAND_LINE = "default", "command line"


@dataclass(frozen=True)
class Resolved:
    """Settings with where each value came from (dotted key -> preset name, `default` or `command line`)."""

    settings: Settings
    name: str
    origins: Origins = field(default_factory=dict)


def load_preset(preset: str, overrides: Sequence[str] = ()) -> Resolved:
    """Read a preset (name or path) with everything it extends, apply overrides, validate."""
    tree, origins = _read_chain(find_preset(preset), ())
    return resolve(tree, overrides, name=Path(preset).stem, origins=origins)


def load_tree(tree: Tree, overrides: Sequence[str] = (), *, name: str, origin: str) -> Resolved:
    """Validate a settings tree from elsewhere (a checkpoint's config) under overrides."""
    return resolve(copy.deepcopy(tree), overrides, name=name, origins=dict.fromkeys(_leaves(tree), origin))


def resolve(tree: Tree, overrides: Sequence[str], *, name: str, origins: Origins) -> Resolved:
    """Apply overrides to `tree` and validate, reporting all mistakes at once."""
    problems = _apply_overrides(tree, overrides, origins)
    settings, more = _validate(tree)
    problems += more
    if problems or settings is None:
        raise _report(problems, name)
    known = {key: origins.get(key, DEFAULT) for key in _leaves(settings.model_dump())}
    return Resolved(settings, name, known)


def section_tree(preset: str, sections: Sequence[str]) -> tuple[Tree, str]:
    """The named sections that a preset (with its parents) writes down, validated as part of the whole preset."""
    load_preset(preset)
    tree, _ = _read_chain(find_preset(preset), ())
    return {key: tree[key] for key in sections if key in tree}, Path(preset).stem


def merge(base: Tree, change: Tree) -> Tree:
    """`change` over `base`: mappings merge, a mapping that carries `kind` replaces, all else replaces."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and "kind" not in value:
            out[key] = merge(old, value)
        else:
            out[key] = copy.deepcopy(value)
    return out


def _read_chain(path: Path, children: tuple[Path, ...]) -> tuple[Tree, Origins]:
    if path.resolve() in children:
        chain = " -> ".join(p.stem for p in (*children, path))
        raise SettingsError("presets extend each other in a circle", where=str(path), value=chain, fix="cut one link")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot be read: {error}", where=str(path), fix="check the file") from error
    own = parse_yaml(text, str(path))
    own = {} if own is None else own
    if not isinstance(own, dict):
        raise SettingsError("must be a mapping of sections", where=str(path), value=type(own).__name__)
    parent = own.pop("extends", None)
    if parent is None:
        base: Tree = {}
        origins: Origins = {}
    elif isinstance(parent, str):
        base, origins = _read_chain(find_preset(parent, beside=path.parent), (*children, path.resolve()))
        base.pop("description", None)
    else:
        raise SettingsError("extends takes one preset name", where=str(path), value=parent)
    tree = merge(base, own)
    origins = {key: origins[key] for key in _leaves(tree) if key in origins}
    origins.update(dict.fromkeys(_leaves(own), path.stem))
    return tree, origins


def _apply_overrides(tree: Tree, overrides: Sequence[str], origins: Origins) -> list[Problem]:
    problems: list[Problem] = []
    pairs: list[tuple[str, Any]] = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(text, None, "overrides are KEY=VALUE, for instance data.batch_size=16"))
            continue
        try:
            pairs.append((key.strip(), parse_yaml(raw, key)))
        except SettingsError as error:
            problems.append(Problem(key, raw, error.what))
    # A change of kind replaces the section, so it goes first whatever its place on the command line.
    for key, value in sorted(pairs, key=lambda pair: not _sets_kind(*pair)):
        *parents, leaf = key.split(".")
        node: Any = tree
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            problems.append(Problem(key, value, "not a section"))
            continue
        if leaf == "kind" and node.get("kind") != value:
            node.clear()
            _forget(origins, ".".join(parents))
        old = node.get(leaf)
        if isinstance(old, dict) and isinstance(value, dict) and "kind" not in value:
            node[leaf] = merge(old, value)
        else:
            node[leaf] = value
            _forget(origins, key)
        origins.update(dict.fromkeys(_leaves(value, key) if isinstance(value, dict) else [key], COMMAND_LINE))
    return problems


def _sets_kind(key: str, value: Any) -> bool:
    return key.endswith(".kind") or (isinstance(value, dict) and "kind" in value)


def _forget(origins: Origins, section: str) -> None:
    """Drop the origins of a section's old values, which a replacement leaves to the defaults."""
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]


def _validate(tree: Tree) -> tuple[Settings | None, list[Problem]]:
    """Field errors, then cross-field rules on what remains when the wrong values fall back to their defaults."""
    problems: list[Problem] = []
    for _ in range(10):
        try:
            settings = Settings.model_validate(tree)
        except ValidationError as error:
            for item in error.errors(include_url=False):
                path = _path(item["loc"], tree)
                problems += _problems(item, path)
                tree = _without(tree, path)
            continue
        wrong = {p.key for p in problems}
        problems += [p for p in cross_checks(settings) if p.key not in wrong]
        return settings, problems
    return None, problems


def _path(loc: tuple[int | str, ...], tree: Tree) -> list[int | str]:
    """pydantic's location without union tags."""
    path: list[int | str] = []
    for i, part in enumerate(loc):
        if i == 1 and loc[0] == "model" and part in ("vit_ac", "convlstm", "copy_last", "hope") and len(loc) > 2:
            continue
        path.append(part)
    return path


def _problems(item: Any, path: list[int | str]) -> list[Problem]:
    """A pydantic error in our words; an unknown section gives one for each of its keys."""
    key = _dotted(path)
    kind, message, value = item["type"], item["msg"], item.get("input")
    if kind == "extra_forbidden":
        unknown = flat(value, key) if isinstance(value, dict) and value else {key: value}
        return [Problem(k, v, _unknown(k)) for k, v in unknown.items()]
    if kind == "missing":
        message, value = "is missing", None
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        key = f"{key}.kind"
        value = value.get("kind") if isinstance(value, dict) else value
        message = "must be one of vit_ac, convlstm, copy_last, hope"
    elif kind == "model_type":
        message = "must be a section of keys"
    else:
        message = message.replace("Input should", "should")
    return [Problem(key, value, message)]


def _unknown(key: str) -> str:
    if key in valid_keys():
        return "is a key of another kind of model"
    near = nearest_key(key)
    return f"unknown key; nearest: {near}" if near else f"unknown key; there are {', '.join(names_beside(key))}"


def _dotted(path: list[int | str]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _without(tree: Tree, path: list[int | str]) -> Tree:
    """`tree` with the value at `path` removed; a wrong list item removes the list."""
    tree = copy.deepcopy(tree)
    node: Any = tree
    for part in path[:-1]:
        child = node.get(part) if isinstance(node, dict) else None
        if not isinstance(child, dict):
            node.pop(part, None)
            return tree
        node = child
    node.pop(path[-1], None)
    if path == ["model"] or path[-1:] == ["kind"]:
        tree.pop("model", None)
    return tree


def _leaves(tree: Tree, prefix: str = "") -> list[str]:
    return list(flat(tree, prefix))


def flat(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of all values that are not mappings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        found.update(flat(value, dotted) if isinstance(value, dict) else {dotted: value})
    return found


def _report(problems: list[Problem], name: str) -> SettingsError:
    lines = []
    for problem in problems:
        value = "" if problem.value is None else f" = {problem.value!r}"
        meaning = valid_keys().get(problem.key)
        lines.append(f"{problem.key}{value}: {problem.message}" + (f" ({meaning})" if meaning else ""))
    if len(lines) == 1:
        return SettingsError(lines[0], where=f"preset {name}")
    return SettingsError(f"{len(lines)} mistakes\n  " + "\n  ".join(lines), where=f"preset {name}")
