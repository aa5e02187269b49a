"""The cache of built-in clips: what is incomplete is made again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hopecli.data.source import cache_folder, clips_folder
from tests.clips import data_settings

SETTINGS = data_settings({"source": "physics", "physics": {"clips": 3}})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPE_CACHE_DIR", str(tmp_path))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.npy")}


def cut_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def test_a_complete_cache_is_used_without_a_word() -> None:
    said: list[str] = []
    folder = clips_folder(SETTINGS, said.append)
    assert [line.split()[0] for line in said] == ["making"]
    assert clips_folder(SETTINGS, said.append) == folder
    assert len(said) == 1


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: shutil.rmtree(folder / "clip_00001"),
        lambda folder: (folder / "clips.json").unlink(),
        lambda folder: (folder / "clip_00001").rename(folder / "renamed"),
        lambda folder: shutil.copytree(folder / "clip_00001", folder / "clip_00003"),
        lambda folder: os.truncate(folder / "clip_00002/feature_maps/vjepa2_vitl16.npy", 200),
        lambda folder: os.truncate(folder / "clip_00002/feature_maps/vjepa2_vitl16.npy", 8 * 4 * 4 * 2),  # no header's
        lambda folder: cut_last_byte(folder / "clip_00002/feature_maps/vjepa2_vitl16.npy"),
        lambda folder: cut_last_byte(folder / "clip_00001/actions_states/actions.npy"),
        lambda folder: (folder / "clip_00000/actions_states/actions.npy").unlink(),
    ],
)
def test_an_incomplete_cache_is_made_again(spoil: Callable[[Path], object]) -> None:
    said: list[str] = []
    folder = clips_folder(SETTINGS, said.append)
    before = content(folder)
    assert len(before) == 6
    spoil(folder)
    said.clear()
    assert clips_folder(SETTINGS, said.append) == folder
    assert "are not complete: making them again" in said[0]
    assert content(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_tilde_in_the_cache_folder_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOPE_CACHE_DIR", "~/mine")
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("HOPE_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "hopecli"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "hopecli"


def made(**physics: object) -> dict[str, bytes]:
    """The files of three built-in clips made under these settings."""
    settings = data_settings({"source": "physics", "physics": {"clips": 3, **physics}})
    return content(clips_folder(settings, lambda text: None))


def test_the_clips_are_made_as_the_settings_say() -> None:
    first = made()
    for changes in ({"seed": 1}, {"domain": "ice"}):
        other = made(**changes)
        assert other.keys() == first.keys()
        assert other != first
    exact = data_settings({"source": "physics", "physics": {"clips": 2, "dtype": "float32"}})
    folder = clips_folder(exact, lambda text: None)
    assert {np.load(path).dtype for path in folder.rglob("vjepa2_vitl16.npy")} == {np.dtype(np.float32)}
