"""What a report of mistakes leaves out and adds: no phantom rules, where a value was set, words of the kind in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.config.explain import value_rows
from hopecli.config.load import load_preset
from hopecli.errors import SettingsError


def mistakes(preset: str, *overrides: str) -> list[str]:
    """The keys reported, in order."""
    with pytest.raises(SettingsError) as raised:
        load_preset(preset, overrides)
    head, *lines = str(raised.value).splitlines()
    return [line.split()[0].rstrip(":") for line in lines or [head.partition(": ")[2]]]


@pytest.mark.parametrize(
    ("preset", "overrides", "keys"),
    [
        ("quickstart", ["model.num_heads=abc", "model.width=60"], ["model.num_heads"]),
        ("quickstart", ["training.accumulate=3", "data.batch_size=x"], ["data.batch_size"]),
        ("quickstart", ["schedule.decay_pct=2", "schedule.warmup_pct=0.5"], ["schedule.decay_pct"]),
        ("quickstart", ["data.action_dim=3", "data.source=x"], ["data.source"]),
        ("quickstart", ["data.num_timesteps=x", "adaptation.T_rollout=9"], ["data.num_timesteps"]),
        ("quickstart", ["objective.T_rollout=x", "objective.context_frames=5"], ["objective.T_rollout"]),
        ("quickstart_hope", ["logging.diagnostics_every=5", "model.kind=hop"], ["model.kind"]),
        ("quickstart_hope", ["logging.diagnostics_every=5", "model=3"], ["model"]),
        (
            "quickstart",
            ["objective.curriculum=[{epoch: 2}, {epoch: x}, {epoch: 1}]"],
            ["objective.curriculum[1].epoch"],
        ),
        (
            "quickstart",
            ["objective.curriculum=[{epoch: 1, T_rollout: x}, {epoch: 2, context_frames: 4}]"],
            ["objective.curriculum[0].T_rollout"],
        ),
        ("quickstart_hope", ["model.cms_update_periods=[0]"], ["model.cms_update_periods[0]"]),
        ("quickstart_hope", ["model.cms_update_periods=[]"], ["model.cms_update_periods"]),
        # A wrong value elsewhere hides no broken rule.
        ("quickstart", ["model.depth=x", "model.width=63"], ["model.depth", "model.width"]),
        ("quickstart", ["data.workers=x", "training.accumulate=3"], ["data.workers", "training.accumulate"]),
        (
            "quickstart",
            ["objective.curriculum=[{epoch: 5, loss_weight_teacher: a}, {epoch: 1, T_rolout: 3, T_rollout: 30}]"],
            [
                "objective.curriculum[0].loss_weight_teacher",
                "objective.curriculum[1].T_rolout",
                "objective.curriculum",
                "objective.curriculum[1].T_rollout",
            ],
        ),
        (
            "quickstart",
            ["objective.curriculum=[{T_rollout: x}, 3, {epoch: 1, T_rollout: 30}]", "optimizer.betas=[0.5, x]"],
            [
                "objective.curriculum[0].epoch",
                "objective.curriculum[0].T_rollout",
                "objective.curriculum[1]",
                "optimizer.betas[1]",
            ],
        ),
    ],
)
def test_a_rule_is_not_checked_against_a_default_that_stands_for_a_wrong_value(
    preset: str, overrides: list[str], keys: list[str]
) -> None:
    assert mistakes(preset, *overrides) == keys


@pytest.mark.parametrize("kind", ["", "  kind: vitac\n", "  kind: 3\n"])
def test_a_model_without_a_valid_kind_hides_no_mistake_that_every_kind_would_make(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "kinds.yaml"
    path.write_text(
        f"model:\n{kind}  wdth: 8\n  width: x\n  depth: 2\n  hidden: 8\n  rope: exactly\n  kernel_size: 0\n"
        "  cms_multipliers: [2, y]\n  more: {deep: 1}\noptimizer: {lr: -1}\n",
        encoding="utf-8",
    )
    assert mistakes(str(path)) == [
        "model.kind",
        "model.wdth",
        "model.width",
        "model.rope",
        "model.kernel_size",
        "model.cms_multipliers[1]",
        "model.more.deep",
        "optimizer.lr",
    ]
    with pytest.raises(SettingsError) as raised:
        load_preset(str(path))
    for part in (
        "model.wdth = 8: unknown key; nearest: model.width",
        "model.width = 'x': should be a valid integer",
        "model.rope = 'exactly': should be 'vjepa2' or 'exact'",
        "model.kernel_size = 0: should be greater than 0",
        "model.cms_multipliers[1] = 'y': should be a valid number",
    ):
        assert part in str(raised.value)


def test_keys_that_are_no_text_are_reported_once_each(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("~: 1\n1.5: 2\ntrue: 1\ndata.grid: 4\n", encoding="utf-8")
    assert mistakes(str(path)) == ["~", "1.5", "true", "data.grid"]
    with pytest.raises(SettingsError, match=r"data\.grid = 4: dotted keys are for the command line"):
        load_preset(str(path))


def test_a_parents_mistake_names_the_parent(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text("data: {grid: x}\nobjective: {curriculum: [{epoch: -1}]}\n", encoding="utf-8")
    child = tmp_path / "child.yaml"
    child.write_text("extends: parent\ntraining: {seed: x}\n", encoding="utf-8")
    with pytest.raises(SettingsError) as raised:
        load_preset(str(child), ["training.epochs=x"])
    for part in (
        "data.grid = 'x' (from parent): ",
        "objective.curriculum[0].epoch = -1 (from parent): ",
        "training.seed = 'x': ",
        "training.epochs = 'x': ",
    ):
        assert part in str(raised.value)


@pytest.mark.parametrize("parent", ["quickstrt", "./absent.yaml"])
def test_a_wrong_extends_names_the_file_that_holds_it(parent: str, tmp_path: Path) -> None:
    path = tmp_path / "child.yaml"
    path.write_text(f"extends: {parent}\n", encoding="utf-8")
    with pytest.raises(SettingsError, match=r"child\.yaml: extends: no such preset") as raised:
        load_preset(str(path))
    assert "--preset" not in str(raised.value)


def test_words_are_those_of_the_kind_in_use() -> None:
    def meaning(preset: str, key: str) -> str:
        return {row.key: row.meaning for row in value_rows(load_preset(preset))}[key]

    assert meaning("quickstart", "model.kind") == "V-JEPA 2-AC frame-causal ViT"
    assert meaning("quickstart", "model.num_heads") == "attention heads"
    assert meaning("quickstart_hope", "model.num_heads") == "heads, for RoPE only"
    assert meaning("quickstart_convlstm", "model.kind") == "action-conditioned ConvLSTM"
    with pytest.raises(SettingsError, match=r"num_heads = 0: .*\(attention heads\)"):
        load_preset("quickstart", ["model.num_heads=0"])
    with pytest.raises(SettingsError) as raised:
        load_preset("quickstart", ["model.kind=vit"])
    assert "AC-HOPE-ViT" not in str(raised.value)


@pytest.mark.parametrize(("length", "shown"), [(198, "'" + "x" * 198 + "': "), (199, "'" + "x" * 199 + "...: ")])
def test_a_long_value_is_cut(length: int, shown: str) -> None:
    with pytest.raises(SettingsError) as raised:
        load_preset("quickstart", [f"training.epochs={'x' * length}"])
    assert f"training.epochs = {shown}" in str(raised.value)
