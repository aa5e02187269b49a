"""The YAML of presets and overrides, both ways: the numbers of YAML 1.2, keys that are names, each given once."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from hopecli.errors import SettingsError

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"^[-+]?(0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0b[01][01_]*|\d[\d_]*)$", re.ASCII)
_FLOAT = re.compile(
    r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$", re.ASCII
)
_MOST_DIGITS = 1000  # far above any setting, and below what Python refuses to print
_MOST_VALUES = 100_000  # of a text whose aliases are written out
_BASES = {"0o": 8, "0x": 16, "0b": 2}


class _Loader(yaml.SafeLoader):
    """Safe YAML of settings: 010 is ten and 0o10 eight, 1e-4 is a number, 1:30 and dates are text.

    Keys are text, each given once. A value that cannot be what its tag says is a YAMLError with its line.
    """

    # A path that is not UTF-8 reaches Python as these surrogates, which YAML has no place for.
    NON_PRINTABLE = re.compile(  # type: ignore[misc]
        yaml.SafeLoader.NON_PRINTABLE.pattern.replace("\ue000", "\udc80-\udcff\ue000")
    )

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and _values(node, {}) > _MOST_VALUES:
            problem = f"its aliases stand for more than {_MOST_VALUES} values"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        # Here rather than when values are made: by then merge keys have put the keys of other mappings in.
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a name", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"
        return node

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # PyYAML lets through whatever Python makes of a value
            text = node.value if isinstance(node.value, str) else node.id
            text = text if len(text) <= 40 else f"{text[:40]}..."
            problem = f"{text!r} is no {node.tag.removeprefix(_TAG)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _values(node: Any, counted: dict[int, int]) -> int:
    """How many values a node holds, each alias counted as all it stands for."""
    if id(node) not in counted:
        counted[id(node)] = _MOST_VALUES + 1  # for an alias within what it stands for
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        parts = [part[1] for part in parts] if isinstance(node, yaml.MappingNode) else parts
        counted[id(node)] = 1 + sum(_values(part, counted) for part in parts)
    return counted[id(node)]


def _integer(loader: _Loader, node: Any) -> int:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    if len(text) > _MOST_DIGITS:
        raise ValueError("too many digits")
    sign, digits = (-1 if text.startswith("-") else 1), text.lstrip("+-")
    base = _BASES.get(digits[:2])
    return sign * (int(digits) if base is None else int(digits[2:], base))


def _mapping(loader: _Loader, node: Any) -> dict[str, Any]:
    """A mapping over what its merge keys bring in, of which the first wins (not so in every PyYAML)."""
    merged: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for key, value in node.value:
        if key.tag != f"{_TAG}merge":
            own[key.value] = loader.construct_object(value, deep=True)
            continue
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if not isinstance(source, yaml.MappingNode):
                raise yaml.constructor.ConstructorError(None, None, "<< takes mappings", source.start_mark)
            merged = {**loader.construct_object(source, deep=True), **merged}
    return {**merged, **own}


_KEPT = {f"{_TAG}{name}" for name in ("bool", "null", "merge")}
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] in _KEPT]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_constructor(f"{_TAG}int", _integer)
_Loader.add_constructor(f"{_TAG}map", _mapping)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either this module or another reader of YAML would take for something else."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
    _class.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; SettingsError naming `where` when it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise SettingsError("not valid YAML: nested too deeply", where=where, fix="close the brackets") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise SettingsError(f"not valid YAML: {problem}", where=place, fix="fix the line") from error


def dump_yaml(value: Any, *, flow: bool = False) -> str:
    """YAML text that `parse_yaml` reads back as the same value; `flow` writes it on one line."""
    width = 10_000 if flow else 120
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=width)


def inline_yaml(value: Any) -> str:
    """A value on one line, as it stands behind the = of an override."""
    breaks = isinstance(value, str) and value != "".join(value.splitlines())
    style = '"' if breaks else None  # escapes them
    text = yaml.dump(
        [value], Dumper=_Dumper, default_style=style, default_flow_style=True, allow_unicode=True, width=math.inf
    )
    return text.strip()[1:-1]
