"""Settings in words: resolved YAML, the origin of every value, the difference of two presets."""

from __future__ import annotations

from typing import Any, NamedTuple

from hopecli.config.keys import meanings
from hopecli.config.load import Resolved
from hopecli.config.mistakes import flat
from hopecli.config.schema import Settings
from hopecli.config.yaml_text import dump_yaml


class ValueRow(NamedTuple):
    """One resolved value: dotted key, YAML text of the value, where it came from, what it means."""

    key: str
    value: str
    origin: str
    meaning: str


def to_tree(settings: Settings) -> dict[str, Any]:
    """Plain JSON-able mapping of all settings."""
    return settings.model_dump(mode="json")


def to_yaml(settings: Settings) -> str:
    """Resolved YAML; reading it back gives the same settings."""
    return dump_yaml(to_tree(settings))


def value_rows(resolved: Resolved) -> list[ValueRow]:
    """Every value with its origin, in schema order."""
    meaning_of = meanings(resolved.settings.model.kind)
    return [
        ValueRow(key, value, resolved.origins.get(key, "default"), meaning_of.get(key, ""))
        for key, value in _texts(to_tree(resolved.settings)).items()
    ]


def differences(a: Settings, b: Settings) -> dict[str, tuple[str | None, str | None]]:
    """Dotted keys whose values differ, with both YAML texts; None where a side lacks the key."""
    left, right = _texts(to_tree(a)), _texts(to_tree(b))
    keys = list(dict.fromkeys([*left, *right]))
    return {key: (left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)}


def _texts(tree: dict[str, Any]) -> dict[str, str]:
    """Dotted keys with their values as one line of YAML."""
    return {key: dump_yaml(_brief(value), flow=True).split("\n")[0] for key, value in flat(tree).items()}


def _brief(value: Any) -> Any:
    """Curriculum phases without the keys they do not name."""
    if isinstance(value, list):
        return [{k: v for k, v in x.items() if v is not None} if isinstance(x, dict) else x for x in value]
    return value
