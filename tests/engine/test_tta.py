"""The stream: what a score may depend on, baselines, memory, skipped clips, interruption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hopecli.config.schema import Settings
from hopecli.data.loader import collate
from hopecli.data.store import Sample
from hopecli.engine.sink import NullStreamSink
from hopecli.engine.tta import stream
from hopecli.engine.tta_clip import make_plan, prepare, score
from hopecli.engine.tta_results import TtaClip, TtaProgress
from hopecli.engine.tta_summary import summarise_stream
from hopecli.errors import SettingsError
from hopecli.objectives.losses import distance
from hopecli.objectives.rollout import observe, rollout
from tests.engine.streams import (
    CONTINUAL,
    FACTS,
    FRAMES,
    build,
    cpu,
    equal,
    make_job,
    measured,
    noise_clips,
    online,
    run,
    settings,
    shared_clips,
)

HOPE_IS_SLOW = [pytest.param(*case, marks=pytest.mark.slow) if case[0] == "hope" else case for case in CONTINUAL]


@pytest.mark.parametrize(("kind", "changes"), CONTINUAL)
def test_without_a_learning_rate_online_is_frozen(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    s = settings(kind, **{**changes, "lr": 0.0, "memory": "reset"})
    record, after = run(s, noise_clips(3), tmp_path)
    for row in record.rows:
        assert row.online == row.frozen  # bit for bit
        assert row.after_update in (None, row.frozen)
        assert row.drift in (None, 0.0)
    assert equal(after, dict(build(s).state_dict()))


def test_no_block_is_dropped_at_random(tmp_path: Path) -> None:
    """A model that comes in training mode is not scored or adapted in it."""
    job = make_job(settings("vit_ac", {"drop_path": 0.5}, lr=0.0), noise_clips(3), tmp_path)
    job.model.train()
    for row in stream(job).rows:
        assert row.online == row.frozen == row.after_update


@pytest.mark.parametrize(("kind", "changes"), CONTINUAL)
def test_a_score_does_not_see_later_clips(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    s, clips = settings(kind, **changes), noise_clips(4)
    one = measured(run(s, clips, tmp_path)[0])
    other = {**clips, **{name: noise_clips(9)[f"clip_{i:05d}"] for name, i in (("clip_00002", 7), ("clip_00003", 8))}}
    renamed = {name: replace(found, name=name) for name, found in other.items() if found is not None}
    two = measured(run(s, renamed, tmp_path)[0])
    assert one[:2] == two[:2]
    assert one[2]["online"] != two[2]["online"]


@pytest.mark.parametrize(("kind", "changes"), CONTINUAL)
def test_a_score_does_not_see_targets_beyond_the_scored_ones(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    s, clips = settings(kind, **changes, T_rollout=2), noise_clips(3)
    name = "clip_00001"
    changed = clips[name]
    assert changed is not None
    features = changed.features.clone()
    features[3] = 5.0 - features[3]  # C + H = 3: frames 0, 1, 2 take part
    one = measured(run(s, clips, tmp_path)[0])
    two = measured(run(s, {**clips, name: replace(changed, features=features)}, tmp_path)[0])
    assert one == two
    features = changed.features.clone()
    features[2] = 5.0 - features[2]
    three = measured(run(s, {**clips, name: replace(changed, features=features)}, tmp_path)[0])
    assert one[1]["online"] != three[1]["online"]


@pytest.mark.parametrize(("kind", "changes"), HOPE_IS_SLOW)
def test_with_reset_per_clip_the_order_changes_no_score(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    clips = noise_clips(4)
    backwards = dict(reversed(clips.items()))
    s = settings(kind, **changes, reset_per_clip=True)
    one, two = run(s, clips, tmp_path)[0], run(s, backwards, tmp_path)[0]
    assert online(one) == online(two)
    if s.adaptation.mode == "full_rollout":
        assert all(row.online == row.frozen for row in one.rows)
    continual = settings(kind, **changes)
    assert online(run(continual, clips, tmp_path)[0]) != online(run(continual, backwards, tmp_path)[0])


@pytest.mark.slow
@pytest.mark.parametrize("reset", [True, False])
def test_on_noise_only_the_diagnostic_improves(reset: bool, tmp_path: Path) -> None:
    """Nothing can be learned from noise: the after-update score improves by having seen the clip, online must not."""
    s = settings("vit_ac", adapt="layernorm+attn_proj", lr=3e-3, steps=4, reset_per_clip=reset)
    record, _ = run(s, noise_clips(100), tmp_path)
    leak = np.array([row.online - (row.after_update or 0.0) for row in record.rows])
    gain = np.array([row.gain for row in record.rows])
    assert leak.mean() > 3 * leak.std(ddof=1) / len(leak) ** 0.5  # three standard errors
    assert gain.mean() <= 2 * gain.std(ddof=1) / len(gain) ** 0.5  # not told from 0; exactly 0 when reset
    if reset:
        assert not gain.any()
        assert (leak > 0).mean() >= 0.9  # four steps need not help on every single clip
    per_step = np.mean([row.step_losses for row in record.rows], axis=0)
    assert per_step[-1] < per_step[0]


def test_on_clips_that_share_something_online_improves(tmp_path: Path) -> None:
    s = settings("vit_ac", adapt="layernorm+bias", lr=1e-2, steps=2)
    record, _ = run(s, shared_clips(30), tmp_path)
    late = record.rows[15:]
    assert all(row.online < row.frozen for row in late)
    assert record.rows[0].online == record.rows[0].frozen  # nothing was known before the first clip


@pytest.mark.parametrize(("kind", "changes"), HOPE_IS_SLOW)
@pytest.mark.parametrize("broken", ["unreadable", "nan"])
def test_a_broken_clip_leaves_no_trace(kind: str, changes: dict[str, Any], broken: str, tmp_path: Path) -> None:
    s, clips = settings(kind, **changes), noise_clips(4)
    whole, weights = run(s, clips, tmp_path)
    names = list(clips)
    bad: Sample | None = None
    if broken == "nan":
        found = clips[names[0]]
        assert found is not None
        features = found.features.clone()
        features[1, 0, 0] = float("nan")
        bad = replace(found, name="clip_00099", features=features)
    with_bad = {names[0]: clips[names[0]], "clip_00099": bad, **{name: clips[name] for name in names[1:]}}
    job = make_job(s, with_bad, tmp_path)
    record = stream(job)
    assert list(record.skipped) == ["clip_00099"]
    expected = [{**row, "position": row["position"] + (i > 0)} for i, row in enumerate(measured(whole))]
    assert measured(record) == expected
    assert equal(dict(job.model.state_dict()), weights)
    results = summarise_stream(job, record, FACTS)
    assert results.clips == 4
    assert list(results.skipped_clips) == ["clip_00099"]


def test_one_clip_by_hand(tmp_path: Path) -> None:
    """Two SGD steps on the rollout loss, then the next clip's score, without any of the engine."""
    s = settings("vit_ac", optimizer="sgd", lr=0.1, grad_clip=0.05)
    record, _ = run(s, noise_clips(2), tmp_path)
    model = build(s)
    chosen = [p for name, p in model.named_parameters() if "norm" in name]
    losses, plan = [], make_plan(s.adaptation, s.objective, FRAMES)
    h = [_prepared(s, sample) for sample in noise_clips(2).values()]
    norms = []
    for _ in range(2):
        out = rollout(model, h[0].clip, context_frames=1, horizon=3, normalize_reps=True, detach=True)
        loss = distance(out, h[0].target, 1.0)
        gradients = torch.autograd.grad(loss, chosen)
        norm = float(torch.sqrt(torch.stack([g.square().sum() for g in gradients]).sum()))
        losses.append(loss.item())
        norms.append(norm)
        with torch.no_grad():
            for p, g in zip(chosen, gradients, strict=True):
                p.sub_(0.1 * g * min(1.0, 0.05 / norm))
    # float32: clipping divides by norm + 1e-6 and sums in another order
    assert record.rows[0].step_losses == pytest.approx(losses, rel=1e-5)
    assert record.rows[0].grad_norm == pytest.approx(float(np.mean(norms)), rel=1e-4)
    assert record.rows[0].grad_norm_clipped == pytest.approx(float(np.mean(np.minimum(norms, 0.05))), rel=1e-4)
    assert record.rows[1].online == pytest.approx(score(model, h[1], plan, cpu(), None), rel=1e-5)
    assert record.rows[1].frozen != record.rows[1].online


