"""Steps that overflow: every score stays finite, and the weights left behind are the last that predicted."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hopecli.data.store import Sample
from hopecli.engine import tta_guard
from hopecli.engine.adapt import Adapter, StepOutcome, adapted_groups, only_adapted
from hopecli.engine.results import to_tree
from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_clip import Updates, adapt_on_rollout, make_plan, mean, score, walk_sequentially
from hopecli.engine.tta_guard import Learned, score_after_update
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.engine.tta_summary import summarise_stream
from hopecli.errors import SettingsError
from hopecli.models.convlstm import LSTMState
from tests.engine.streams import FACTS, FRAMES, Clips, build, cpu, equal, make_job, noise_clips, online, run, settings
from tests.engine.test_adapt import everything, given, learn, plan_of, same

HUGE: dict[str, Any] = {"lr": 1e25, "steps": 2, "reset_every": 100}


def adapter_for(**adaptation: Any) -> Adapter:
    s = settings("vit_ac", **adaptation)
    model = build(s)
    return Adapter(model, adapted_groups(model, s.adaptation.adapt, s.model, s.adaptation.weight_decay), s.adaptation)


def test_a_loss_that_is_not_finite_takes_back_the_step_before_it() -> None:
    adapter = adapter_for(adapt="bias", optimizer="adamw", **HUGE)
    before = everything(adapter)
    updates = learn(adapter, settings("vit_ac", adapt="bias", **HUGE))
    assert [math.isfinite(outcome.loss) for outcome in updates.outcomes] == [True, False]
    assert (updates.done, updates.skipped) == (0, 2)
    assert updates.mean_norm(clipped=False) is None
    assert same(everything(adapter), before)


def test_a_step_that_has_proved_itself_is_not_taken_back() -> None:
    adapter, s = adapter_for(adapt="bias", steps=3), settings("vit_ac", adapt="bias", steps=3)
    learn(adapter, s)
    adapter.prove()
    kept = everything(adapter)
    spoilt = given(s)
    spoilt.target[0, 0, 0, 0] = math.nan
    with only_adapted(adapter.model, adapter.parameters):
        updates = adapt_on_rollout(adapter, spoilt, plan_of(s), cpu())
    assert (updates.done, updates.skipped) == (0, 3)
    assert len(updates.outcomes) == 1  # the same weights would only fail again
    assert same(everything(adapter), kept)


@pytest.mark.parametrize(("frame", "done"), [(0, 6), (1, 5)])  # of 9; frame 1 takes back the step before it
def test_a_frame_that_cannot_be_learned_costs_its_own_steps(frame: int, done: int) -> None:
    s = settings("vit_ac", adapt="bias", mode="sequential", steps=3)
    adapter, clip = adapter_for(adapt="bias", mode="sequential", steps=3), given(s)
    spoilt = replace(clip, target=clip.target.clone())  # the clip itself stays whole
    spoilt.target[0, frame, 0, 0] = math.nan
    with only_adapted(adapter.model, adapter.parameters):
        _, updates = walk_sequentially(adapter, spoilt, plan_of(s), cpu())
    assert (updates.done, updates.skipped) == (done, 9 - done)
    assert len(updates.outcomes) == 3 + 3 + 1


def test_a_step_is_taken_back_once_and_only_while_it_is_the_last() -> None:
    adapter = adapter_for(adapt="bias")
    p = adapter.parameters[0]
    start = everything(adapter)
    assert not adapter.undo()
    assert adapter.step(p.sum()).done
    assert adapter.undo()
    assert same(everything(adapter), start)
    assert not adapter.undo()
    assert adapter.step(p.sum()).done
    adapter.reset()  # before it there is nothing to go back to
    assert not adapter.undo()
    assert adapter.step(p.sum()).done
    kept = everything(adapter)
    infinite_slope = (p - p.detach()).abs().sqrt().sum()
    assert not adapter.step(infinite_slope).done  # but the loss was finite, which proves the step before
    assert not adapter.undo()
    assert same(everything(adapter), kept)


def test_weights_that_predict_nothing_finite_are_given_up() -> None:
    """After the updates, where taking back the last of them does not help."""
    adapter, s = adapter_for(adapt="bias"), settings("vit_ac", adapt="bias")
    start, clip, plan = everything(adapter), given(s), plan_of(s)
    frozen = score(adapter.model, clip, plan, cpu(), None)
    with torch.no_grad():
        adapter.parameters[-1].fill_(math.nan)
    learned = Learned(frozen, Updates(plan.steps))
    assert score_after_update(adapter, clip, learned, plan, cpu()) == frozen
    assert learned.restarts == 1
    assert same(everything(adapter), start)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("vit_ac", {"adapt": "bias"}),
        ("vit_ac", {"adapt": "bias", "steps": 1}),
        ("vit_ac", {"adapt": "layernorm", "mode": "sequential"}),
        ("vit_ac", {"adapt": "layernorm", "mode": "sequential", "lr": 1e19}),
        ("vit_ac", {"adapt": "bias", "reset_per_clip": True}),
        ("hope", {"adapt": "bias+mlp_out", "memory": "carry"}),
        ("hope", {"adapt": "layernorm", "memory": "carry", "mode": "sequential"}),
        ("convlstm", {"adapt": "mlp_out", "memory": "carry"}),
    ],
)
def test_no_number_is_lost_to_an_overflow(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    s = settings(kind, **{**HUGE, **changes})
    clips = noise_clips(4)
    job = make_job(s, clips, tmp_path, source=noise_clips(3), baselines=("frozen", "periodic_reset"))
    record = stream(job)
    for row in record.rows:
        assert math.isfinite(row.online)
        assert row.after_update is not None
        assert math.isfinite(row.after_update)
        assert row.periodic_reset == row.online  # never reset in 4 clips, and guarded by the same rule
    assert record.periodic_restarts == record.restarts
    results = summarise_stream(job, record, FACTS)
    tree = json.loads(json.dumps(to_tree(results)))
    for key in ("loss_online", "periodic_reset", "loss_after_update"):
        assert tree[key]["mean"] is not None, key
    assert None not in tree["per_step"]
    assert tree["forgetting"]["after"] is not None
    assert results.steps_skipped > 0
    last = given(s, seed=3)  # the last clip of the stream
    plan = make_plan(s.adaptation, s.objective, FRAMES)
    assert math.isfinite(score(job.model, last, plan, cpu(), None))


def test_a_memory_that_is_not_finite_is_not_carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It overflows with the last frame, after which nothing of the clip is predicted: only the next one would show."""
    job = make_job(settings("convlstm", adapt="bias", memory="carry"), noise_clips(3), tmp_path)
    step = job.model.step

    def overflowing(*given: Tensor, memory: LSTMState, t: int) -> tuple[Tensor, LSTMState]:
        out, after = step(*given, memory=memory, t=t)
        return out, LSTMState(*(value * math.inf for value in after)) if t == FRAMES - 2 else after

    monkeypatch.setattr(job.model, "step", overflowing)
    record = stream(job)
    assert record.restarts == 0
    assert online(record) == online(run(settings("convlstm", adapt="bias"), noise_clips(3), tmp_path)[0])


