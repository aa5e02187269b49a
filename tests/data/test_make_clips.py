"""The built-in clips: rendering, the frozen encoder and the folder that is written."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hopecli.data.encode import PatchEncoder
from hopecli.data.make_clips import ClipStatistics, layer_norm, make_clips
from hopecli.data.physics import DOMAINS, RADII, Simulation, simulate
from hopecli.data.render import coverage, patch_pixels, render, table
from hopecli.errors import DataError, SettingsError


def base_clip() -> Simulation:
    return simulate(DOMAINS["base"], np.random.default_rng(0))


@pytest.mark.parametrize("size", [24, 64])
def test_rendering_conserves_the_area_of_a_disk(size: int) -> None:
    centres = np.random.default_rng(0).uniform(0.2, 0.8, size=(20, 2))
    for radius in RADII:
        area = coverage(centres, radius, size).sum(axis=(1, 2)) / size**2
        # One disk is sampled by few pixels (a radius of 1.7 of them); over many positions the errors cancel.
        np.testing.assert_allclose(area, math.pi * radius**2, rtol=0.05)
        assert area.mean() == pytest.approx(math.pi * radius**2, rel=0.01)


def test_rendering_is_anti_aliased_and_shows_who_is_who() -> None:
    simulation = base_clip()
    grid = 16
    size = grid * patch_pixels(grid)
    frames = render(simulation, grid=grid)
    assert frames.shape == (16, 3, size, size)
    assert frames.min() >= 0
    assert frames.max() <= 1
    for disk, channel in ((0, 0), (1, 2)):
        column, row = (simulation.positions[8, disk] * size).astype(int)
        assert frames[8, :, row, column].argmax() == channel
        assert frames[8, channel, row, column] == pytest.approx(1.0)
    half_pixel = coverage(np.array([[0.5, 0.5], [0.5 + 0.25 / size, 0.5]]), RADII[0], size)
    assert np.abs(half_pixel[1] - half_pixel[0]).max() > 0.05
    assert np.array_equal(table(size), table(size))


def test_encoder_is_frozen_and_the_same_for_every_instance() -> None:
    frames = render(base_clip(), grid=3)
    one, two = PatchEncoder(grid=3, dim=8), PatchEncoder(grid=3, dim=8)
    assert one(frames).shape == (8, 9, 8)
    assert np.array_equal(one(frames), two(frames))
    moved = frames.copy()
    moved[6:8] = 0
    changed = np.abs(one(moved) - one(frames)).max(axis=(1, 2)) > 0
    assert changed.tolist() == [False, False, False, True, False, False, False, False]


def make(folder: Path, **changes: object) -> ClipStatistics:
    arguments: dict[str, object] = {"clips": 3, "grid": 2, "dim": 4, "domain": "base", "seed": 0}
    return make_clips(folder, **{**arguments, **changes})  # type: ignore[arg-type]


def test_written_files_follow_the_clip_contract(tmp_path: Path) -> None:
    done: list[tuple[int, int]] = []
    make(tmp_path / "out", start_id=7, domain="ice", on_clip=lambda i, n: done.append((i, n)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["clip_00007", "clip_00008", "clip_00009", "clips.json"]
    clip = tmp_path / "out" / "clip_00008"
    files = sorted(path.relative_to(clip).as_posix() for path in clip.rglob("*") if path.is_file())
    assert files == ["actions_states/actions.npy", "feature_maps/vjepa2_vitl16.npy", "truth.npz"]
    features = np.load(clip / "feature_maps" / "vjepa2_vitl16.npy", allow_pickle=False)
    assert features.shape == (8, 4, 4)
    assert features.dtype == np.float16
    actions = np.load(clip / "actions_states" / "actions.npy", allow_pickle=False)
    assert actions.shape == (16, 2)
    assert actions.dtype == np.float32
    assert np.flatnonzero(np.abs(actions).sum(axis=1)).tolist() == [1]
    with np.load(clip / "truth.npz", allow_pickle=False) as truth:
        assert truth["positions"].shape == truth["velocities"].shape == (16, 2, 2)
        np.testing.assert_array_equal(actions[1], truth["push"].astype(np.float32))
        np.testing.assert_allclose(truth["velocities"][1, 0], truth["push"] / 0.6, atol=1e-9)
        assert str(truth["domain"]) == "ice"
    about = json.loads((tmp_path / "out" / "clips.json").read_text())
    assert "stands in for V-JEPA 2" in about["note"]
    assert (about["domain"], about["seed"], about["start_id"]) == ("ice", 0, 7)
    assert (about["domain_physics"]["friction"], about["domain_physics"]["mass"]) == (0.1, 0.6)
    assert about["statistics"]["clips_sampled"] == 3


def contents(clip: Path) -> dict[str, bytes]:
    files = ("feature_maps/vjepa2_vitl16.npy", "actions_states/actions.npy")
    with np.load(clip / "truth.npz") as truth:
        return {name: (clip / name).read_bytes() for name in files} | {"positions": truth["positions"].tobytes()}


def test_a_clip_depends_on_seed_domain_and_id_only(tmp_path: Path) -> None:
    make(tmp_path / "five", clips=5)
    make(tmp_path / "last", clips=1, start_id=4)
    reference = contents(tmp_path / "five" / "clip_00004")
    assert contents(tmp_path / "last" / "clip_00004") == reference
    make(tmp_path / "seed", clips=5, seed=1)
    make(tmp_path / "domain", clips=5, domain="scaling")
    for other in ("seed/clip_00004", "domain/clip_00004", "five/clip_00003"):
        assert all(value != reference[name] for name, value in contents(tmp_path / other).items()), other


def test_statistics_agree_with_their_definitions(tmp_path: Path) -> None:
    statistics = make(tmp_path / "out", clips=4, grid=3, dim=16, dtype="float32")
    folders = sorted((tmp_path / "out").glob("clip_*"))
    features = np.stack([np.load(folder / "feature_maps" / "vjepa2_vitl16.npy") for folder in folders]).astype(float)
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    pairs = [(unit[a] * unit[b]).sum(-1).mean() for a in range(4) for b in range(4) if a != b]
    h = (features - features.mean(-1, keepdims=True)) / np.sqrt(features.var(-1, keepdims=True) + 1e-5)
    # The code sums in float32: about 1e-6 relative.
    assert statistics.feature_std == pytest.approx(features.std(), rel=1e-5)
    assert statistics.cosine_successive == pytest.approx((unit[:, 1:] * unit[:, :-1]).sum(-1).mean(), rel=1e-5)
    assert statistics.cosine_between_clips == pytest.approx(np.mean(pairs), rel=1e-5)
    expected = [np.abs(h[:, 0] - h[:, t]).mean() for t in range(1, 8)]
    assert statistics.copy_last_l1 == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(layer_norm(features.astype(np.float32)), h, atol=1e-4)
    # Features so small that eps counts as much as their variance, about 1e-5.
    small = features * 1e-3
    h = (small - small.mean(-1, keepdims=True)) / np.sqrt(small.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(layer_norm(small.astype(np.float32)), h, atol=1e-4)


def test_statistics_are_of_the_first_64_clips(tmp_path: Path) -> None:
    of_64, of_65 = (make(tmp_path / str(clips), clips=clips) for clips in (64, 65))
    assert of_64.clips_sampled == 64
    assert of_65 == of_64


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_clips_must_fit_on_the_disk(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems do not tell their size: total 0 stands for it, and they are tried."""
    needed = 3 * 8 * 4 * 4 * np.dtype(dtype).itemsize  # clips, frames, patches, width
    for total, free, fits in ((2**20, needed, True), (2**20, needed - 1, False), (0, 0, True)):
        disk = SimpleNamespace(total=total, free=free)
        monkeypatch.setattr("shutil.disk_usage", lambda path, disk=disk: disk)
        out = tmp_path / f"{total} {free}"
        if fits:
            assert make(out, dtype=dtype).clips_sampled == 3
            continue
        with pytest.raises(DataError, match=r"the features need 0\.0 MiB, but the disk has 0\.0 MiB free"):
            make(out, dtype=dtype)
        assert not out.exists()


