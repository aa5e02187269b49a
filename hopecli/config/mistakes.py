"""Mistakes in settings, in words: the key, its value and where it was set, what is allowed, the nearest name."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError

from hopecli.config.keys import meanings, model_kinds, model_sections, names_beside, nearest_key, valid_keys
from hopecli.errors import SettingsError, one_line

Path = Sequence[int | str]
ABSENT: Any = object()  # a mistake that has no value; None is one, which YAML writes as null
_LONGEST = 200


class Problem(NamedTuple):
    """One mistake: the dotted key it is reported under, the value found, and what is allowed.

    of: the other keys that a rule between settings reads; list[].key are those of all items.
    """

    key: str
    value: Any
    message: str
    of: tuple[str, ...] = ()


def field_problems(item: Any, path: Path) -> list[Problem]:
    """A pydantic error in our words; an unknown section gives one for each of its keys, a model without a valid kind
    one for each key that is wrong whatever the kind."""
    key = dotted(path)
    kind, message, value = item["type"], item["msg"].removeprefix("Value error, "), item.get("input")
    if kind == "extra_forbidden":
        if path[-1] in valid_keys():
            return [Problem(key, value, "dotted keys are for the command line; in a file write sections")]
        unknown = flat(value, key) if isinstance(value, dict) and value else {key: value}
        return [Problem(k, v, _unknown(k)) for k, v in unknown.items()]
    if kind == "missing":
        message, value = "is missing", ABSENT
    elif kind in ("union_tag_not_found", "union_tag_invalid"):
        section = value if isinstance(value, dict) else {}
        what = Problem(f"{key}.kind", section.get("kind", ABSENT), f"must be one of {', '.join(model_kinds())}")
        return [what, *_wrong_in_every_kind(section)]
    elif kind == "model_attributes_type":
        message = f"must be a section of keys with a kind: {', '.join(model_kinds())}"
    elif kind == "model_type":
        message = "must be a section of keys"
    else:
        message = message.replace("Input should", "should")
    return [Problem(key, value, message)]


def errors_of(error: ValidationError) -> list[Any]:
    """pydantic's errors, without a list's being too short for its wrong items being left out."""
    items: list[Any] = error.errors(include_url=False)

    def of_its_items(item: Any) -> bool:
        return any(other["loc"][: len(item["loc"])] == item["loc"] for other in items if other is not item)

    return [item for item in items if item["type"] != "too_short" or not of_its_items(item)]


def stands(rule: Problem, wrong: Iterable[str]) -> bool:
    """Whether a broken rule is the user's mistake: none of its keys fell back to a default for being `wrong`."""
    keys = [_any_item(key) for key in (rule.key, *rule.of)]
    for bad in map(_any_item, wrong):
        section = "model" if bad == "model.kind" else bad  # a wrong kind takes its whole section along
        below = (f"{section}.", f"{section}[")
        if any(key == bad or key.startswith(below) or bad.startswith(f"{key}.") for key in keys):
            return False
    return True


def mistakes_error(problems: Sequence[Problem], name: str, kind: object, origins: Mapping[str, str]) -> SettingsError:
    """All mistakes in the settings of preset `name`, whose model is of `kind`, in one error."""
    meaning_of = meanings(kind if isinstance(kind, str) else "")
    lines = []
    for problem in problems:
        source = _source(problem.key, origins)
        origin = f" (from {source})" if source not in (None, name, "command line") else ""
        meaning = meaning_of.get(problem.key)
        tail = f" ({meaning})" if meaning else ""
        lines.append(one_line(f"{problem.key}{_shown(problem.value)}{origin}: {problem.message}{tail}"))
    if len(lines) == 1:
        return SettingsError(lines[0], where=f"preset {name}")
    return SettingsError(f"{len(lines)} mistakes\n  " + "\n  ".join(lines), where=f"preset {name}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of all values that are not mappings."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found.update(flat(value, name) if isinstance(value, dict) else {name: value})
    return found


def dotted(path: Path) -> str:
    """A path as text: section.name, list[0].name."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _wrong_in_every_kind(section: Mapping[str, Any]) -> list[Problem]:
    """The mistakes of a model section, its kind aside, that stay whichever kind is meant."""
    found: list[dict[str, list[Any]]] = []  # per kind: a key's errors
    for kind, model in model_sections().items():
        errors: dict[str, list[Any]] = {}
        try:
            model.model_validate({**section, "kind": kind})
        except ValidationError as error:
            for item in errors_of(error):
                errors.setdefault(str(item["loc"][0]), []).append(item)
        found.append(errors)
    problems = []
    for key in section:
        of_kinds = [errors[key] for errors in found if key in errors]
        if len(of_kinds) == len(found):
            items = next((items for items in of_kinds if items[0]["type"] != "extra_forbidden"), of_kinds[0])
            problems += [problem for item in items for problem in field_problems(item, ["model", *item["loc"]])]
    return problems


def _unknown(key: str) -> str:
    if key in valid_keys():
        return "is a key of another kind of model"
    near = nearest_key(key)
    if near is None or near == key:
        return f"unknown key; there are {', '.join(names_beside(key))}"
    return f"unknown key; nearest: {near}"


def _whole(key: str) -> str:
    """The key of the list that an item is in; other keys as they are."""
    return key.partition("[")[0]


def _any_item(key: str) -> str:
    """A key within a list for all of its items, list[].key; an item that is wrong as a whole makes the list wrong."""
    return re.sub(r"\[\d+\]", "[]", key).removesuffix("[]")


def _source(key: str, origins: Mapping[str, str]) -> str | None:
    """Where the value of a key, or the first value below it, was set."""
    key = _whole(key)
    if key in origins:
        return origins[key]
    found = [origin for known, origin in origins.items() if known.startswith(f"{key}.")]
    return found[0] if found else None


def _shown(value: Any) -> str:
    if value is ABSENT:
        return ""
    text = "null" if value is None else repr(value)
    return f" = {text if len(text) <= _LONGEST else f'{text[:_LONGEST]}...'}"
