"""Source clips of `hope tta`: read as training reads its clips, whatever the stream is read as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.runner import TINY, hope, one_line, only_run
from tests.clips import DIM, make_features, write_clip

FRAMES, CLIPS = 8, 8
READ_AS = "note: the source clips are read as in training, with data.action_alignment=per_timestep"


def write_clips(folder: Path, *, seed: int) -> None:
    """Clips with an action in every row, which impulse alignment leaves out but for row 1."""
    rng = np.random.default_rng(seed)
    for number in range(seed, seed + CLIPS):
        actions = rng.normal(size=(2 * FRAMES, 2)).astype(np.float32)
        write_clip(folder, number, features=make_features(number, FRAMES), actions=actions)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with per-timestep actions; beside it a stream and a copy of the held-out clips."""
    folder = tmp_path_factory.mktemp("tta_source")
    write_clips(folder / "clips", seed=0)
    write_clips(folder / "stream", seed=50)
    settings = [f"data.embed_dim={DIM}", "data.action_alignment=per_timestep", "data.val_split=0.5"]
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, *settings, "training.epochs=2"]
    outcome = hope([*command, "--data-dir", "clips"], folder)
    assert outcome.code == 0, outcome.err
    made = only_run(folder)
    for name in json.loads((made / "split.json").read_text(encoding="utf-8"))["held_out"]:
        shutil.copytree(folder / "clips" / name, folder / "copy" / name)
    return made


def forgetting(run: Path, *arguments: str) -> tuple[dict[str, Any] | None, str]:
    """The source losses, without the folder's name, and stderr."""
    command = ["tta", "--ckpt", str(run), "--device", "cpu", "--json", "adaptation.steps=1", "adaptation.lr=0.01"]
    outcome = hope([*command, *arguments], run.parents[2])
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] | None = json.loads(outcome.out)["forgetting"]
    return None if found is None else {k: v for k, v in found.items() if k != "source"}, outcome.err


def test_settings_of_the_stream_are_not_those_of_the_source_clips(run: Path) -> None:
    before = set()
    for changes in ([], ["data.action_alignment=impulse"]):
        stream = ["--data-dir", "stream", *changes]
        held_out, _ = forgetting(run, *stream)
        given, err = forgetting(run, *stream, "--source-data-dir", "copy")
        assert held_out is not None
        assert held_out == given
        assert (READ_AS in err.splitlines()) == bool(changes)
        before.add(held_out["before"])
    assert len(before) == 1


def test_the_alignment_of_the_source_clips_is_told_when_it_leaves_actions_out(run: Path, tmp_path: Path) -> None:
    """Of a model that was trained on impulses, where the source clips have more."""
    settings = [f"data.embed_dim={DIM}", "data.val_split=0.5", "training.epochs=1"]
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, *settings]
    (tmp_path / "clips").symlink_to(run.parents[2] / "clips")
    assert hope([*command, "--data-dir", "clips"], tmp_path).code == 0
    beside = run.parents[2]
    given = ["--data-dir", str(beside / "stream"), "--source-data-dir", str(beside / "copy")]
    _, err = forgetting(only_run(tmp_path), *given, "data.action_alignment=per_timestep")
    assert "warning: 4 of 4 source clips have non-zero actions outside row 1" in err
    assert "of the first 8 clips have non-zero actions" not in err


def test_a_clip_that_the_stream_reads_in_another_feature_map_is_in_the_stream(run: Path) -> None:
    for maps in (run.parents[2] / "clips").glob("clip_*/feature_maps"):
        np.save(maps / "other.npy", 2 * np.load(maps / "vjepa2_vitl16.npy"))
    found, err = forgetting(run, "data.feature_map=other", "evaluation.clips=all")
    assert found is None
    assert "forgetting is not measured: all held-out clips are in the stream" in err


