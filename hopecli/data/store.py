"""Clips on disk: checking and reading them.

data_dir/clip_00001/feature_maps/vjepa2_vitl16.npy    [T*N, D] or [T, N, D] or [T, gh, gw, D]; float16 or float32
data_dir/clip_00001/actions_states/actions.npy        [T_original, A]
data_dir/clip_00001/actions_states/states.npy         optional, as actions or [T or T-1, A]
data_dir/clip_00001/actions_states/extrinsics.npy     optional, likewise, of width A-1
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hopecli.config.schema import DataSettings
from hopecli.data.align import (
    accepted_action_rows,
    align_actions,
    align_per_frame,
    impulse_drops,
    last_drops,
    original_row_counts,
)
from hopecli.data.folder import clip_names, select_ids
from hopecli.data.headers import ArrayHeader, ClipProblem, check_finite, map_array, read_array, read_header
from hopecli.errors import DataError, accessed

_ROW_FILES = ("actions", "states", "extrinsics")
TOO_SHORT = "too_few_frames"  # of a ClipProblem
PUT_BACK = "put it back as it was, or leave it out with data.on_error=skip and data.max_skipped"
SAMPLED_CLIPS = 64  # enough to warn of what is the same in most clips


@dataclass(frozen=True)
class Sample:
    """One clip: features [T, N, D] in the stored dtype, actions [T-1, A], states [T-1, A], extrinsics or None."""

    name: str
    features: torch.Tensor
    actions: torch.Tensor
    states: torch.Tensor
    extrinsics: torch.Tensor | None


class ClipHeaders(NamedTuple):
    """Number of encoded frames T, and the headers of a clip's files (None: absent or not used)."""

    frames: int
    features: ArrayHeader
    actions: ArrayHeader
    states: ArrayHeader | None
    extrinsics: ArrayHeader | None


