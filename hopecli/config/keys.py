"""The dotted keys that settings have, for finding the one a user meant."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from hopecli.config.schema import Settings


@functools.cache
def valid_keys() -> dict[str, str]:
    """Every dotted key of a leaf with its description, in schema order (all model kinds together)."""
    return dict(_walk(Settings, "", None))


@functools.cache
def meanings(kind: str) -> dict[str, str]:
    """The keys of settings whose model is of this kind, with their descriptions; none of the model when it is unknown.

    Kinds share names: `model.num_heads` of one does not mean what it does for another.
    """
    return dict(_walk(Settings, "", kind))


@functools.cache
def model_sections() -> dict[str, type[BaseModel]]:
    """The settings class of each kind of model."""
    return {part.model_fields["kind"].default: part for part in _models(Settings.model_fields["model"].annotation)}


def model_kinds() -> list[str]:
    """The kinds of model there are."""
    return list(model_sections())


@functools.cache
def sections() -> dict[str, list[str]]:
    """Every section with the names in it; "" holds the sections themselves, a list's items are under the list's key."""
    found: dict[str, list[str]] = {"": list(Settings.model_fields)}
    for section in Settings.model_fields:
        for key in [key for key in valid_keys() if key.startswith(f"{section}.")]:
            parent, _, leaf = key.rpartition(".")
            names = found.setdefault(parent, [])
            if leaf not in names:
                names.append(leaf)
    for key, model in _lists(Settings, ""):
        found[key] = list(model.model_fields)
    return found


def names_beside(key: str) -> list[str]:
    """The valid names in the section of `key`, or the sections when it has none."""
    return sections().get(_section(key), sections()[""])


def nearest_key(key: str) -> str | None:
    """The valid key closest to `key`: in its section, itself perhaps misspelled, then by its name in any other; None
    when nothing is near."""
    section, leaf = _section(key), key.rpartition(".")[2]
    meant = closest(section, sections(), 0.7) if section else ""
    if meant is not None:
        near = closest(leaf, sections()[meant], 0.7)
        if near is not None:
            return f"{key.rpartition('.')[0] if meant == section else meant}.{near}".lstrip(".")
    leaves: dict[str, str] = {}
    for k in sorted(valid_keys(), key=lambda k: k.count(".")):  # of equal names the least nested is the likeliest
        leaves.setdefault(k.rpartition(".")[2], k)
    close = closest(leaf, leaves, 0.75)
    return None if close is None else leaves[close]


def closest(word: str, known: Iterable[str], cutoff: float) -> str | None:
    """The known word most like `word`, upper and lower case being alike; None when none is as like as `cutoff`."""
    spelled = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), list(spelled), n=1, cutoff=cutoff)
    return spelled[near[0]] if near else None


def _section(key: str) -> str:
    """The section of a key, without a list's item numbers."""
    return re.sub(r"\[\d+\]", "", key.rpartition(".")[0])


def _walk(model: type[BaseModel], prefix: str, kind: str | None) -> Iterator[tuple[str, str]]:
    """Keys and descriptions below `prefix`; of a union the part of this kind only, or all parts for None."""
    for name, field in model.model_fields.items():
        parts = list(_models(field.annotation))
        if not parts:
            yield f"{prefix}{name}", field.description or ""
        for part in parts:
            if kind is None or len(parts) == 1 or part.model_fields["kind"].default == kind:
                yield from _walk(part, f"{prefix}{name}.", kind)


def _lists(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Keys whose value is a list of sections, with the section's class."""
    for name, field in model.model_fields.items():
        if get_origin(field.annotation) is tuple:
            for part in get_args(field.annotation):
                yield from ((f"{prefix}{name}", found) for found in _models(part))
        for part in _models(field.annotation):
            yield from _lists(part, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section classes of a field, all members of a union; lists of sections count as one value."""
    # The origin first: on Python 3.10 tuple[X, ...] passes for a type, which issubclass then refuses.
    origin = get_origin(annotation)
    if origin is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif origin is not tuple:
        for part in get_args(annotation):
            yield from _models(part)
