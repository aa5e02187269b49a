"""Compare the models with reference numbers: `python tests/check_golden.py FILE...`.

A file is recognised by its name's start. Prints `FILE max_abs_error` for every expected array, runs in float64 and
exits 1 above 1e-9 (2 on a file it cannot read).
"""

from __future__ import annotations

import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hopecli.data.clip import ClipBatch
from hopecli.models.convlstm import ConvLSTM
from hopecli.models.hope.titans import FastWeights, HopeBlock
from hopecli.models.rope import rotary_tables
from hopecli.models.vit_ac import ViTAC
from hopecli.objectives.losses import distance
from hopecli.objectives.rollout import normalise, rollout, teacher_forced

TOLERANCE = 1e-9

Arrays = dict[str, Tensor]
Check = Callable[[dict[str, Any], Arrays, dict[str, Tensor]], Arrays]


def check_vjepa2_ac(meta: dict[str, Any], data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """y on x as given; teacher-forced and rollout passes and losses on layer-normed x."""
    model = ViTAC(
        embed_dim=meta["embed_dim"],
        action_dim=meta["action_dim"],
        grid=meta["grid"],
        width=meta["predictor_embed_dim"],
        depth=meta["depth"],
        num_heads=meta["num_heads"],
        mlp_ratio=meta["mlp_ratio"],
        mlp="swiglu" if meta.get("use_silu") else "gelu",
        wide_swiglu=meta.get("wide_silu", True),
        use_extrinsics=meta["use_extrinsics"],
        rope="vjepa2",
    )
    model.double().load_state_dict(weights, strict=True)
    model.eval()
    x, actions, states = data["x"], data["actions"], data["states"]
    extrinsics = data["extrinsics"] if meta["use_extrinsics"] else None
    frames, context, horizon = meta["T"], meta["context_frames"], meta["rollout_steps"]
    target = normalise(x.unflatten(1, (frames, -1)))
    clip = ClipBatch(target, actions, states, extrinsics, ())
    forced = teacher_forced(model, clip, frames=frames - 1, normalize_reps=True)
    rolled = rollout(model, clip, context_frames=context, horizon=horizon, normalize_reps=True)
    return {
        "y": model(x, actions, states, extrinsics),
        "teacher_forced": forced.flatten(1, 2),
        "rollout": rolled.flatten(1, 2),
        "teacher_forcing_loss": distance(forced, target[:, 1:], 1.0),
        "rollout_loss": distance(rolled, target[:, context : context + horizon], 1.0),
    }


def check_convlstm(meta: dict[str, Any], data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """y on x as given."""
    model = ConvLSTM(
        embed_dim=meta["input_dim"],
        action_dim=meta["action_dim"],
        grid=math.isqrt(data["x"].shape[1] // meta["T"]),
        hidden=meta["hidden_dim"],
        kernel_size=meta["kernel_size"],
    )
    model.double().load_state_dict(weights, strict=True)
    return {"y": model(data["x"], data["actions"], torch.zeros_like(data["actions"]))}


def check_hope_block(meta: dict[str, Any], data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """One block over all frames: outputs, fast weights after every frame, rates."""
    block = HopeBlock(
        width=meta["dim"],
        grid=meta["grid"],
        cond_tokens=meta["cond_tokens"],
        num_heads=meta["num_heads"],
        memory_multiplier=meta["memory_hidden_multiplier"],
        cms_multipliers=meta["cms_hidden_multipliers"],
        read=meta["read"],
    )
    block.double().load_state_dict(weights, strict=True)
    memory: FastWeights | None = None
    found: dict[str, list[Tensor]] = {name: [] for name in ("y", "w_in_after", "w_out_after", "eta", "alpha")}
    for t in range(meta["frames"]):
        rotary = rotary_tables(
            head_dim=meta["dim"] // meta["num_heads"],
            grid=meta["grid"],
            cond_tokens=meta["cond_tokens"],
            first_frame=t,
            frames=1,
            layout=meta.get("rope", "vjepa2"),
            device=torch.device("cpu"),
            dtype=torch.float64,
        )
        y, memory = block(data["x"][:, t], memory, rotary)
        after = memory.all()
        rows = (y, after.w_in, after.w_out, memory.write.eta, memory.write.alpha)
        for name, value in zip(found, rows, strict=True):
            found[name].append(value)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


CHECKS: dict[str, Check] = {
    "vjepa2_ac": check_vjepa2_ac,
    "convlstm": check_convlstm,
    "hope_block": check_hope_block,
}


def max_abs_errors(path: Path) -> dict[str, float]:
    """Largest absolute error of every expected array of a reference file."""
    kind = next((kind for kind in CHECKS if path.name.startswith(kind)), None)
    if kind is None:
        raise ValueError(f"unknown kind of reference file; the name must start with one of {', '.join(CHECKS)}")
    with np.load(path, allow_pickle=False) as archive:
        meta = json.loads(str(archive["meta"]))
        arrays = {k: torch.from_numpy(archive[k]).double() for k in archive.files if k != "meta"}
    weights = {k[2:]: v for k, v in arrays.items() if k.startswith("w:")}
    data = {k: v for k, v in arrays.items() if not k.startswith("w:")}
    with torch.no_grad():
        found = CHECKS[kind](meta, data, weights)
    expected = {**data, **{k: torch.tensor(v, dtype=torch.float64) for k, v in meta.items() if k.endswith("_loss")}}
    errors = {}
    for name, value in found.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
        errors[name] = (value - expected[name]).abs().max().item()
    return errors


def main(files: list[str]) -> int:
    """Check every file; 0 when all match, 1 when one does not, 2 on a file that cannot be checked."""
    if not files:
        print("usage: python tests/check_golden.py FILE...", file=sys.stderr)
        return 2
    status = 0
    for file in files:
        try:
            errors = max_abs_errors(Path(file))
        except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
            print(f"{file}: {error}", file=sys.stderr)
            status = 2
            continue
        for name, largest in errors.items():
            print(f"{file} {name} {largest:.3e}")
            if not largest <= TOLERANCE:  # also catches NaN
                status = max(status, 1)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
