"""Two disks on a table: the small simulation behind the built-in clips.

A unit box seen from above. At original frame 1 the first disk is pushed: a force in newtons that acts for one unit of
time, so that the number is the impulse too. It then slides with Coulomb friction and bounces. The second disk drifts on
its own. Lengths are box widths, times seconds, 16 frames a second, 4 substeps a frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

FRAMES = 16
PUSH_FRAME = 1
SUBSTEPS = 4
SUBSTEP = 1.0 / (FRAMES * SUBSTEPS)
GRAVITY = 1.0
RADII = (0.09, 0.07)
PUSH_RANGE = (0.3, 1.2)
DRIFT_RANGE = (0.2, 0.7)
START_GAP = 0.02


@dataclass(frozen=True)
class Domain:
    """The physics of one family of clips.

    friction: Coulomb coefficient. mass: of each disk. push_gain: delivered / commanded push. push_angle: rotation of
    the delivered push from x towards y, radians. obstacle: (x, y, radius) of a fixed disk, or None.
    """

    description: str
    friction: float = 0.5
    mass: float = 1.0
    push_gain: float = 1.0
    push_angle: float = 0.0
    obstacle: tuple[float, float, float] | None = None


DOMAINS: dict[str, Domain] = {
    "base": Domain("the training world: friction 0.5, mass 1"),
    "scaling": Domain("every push acts 1.6 times as hard as commanded", push_gain=1.6),
    "ice": Domain("a slippery table and lighter disks: friction 0.1, mass 0.6", friction=0.1, mass=0.6),
    "walls": Domain("a fixed round obstacle in the middle of the table", obstacle=(0.5, 0.5, 0.12)),
    "rotation": Domain("every push acts 45 degrees away from the command", push_angle=math.pi / 4),
    "compositional": Domain(
        "all four shifts at once",
        friction=0.1,
        mass=0.6,
        push_gain=1.6,
        push_angle=math.pi / 4,
        obstacle=(0.5, 0.5, 0.12),
    ),
}


@dataclass(frozen=True)
class Simulation:
    """One simulated clip.

    positions, velocities: [16, 2 disks, 2] at the original frames; disk 0 is the pushed one, and its velocity at frame
    1 is the one right after the push. radii: [2]. push: [2], as commanded, before the domain's gain, angle and mass.
    """

    domain: Domain
    positions: Array
    velocities: Array
    radii: Array
    push: Array


def simulate(domain: Domain, rng: np.random.Generator) -> Simulation:
    """One clip of `domain`; everything random comes from `rng`."""
    return simulate_many(domain, [rng])[0]


def simulate_many(domain: Domain, rngs: Sequence[np.random.Generator]) -> list[Simulation]:
    """One clip for each generator, stepped together; clip i depends on rngs[i] only, to the bit."""
    starts = [_start(domain, rng) for rng in rngs]
    position = np.stack([start[0] for start in starts])
    velocity = np.stack([start[1] for start in starts])
    pushes = np.stack([start[2] for start in starts])
    positions = np.empty((len(rngs), FRAMES, 2, 2))
    velocities = np.empty_like(positions)
    for frame in range(FRAMES):
        if frame == PUSH_FRAME:
            velocity[:, 0] += push_velocity(domain, pushes)
        positions[:, frame], velocities[:, frame] = position, velocity
        if frame < FRAMES - 1:
            for _ in range(SUBSTEPS):
                position, velocity = substep(domain, position, velocity)
    radii = np.array(RADII)
    return [Simulation(domain, positions[i], velocities[i], radii, pushes[i]) for i in range(len(rngs))]


def push_velocity(domain: Domain, push: Array) -> Array:
    """Velocity that a commanded push [..., 2] gives the disk: gain * R(angle) push / mass."""
    cos, sin = math.cos(domain.push_angle), math.sin(domain.push_angle)
    x, y = push[..., 0], push[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1) * (domain.push_gain / domain.mass)


def substep(domain: Domain, position: Array, velocity: Array) -> tuple[Array, Array]:
    """Positions and velocities [B, 2 disks, 2] one substep (1/64 s) later: slide, then resolve contacts.

    The slide is exact for constant deceleration friction * g, up to the moment a disk stops. Contacts are elastic.
    """
    position, velocity = _slide(domain.friction * GRAVITY, position, velocity)
    position, velocity = _collide(position, velocity)
    position, velocity = _walls(position, velocity)
    # Last, because the obstacle stands clear of the walls by more than a disk: leaving it cannot cross a wall.
    if domain.obstacle is not None:
        position, velocity = _obstacle(domain.obstacle, position, velocity)
    return position, velocity


def _start(domain: Domain, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """Positions [2, 2] without contact, velocities [2, 2] and the commanded push [2]."""
    position = np.empty((2, 2))
    while True:
        for disk, radius in enumerate(RADII):
            position[disk] = rng.uniform(radius + START_GAP, 1.0 - radius - START_GAP, size=2)
        clear = math.dist(position[0], position[1]) > sum(RADII) + START_GAP
        if domain.obstacle is not None:
            x, y, size = domain.obstacle
            clear &= all(math.dist(position[d], (x, y)) > RADII[d] + size + START_GAP for d in range(2))
        if clear:
            break
    return position, np.stack([np.zeros(2), _polar(rng, DRIFT_RANGE)]), _polar(rng, PUSH_RANGE)


def _polar(rng: np.random.Generator, magnitude: tuple[float, float]) -> Array:
    """A vector of any direction whose length is uniform in `magnitude`."""
    angle, length = rng.uniform(0.0, 2.0 * math.pi), rng.uniform(*magnitude)
    return np.array([length * math.cos(angle), length * math.sin(angle)])


def _norm(vector: Array) -> Array:
    # Spelled out: sums and roots of single elements round the same in any batch, reductions need not.
    norm: Array = np.sqrt(vector[..., 0] ** 2 + vector[..., 1] ** 2)
    return norm


def _slide(deceleration: float, position: Array, velocity: Array) -> tuple[Array, Array]:
    speed = _norm(velocity)
    direction = velocity / np.maximum(speed, 1e-12)[..., None]
    sliding = np.minimum(SUBSTEP, speed / deceleration) if deceleration > 0 else np.full_like(speed, SUBSTEP)
    distance = speed * sliding - 0.5 * deceleration * sliding**2
    slower = np.where(sliding < SUBSTEP, 0.0, speed - deceleration * SUBSTEP)
    return position + direction * distance[..., None], direction * slower[..., None]


def _collide(position: Array, velocity: Array) -> tuple[Array, Array]:
    """Elastic contact of the two disks (equal masses swap their normal velocities)."""
    gap = position[:, 1] - position[:, 0]
    distance = _norm(gap)
    touching = distance < sum(RADII)
    if not touching.any():
        return position, velocity
    normal = gap / np.maximum(distance, 1e-12)[:, None]
    closing = ((velocity[:, 0] - velocity[:, 1]) * normal).sum(axis=-1)
    exchange = np.where(touching & (closing > 0), closing, 0.0)[:, None] * normal
    apart = np.where(touching, 0.5 * (sum(RADII) - distance), 0.0)[:, None] * normal
    signs = np.array([-1.0, 1.0])[:, None]
    return position + signs * apart[:, None], velocity + signs * exchange[:, None]


def _walls(position: Array, velocity: Array) -> tuple[Array, Array]:
    low = np.array(RADII)[:, None]
    high = 1.0 - low
    below, above = position < low, position > high
    position = np.where(below, 2 * low - position, np.where(above, 2 * high - position, position))
    velocity = np.where(below, np.abs(velocity), np.where(above, -np.abs(velocity), velocity))
    return np.clip(position, low, high), velocity


def _obstacle(obstacle: tuple[float, float, float], position: Array, velocity: Array) -> tuple[Array, Array]:
    offset = position - np.array(obstacle[:2])
    distance = _norm(offset)
    closest = np.array(RADII) + obstacle[2]
    inside = distance < closest
    if not inside.any():
        return position, velocity
    normal = offset / np.maximum(distance, 1e-12)[..., None]
    inward = np.minimum((velocity * normal).sum(axis=-1), 0.0)
    out = np.where(inside, closest - distance, 0.0)[..., None] * normal
    return position + out, velocity - np.where(inside, 2.0 * inward, 0.0)[..., None] * normal
