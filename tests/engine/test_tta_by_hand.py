"""Whole streams against a plain reference that shares no code with the engine or the rollout: walks, losses, steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hopecli.config.schema import Settings
from hopecli.data.store import Sample
from hopecli.engine.tta import stream
from hopecli.models.protocol import Memory, PredictorModule
from tests.engine.streams import FRAMES, build, make_job, noise_clips, settings

# Which parameters each adapt setting of these tests means, by a part of their names.
NAMED = {
    "none": (),
    "bias": ("bias",),
    "layernorm": ("norm",),
    "layernorm+attn_proj": ("norm", "attn.proj"),
    "attn_proj": ("out_proj",),
}
ROLLOUT: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("vit_ac", {}, {}),
    ("vit_ac", {"context_frames": 2}, {}),
    ("vit_ac", {"backprop_through_time": True}, {}),
    ("vit_ac", {}, {"loss_exp": 2.0}),
    ("vit_ac", {}, {"normalize_reps": False}),
    ("vit_ac", {"adapt": "layernorm+attn_proj", "weight_decay": 2.0}, {}),
    ("hope", {"adapt": "attn_proj", "memory": "carry"}, {}),
    ("convlstm", {"adapt": "bias", "memory": "carry"}, {}),
]
SEQUENTIAL: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("vit_ac", {"context_frames": 2}, {}),
    ("vit_ac", {}, {"loss_exp": 2.0}),
    ("vit_ac", {}, {"normalize_reps": False}),
    ("convlstm", {"adapt": "none", "memory": "carry"}, {}),
    ("convlstm", {"adapt": "none", "memory": "carry", "context_frames": 2}, {}),
    ("hope", {"adapt": "none", "memory": "carry"}, {}),
    ("hope", {"adapt": "attn_proj", "memory": "carry"}, {}),
]
CASES = [*ROLLOUT, *((kind, {**adaptation, "mode": "sequential"}, loss) for kind, adaptation, loss in SEQUENTIAL)]


@dataclass
class Expected:
    """What a stream must measure of one clip."""

    online: float
    copy_last: float
    step_losses: list[float]
    after_update: float | None


class Reference:
    """Predict, score, then adapt, written out for one clip at a time."""

    def __init__(self, s: Settings):
        self.settings, self.model = s, build(s)
        self.memory: Memory = None
        a = s.adaptation
        named = [(n, p) for n, p in self.model.named_parameters() if any(part in n for part in NAMED[a.adapt])]
        self.parameters = [p for _, p in named]
        if named:
            matrices = {"params": [p for _, p in named if p.dim() > 1], "weight_decay": a.weight_decay}
            vectors = {"params": [p for _, p in named if p.dim() < 2], "weight_decay": 0.0}
            groups = [group for group in (matrices, vectors) if group["params"]]
            self.optimizer = torch.optim.AdamW(groups, lr=a.lr, betas=a.betas)

    def space(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-5) if self.settings.objective.normalize_reps else x

    def start(self) -> Memory:
        return self.model.initial_state(1) if self.memory is None else self.memory

    def step(self, clip: Sample, frame: Tensor, t: int, memory: Memory) -> tuple[Tensor, Memory]:
        """The prediction of frame t+1 [1, N, D] from `frame`, and the memory after it."""
        out, memory = self.model.step(frame, clip.actions[None, t], clip.states[None, t], None, memory=memory, t=t)
        return self.space(out), memory

    def rollout(self, clip: Sample, h: Tensor, *, detach: bool) -> Tensor:
        """Predictions of frames C.. [1, H, N, D], each fed back; h [1, T, N, D]."""
        context, memory, frame, found = self.settings.adaptation.context_frames, self.start(), h[:, 0], []
        for t in range(FRAMES - 1):
            prediction, memory = self.step(clip, frame, t, memory)
            if t >= context - 1:
                found.append(prediction)
            fed_back = prediction.detach() if detach else prediction
            frame = h[:, t + 1] if t + 1 < context else fed_back
        return torch.stack(found, dim=1)

    def from_true_frames(self, clip: Sample, h: Tensor) -> Tensor:
        """Predictions of frames C.. [1, H, N, D], each from the true frames before it."""
        memory, found = self.start(), []
        for t in range(FRAMES - 1):
            prediction, memory = self.step(clip, h[:, t], t, memory)
            found.append(prediction)
        return torch.stack(found[self.settings.adaptation.context_frames - 1 :], dim=1)

    def score(self, clip: Sample) -> float:
        """The clip's loss under the present weights and memory, learning nothing."""
        h = self.space(clip.features)[None]
        sequential = self.settings.adaptation.mode == "sequential"
        found = self.from_true_frames(clip, h) if sequential else self.rollout(clip, h, detach=True)
        return l1(found, h[:, self.settings.adaptation.context_frames :])

    def update(self, prediction: Tensor, target: Tensor) -> float:
        """One step on mean(|p - h|^e) / e; the loss before it."""
        power = self.settings.objective.loss_exp
        loss = ((prediction - target).abs() ** power).mean() / power
        self.optimizer.zero_grad()
        gradients = torch.autograd.grad(loss, self.parameters)
        for p, gradient in zip(self.parameters, gradients, strict=True):
            p.grad = gradient
        self.optimizer.step()
        return loss.item()

    def clip(self, clip: Sample) -> Expected:
        a = self.settings.adaptation
        h = self.space(clip.features)[None]
        first, losses = a.context_frames, []
        planned = range(a.steps if self.parameters else 0)
        if a.mode == "sequential":
            known = h[:, first - 1 : -1]
            memory, scores = self.start(), []
            for t in range(FRAMES - 1):
                with torch.no_grad():
                    seen, after = self.step(clip, h[:, t], t, memory)
                if t >= first - 1:
                    scores.append((seen - h[:, t + 1]).abs().mean().item())
                    losses += [self.update(self.step(clip, h[:, t], t, memory)[0], h[:, t + 1]) for _ in planned]
                memory = after  # of the weights that predicted this frame, not of those that learned it
            online = sum(scores) / len(scores)
        else:
            known = h[:, first - 1 : first]
            online = self.score(clip)
            detach = not a.backprop_through_time
            losses = [self.update(self.rollout(clip, h, detach=detach), h[:, first:]) for _ in planned]
        row = Expected(online, l1(known, h[:, first:]), losses, self.score(clip) if losses else None)
        if a.memory == "carry":
            memory = self.start()
            with torch.no_grad():
                for t in range(FRAMES - 1):
                    _, memory = self.step(clip, h[:, t], t, memory)
            self.memory = memory
        return row


