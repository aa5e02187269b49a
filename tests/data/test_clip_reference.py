"""Built-in clips against stored numbers: a change that no closed form notices still changes the clips.

Positions come from truth.npz, features from the clip as it is stored. The clips are chosen among the first 1,500 of
seed 0 of every domain so that disks hit walls, the obstacle and each other, also where a start had to be drawn again
and where two disks touch while they already part.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hopecli.data.make_clips import make_clips
from hopecli.data.source import PHYSICS_VERSION


class Reference(NamedTuple):
    """A clip's (domain, id) and size; x, y of both disks at original frames 0, 8, 15; one feature of every frame."""

    clip: tuple[str, int]
    grid: int
    dim: int
    positions: list[list[float]]
    features: list[float]


# Grid 2 wherever that shows everything. Grid 16 has the least pixels per patch and the fewest calibration clips that
# the encoder allows, width 300 more features than hidden units.
REFERENCES = [
    Reference(
        clip=("base", 33),
        grid=2,
        dim=8,
        positions=[
            [0.6416292931, 0.6292668083, 0.4304031385, 0.6305791714],
            [0.6490431777, 0.5977176003, 0.0981729334, 0.6393250037],
            [0.6493878051, 0.5974762430, 0.4438329679, 0.6472412729],
        ],
        features=[2.65446, 1.24717, -2.01881, 1.22304, 0.86158, -7.25214, 6.01572, 2.94645],
    ),
    Reference(
        clip=("base", 1083),
        grid=16,
        dim=8,
        positions=[
            [0.7916658348, 0.3628578604, 0.6646750217, 0.1843142726],
            [0.7662250768, 0.1393944517, 0.5135130508, 0.0997213459],
            [0.7734417386, 0.1321717709, 0.1579434187, 0.2058506292],
        ],
        features=[0.63357, -0.13457, -4.52368, 1.54951, 0.44691, -4.99831, 3.47395, 3.86002],
    ),
    Reference(
        clip=("scaling", 554),
        grid=2,
        dim=8,
        positions=[
            [0.5320867397, 0.4736086730, 0.8236629635, 0.3020487328],
            [0.8797529352, 0.3209665194, 0.8328766784, 0.0862669825],
            [0.8269674896, 0.7297533691, 0.6403453681, 0.2011320709],
        ],
        features=[1.57461, -1.29600, -3.29399, 1.50385, 1.87770, -3.07794, 3.60920, 2.77466],
    ),
    Reference(
        clip=("ice", 436),
        grid=2,
        dim=8,
        positions=[
            [0.3271600301, 0.7279914598, 0.1039768372, 0.8956393050],
            [0.3845745564, 0.8856907807, 0.1468935185, 0.6937883156],
            [0.5205636673, 0.7613910546, 0.3564524130, 0.3816544058],
        ],
        features=[0.77343, -0.63978, -5.94330, 0.76935, 2.12326, -7.44463, 2.16628, 1.36343],
    ),
    Reference(
        clip=("walls", 27),
        grid=3,
        dim=300,
        positions=[
            [0.8372830017, 0.6000471012, 0.8110137034, 0.1256577574],
            [0.7257882491, 0.4903623373, 0.8682124899, 0.1900341887],
            [0.7890966119, 0.5624162723, 0.8382443913, 0.1579302049],
        ],
        features=[3.10970, 5.70459, 4.54057, -4.44982, 3.59073, -0.63689, -0.32712, 3.33715],
    ),
    Reference(
        clip=("walls", 439),
        grid=2,
        dim=8,
        positions=[
            [0.3047207709, 0.1844949178, 0.8905372347, 0.1286069034],
            [0.4446420179, 0.2537757516, 0.6635589138, 0.0839582247],
            [0.4340456596, 0.1539940141, 0.6015874492, 0.1020231520],
        ],
        features=[-1.05211, -0.15977, -3.77253, 0.64071, 2.74916, -3.50830, 3.17824, 2.57998],
    ),
    Reference(
        clip=("rotation", 1289),
        grid=2,
        dim=8,
        positions=[
            [0.4794602260, 0.7553411638, 0.2094264902, 0.6280446854],
            [0.2904597066, 0.8939258840, 0.0807719878, 0.8772162661],
            [0.2419133650, 0.8305435512, 0.0797932865, 0.8356387608],
        ],
        features=[2.75387, -0.52245, -3.62511, 0.69271, 2.24248, -7.32235, 3.04021, 2.88167],
    ),
    Reference(
        clip=("compositional", 463),
        grid=4,
        dim=8,
        positions=[
            [0.2486466506, 0.6424355057, 0.1156530215, 0.1881189665],
            [0.1052006913, 0.1879637439, 0.3975243101, 0.3400039595],
            [0.4799560573, 0.1482215843, 0.2648782290, 0.8558888591],
        ],
        features=[2.15991, -0.67239, -4.18503, 2.42478, -2.46063, -3.99277, 2.48296, 4.24563],
    ),
    Reference(
        clip=("compositional", 536),
        grid=2,
        dim=8,
        positions=[
            [0.7302203125, 0.5879761791, 0.9057668438, 0.1827305205],
            [0.1723641137, 0.8290575663, 0.7375775892, 0.2470726182],
            [0.5097701116, 0.7284035477, 0.7585903882, 0.3719488438],
        ],
        features=[-0.23853, 0.49646, -2.96375, -2.43393, 3.82143, -3.25842, 3.21548, -1.66517],
    ),
]


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda reference: "{}-{}".format(*reference.clip))
def test_clips_keep_their_numbers(reference: Reference, tmp_path: Path) -> None:
    """Change these numbers only together with PHYSICS_VERSION, or stale caches are mixed with new clips.

    Positions: 1e-9, as the contacts of these clips enlarge rounding up to 300-fold. Features: computed in float64 and
    stored in float32 here; 1e-4 is well above rounding, and shows even which disk is painted first.
    """
    (domain, number), grid, dim, positions, features = reference
    make_clips(tmp_path / "out", clips=1, grid=grid, dim=dim, domain=domain, seed=0, dtype="float32", start_id=number)
    clip = tmp_path / "out" / f"clip_{number:05d}"
    with np.load(clip / "truth.npz") as truth:
        found = truth["positions"][[0, 8, 15]].reshape(3, 4)
    np.testing.assert_allclose(found, positions, rtol=0, atol=1e-9)
    stored = np.load(clip / "feature_maps" / "vjepa2_vitl16.npy")
    frame = np.arange(8)
    np.testing.assert_allclose(stored[frame, frame * 37 % grid**2, frame * 5 % dim], features, rtol=0, atol=1e-4)


def test_the_version_of_these_numbers() -> None:
    assert PHYSICS_VERSION == 2