def test_a_learning_rate_beyond_float32_is_refused() -> None:
    for key, change in (
        ("lr", {"lr": 1e38}),
        ("lr", {"lr": 1e39, "optimizer": "sgd"}),
        ("weight_decay", {"weight_decay": 1e39, "optimizer": "adam"}),
        ("weight_decay", {"weight_decay": 1e300}),
        ("weight_decay", {"weight_decay": 1e20, "lr": 1e20}),  # their product
        ("weight_decay", {"weight_decay": 1e300, "adapt": "layernorm+attn_proj"}),  # norms, which decay never, first
    ):
        with pytest.raises(SettingsError, match=rf"adaptation\.{key}: a step this long overflows float32"):
            adapter_for(**{"adapt": "mlp_out", **change})
    adapter_for(adapt="bias", lr=1e38, optimizer="sgd")
    adapter_for(adapt="bias", weight_decay=1e300)  # what never decays


@pytest.mark.parametrize("kind", ["vit_ac", "hope"])
def test_resetting_leaves_the_checkpoint_with_and_without_a_source(kind: str, tmp_path: Path) -> None:
    s = settings(kind, reset_per_clip=True, source_every=1)
    start = dict(build(s).state_dict())
    job = make_job(s, noise_clips(2), tmp_path, source=noise_clips(3))
    record = stream(job)
    assert equal(dict(job.model.state_dict()), start)
    assert equal(run(s, noise_clips(2), tmp_path)[1], start)
    assert len({point.loss for point in record.source}) == 1  # also between the clips
    assert record.rows[0].drift


