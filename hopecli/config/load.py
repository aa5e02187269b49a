"""From a preset's name and KEY=VALUE overrides to validated settings, with the origin of every value.

All mistakes are reported in one SettingsError: key, value, what is allowed, nearest valid key.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hopecli.config.checks import cross_checks
from hopecli.config.files import find_preset, read_preset
from hopecli.config.keys import model_kinds
from hopecli.config.mistakes import ABSENT, Problem, dotted, errors_of, field_problems, flat, mistakes_error, stands
from hopecli.config.schema import Settings
from hopecli.config.yaml_text import parse_yaml
from hopecli.errors import SettingsError

Tree = dict[str, Any]
Origins = dict[str, str]
DEFAULT, COMMAND_LINE = "default", "command line"


@dataclass(frozen=True)
class Resolved:
    """Settings with where each value came from (dotted key -> preset, run or checkpoint, `default` or
    `command line`)."""

    settings: Settings
    name: str
    origins: Origins = field(default_factory=dict)


def load_preset(preset: str, overrides: Sequence[str] = (), *, where: str = "--preset") -> Resolved:
    """Read a preset (name or path, given by `where`) with everything it extends, apply overrides, validate.

    SettingsError for a preset that is not found or cannot be read, and for all mistakes in it and the overrides.
    """
    path = find_preset(preset, where=where)
    tree, origins = _read_chain(path, ())
    return resolve(tree, overrides, name=path.stem, origins=origins)


def load_tree(tree: Tree, overrides: Sequence[str] = (), *, name: str, origin: str) -> Resolved:
    """Validate a tree from elsewhere (a checkpoint's config) under overrides; SettingsError with all mistakes."""
    return resolve(copy.deepcopy(tree), overrides, name=name, origins=dict.fromkeys(_leaves(tree), origin))


def resolve(tree: Tree, overrides: Sequence[str], *, name: str, origins: Origins) -> Resolved:
    """Apply overrides to `tree` and validate, reporting all mistakes at once."""
    problems = _apply_overrides(tree, overrides, origins)
    settings, more = _validate(tree)
    problems += more
    if settings is not None:
        wrong = [p.key for p in problems]
        problems += [p for p in cross_checks(settings) if stands(p, wrong)]
    if problems or settings is None:
        raise mistakes_error(problems, name, _kind(tree), origins)
    known = {key: origins.get(key, DEFAULT) for key in _leaves(settings.model_dump())}
    return Resolved(settings, name, known)


def section_tree(preset: str, sections: Sequence[str]) -> Tree:
    """The named sections that a preset (with its parents) writes down, validated as part of the whole preset."""
    load_preset(preset)
    tree, _ = _read_chain(find_preset(preset), ())
    return {key: tree[key] for key in sections if key in tree}


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


def overridden(overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted keys that overrides set, with their values; what is wrong with them is said when they are applied."""
    tree: Tree = {}
    _apply_overrides(tree, overrides, {})
    return flat(tree)


def _read_chain(path: Path, children: tuple[Path, ...]) -> tuple[Tree, Origins]:
    if path.resolve() in children:
        chain = " -> ".join(p.stem for p in (*children, path))
        raise SettingsError("presets extend each other in a circle", where=str(path), value=chain, fix="cut one link")
    own = read_preset(path)
    parent = own.pop("extends", None)
    if parent is None:
        base: Tree = {}
        origins: Origins = {}
    elif isinstance(parent, str):
        parent_path = find_preset(parent, extending=path, where=f"{path}: extends")
        base, origins = _read_chain(parent_path, (*children, path.resolve()))
        base.pop("description", None)
    else:
        raise SettingsError("extends takes one preset name", where=str(path), value=parent)
    tree = merge(base, own)
    origins = {key: origins[key] for key in _leaves(tree) if key in origins}
    name = str(path) if any(child.stem == path.stem for child in children) else path.stem
    origins.update(dict.fromkeys(_leaves(own), name))
    return tree, origins


def _apply_overrides(tree: Tree, overrides: Sequence[str], origins: Origins) -> list[Problem]:
    problems: list[Problem] = []
    pairs: list[tuple[str, Any]] = []
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key.strip():
            problems.append(Problem(text, ABSENT, "overrides are KEY=VALUE, for instance data.batch_size=16"))
            origins[text] = COMMAND_LINE
            continue
        try:
            pairs.append((key.strip(), parse_yaml(raw, key)))
        except SettingsError as error:
            problems.append(Problem(key, raw, error.what))
    # A change of kind replaces the section, so it goes first whatever its place on the command line.
    for key, value in sorted(pairs, key=lambda pair: not _sets_kind(*pair)):
        *parents, leaf = parts = key.split(".")
        if "" in parts or "[" in key:
            problems.append(Problem(key, value, _malformed(key)))
            continue
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


def _malformed(key: str) -> str:
    whole = key.partition("[")[0]
    if whole != key:
        return f"the items of a list are not set one by one; write {whole}=[...] with all of them"
    meant = ".".join(part for part in key.split(".") if part)
    return f"has an empty part; {f'did you mean {meant}?' if meant else 'keys are SECTION.NAME'}"


def _sets_kind(key: str, value: Any) -> bool:
    return key.endswith(".kind") or (isinstance(value, dict) and "kind" in value)


def _forget(origins: Origins, section: str) -> None:
    """Drop the origins of a section's old values, which a replacement leaves to the defaults."""
    for key in [key for key in origins if key.startswith(f"{section}.")]:
        del origins[key]


def _validate(tree: Tree) -> tuple[Settings | None, list[Problem]]:
    """Settings in which wrong values fell back to their defaults, and the mistakes in those."""
    problems: list[Problem] = []
    while True:
        try:
            return Settings.model_validate(tree), problems
        except ValidationError as error:
            before = tree
            known = {problem.key for problem in problems}
            for item in errors_of(error):
                path = _path(item["loc"])
                if item["type"] != "missing" or dotted(path) not in known:  # else taken out for being wrong
                    problems += field_problems(item, path)
                tree = _without(tree, path)
            if tree == before:  # nothing left to take out: another round would find the same mistakes
                return None, problems


def _path(loc: tuple[int | str, ...]) -> list[int | str]:
    """pydantic's location without union tags."""
    tagged = len(loc) > 2 and loc[0] == "model" and loc[1] in model_kinds()
    return [*loc[:1], *loc[2:]] if tagged else list(loc)


def _without(tree: Tree, path: list[int | str]) -> Tree:
    """`tree` without the value at `path`: a key of a section, or of a section in a list; the whole list where an item
    is wrong otherwise."""
    tree = copy.deepcopy(tree)
    node: Any = tree
    section: Any = tree
    key = path[0]  # what is taken out: as little as leaves a tree of the same shape
    inside = False
    for part, following in itertools.pairwise(path):
        node = node.get(part) if isinstance(node, dict) else node[int(part)]
        inside = inside or isinstance(node, list)
        if not isinstance(node, list if isinstance(following, int) else dict):
            break
        if not inside or (isinstance(node, dict) and following in node):
            section, key = node, following
    section.pop(str(key), None)
    if path == ["model"] or path[-1:] == ["kind"]:
        tree.pop("model", None)
    return tree


def _leaves(tree: Tree, prefix: str = "") -> list[str]:
    return list(flat(tree, prefix))


def _kind(tree: Tree) -> object:
    """The kind of model a settings tree asks for, valid or not."""
    model = tree.get("model", {"kind": Settings().model.kind})
    return model.get("kind") if isinstance(model, dict) else None
