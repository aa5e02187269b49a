"""The simulation behind the built-in clips, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hopecli.data.physics import (
    DOMAINS,
    GRAVITY,
    PUSH_FRAME,
    PUSH_RANGE,
    RADII,
    SUBSTEP,
    SUBSTEPS,
    Domain,
    Simulation,
    simulate,
    simulate_many,
    substep,
)

FRAME = SUBSTEP * SUBSTEPS
# Float64 sums of at most a few hundred terms of order 1.
ROUNDING = 1e-9


def many(name: str, count: int = 200, seed: int = 0) -> list[Simulation]:
    return simulate_many(DOMAINS[name], [np.random.default_rng([seed, i]) for i in range(count)])


def speeds(simulation: Simulation) -> np.ndarray:
    return np.asarray(np.linalg.norm(simulation.velocities, axis=-1))


@pytest.mark.parametrize("name", DOMAINS)
def test_push_sets_the_velocity_of_the_first_disk(name: str) -> None:
    domain = DOMAINS[name]
    cos, sin = math.cos(domain.push_angle), math.sin(domain.push_angle)
    checked = 0
    for simulation in many(name, 50):
        assert np.all(simulation.velocities[0, 0] == 0)
        assert PUSH_RANGE[0] <= np.hypot(*simulation.push) <= PUSH_RANGE[1]
        expected = domain.push_gain * np.array([[cos, -sin], [sin, cos]]) @ simulation.push / domain.mass
        # Unless the drifting disk touched it between frames 0 and 1, the first disk has not moved before the push.
        if np.array_equal(simulation.positions[PUSH_FRAME - 1, 0], simulation.positions[PUSH_FRAME, 0]):
            np.testing.assert_allclose(simulation.velocities[PUSH_FRAME, 0], expected, atol=ROUNDING)
            checked += 1
    assert checked > 40


def _clear(simulation: Simulation, first: int, last: int) -> bool:
    """Whether no disk came near enough to touch anything between two frames."""
    reach = FRAME * float(speeds(simulation)[first : last + 1].max()) + 1e-6
    positions, radii = simulation.positions[first : last + 1], simulation.radii[:, None]
    walls = bool(np.all((positions > radii + reach) & (positions < 1 - radii - reach)))
    apart = bool(np.all(np.linalg.norm(positions[:, 0] - positions[:, 1], axis=-1) > sum(RADII) + 2 * reach))
    obstacle = simulation.domain.obstacle
    if obstacle is None:
        return walls and apart
    offset = np.linalg.norm(positions - np.array(obstacle[:2]), axis=-1)
    return walls and apart and bool(np.all(offset > simulation.radii + obstacle[2] + reach))


@pytest.mark.parametrize("name", DOMAINS)
def test_coulomb_deceleration_between_contacts(name: str) -> None:
    deceleration = DOMAINS[name].friction * GRAVITY
    checked = 0
    for simulation in many(name):
        speed = speeds(simulation)
        for frame in range(PUSH_FRAME, len(speed) - 1):
            if not _clear(simulation, frame, frame + 1):
                continue
            before = speed[frame]
            slides = np.minimum(FRAME, before / deceleration)
            np.testing.assert_allclose(speed[frame + 1], before - deceleration * slides, atol=1e-6)
            way = np.linalg.norm(simulation.positions[frame + 1] - simulation.positions[frame], axis=-1)
            np.testing.assert_allclose(way, before * slides - 0.5 * deceleration * slides**2, atol=1e-6)
            checked += 1
    assert checked > 50


@pytest.mark.parametrize("name", DOMAINS)
def test_energy_never_grows_after_the_push(name: str) -> None:
    for simulation in many(name):
        energy = np.square(speeds(simulation)).sum(axis=1)
        assert np.all(np.diff(energy[PUSH_FRAME:]) <= ROUNDING)


@pytest.mark.parametrize("name", DOMAINS)
def test_disks_stay_in_the_box_and_out_of_each_other_and_the_obstacle(name: str) -> None:
    simulations = many(name, 500)
    positions = np.stack([simulation.positions for simulation in simulations])
    radii = np.array(RADII)
    assert np.all(positions >= radii[:, None] - ROUNDING)
    assert np.all(positions <= 1 - radii[:, None] + ROUNDING)
    distance = np.linalg.norm(positions[:, :, 0] - positions[:, :, 1], axis=-1)
    assert distance[:, 0].min() > sum(RADII)
    # A disk squeezed against a wall may overlap the other for a substep; never by much, never through it.
    assert distance.min() > 0.6 * sum(RADII)
    assert np.mean(distance < sum(RADII) - ROUNDING) < 0.005
    obstacle = DOMAINS[name].obstacle
    if obstacle is not None:
        offset = np.linalg.norm(positions - np.array(obstacle[:2]), axis=-1)
        assert np.all(offset >= radii + obstacle[2] - ROUNDING)


def test_a_wall_reflects_the_normal_velocity_only() -> None:
    position = np.array([[[RADII[0] + 0.001, 0.5], [0.7, 0.7]]])
    velocity = np.array([[[-0.6, 0.3], [0.0, 0.0]]])
    ice = Domain("no friction", friction=0.0)
    moved, after = substep(ice, position, velocity)
    np.testing.assert_allclose(after[0, 0], [0.6, 0.3], atol=ROUNDING)
    np.testing.assert_allclose(moved[0, 0], [RADII[0] - 0.001 + 0.6 * SUBSTEP, 0.5 + 0.3 * SUBSTEP], atol=ROUNDING)


@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_a_disk_that_another_pressed_into_a_wall_goes_on_leaving_it(side: float) -> None:
    """It is inside the wall and on its way out already: reflected, it would stay in the wall."""
    position = 0.5 + side * np.array([[[0.5 - RADII[0] + 0.01, 0.0], [-0.2, 0.2]]])
    velocity = -side * np.array([[[0.3, 0.1], [0.0, 0.0]]])
    _, after = substep(Domain("no friction", friction=0.0), position, velocity)
    np.testing.assert_allclose(after[0, 0], velocity[0, 0], atol=ROUNDING)


def test_a_head_on_contact_of_the_disks_swaps_their_velocities() -> None:
    position = np.array([[[0.4, 0.5], [0.4 + sum(RADII) + 0.001, 0.5]]])
    velocity = np.array([[[0.8, 0.1], [-0.2, 0.0]]])
    _, after = substep(Domain("no friction", friction=0.0), position, velocity)
    np.testing.assert_allclose(after.sum(axis=1), velocity.sum(axis=1), atol=ROUNDING)
    np.testing.assert_allclose(np.square(after).sum(), np.square(velocity).sum(), atol=ROUNDING)
    assert after[0, 0, 0] == pytest.approx(-0.2, abs=0.01)  # not exact: the 0.1 tilts the contact by about 0.01 rad
    assert after[0, 1, 0] == pytest.approx(0.8, abs=0.01)


def test_the_obstacle_reflects() -> None:
    position = np.array([[[0.5 - 0.12 - RADII[0] - 0.001, 0.5], [0.8, 0.8]]])
    velocity = np.array([[[0.7, 0.0], [0.0, 0.0]]])
    _, after = substep(Domain("no friction", friction=0.0, obstacle=(0.5, 0.5, 0.12)), position, velocity)
    np.testing.assert_allclose(after[0, 0], [-0.7, 0.0], atol=ROUNDING)


def test_domains_differ_in_how_far_the_pushed_disk_goes() -> None:
    def path(name: str) -> float:
        way = [np.linalg.norm(np.diff(s.positions[:, 0], axis=0), axis=-1).sum() for s in many(name)]
        return float(np.mean(way))

    base = path("base")
    assert path("scaling") > 1.3 * base
    assert path("ice") > 1.5 * base
    assert path("compositional") > path("ice")
    assert path("rotation") == pytest.approx(base, rel=0.1)


def test_the_distractor_does_not_depend_on_the_push() -> None:
    simulations = many("base")
    drift = np.stack([simulation.velocities[0, 1] for simulation in simulations])
    push = np.stack([simulation.push for simulation in simulations])
    correlation = np.corrcoef(np.concatenate([drift, push], axis=1).T)[:2, 2:]
    assert np.abs(correlation).max() < 0.25  # 200 draws: five standard errors are 0.35, three are 0.21
    assert np.linalg.norm(drift, axis=1).min() > 0.1


def test_a_clip_is_the_same_alone_and_in_a_batch() -> None:
    batch = many("compositional", 7)
    alone = simulate(DOMAINS["compositional"], np.random.default_rng([0, 5]))
    assert np.array_equal(batch[5].positions, alone.positions)
    assert np.array_equal(batch[5].velocities, alone.velocities)
    assert not np.array_equal(batch[4].positions, alone.positions)