def l1(prediction: Tensor, target: Tensor) -> float:
    return (prediction - target).abs().mean().item()


def configured(kind: str, adaptation: dict[str, Any], loss: dict[str, Any]) -> Settings:
    s = settings(kind, grad_clip=None, **adaptation)
    return s.model_copy(update={"objective": s.objective.model_copy(update=loss)})


def weights(model: PredictorModule) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def samples(clips: dict[str, Sample | None]) -> Sequence[Sample]:
    return [found for found in clips.values() if found is not None]


@pytest.mark.parametrize(("kind", "adaptation", "loss"), CASES)
def test_a_stream_is_what_its_settings_say(
    kind: str, adaptation: dict[str, Any], loss: dict[str, Any], tmp_path: Path
) -> None:
    """float32: the engine takes means and sums in another order, hence the tolerances."""
    s, clips = configured(kind, adaptation, loss), noise_clips(3)
    job = make_job(s, clips, tmp_path)
    rows = stream(job).rows
    reference = Reference(s)
    expected = [reference.clip(clip) for clip in samples(clips)]
    frozen = [Reference(s).score(clip) for clip in samples(clips)]
    assert [row.frozen for row in rows] == pytest.approx(frozen, rel=1e-5)
    for row, found in zip(rows, expected, strict=True):
        assert row.online == pytest.approx(found.online, rel=1e-5)
        assert row.copy_last == pytest.approx(found.copy_last, rel=1e-5)
        assert row.step_losses == pytest.approx(found.step_losses, rel=1e-5)
        assert row.after_update == (None if found.after_update is None else pytest.approx(found.after_update, rel=1e-5))
    moved, start = weights(job.model), weights(build(s))
    for name, p in weights(reference.model).items():
        torch.testing.assert_close(moved[name], p, rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(moved[name], start[name]) for name in moved) == (s.adaptation.adapt != "none")