def test_source_clips_that_are_laid_out_as_the_stream_are_read_as_it(run: Path, tmp_path: Path) -> None:
    here = run.parents[2]
    for given in ("stream", "copy"):
        shutil.copytree(here / given, tmp_path / given)
        for file in (tmp_path / given).glob("clip_*/feature_maps/vjepa2_vitl16.npy"):
            file.rename(file.with_name("renamed.npy"))
    expected, _ = forgetting(run, "--data-dir", "stream", "--source-data-dir", "copy")
    stream = ["--data-dir", str(tmp_path / "stream"), "data.feature_map=renamed"]
    found, err = forgetting(run, *stream, "--source-data-dir", str(tmp_path / "copy"))
    assert found == expected
    assert "note: the source clips do not fit what training read: they are read as the stream" in err.splitlines()

    next((tmp_path / "copy").glob("clip_*/feature_maps/renamed.npy")).unlink()
    command = ["tta", "--ckpt", str(run), "--device", "cpu", *stream, "--source-data-dir", str(tmp_path / "copy")]
    outcome = hope(command, here)
    assert outcome.code == 3, outcome.err
    last = outcome.err.splitlines()[-1]
    assert "they are read as in training (data.feature_map=vjepa2_vitl16) or" in last.lower()
    assert "Set data.feature_map" not in last


@pytest.fixture
def damaged(run: Path, tmp_path: Path) -> Path:
    """The held-out clips again, the first two with a NaN, which only reading them tells."""
    folder = tmp_path / "damaged"
    shutil.copytree(run.parents[2] / "copy", folder)
    for clip in sorted(folder.iterdir())[:2]:
        (file,) = (clip / "feature_maps").iterdir()
        features = np.load(file, allow_pickle=False)
        features.flat[0] = np.nan
        np.save(file, features)
    return folder


def test_source_clips_that_cannot_be_read_take_no_place(run: Path, damaged: Path, tmp_path: Path) -> None:
    sound = tmp_path / "sound"
    shutil.copytree(damaged, sound)
    first, second, *rest = sorted(path.name for path in damaged.iterdir())
    for name in (first, second):
        shutil.rmtree(sound / name)
    stream = ["--data-dir", "stream", "adaptation.source_clips=2", "data.on_error=skip"]
    found, err = forgetting(run, *stream, "--source-data-dir", str(damaged))
    expected, _ = forgetting(run, *stream, "--source-data-dir", str(sound))
    assert found is not None
    assert expected is not None
    assert found == {**expected, "left_out": 2}
    assert (found["clips"], expected["left_out"]) == (len(rest), 0)
    words = f"note: 2 source clips left out of forgetting, the first {first}: not_finite: features hold NaN"
    assert words in err


def test_a_source_clip_that_cannot_be_read_is_named(run: Path, damaged: Path) -> None:
    first = min(damaged.iterdir())
    command = ["tta", "--ckpt", str(run), "--device", "cpu", "--data-dir", "stream", "--name", "named"]
    outcome = hope([*command, "--source-data-dir", str(damaged)], run.parents[2])
    assert outcome.code == 3
    assert f"error: {first}: features hold NaN or infinite values. Encode it again" in one_line(outcome)
    assert not (run / "tta/named").exists()


def test_a_held_out_clip_that_cannot_be_read(run: Path, damaged: Path) -> None:
    """The stream is adapted to, whatever has become of the clips that show forgetting."""
    beside = run.parents[2]
    for clip in sorted(damaged.iterdir())[:2]:
        shutil.rmtree(beside / "clips" / clip.name)
        shutil.copytree(clip, beside / "clips" / clip.name)
    try:
        none, err = forgetting(run, "--data-dir", "stream")
        assert none is None
        assert "note: forgetting is not measured: " in err
        found, err = forgetting(run, "--data-dir", "stream", "data.on_error=skip", "data.max_skipped=0.9")
        assert found is not None
        assert (found["clips"], found["left_out"]) == (2, 2)
        assert "left out of forgetting, the first " in err
    finally:
        for clip in sorted(damaged.iterdir())[:2]:
            shutil.rmtree(beside / "clips" / clip.name)
            shutil.copytree(beside / "copy" / clip.name, beside / "clips" / clip.name)
