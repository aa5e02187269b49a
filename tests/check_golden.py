"""Compare the models with reference numbers: `python tests/check_golden.py FILE...`.

A file is recognised by its name's start. Prints `FILE name max_abs_error` for every expected value, runs in float64 and
exits 1 above 1e-9, 2 on a file that cannot be checked: malformed, made under other constants than the code's, or with
an array that nothing here compares. One line says why, and the other files are checked all the same.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from hopecli.data.clip import ClipBatch
from hopecli.models.convlstm import ConvLSTM
from hopecli.models.hope.memory import MEMORY_NAMES
from hopecli.models.hope.titans import FastWeights, HopeBlock
from hopecli.models.hope.update import EPS
from hopecli.models.rope import RopeLayout, rotary_tables
from hopecli.models.vit_ac import ViTAC
from hopecli.objectives.losses import distance
from hopecli.objectives.rollout import REPRESENTATION_EPS, normalise, rollout, teacher_forced

TOLERANCE = 1e-9

Arrays = dict[str, Tensor]


class Meta:
    """The settings of a reference file; every reader raises ValueError on a value that it cannot stand for."""

    def __init__(self, values: Any):
        if not isinstance(values, dict):
            raise ValueError(f"meta must be a JSON object, not {json.dumps(values)[:60]}")
        self.values: dict[str, Any] = values

    def get(self, key: str, default: Any = None) -> Any:
        if key not in self.values and default is None:
            raise ValueError(f"meta has no {key}")
        return self.values.get(key, default)

    def integer(self, key: str, *, least: int = 1, default: int | None = None) -> int:
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str) -> float:
        value = self.get(key)
        if not _positive(value):
            raise self.wrong(key, "a positive number")
        return float(value)

    def numbers(self, key: str) -> list[float]:
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(map(_positive, value)):
            raise self.wrong(key, "a list of positive numbers")
        return value

    def flag(self, key: str, *, default: bool | None = None) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def choice(self, key: str, allowed: Sequence[str], *, default: str | None = None) -> Any:
        value = self.get(key, default)
        if value not in allowed:
            raise self.wrong(key, " or ".join(allowed))
        return value

    def same(self, key: str, real: Any) -> None:
        """Refuse a constant, where the file names it, that is not the one of the code."""
        if key in self.values and self.values[key] != real:
            raise self.wrong(key, f"{json.dumps(real)} as in the code")

    def wrong(self, key: str, expected: str) -> ValueError:
        return ValueError(f"meta {key} must be {expected}, not {json.dumps(self.values.get(key))[:60]}")


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def layer_norm_eps(model: nn.Module) -> float:
    """The one epsilon of all LayerNorms."""
    (eps,) = {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)}
    return eps


def require_shape(data: Arrays, name: str, *shape: int | None) -> None:
    """ValueError unless the input is there in this shape; None is any size but 0."""
    if name not in data:
        raise ValueError(f"there is no {name}")
    found = tuple(data[name].shape)
    if len(found) != len(shape) or any(a != b if b is not None else a < 1 for a, b in zip(found, shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {found}, by meta it must be ({wanted})")


def check_vjepa2_ac(meta: Meta, data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """y on x as given; teacher-forced and rollout passes and losses on layer-normed x, by default of all frames."""
    grid, frames, features = meta.integer("grid"), meta.integer("T"), meta.integer("embed_dim")
    actions_width, use_extrinsics = meta.integer("action_dim"), meta.flag("use_extrinsics")
    context = meta.integer("context_frames", default=1)
    horizon = meta.integer("rollout_steps", least=0, default=max(frames - context, 0))
    if context + horizon > frames:
        raise ValueError(f"meta rollout_steps {horizon} after {context} context frames exceed the {frames} frames")
    require_shape(data, "x", None, frames * grid * grid, features)
    batch = data["x"].shape[0]
    require_shape(data, "actions", batch, frames, actions_width)
    require_shape(data, "states", batch, frames, actions_width)
    if use_extrinsics:
        require_shape(data, "extrinsics", batch, frames, actions_width - 1)
    model = ViTAC(
        embed_dim=features,
        action_dim=actions_width,
        grid=grid,
        width=meta.integer("predictor_embed_dim"),
        depth=meta.integer("depth"),
        num_heads=meta.integer("num_heads"),
        mlp_ratio=meta.number("mlp_ratio"),
        mlp="swiglu" if meta.flag("use_silu", default=False) else "gelu",
        wide_swiglu=meta.flag("wide_silu", default=True),
        use_extrinsics=use_extrinsics,
        rope=meta.choice("rope", get_args(RopeLayout), default="vjepa2"),
    )
    meta.same("norm_eps", layer_norm_eps(model))
    meta.same("layer_norm_eps_of_representations", REPRESENTATION_EPS)
    model.double().load_state_dict(weights, strict=True)
    model.eval()
    x, actions, states = data["x"], data["actions"], data["states"]
    extrinsics = data["extrinsics"] if use_extrinsics else None
    target = normalise(x.unflatten(1, (frames, -1)))
    clip = ClipBatch(target, actions, states, extrinsics, ())
    found = {"y": model(x, actions, states, extrinsics)}
    if frames > 1:
        forced = teacher_forced(model, clip, frames=frames - 1, normalize_reps=True)
        found["teacher_forced"] = forced.flatten(1, 2)
        found["teacher_forcing_loss"] = distance(forced, target[:, 1:], 1.0)
    if horizon > 0:
        rolled = rollout(model, clip, context_frames=context, horizon=horizon, normalize_reps=True)
        found["rollout"] = rolled.flatten(1, 2)
        found["rollout_loss"] = distance(rolled, target[:, context : context + horizon], 1.0)
    return found


def check_convlstm(meta: Meta, data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """y on x as given."""
    grid, frames, features = meta.integer("grid"), meta.integer("T"), meta.integer("input_dim")
    require_shape(data, "x", None, frames * grid * grid, features)
    require_shape(data, "actions", data["x"].shape[0], frames, meta.integer("action_dim"))
    model = ConvLSTM(
        embed_dim=features,
        action_dim=meta.integer("action_dim"),
        grid=grid,
        hidden=meta.integer("hidden_dim"),
        kernel_size=meta.integer("kernel_size"),
    )
    model.double().load_state_dict(weights, strict=True)
    return {"y": model(data["x"], data["actions"], torch.zeros_like(data["actions"]))}


def check_hope_block(meta: Meta, data: Arrays, weights: dict[str, Tensor]) -> Arrays:
    """One block over all frames: outputs, fast weights after every frame, rates."""
    width, heads, grid = meta.integer("dim"), meta.integer("num_heads"), meta.integer("grid")
    condition, frames = meta.integer("cond_tokens", least=0), meta.integer("frames")
    layout = meta.choice("rope", get_args(RopeLayout), default="vjepa2")
    require_shape(data, "x", None, frames, condition + grid * grid, width)
    meta.same("batch", data["x"].shape[0])
    if width % heads:
        raise ValueError(f"meta dim {width} is not a multiple of num_heads {heads}")
    block = HopeBlock(
        width=width,
        grid=grid,
        cond_tokens=condition,
        num_heads=heads,
        memory_multiplier=meta.number("memory_hidden_multiplier"),
        cms_multipliers=meta.numbers("cms_hidden_multipliers"),
        read=meta.get("read"),
    )
    meta.same("memory_order", list(MEMORY_NAMES))
    meta.same("rms_eps", EPS)
    meta.same("layer_norm_eps", layer_norm_eps(block))
    block.double().load_state_dict(weights, strict=True)
    memory: FastWeights | None = None
    found: dict[str, list[Tensor]] = {name: [] for name in ("y", "w_in_after", "w_out_after", "eta", "alpha")}
    for t in range(frames):
        rotary = rotary_tables(
            head_dim=width // heads,
            grid=grid,
            cond_tokens=condition,
            first_frame=t,
            frames=1,
            layout=layout,
            device=torch.device("cpu"),
            dtype=torch.float64,
        )
        y, memory = block(data["x"][:, t], memory, rotary)
        after = memory.all()
        rows = (y, after.w_in, after.w_out, memory.write.eta, memory.write.alpha)
        for name, value in zip(found, rows, strict=True):
            found[name].append(value)
    return {name: torch.stack(values, dim=1) for name, values in found.items()}


Check = Callable[[Meta, Arrays, Arrays], Arrays]
KINDS: dict[str, tuple[Check, tuple[str, ...]]] = {  # and the arrays that are no expectation
    "vjepa2_ac": (check_vjepa2_ac, ("x", "actions", "states", "extrinsics")),
    "convlstm": (check_convlstm, ("x", "actions", "states", "extrinsics")),
    "hope_block": (check_hope_block, ("x",)),
}


def read(path: Path) -> tuple[Meta, Arrays]:
    """Meta and all arrays of a file, in float64."""
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array, not an .npz archive")
    with archive:
        if "meta" not in archive.files:
            raise ValueError("it has no meta")
        meta = Meta(_json(archive["meta"]))
        arrays = {name: archive[name] for name in archive.files if name != "meta"}
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {array.dtype}, not numbers")
    return meta, {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}


def _json(array: np.ndarray[Any, Any]) -> Any:
    """The value of meta: JSON text, as one string."""
    if array.size != 1 or array.dtype.kind not in "US":
        raise ValueError(f"meta must be one string of JSON, not {array.dtype} of shape {array.shape}")
    try:
        return json.loads(array.item())
    except ValueError as error:
        raise ValueError(f"meta is not JSON: {error}") from error


def max_abs_errors(path: Path) -> dict[str, float]:
    """Largest absolute error of every expected value of a reference file, in the file's order."""
    kind = next((name for name in KINDS if path.name.startswith(name)), None)
    if kind is None:
        raise ValueError(f"unknown kind of reference file; the name must start with one of {', '.join(KINDS)}")
    check, inputs = KINDS[kind]
    meta, arrays = read(path)
    weights = {name[2:]: array for name, array in arrays.items() if name.startswith("w:")}
    data = {name: array for name, array in arrays.items() if name in inputs}
    expected = {name: a for name, a in arrays.items() if name not in data and not name.startswith("w:")}
    for key, value in meta.values.items():
        if key.endswith("_loss"):
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise meta.wrong(key, "a number")
            if key in expected:
                raise ValueError(f"{key} is both an array and in meta")
            expected[key] = torch.tensor(value, dtype=torch.float64)
    with torch.no_grad():
        found = check(meta, data, weights)
    if unknown := expected.keys() - found.keys():
        raise ValueError(f"nothing here computes {', '.join(sorted(unknown))}")
    if "y" not in expected:  # a file may leave out other values
        raise ValueError("it has no expected y")
    errors = {}
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, the model gives {tuple(found[name].shape)}")
        errors[name] = (found[name] - value).abs().max().item()
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
        except Exception as error:  # whatever is wrong with one file must not keep the others from being checked
            print(f"{file}: {' '.join(str(error).split())[:300] or type(error).__name__}", file=sys.stderr)
            status = 2
            continue
        for name, largest in errors.items():
            print(f"{file} {name} {largest:.3e}")
            if not largest <= TOLERANCE:  # also catches NaN
                status = max(status, 1)
    return status


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
