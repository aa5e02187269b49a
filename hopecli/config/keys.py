"""The dotted keys that settings have, for finding the one a user meant."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from hopecli.config.schema import Settings


@functools.cache
def valid_keys() -> dict[str, str]:
    """Every dotted key of a leaf with its description, in schema order (all model kinds together)."""
    return dict(_walk(Settings, ""))


def nearest_key(key: str) -> str | None:
    """The valid key closest to `key`: among its siblings first, then by its last part; None when nothing is near."""
    keys = list(valid_keys())
    section, _, leaf = key.rpartition(".")
    near = difflib.get_close_matches(key, [k for k in keys if k.rpartition(".")[0] == section], n=1, cutoff=0.7)
    if near:
        return near[0]
    leaves: dict[str, str] = {}
    for k in sorted(keys, key=lambda k: k.count(".")):  # of equal names the least nested is the likeliest
        leaves.setdefault(k.rpartition(".")[2], k)
    close = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)
    if close:
        return leaves[close[0]]
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    return near[0] if near else None


def _walk(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        sections = list(_sections(field.annotation))
        if not sections:
            yield f"{prefix}{name}", field.description or ""
        for section in sections:
            yield from _walk(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section classes of a field, all members of a union; lists of sections count as one value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not tuple:
        for part in get_args(annotation):
            yield from _sections(part)