def _evenly(names: Sequence[str]) -> Sequence[str]:
    """All of the names, or SAMPLED_CLIPS at most, spread over them: folders are often made of parts of one kind."""
    return names[:: -(-len(names) // SAMPLED_CLIPS)] if names else names


class ClipStore:
    """Reads clips of one folder under the data settings; holds paths only, so it is cheap to send to workers."""

    def __init__(self, folder: Path, settings: DataSettings, *, use_extrinsics: bool):
        self.folder, self.settings, self.use_extrinsics = folder, settings, use_extrinsics

    def select(self) -> dict[int, str]:
        """Clips with clip_start <= id < clip_end, ascending."""
        names = clip_names(self.folder)
        return {i: names[i] for i in select_ids(names, self.settings, where=str(self.folder))}

    def paths(self, name: str) -> tuple[Path, Path, Path, Path]:
        """Feature, action, state and extrinsics files of a clip; the last two are optional."""
        features = self.folder.joinpath(name, "feature_maps", f"{self.settings.feature_map}.npy")
        rows = [self.folder.joinpath(name, "actions_states", f"{what}.npy") for what in _ROW_FILES]
        return features, rows[0], rows[1], rows[2]

    def check(self, name: str) -> int:
        """Check a clip's headers against the settings and return its number of encoded frames T."""
        return self.headers(name).frames

    def frames(self, name: str) -> int:
        """The number of encoded frames T of a clip, whatever else is wrong with it."""
        return self._feature_frames(name, read_header(self.paths(name)[0], clip=name))

    def headers(self, name: str) -> ClipHeaders:
        """The headers of a clip's files, checked against the settings; ClipProblem when one does not fit."""
        features, actions, states, extrinsics = self.paths(name)
        feature_header = read_header(features, clip=name)
        frames = self._feature_frames(name, feature_header)
        if frames < self.settings.num_timesteps:
            raise self._too_short(name, frames, feature_header)
        width, alignment = self.settings.action_dim, self.settings.action_alignment
        accepted = accepted_action_rows(alignment, frames)
        action_header = read_header(actions, clip=name)
        self._rows(name, action_header, "actions", width, accepted, f"action_alignment {alignment}")
        frame_rows = (*original_row_counts(frames), frames - 1, frames)
        state_header = extrinsics_header = None
        if os.path.lexists(states):  # a broken link is a defect, not an absent file
            state_header = read_header(states, clip=name)
            self._rows(name, state_header, "states", width, frame_rows, "the state encoder")
        if self.use_extrinsics:
            extrinsics_header = read_header(extrinsics, clip=name)
            self._rows(name, extrinsics_header, "extrinsics", width - 1, frame_rows, "the extrinsics encoder")
        return ClipHeaders(frames, feature_header, action_header, state_header, extrinsics_header)

    def read(self, name: str) -> Sample:
        """Check and read one clip: the first num_timesteps frames and their transitions.

        Raises DataError naming the clip when it does not fit the settings or cannot be read.
        """
        with accessed(name, kind=DataError):
            return self._read(name)

    def _read(self, name: str) -> Sample:
        try:
            headers = self.headers(name)
        except ClipProblem as problem:
            if problem.code != TOO_SHORT:
                raise
            raise ClipProblem(TOO_SHORT, problem.what, clip=name, fix=PUT_BACK) from problem  # it was checked before
        s, frames = self.settings, headers.frames
        steps = s.num_timesteps - 1
        features_path, actions_path, states_path, extrinsics_path = self.paths(name)
        mapped = map_array(features_path, headers.features)
        patches = s.grid * s.grid
        used = mapped[: s.num_timesteps * patches] if mapped.ndim == 2 else mapped[: s.num_timesteps]
        features = np.array(used).reshape(s.num_timesteps, patches, s.embed_dim)
        actions = self._aligned(read_array(actions_path, headers.actions))
        states = np.zeros_like(actions)
        if headers.states is not None:
            states = align_per_frame(read_array(states_path, headers.states), frames=frames, transitions=steps)
        rows = None
        if headers.extrinsics is not None:
            rows = align_per_frame(read_array(extrinsics_path, headers.extrinsics), frames=frames, transitions=steps)
        for what, values in (("features", features), ("actions", actions), ("states", states), ("extrinsics", rows)):
            if values is not None:
                check_finite(what, values, clip=name)
        extrinsics = None if rows is None else torch.from_numpy(rows)
        return Sample(name, torch.from_numpy(features), torch.from_numpy(actions), torch.from_numpy(states), extrinsics)

    def dropped_actions(self, names: Sequence[str]) -> tuple[int, int]:
        """How many of the clips (a sample of them, where there are more than SAMPLED_CLIPS) have non-zero action rows
        that data.action_alignment leaves out (`impulse`: any but row 1; `per_timestep` with `last`: rows 2t that differ
        from rows 2t+1), and of how many."""
        sample, s = _evenly(names), self.settings
        halves = s.action_alignment == "per_timestep" and s.action_reduce == "last"
        dropped = 0
        for name in sample if halves or s.action_alignment == "impulse" else ():
            with suppress(DataError):  # whoever reads the clip says so
                rows = self.action_rows(name)
                dropped += last_drops(rows, transitions=s.num_timesteps - 1) if halves else impulse_drops(rows)
        return dropped, len(sample)

    def sampled_states(self, names: Sequence[str]) -> tuple[int, int]:
        """How many of the clips, sampled likewise, have states, and of how many; without, zeros stand in."""
        sample = _evenly(names)
        return sum(os.path.lexists(self.paths(name)[2]) for name in sample), len(sample)

    def read_actions(self, name: str) -> torch.Tensor:
        """The aligned actions [T-1, A] of a clip alone."""
        with accessed(name, kind=DataError):
            actions = self._aligned(self.action_rows(name))
        check_finite("actions", actions, clip=name)
        return torch.from_numpy(actions)

    def action_rows(self, name: str) -> np.ndarray:
        """The action rows as stored; ClipProblem when the file is no readable array."""
        path = self.paths(name)[1]
        with accessed(name, kind=DataError):
            return read_array(path, read_header(path, clip=name))

    def _aligned(self, rows: np.ndarray) -> np.ndarray:
        s = self.settings
        return align_actions(
            rows, alignment=s.action_alignment, reduce=s.action_reduce, transitions=s.num_timesteps - 1
        )

    def _feature_frames(self, name: str, header: ArrayHeader) -> int:
        s, shape = self.settings, header.shape
        patches = s.grid * s.grid
        if header.dtype not in (np.float16, np.float32):
            raise ClipProblem(
                "float64" if header.dtype == np.float64 else "odd_dtype",
                "features must be float16 or float32",
                clip=name,
                value=str(header.dtype),
                fix="save them as float16",
            )
        if len(shape) not in (2, 3, 4):
            raise ClipProblem(
                "odd_shape", "features must be [T*N, D], [T, N, D] or [T, gh, gw, D]", clip=name, value=list(shape)
            )
        if shape[-1] != s.embed_dim:
            raise ClipProblem(
                "feature_width",
                f"features have width {shape[-1]}, but data.embed_dim = {s.embed_dim}",
                clip=name,
                value=list(shape),
                fix=f"give clips of that width, or train a model with data.embed_dim={shape[-1]}",
            )
        if len(shape) == 2 and shape[0] % patches:
            raise ClipProblem(
                "not_divisible",
                f"{shape[0]} feature rows are not a multiple of N = {patches} patches",
                clip=name,
                value=list(shape),
                fix="give clips of that grid, or train a model with data.grid of the encoder",
            )
        found = (s.grid, s.grid) if len(shape) == 2 else shape[1:-1]
        wanted = {(patches,), (s.grid, s.grid)}
        if found not in wanted:
            meant = f"data.grid = {s.grid} means {patches}"
            fix = f"give clips of that grid, or train a model with data.grid={math.isqrt(math.prod(found))}"
            if not _is_square(found):  # no value of data.grid fits
                meant, fix = "predictors need a square grid (gh = gw)", "encode square frames"
            what = f"features have {'x'.join(map(str, found))} patches, but {meant}"
            raise ClipProblem("grid", what, clip=name, value=list(shape), fix=fix)
        return shape[0] // patches if len(shape) == 2 else shape[0]

    def _too_short(self, name: str, frames: int, header: ArrayHeader) -> ClipProblem:
        """Too few frames T; with the patches not told apart in the file, perhaps for a wrong grid."""
        s = self.settings
        what, fix = f"has {frames} encoded frames", "lower data.num_timesteps or set data.on_short=skip"
        if len(header.shape) == 2:
            what += f" ({header.shape[0]} feature rows / {s.grid**2} patches, data.grid = {s.grid})"
            fix = f"set data.grid to the encoder's grid, {fix}"
        what += f", fewer than data.num_timesteps = {s.num_timesteps}"
        return ClipProblem(TOO_SHORT, what, clip=name, fix=fix)

    def _rows(
        self, name: str, header: ArrayHeader, what: str, width: int, accepted: tuple[int, ...], asked_by: str
    ) -> None:
        shape = header.shape
        if header.dtype.kind not in "fiu":
            raise ClipProblem(
                f"{what}_dtype",
                f"{what} must be numbers",
                clip=name,
                value=str(header.dtype),
                fix="save them as float32",
            )
        if len(shape) == 2 and shape[1] == width and shape[0] in accepted:
            return
        shapes = " or ".join(f"[{rows}, {width}]" for rows in sorted(set(accepted)))
        fix = "see data.action_alignment" if what == "actions" else "check the file"
        if what == "actions" and len(shape) == 2 and shape[1] != width:
            fix = f"give clips with actions of that width, or train a model with data.action_dim={shape[1]}"
        raise ClipProblem(
            f"{what}_shape",
            f"{what} have shape {list(shape)}; {asked_by} accepts {shapes}",
            clip=name,
            fix=fix,
        )


def _is_square(patches: tuple[int, ...]) -> bool:
    """Whether N or (gh, gw) is a square grid."""
    return patches[0] == patches[1] if len(patches) == 2 else math.isqrt(patches[0]) ** 2 == patches[0]