def test_slow_levels_step_across_clips_unless_each_starts_anew(tmp_path: Path) -> None:
    """Three steps a clip, period four: the second clip brings the turn, if the first one's steps count."""
    drifts = {}
    for reset in (False, True):
        s = settings("hope", {"cms_update_periods": (4, 4)}, adapt="mlp_out", steps=3, reset_per_clip=reset)
        drifts[reset] = [row.drift for row in run(s, noise_clips(2), tmp_path)[0].rows]
    assert drifts[True] == [0.0, 0.0]
    assert drifts[False][0] == 0.0
    assert drifts[False][1] != 0.0


def spoilt(clip: Sample | None) -> Sample:
    assert clip is not None
    features = clip.features.clone()
    features[0, 0, 0] = math.nan
    return replace(clip, features=features)


def test_a_source_clip_that_cannot_be_scored_is_left_out_and_counted(tmp_path: Path) -> None:
    s, source = settings(), noise_clips(4)
    bad = {**source, "clip_00001": spoilt(source["clip_00001"]), "clip_00002": None}
    good = {name: source[name] for name in ("clip_00000", "clip_00003")}
    jobs = [make_job(s, noise_clips(2), tmp_path, source=clips) for clips in (bad, good)]
    one, two = (summarise_stream(job, stream(job), FACTS).forgetting for job in jobs)
    assert one is not None
    assert two is not None
    assert replace(one, left_out=0) == two
    assert (one.clips, one.left_out) == (2, 2)


def test_a_source_clip_that_vanishes_keeps_the_others_paired(tmp_path: Path) -> None:
    source = Clips(noise_clips(3))

    class Thief(NullStreamSink):
        def clip(self, row: TtaClip, progress: TtaProgress) -> None:
            source.samples["clip_00001"] = None

    job = make_job(settings(), noise_clips(2), tmp_path, sink=Thief(), source=source.samples)
    job.source = (source, list(source.samples))
    record = stream(job)
    f = summarise_stream(job, record, FACTS).forgetting
    assert f is not None
    assert (f.clips, f.left_out) == (2, 1)
    assert f.before == pytest.approx(mean([record.source_before[0], record.source_before[2]]))


def test_what_has_predicted_a_clip_is_proved_and_restarts_add_up() -> None:
    s = settings(adapt="bias")
    adapter, clip, plan = adapter_for(adapt="bias"), given(s), plan_of(s)
    score_after_update(adapter, clip, Learned(0.5, learn(adapter, s)), plan, cpu())
    assert not adapter.undo()
    with torch.no_grad():
        adapter.parameters[-1].fill_(math.nan)
    again = Learned(0.5, Updates(1), restarts=1)
    score_after_update(adapter, clip, again, plan, cpu())
    assert again.restarts == 2


def test_the_last_update_is_the_one_taken_back() -> None:
    updates = Updates(3)
    for norm in (1.0, 2.0, 4.0):
        updates.add(StepOutcome(True, 1.0, 10 * norm, norm))
    updates.take_back()
    assert (updates.mean_norm(clipped=False), updates.mean_norm(clipped=True)) == (15.0, 1.5)


def test_updates_of_a_clip_that_is_given_up_count_as_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Learned(math.nan, Updates(3, [StepOutcome(True, 1.0, 2.0, 2.0)] * 2))
    monkeypatch.setattr(tta_guard, "_learn", lambda *given: broken)
    s = settings(adapt="bias", mode="sequential", steps=1)
    learned = tta_guard.learn(adapter_for(adapt="bias"), given(s), 0.5, plan_of(s), cpu())
    assert (learned.online, learned.restarts, learned.updates.done, learned.updates.skipped) == (0.5, 1, 0, 3)
    assert learned.updates.mean_norm(clipped=False) is None