def _prepared(s: Settings, sample: Sample | None) -> Any:
    assert sample is not None
    loaded = collate([sample]).clips
    assert loaded is not None
    return prepare(loaded, make_plan(s.adaptation, s.objective, FRAMES), cpu())


@pytest.mark.parametrize("kind", ["hope", "convlstm"])
def test_a_carried_memory_is_what_was_observed(kind: str, tmp_path: Path) -> None:
    s = settings(kind, adapt="none", memory="carry")
    clips = noise_clips(3)
    record, _ = run(s, clips, tmp_path)
    model, memory = build(s), None
    with torch.no_grad():
        for row, sample in zip(record.rows, clips.values(), strict=True):
            h = _prepared(s, sample)
            out = rollout(model, h.clip, context_frames=1, horizon=3, normalize_reps=True, memory=memory)
            frames = (out - h.target).abs().mean(dim=(-2, -1))[0].tolist()
            assert row.online == sum(frames) / len(frames)
            memory = observe(model, h.clip, frames=FRAMES - 1, memory=memory)
    assert record.rows[0].online == record.rows[0].frozen
    assert record.rows[1].online != record.rows[1].frozen
    assert {row.after_update for row in record.rows} == {None}
    reset, _ = run(settings(kind, adapt="none"), clips, tmp_path)
    assert all(row.online == row.frozen for row in reset.rows)


