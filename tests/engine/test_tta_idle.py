"""Adaptation settings that change nothing because of others are found, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from hopecli.engine.adapt import adapted_groups
from hopecli.engine.tta_idle import OF_UPDATES, idle_settings
from tests.engine.streams import FRAMES, build, settings


def idle(*baselines: str, kind: str = "vit_ac", **adaptation: Any) -> set[str]:
    """Names of the idle settings when the command line sets these and one of another section."""
    s = settings(kind, **adaptation)
    a = s.adaptation
    groups = adapted_groups(build(s), a.adapt, s.model, a.weight_decay)
    asked = [*(f"adaptation.{key}" for key in adaptation), "evaluation.betas"]
    return {key.removeprefix("adaptation.") for key in idle_settings(asked, s, groups, ["frozen", *baselines])}


BETAS, THROUGH = {"betas": (0.8, 0.9)}, {"backprop_through_time": True}


@pytest.mark.parametrize(
    ("setting", "switch", "other"),
    [
        (BETAS, {"optimizer": "sgd"}, {"optimizer": "adam"}),
        (THROUGH, {"mode": "sequential"}, {"mode": "full_rollout"}),
        (THROUGH, {"T_rollout": 1}, {"T_rollout": 2}),
        (THROUGH, {"context_frames": FRAMES - 1}, {"context_frames": FRAMES - 2}),
        ({"backprop_through_time": False}, {}, {"mode": "sequential"}),
        ({"weight_decay": 0.1}, {"adapt": "layernorm+bias"}, {"adapt": "layernorm+attn_proj"}),
        ({"weight_decay": 0.0}, {}, {"adapt": "layernorm"}),
        ({"reset_per_clip": True}, {"adapt": "none"}, {"adapt": "layernorm"}),
    ],
)
def test_one_setting_makes_another_idle(setting: dict[str, Any], switch: dict[str, Any], other: dict[str, Any]) -> None:
    assert idle(**setting, **switch) == (set(setting) if switch else set())
    assert idle(**setting, **other) == set()


def test_memory_is_carried_nowhere_when_each_clip_resets_it() -> None:
    assert idle(kind="hope", memory="carry", reset_per_clip=True) == {"memory"}
    assert idle(kind="hope", memory="carry", reset_per_clip=False) == set()
    assert idle(kind="hope", memory="carry", reset_per_clip=True, adapt="none") == {"memory"}
    assert idle(memory="reset", reset_per_clip=True) == set()


def test_periods_of_a_baseline_that_does_not_run() -> None:
    assert idle(reset_every=3) == {"reset_every"}
    assert idle("periodic_reset", reset_every=3) == set()
    assert idle("periodic_reset", reset_every=3, steps=0) == {"reset_every"}
    assert idle("periodic_reset", reset_every=3, reset_per_clip=True) == {"reset_every"}


def test_steps_of_length_0() -> None:
    given: dict[str, Any] = {"optimizer": "adam", **BETAS, "weight_decay": 0.1, "grad_clip": 1.0, "steps": 3}
    assert idle(**given, adapt="attn_proj", lr=0.0) == {"optimizer", "betas", "weight_decay"}
    assert idle("periodic_reset", reset_every=3, reset_per_clip=True, lr=0.0) == {"reset_every", "reset_per_clip"}
    assert idle("periodic_reset", kind="hope", reset_every=3, memory="carry", lr=0.0) == set()


def test_without_updates_what_they_take_is_idle() -> None:
    given: dict[str, Any] = {"optimizer": "adam", "lr": 0.1, **BETAS, "weight_decay": 0.1, "grad_clip": 1.0, **THROUGH}
    assert set(given) == set(OF_UPDATES)
    assert idle(**given, adapt="attn_proj", steps=0) == set(given)
    assert idle(**given, adapt="none", steps=3) == {*given, "steps"}
    assert idle(**given, adapt="attn_proj", steps=3) == set()


def test_the_first_cause_is_named() -> None:
    s = settings(adapt="none", steps=0, lr=0.0)
    found = idle_settings(["adaptation.lr", "adaptation.betas"], s, [], ["frozen"])
    assert set(found.values()) == {"adaptation.adapt=none"}
