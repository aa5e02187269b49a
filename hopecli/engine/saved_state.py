"""Files of torch.save: read without unpickling code, and held against the types of what they should hold.

A file may be of another version, another run or damaged. What it holds is checked once, where it is read.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch

from hopecli.errors import CheckpointError


def read_saved(file: Path, kind: Any, *, fix: str) -> dict[str, Any]:
    """What a file holds, on the CPU: a dict with the fields of the dataclass `kind`.

    Raises CheckpointError when it cannot be read and when something in it is not of the type that `kind` says.
    """
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has no error of its own for a damaged file: each part raises another kind
        system = error.strerror if isinstance(error, OSError) else None
        reason = system or "it is damaged, cut short or not of hopecli"  # torch's own words advise to unpickle code
        raise CheckpointError(f"{file.name} cannot be read: {reason}", where=str(file.parent), fix=fix) from error
    wrong = misfit(state, kind, file.name)
    if wrong is not None:
        what = f"{file.name} does not hold what it should: {wrong} is missing, unknown or of another type"
        raise CheckpointError(what, where=str(file.parent), fix=fix)
    return state


def misfit(value: object, kind: Any, name: str) -> str | None:
    """The first place, dotted below `name`, where a value from a file is not of a type; None when all of it is.

    kind: a dataclass (for a dict of its fields), list[...], dict[..., ...], X | None, Any or a plain type. A field with
    a default may be absent. Whole numbers pass for float, booleans for no number.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any or (value is None and NoneType in args):
        return None
    if NoneType in args:
        (inner,) = (arg for arg in args if arg is not NoneType)
        return misfit(value, inner, name)
    expected = dict if is_dataclass(kind) else origin or kind
    if kind is float:
        expected = (int, float)
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool):
        return name
    parts: list[tuple[object, Any, str]] = []
    if isinstance(value, dict) and is_dataclass(kind):
        hints = get_type_hints(kind)
        required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
        odd = sorted(required - value.keys()) + sorted(str(key) for key in value.keys() - hints.keys())
        if odd:
            return f"{name}.{odd[0]}"
        parts = [(value[key], hints[key], f"{name}.{key}") for key in hints if key in value]
    elif isinstance(value, dict) and args:
        parts = [(key, args[0], name) for key in value]
        parts += [(entry, args[1], f"{name}.{key}") for key, entry in value.items()]
    elif isinstance(value, list) and args:
        parts = [(entry, args[0], f"{name}[{i}]") for i, entry in enumerate(value)]
    return next((wrong for part in parts if (wrong := misfit(*part)) is not None), None)


def too_deep(value: object, levels: int = 32) -> bool:
    """Whether lists and dicts are nested deeper than anything hopecli writes, so that walking them may overflow."""
    if not isinstance(value, (dict, list)):
        return False
    return levels == 0 or any(too_deep(v, levels - 1) for v in (value.values() if isinstance(value, dict) else value))
