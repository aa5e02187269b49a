"""Write a folder of built-in physics clips, all or nothing, and report their statistics."""

from __future__ import annotations

import dataclasses
import difflib
import errno
import json
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hopecli.config.schema.data import GRIDS, MOST_CLIPS, WIDTHS
from hopecli.data.encode import frozen_encoder
from hopecli.data.physics import DOMAINS, FRAMES, PUSH_FRAME, Simulation, simulate_many
from hopecli.data.render import render
from hopecli.data.staging import interrupts_held, remove_stale, staged
from hopecli.errors import DataError, SettingsError, exists, is_dir

DTYPES = ("float16", "float32")
STAND_IN = (
    "Features come from a small frozen random patch encoder that stands in for V-JEPA 2; "
    "they are not V-JEPA 2 features."
)
SAMPLE_CLIPS = 64
BATCH_CLIPS = 256
ABOUT_FILE = "clips.json"  # the last file to appear
_OF_MACOS = (".DS_Store", "._")  # what its Finder and foreign disks leave in an empty folder
_OTHER_FOLDER = "name a new folder, or remove this one first"


@dataclass(frozen=True)
class ClipStatistics:
    """Statistics of up to 64 of the clips made, in their stored dtype.

    feature_std: standard deviation of all feature values, in feature units.
    cosine_successive: cosine of a patch token at frame t with the same patch at t+1, mean over patches, frames, clips.
    cosine_between_clips: cosine of a patch token with the same patch and frame of another clip, mean over patches,
    frames and all pairs of clips; None for a single clip.
    copy_last_l1: for horizons 1..7, mean |h_0 - h_t| with h = LayerNorm over D without gain, eps 1e-5: the rollout
    error of repeating frame 0.
    """

    clips_sampled: int
    feature_std: float
    cosine_successive: float
    cosine_between_clips: float | None
    copy_last_l1: tuple[float, ...]


