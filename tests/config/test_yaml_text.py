"""YAML as settings read it: numbers of YAML 1.2, keys that are names, one clear error for what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.config.load import load_preset
from hopecli.config.yaml_text import dump_yaml, parse_yaml
from hopecli.errors import SettingsError
from tests.alarm import within


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        ("16", 16),
        ("1.5", 1.5),
        ("null", None),
        ("off1", "off1"),
        ("010", 10),
        ("00010", 10),
        ("-08", -8),
        ("0o10", 8),
        ("0x1F", 31),
        ("-0b11", -3),
        ("10_000", 10000),
        ("0x_", "0x_"),
        ("0b_", "0b_"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2024-02-30", "2024-02-30"),
        ("=", "="),
        ("!!int 012", 12),
        ("{~: 1, 1.5: 2, true: 3}", {"~": 1, "1.5": 2, "true": 3}),
        ("a\udcff", "a\udcff"),
    ],
)
def test_values(text: str, value: object) -> None:
    found = parse_yaml(text, "here")
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "value", ["1e-4", "0o10", "010", "1:30", "2024-02-03", "yes", "=", "<<", "a\udcff", "\u00e4", 10, 1e-5, 1e300, None]
)
@pytest.mark.parametrize("flow", [False, True])
def test_dumped_values_read_back(value: object, flow: bool) -> None:
    found = parse_yaml(dump_yaml({"key": [value]}, flow=flow), "here")
    assert found == {"key": [value]}
    assert type(found["key"][0]) is type(value)


def test_values_are_dumped_in_their_order_and_letters() -> None:
    assert dump_yaml({"width": 2, "depth": "\u00e4"}) == "width: 2\ndepth: \u00e4\n"


BAD = [
    "!!int abc",
    "!!float x",
    "!!bool x",
    "!!timestamp x",
    "!!int []",
    "9" * 5000,
    "0x" + "f" * 5000,
    "[" * 3000,
    "&a {b: *a}",
    "{[1]: 2}",
    "{<<: 3}",
    "{a: 1, 'a': 2}",
    "[&a [" + "1, " * 100 + "1], &b [" + "*a, " * 100 + "*a], [" + "*b, " * 100 + "*b]]",  # a million values
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:12])
def test_what_cannot_be_read_names_the_key_or_the_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"training:\n  epochs: {text}\n", encoding="utf-8")
    for preset, overrides, place in [
        ("quickstart", [f"training.epochs={text}"], "training.epochs = "),
        (str(path), [], str(path)),
    ]:
        with pytest.raises(SettingsError, match="not valid YAML") as raised:
            load_preset(preset, overrides)
        assert place in str(raised.value)
        assert len(str(raised.value)) < 600


def test_merge_keys(tmp_path: Path) -> None:
    path = tmp_path / "merged.yaml"
    path.write_text(
        "training: &t {seed: 5, save_every: 2}\n"
        "evaluation: &e {<<: {seed: 7, batch_size: 3}, batch_size: 2}\n"
        "adaptation: {<<: [{seed: 8}, {seed: 9, steps: 4}]}\n"
        "data: {physics: {<<: {seed: 6}, clips: 4}}\n",
        encoding="utf-8",
    )
    s = load_preset(str(path)).settings
    assert (s.evaluation.seed, s.evaluation.batch_size) == (7, 2)
    assert (s.adaptation.seed, s.adaptation.steps) == (8, 4)
    assert (s.data.physics.seed, s.data.physics.clips) == (6, 4)


def test_a_merged_mapping_may_merge_itself() -> None:
    text = "base: &b {x: 1}\nmore: {inner: &i {<<: *b, x: 2}, <<: *i}\n"
    assert parse_yaml(text, "here") == {"base": {"x": 1}, "more": {"inner": {"x": 2}, "x": 2}}


@pytest.mark.parametrize("text", ["1" * 100_000 + "x", "1." + "1" * 100_000 + "x", "1_" * 50_000 + "e"])
def test_a_long_row_of_digits_takes_no_longer_than_other_text(text: str) -> None:
    """Two ways to read each digit would make it minutes, and hours for a file of a megabyte."""
    with within(20, "it tries every way to split the digits"):
        assert parse_yaml(text, "here") == text