def test_a_cache_cannot_be_carried(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="a vit_ac model has no memory to carry"):
        run(settings("vit_ac", memory="carry"), noise_clips(1), tmp_path)


def test_sequential_scores_each_frame_before_learning_it(tmp_path: Path) -> None:
    """The first frame's score comes from untouched weights; a changed later frame does not reach it."""
    first = settings("vit_ac", mode="sequential", T_rollout=1)
    all_frames = settings("vit_ac", mode="sequential")
    clips = noise_clips(1)
    (one,), (whole,) = run(first, clips, tmp_path)[0].rows, run(all_frames, clips, tmp_path)[0].rows
    assert one.online == one.frozen
    assert whole.steps_done == 2 * 3
    assert whole.online != whole.frozen  # frames 2 and 3 are scored after frame 1 was learned
    assert whole.step_losses[0] == pytest.approx(one.online, rel=1e-6)  # the same pass, with a graph


def test_forgetting_is_the_source_loss_before_and_after(tmp_path: Path) -> None:
    s = settings("hope", memory="carry", source_every=2, lr=3e-2)
    source = noise_clips(3)
    job = make_job(s, shared_clips(5), tmp_path, source=source)
    record = stream(job)
    results = summarise_stream(job, record, FACTS)
    assert results.forgetting is not None
    f = results.forgetting
    assert [point.clips for point in f.trace] == [0, 2, 4, 5]
    plan = make_plan(s.adaptation, s.objective, FRAMES)
    before = [score(build(s), _prepared(s, clip), plan, cpu(), None) for clip in source.values()]
    assert f.before == np.mean(before)
    assert f.after is not None
    assert f.difference is not None
    assert f.after - f.before == pytest.approx(f.difference.mean)
    assert f.ratio == f.after / f.before
    assert f.after != f.before
    unmeasured = summarise_stream(job, replace(record, source_before=[], source_after=[]), FACTS)
    assert unmeasured.forgetting is None


def test_the_source_is_seen_with_the_memory_that_was_carried(tmp_path: Path) -> None:
    s, clips, source = settings("hope", memory="carry", adapt="none"), noise_clips(2), noise_clips(1)
    record = stream(make_job(s, clips, tmp_path, source=source))
    model, plan, memory = build(s), make_plan(s.adaptation, s.objective, FRAMES), None
    for clip in clips.values():
        memory = observe(model, _prepared(s, clip).clip, frames=plan.context_frames + plan.horizon - 1, memory=memory)
    (given,) = (_prepared(s, clip) for clip in source.values())
    assert record.source_after == [[score(model, given, plan, cpu(), memory)]]
    assert record.source_after != [record.source_before]


def test_the_source_is_measured_once_at_the_end_of_an_order(tmp_path: Path) -> None:
    s = settings(source_every=1, orders=2)
    record = stream(make_job(s, noise_clips(2), tmp_path, source=noise_clips(1)))
    assert [(point.order, point.clips) for point in record.source] == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)]


def test_a_prediction_that_overflows_starts_again_from_the_checkpoint(tmp_path: Path) -> None:
    """Weights can be finite and still overflow inside the next pass."""
    s, clips = settings("convlstm", adapt="mlp_out"), noise_clips(3)
    job = make_job(s, clips, tmp_path)

    class Bomb(NullStreamSink):
        def clip(self, row: TtaClip, progress: TtaProgress) -> None:
            if progress.done == 1:
                with torch.no_grad():
                    job.model.get_parameter("decoder.weight").fill_(3e38)

    job.sink = Bomb()
    record, clean = stream(job), run(s, clips, tmp_path)[0]
    assert record.restarts == 1
    assert not record.skipped
    assert record.rows[0].online == clean.rows[0].online
    assert record.rows[1].online == record.rows[1].frozen