def make_clips(
    out_dir: Path,
    *,
    clips: int,
    grid: int,
    dim: int,
    domain: str,
    seed: int,
    dtype: str = "float16",
    start_id: int = 0,
    on_clip: Callable[[int, int], None] | None = None,
) -> ClipStatistics:
    """Write clip_{id:05d} for ids start_id .. start_id + clips - 1 into a new or empty folder `out_dir`.

    Features [8, grid*grid, dim] in `dtype`, actions [16, 2] (push in newtons in row 1), truth.npz, and clips.json
    beside the clips. A clip depends on (seed, domain, id), grid, dim and dtype only. on_clip(done, clips) is called
    after each clip. A new folder appears complete or not at all; an empty one that exists is kept and filled at the
    end, clips.json last, and every error or signal leaves it empty.

    Raises SettingsError for a bad argument and DataError if out_dir exists and is not empty or cannot be written.
    """
    _check_arguments(clips=clips, grid=grid, dim=dim, domain=domain, seed=seed, dtype=dtype, start_id=start_id)
    out_dir = Path(out_dir).resolve()
    sample = _Sample()
    try:
        remove_stale(out_dir)
        _check_empty(out_dir)
        with staged(out_dir, last=ABOUT_FILE) as staging:
            _check_space(staging, clips * FRAMES // 2 * grid**2 * dim * np.dtype(dtype).itemsize, out_dir)
            for done, (clip_id, simulation) in enumerate(_simulations(domain, seed, start_id, clips), start=1):
                features = frozen_encoder(grid, dim)(render(simulation, grid=grid)).astype(dtype)
                _write_clip(staging / f"clip_{clip_id:05d}", features, simulation, domain)
                if done <= SAMPLE_CLIPS:
                    sample.add(features)
                if on_clip is not None:
                    on_clip(done, clips)
            statistics = sample.statistics()
            about = {
                "note": STAND_IN,
                "generator": "hopecli physics clips",
                "clips": clips,
                "grid": grid,
                "dim": dim,
                "domain": domain,
                "domain_physics": dataclasses.asdict(DOMAINS[domain]),
                "seed": seed,
                "dtype": dtype,
                "start_id": start_id,
                "statistics": dataclasses.asdict(statistics),
            }
            (staging / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            what = "clips were put into this folder while those for it were made"
            raise DataError(what, where=str(out_dir), fix=_OTHER_FOLDER) from error
        # numpy reports a short write without an error number; a full disk is what causes it.
        full = error.errno in (None, errno.ENOSPC, errno.EDQUOT)
        reason = f"the disk may be full ({error.strerror or error})" if full else error.strerror or error
        raise DataError(
            f"cannot write clips: {reason}",
            where=str(out_dir),
            fix="choose a writable folder with enough free space",
        ) from error
    return statistics


def _check_arguments(*, clips: int, grid: int, dim: int, domain: str, seed: int, dtype: str, start_id: int) -> None:
    for name, value, least, most in (
        ("clips", clips, 1, MOST_CLIPS),
        ("grid", grid, *GRIDS),
        ("dim", dim, *WIDTHS),
        ("seed", seed, 0, None),
        ("start_id", start_id, 0, None),
    ):
        if value < least:
            raise SettingsError(f"must be at least {least}", where=name, value=value, fix=f"use {least} or more")
        if most is not None and value > most:
            raise SettingsError(f"must be at most {most}", where=name, value=value, fix=f"use {most} or less")
    for name, text, known in (("domain", domain, tuple(DOMAINS)), ("dtype", dtype, DTYPES)):
        if text not in known:
            near = difflib.get_close_matches(text, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? Known: " if near else "choose one of "
            raise SettingsError("unknown name", where=name, value=text, fix=f"{hint}{', '.join(known)}")


def _check_empty(out_dir: Path) -> None:
    if exists(out_dir) and not is_dir(out_dir):
        raise DataError("is a file, not a folder", where=str(out_dir), fix=_OTHER_FOLDER)
    if is_dir(out_dir) and any(not path.name.startswith(_OF_MACOS) for path in out_dir.iterdir()):
        raise DataError("the folder for new clips is not empty", where=str(out_dir), fix=_OTHER_FOLDER)


def _check_space(staging: Path, needed: int, out_dir: Path) -> None:
    disk = shutil.disk_usage(staging)
    if disk.total and needed > disk.free:
        unit, name = (2**30, "GiB") if needed >= 2**30 else (2**20, "MiB")
        raise DataError(
            f"the features need {needed / unit:,.1f} {name}, but the disk has {disk.free / unit:,.1f} {name} free",
            where=str(out_dir),
            fix="make fewer or smaller clips, or choose another disk",
        )


def _simulations(domain: str, seed: int, start_id: int, clips: int) -> Iterator[tuple[int, Simulation]]:
    """(id, simulation) of each clip; the generator of a clip is seeded by (seed, domain, id)."""
    name_key = zlib.crc32(domain.encode())
    for first in range(start_id, start_id + clips, BATCH_CLIPS):
        ids = range(first, min(first + BATCH_CLIPS, start_id + clips))
        rngs = [np.random.default_rng([seed, name_key, clip_id]) for clip_id in ids]
        yield from zip(ids, simulate_many(DOMAINS[domain], rngs), strict=True)


def _write_clip(folder: Path, features: npt.NDArray[np.float32], simulation: Simulation, domain: str) -> None:
    actions = np.zeros((FRAMES, 2), dtype=np.float32)
    actions[PUSH_FRAME] = simulation.push
    for name in ("feature_maps", "actions_states"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "feature_maps" / "vjepa2_vitl16.npy", features)
    np.save(folder / "actions_states" / "actions.npy", actions)
    with interrupts_held():  # zipfile has errors of its own for an interrupt, or loses it
        np.savez(
            folder / "truth.npz",
            positions=simulation.positions,
            velocities=simulation.velocities,
            radii=simulation.radii,
            push=simulation.push,
            domain=np.array(domain),
        )


class _Sample:
    """Running sums for ClipStatistics; holds no more than one clip's size, whatever the number of clips."""

    def __init__(self) -> None:
        self.clips = 0
        self.values = 0
        self.total = self.squares = self.successive = 0.0
        self.copy_last: npt.NDArray[np.float64] | float = 0.0
        self.unit_sum: npt.NDArray[np.float32] | None = None

    def add(self, stored: npt.NDArray[np.float32]) -> None:
        features = stored.astype(np.float32)
        self.clips += 1
        self.values += features.size
        self.total += float(features.sum(dtype=np.float64))
        self.squares += float(np.square(features).sum(dtype=np.float64))
        unit = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
        self.successive += float((unit[1:] * unit[:-1]).sum(axis=-1).mean())
        self.unit_sum = unit if self.unit_sum is None else self.unit_sum + unit
        normalised = layer_norm(features)
        self.copy_last += np.abs(normalised[1:] - normalised[0]).mean(axis=(1, 2), dtype=np.float64)

    def statistics(self) -> ClipStatistics:
        mean = self.total / self.values
        between = None
        if self.clips > 1 and self.unit_sum is not None:
            # The squared norm of a sum of n unit vectors is n plus the cosines of all ordered pairs.
            pairs = np.square(self.unit_sum).sum(axis=-1, dtype=np.float64) - self.clips
            between = float(pairs.mean() / (self.clips * (self.clips - 1)))
        return ClipStatistics(
            clips_sampled=self.clips,
            feature_std=float(np.sqrt(self.squares / self.values - mean**2)),
            cosine_successive=self.successive / self.clips,
            cosine_between_clips=between,
            copy_last_l1=tuple(float(value) for value in np.atleast_1d(self.copy_last) / self.clips),
        )


def layer_norm(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """LayerNorm over the last axis without gain, eps 1e-5 (the normalised space of the losses)."""
    centred = features - features.mean(axis=-1, keepdims=True)
    result: npt.NDArray[np.float32] = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return result