@pytest.mark.parametrize("changes", [{"clips": 100_000}, {"grid": 64}, {"dim": 16_384}])
def test_the_largest_numbers_allowed_are_only_a_matter_of_space(
    changes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(total=2**20, free=0))
    with pytest.raises(DataError, match="the features need"):
        make(tmp_path / "out", **changes)


def test_a_single_clip_has_no_cosine_between_clips(tmp_path: Path) -> None:
    assert make(tmp_path / "out", clips=1).cosine_between_clips is None


def test_features_have_the_size_and_similarity_asked_for(tmp_path: Path) -> None:
    statistics = make(tmp_path / "out", clips=64, grid=4, dim=64)
    assert statistics.feature_std == pytest.approx(3.2, rel=0.05)
    assert statistics.cosine_between_clips == pytest.approx(0.90, abs=0.02)
    assert statistics.cosine_successive < 0.99
    assert min(np.diff(statistics.copy_last_l1[:4])) > 0


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clips": 0}, "clips"),
        ({"clips": 100_001}, "clips: must be at most 100000"),
        ({"grid": 1}, "grid"),
        ({"grid": 65}, "grid: must be at most 64"),
        ({"dim": 3}, "dim"),
        ({"dim": 16_385}, "dim: must be at most 16384"),
        ({"seed": -1}, "seed"),
        ({"start_id": -1}, "start_id"),
        ({"domain": "icy"}, "Did you mean ice"),
        ({"dtype": "float8"}, "float16, float32"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], text: str
) -> None:
    def made(done: int, total: int) -> None:
        raise AssertionError("a clip was made")

    with pytest.raises(SettingsError, match=text):
        make(tmp_path / "deep" / "out", on_clip=made, **changes)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="not empty"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep"
    with pytest.raises(DataError, match="not a folder"):
        make(tmp_path / "out" / "mine.txt")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty", clips=1)
    assert (tmp_path / "empty" / "clips.json").is_file()


@pytest.mark.parametrize(("exists", "start_id"), [(False, 0), (True, 0), (True, 2)])
def test_of_two_that_fill_a_folder_at_once_the_first_wins(exists: bool, start_id: int, tmp_path: Path) -> None:
    out = tmp_path / "clips"
    first = tmp_path / "first"
    make_clips(first, clips=2, grid=2, dim=4, domain="base", seed=1)
    if exists:
        out.mkdir()

    def meanwhile(done: int, clips: int) -> None:
        if done == clips:
            shutil.copytree(first, out, dirs_exist_ok=True)

    with pytest.raises(DataError, match="clips: clips were put into this folder while those for it were made"):
        make_clips(out, clips=2, grid=2, dim=4, domain="base", seed=2, start_id=start_id, on_clip=meanwhile)
    assert sorted(path.name for path in out.iterdir()) == ["clip_00000", "clip_00001", "clips.json"]
    assert json.loads((out / "clips.json").read_text())["seed"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "first"]


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "out", on_clip=stop)
    assert list(tmp_path.iterdir()) == []
