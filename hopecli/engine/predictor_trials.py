"""Each kind of predictor tried on a device: the real objective, its gradients and a rollout against float64 on the CPU.

What a device computes wrongly need not fail: some releases of torch for Apple GPUs return wrong numbers for single
operations, of which every kind of predictor has its own (triangular solves, products of views, convolutions).
"""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import NamedTuple

import torch

from hopecli.config.schema import ConvLSTMSettings, HopeSettings, ModelSettings, ViTACSettings
from hopecli.data.clip import ClipBatch
from hopecli.errors import DeviceError
from hopecli.hardware import DeviceChoice, PrecisionName, PredictorTrial
from hopecli.models.build import build_model
from hopecli.models.protocol import PredictorModule
from hopecli.objectives.losses import training_loss
from hopecli.objectives.rollout import normalise, rollout
from hopecli.objectives.schedules import ObjectivePhase

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Relative error allowed for a small predictor: a wide margin over the rounding of a 24, 8 or 11 bit mantissa through a
# few layers (2^-24, 2^-8, 2^-11), far below what a broken kernel gives.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-1, "fp16": 2e-2}
WORKS = "works"
GRID, EMBED_DIM, ACTION_DIM, FRAMES = 4, 32, 2, 4
SMALL: dict[str, ModelSettings] = {
    "vit_ac": ViTACSettings.model_validate({"width": 48, "depth": 2, "num_heads": 4}),
    "convlstm": ConvLSTMSettings.model_validate({"hidden": 32}),
    "hope": HopeSettings.model_validate({"width": 48, "depth": 2, "num_heads": 4}),
}
FP16_SCALE = 1024.0  # without it small fp16 gradients vanish; training scales them too


class Errors(NamedTuple):
    """Relative errors |x - reference| / |reference| of the loss, of all gradients together (0 where there are none to
    be right), and of a rollout."""

    loss: float
    gradient: float
    rollout: float


def try_predictor(kind: str, choice: DeviceChoice) -> PredictorTrial:
    """A small predictor of this kind in the device and precision chosen."""
    found, reason = judge(kind, choice.precision, torch.device(choice.device))
    return PredictorTrial(kind, reason == WORKS, reason, *(found or (None, None, None)))


def require_right_numbers(kind: str, choice: DeviceChoice, *, learning: bool) -> None:
    """DeviceError where a predictor of this kind computes wrong numbers; `learning`: its gradients matter too.

    Tried on MPS alone, the one device where releases of torch are known to.
    """
    if choice.device != "mps" or kind not in SMALL:
        return
    _, reason = judge(kind, choice.precision, torch.device(choice.device), learning=learning)
    if reason == WORKS:
        return
    fix = "use --device cpu, or another version of torch (hope hw-info shows what works)"
    raise DeviceError(f"{kind} does not work here: {reason}", where="--device", value=choice.device, fix=fix)


def judge(
    kind: str, precision: PrecisionName, device: torch.device, *, learning: bool = True
) -> tuple[Errors | None, str]:
    """The errors of a small predictor, None when a call failed; and WORKS, or what is wrong."""
    try:
        found = errors(kind, device, None if precision == "fp32" else DTYPES[precision], learning=learning)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        return None, f"the call failed: {first_line(error)}"
    limit = TOLERANCE[precision]
    wrong = [error for error in found if not error <= limit]  # also NaN, which max() may drop
    return found, f"wrong numbers: relative error {max(wrong):.1e}, at most {limit:.0e} is rounding" if wrong else WORKS


def first_line(error: object) -> str:
    """What an error or warning of torch says, without where in torch it comes from."""
    text = re.split(r"\(Triggered internally|\n", str(error).strip())[0]
    return " ".join(text.split())[:160]


def errors(kind: str, device: torch.device, cast: torch.dtype | None, *, learning: bool = True) -> Errors:
    """Of a small predictor on `device` under autocast to `cast` (None: float32), against float64 on the CPU.

    RuntimeError, NotImplementedError or TypeError of torch where an operation is missing.
    """
    reference = _numbers(kind, torch.device("cpu"), torch.float64, None, learning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tried = _numbers(kind, device, torch.float32, cast, learning)
    return Errors(*(float((x - y).norm() / y.norm()) for x, y in zip(tried, reference, strict=True)))


def _numbers(
    kind: str, device: torch.device, dtype: torch.dtype, cast: torch.dtype | None, learning: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss [], gradients [parameters] (one 1 unless `learning`) and rollout [B, H, N, D] as float64 on the CPU."""
    model, clip = _model(kind).to(device, dtype), _clip().to(device, dtype)
    horizon, gradients = FRAMES - 1, torch.ones(1)

    def casting() -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext() if cast is None else torch.autocast(device.type, cast)

    with torch.set_grad_enabled(learning), casting():
        loss = training_loss(
            model,
            clip,
            phase=ObjectivePhase(1.0, 1.0, horizon, 1),
            T_teacher=horizon,
            normalize_reps=True,
            loss_exp=2.0,  # smooth: the gradient of L1 jumps where rounding changes a sign
        ).total
    if learning:
        scale = FP16_SCALE if cast == torch.float16 else 1.0
        (loss * scale).backward()
        reached = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
        gradients = torch.cat([gradient.flatten() for gradient in reached]) / scale
    with torch.no_grad(), casting():  # the cache of keys and values is another without gradients
        given = clip.with_features(normalise(clip.features))
        rolled = rollout(model, given, context_frames=1, horizon=horizon, normalize_reps=True)
    loss, gradients, rolled = (x.detach().cpu().double() for x in (loss, gradients, rolled))
    return loss, gradients, rolled


def _model(kind: str) -> PredictorModule:
    """A small predictor, the same on every machine; moved away from its initial weights, of which some are zero."""
    model = build_model(SMALL[kind], grid=GRID, embed_dim=EMBED_DIM, action_dim=ACTION_DIM, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def _clip() -> ClipBatch:
    """Two random clips, the same on every machine."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, FRAMES, GRID * GRID, EMBED_DIM, generator=generator)
    rows = torch.randn(2, FRAMES - 1, ACTION_DIM, generator=generator)
    return ClipBatch(features, rows, torch.zeros_like(rows), None, ("first", "second"))
