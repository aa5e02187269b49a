"""Anti-aliased camera frames of the simulated table, [16, 3, S, S] with S = grid * patch pixels."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from hopecli.data.physics import Simulation

Image = npt.NDArray[np.float32]

PUSHED_COLOUR = (1.0, 0.15, 0.1)
DISTRACTOR_COLOUR = (0.1, 0.25, 1.0)
OBSTACLE_COLOUR = (0.05, 0.05, 0.05)
EDGE_PIXELS = 1.5
TEXTURE_SEED = 20
TEXTURE_WAVES = 6
TEXTURE_CONTRAST = 0.06


def patch_pixels(grid: int) -> int:
    """Pixels along a patch: at least 4, and enough for a frame of at least 24 pixels."""
    return max(4, math.ceil(24 / grid))


@functools.lru_cache(maxsize=8)
def table(size: int) -> Image:
    """The empty table, [3, size, size] in 0..1: one fixed smooth texture, the same in every clip of every domain."""
    rng = np.random.default_rng(TEXTURE_SEED)
    x, y = _pixel_centres(size)
    texture = np.zeros((3, size, size))
    for _ in range(TEXTURE_WAVES):
        wave = rng.uniform(-2.0, 2.0, size=2) * 2 * math.pi
        field = np.cos(wave[0] * x + wave[1] * y + rng.uniform(0, 2 * math.pi))
        texture += rng.normal(size=3)[:, None, None] * field
    return (0.45 + TEXTURE_CONTRAST * texture / math.sqrt(TEXTURE_WAVES)).clip(0, 1).astype(np.float32)


def coverage(centres: npt.NDArray[np.float64], radius: float, size: int) -> Image:
    """Share of every pixel that a disk covers: centres [F, 2] (x, y in box widths) -> [F, size, size] in 0..1.

    A linear ramp of the distance to the rim, EDGE_PIXELS wide. Such a ramp adds pi * width^2 / 12 to the disk's area;
    a smaller radius takes that back, so that the covered area is pi * radius^2.
    """
    x, y = _pixel_centres(size)
    width = EDGE_PIXELS / size
    rim = math.sqrt(max(radius**2 - width**2 / 12, 0.0))
    dx = x[None] - centres[:, 0, None, None]
    dy = y[None] - centres[:, 1, None, None]
    distance = np.sqrt(dx * dx + dy * dy)
    ramp = np.clip(0.5 + (rim - distance) / width, 0.0, 1.0)
    return np.asarray(ramp, dtype=np.float32)


def render(simulation: Simulation, *, grid: int) -> Image:
    """The frames of a clip, [16, 3, S, S] in 0..1, rows along y; the pushed disk is red, the distractor blue."""
    size = grid * patch_pixels(grid)
    frames = np.repeat(table(size)[None], len(simulation.positions), axis=0)
    if simulation.domain.obstacle is not None:
        x, y, radius = simulation.domain.obstacle
        frames = _paint(frames, coverage(np.array([[x, y]]), radius, size), OBSTACLE_COLOUR)
    for disk, colour in ((1, DISTRACTOR_COLOUR), (0, PUSHED_COLOUR)):
        centres, radius = simulation.positions[:, disk], float(simulation.radii[disk])
        frames = _paint(frames, coverage(centres, radius, size), colour)
    return frames


def _paint(frames: Image, cover: Image, colour: tuple[float, float, float]) -> Image:
    paint = np.array(colour, dtype=np.float32)[:, None, None]
    return frames + cover[:, None] * (paint - frames)


def _pixel_centres(size: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """x [1, size] and y [size, 1] of the pixel centres, in box widths."""
    centres = (np.arange(size) + 0.5) / size
    return centres[None, :], centres[:, None]
