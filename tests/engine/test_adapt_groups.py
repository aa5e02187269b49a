"""Which parameters a group means, for each kind of model."""

from __future__ import annotations

import pytest

from hopecli.config.schema import Settings
from hopecli.engine.adapt import adapted_groups, group_parameters
from hopecli.errors import SettingsError
from hopecli.models.protocol import PredictorModule
from tests.engine.streams import build, settings

VIT_NORMS = {"predictor_norm"} | {f"predictor_blocks.{i}.norm{k}" for i in (0, 1) for k in (1, 2)}
HOPE_NORMS = {"predictor_norm"} | {
    f"hope_blocks.{i}.{name}" for i in (0, 1) for name in ("norm1", "norm_o", "cms.0.norm", "cms.1.norm")
}


def both(modules: set[str]) -> set[str]:
    """Weight and bias of each."""
    return {f"{module}.{part}" for module in modules for part in ("weight", "bias")}


# A group's parameter list, exactly, written out by hand for each kind of model (depth 2, two CMS levels).
EXPECTED: dict[tuple[str, str], set[str]] = {
    ("vit_ac", "layernorm"): both(VIT_NORMS),
    ("vit_ac", "attn_proj"): both({f"predictor_blocks.{i}.attn.proj" for i in (0, 1)}),
    ("vit_ac", "mlp_out"): both({f"predictor_blocks.{i}.mlp.fc2" for i in (0, 1)}),
    ("vit_ac", "bias"): {
        f"{name}.bias"
        for name in {
            *VIT_NORMS,
            *("predictor_embed", "action_encoder", "state_encoder", "predictor_proj"),
            *(f"predictor_blocks.{i}.{p}" for i in (0, 1) for p in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")),
        }
    },
    ("hope", "layernorm"): both(HOPE_NORMS),
    ("hope", "attn_proj"): both({f"hope_blocks.{i}.out_proj" for i in (0, 1)}),
    ("hope", "mlp_out"): both({f"hope_blocks.{i}.cms.{k}.fc2" for i in (0, 1) for k in (0, 1)}),
    ("hope", "bias"): {
        f"{name}.bias"
        for name in {
            *HOPE_NORMS,
            *("predictor_embed", "action_encoder", "state_encoder", "predictor_proj"),
            *(f"hope_blocks.{i}.{p}" for i in (0, 1) for p in ("gates", "out_proj")),
            *(f"hope_blocks.{i}.cms.{k}.{p}" for i in (0, 1) for k in (0, 1) for p in ("fc1", "fc2")),
        }
    },
    ("convlstm", "layernorm"): set(),
    ("convlstm", "attn_proj"): set(),
    ("convlstm", "mlp_out"): both({"decoder"}),
    ("convlstm", "bias"): {"encoder.bias", "conv_lstm.conv_gates.bias", "decoder.bias"},
    ("copy_last", "layernorm"): set(),
    ("copy_last", "attn_proj"): set(),
    ("copy_last", "mlp_out"): set(),
    ("copy_last", "bias"): set(),
}


def named(model: PredictorModule, s: Settings, adapt: str) -> dict[str, int]:
    """Adapted parameter names with their period, in order."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = adapted_groups(model, adapt, s.model, 0.0)
    found = [(names[id(p)], group.period) for group in groups for p in group.parameters]
    assert len(found) == len(dict(found)), "a parameter is in two groups"
    return dict(found)


@pytest.mark.parametrize(("kind", "group"), EXPECTED)
def test_a_group_is_exactly_as_named(kind: str, group: str) -> None:
    s = settings(kind)
    model = build(s)
    assert group_parameters(model, group) == EXPECTED[kind, group]
    if EXPECTED[kind, group]:
        assert set(named(model, s, group)) == EXPECTED[kind, group]
        return
    with pytest.raises(SettingsError, match=f"{group} matches no parameter of a {kind} model") as error:
        adapted_groups(model, group, s.model, 0.0)
    assert f"{kind} model can adapt none" in str(error.value)


def test_swiglu_writes_with_fc3() -> None:
    model = build(settings("vit_ac", {"mlp": "swiglu"}))
    assert group_parameters(model, "mlp_out") == both({f"predictor_blocks.{i}.mlp.fc3" for i in (0, 1)})


def test_extrinsics_that_are_off_stay_frozen() -> None:
    assert "extrinsics_encoder.bias" not in group_parameters(build(settings("vit_ac")), "bias")
    on = build(settings("vit_ac", {"use_extrinsics": True}))
    assert "extrinsics_encoder.bias" in group_parameters(on, "bias")


@pytest.mark.parametrize("kind", ["vit_ac", "hope"])
def test_a_union_takes_each_once_in_any_order(kind: str) -> None:
    s = settings(kind)
    model = build(s)
    one, other = named(model, s, "layernorm+bias+mlp_out"), named(model, s, "mlp_out+layernorm+bias")
    assert list(one.items()) == list(other.items())
    assert set(one) == set().union(*(EXPECTED[kind, group] for group in ("layernorm", "bias", "mlp_out")))
    assert named(model, s, "none") == {}


def test_unknown_group_names_what_is_allowed() -> None:
    s = settings("convlstm")
    with pytest.raises(SettingsError, match=r"unknown group .*convlstm model can adapt none, bias, mlp_out"):
        adapted_groups(build(s), "norms", s.model, 0.0)


@pytest.mark.parametrize("adapt", ["layernorm", "bias", "mlp_out", "attn_proj", "bias+mlp_out", "layernorm+attn_proj"])
def test_whatever_belongs_to_a_cms_level_steps_at_its_period_in_every_group(adapt: str) -> None:
    s = settings("hope")
    for name, period in named(build(s), s, adapt).items():
        assert period == (4 if ".cms.1." in name else 1), name
