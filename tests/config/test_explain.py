"""Settings in words: resolved YAML that reads back, origins of every value, difference of two presets."""

from __future__ import annotations

import pytest

from hopecli.config.explain import differences, to_yaml, value_rows
from hopecli.config.files import list_presets
from hopecli.config.load import load_preset
from hopecli.config.schema import Settings
from hopecli.config.yaml_text import parse_yaml


@pytest.mark.parametrize("name", list_presets())
def test_printed_config_reads_back_as_the_same_settings(name: str) -> None:
    settings = load_preset(
        name, ["optimizer.eps=1e-9", "data.data_dir='a: #b'"] if name == "vjepa2_ac" else []
    ).settings
    assert Settings.model_validate(parse_yaml(to_yaml(settings), "printed")) == settings


def test_value_rows_show_value_origin_and_meaning() -> None:
    rows = {row.key: row for row in value_rows(load_preset("ac_predictor", ["data.batch_size=16"]))}
    assert rows["data.batch_size"][1:3] == ("16", "command line")
    assert rows["data.action_dim"][1:3] == ("7", "ac_predictor")
    assert rows["model.depth"][1:3] == ("24", "vjepa2_ac")
    assert rows["optimizer.betas"][1] == "[0.9, 0.999]"
    assert rows["data.clip_end"][1:3] == ("null", "default")
    assert all(row.meaning for row in rows.values())


def test_differences_list_only_what_differs() -> None:
    a = load_preset("vjepa2_ac").settings
    b = load_preset("vjepa2_ac", ["data.batch_size=2", "model.kind=convlstm"]).settings
    found = differences(a, b)
    assert found["data.batch_size"] == ("64", "2")
    assert found["model.kind"] == ("vit_ac", "convlstm")
    assert found["model.depth"] == ("24", None)
    assert found["model.hidden"] == (None, "256")
    assert {key.split(".")[0] for key in found} == {"data", "model"}
    assert differences(a, a) == {}


def test_a_phase_is_shown_with_the_keys_it_names() -> None:
    curriculum = "objective.curriculum=[{epoch: 0}, {epoch: 3, loss_weight_teacher: 0.5, T_rollout: 2}]"
    rows = {row.key: row.value for row in value_rows(load_preset("quickstart", [curriculum]))}
    assert rows["objective.curriculum"] == "[{epoch: 0}, {epoch: 3, loss_weight_teacher: 0.5, T_rollout: 2}]"
