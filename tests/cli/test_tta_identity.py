"""An interrupted stream goes on only under what its scores depend on: weights, clips, source, baselines, precision."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hopecli.cli.checkpoints import held_out_or_all, load_trained
from hopecli.cli.common import start_runtime
from hopecli.cli.tta_identity import identity
from hopecli.cli.tta_source import find_source
from hopecli.config.schema import TrainingSettings
from hopecli.data.fingerprint import fingerprints
from hopecli.data.make_clips import make_clips
from hopecli.engine.tta_state import STATE_FILE
from hopecli.report.lock import stream_lock
from hopecli.report.tta import ConsoleStream
from tests.cli.runner import TINY, Outcome, hope, only_run

# One frame less in training than a clip has, so that data.num_timesteps may change too.
SHORTER = ["objective.T_teacher=6", "objective.T_rollout=6", "data.val_split=0.3"]
FAST = ["adaptation.steps=1", "adaptation.precision=auto"]


@dataclass(frozen=True)
class Stopped:
    """A run, the clips of its stream that a signal stopped after the first, and other clips."""

    run: Path
    clips: Path
    others: Path

    def tta(self, *arguments: str, ckpt: str = "checkpoints/last", clips: Path | None = None) -> Outcome:
        command = ["tta", "--ckpt", str(self.run / ckpt), "--device", "cpu", "--json", "--name", "part"]
        return hope([*command, "--data-dir", str(clips or self.clips), *FAST, *arguments], self.run.parents[2])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("identity")
    command = ["train", "--preset", "quickstart", "--device", "cpu", *TINY, *SHORTER]
    assert hope(command, folder).code == 0
    clips, others = folder / "clips", folder / "others"
    make_clips(clips, clips=3, grid=2, dim=8, domain="ice", seed=1)
    make_clips(others, clips=3, grid=2, dim=8, domain="ice", seed=2)
    stream = Stopped(only_run(folder), clips, others)
    shown = ConsoleStream.clip

    def stop(*arguments: Any) -> None:
        shown(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConsoleStream, "clip", stop)  # only says when the signal comes
        outcome = stream.tta()
    assert outcome.code == 75, outcome.err
    return stream


@pytest.mark.parametrize(
    ("arguments", "elsewhere", "what"),
    [
        ([], {"ckpt": "checkpoints/epoch_0001"}, "another checkpoint, or the one of then was replaced"),
        (["data.clip_end=2"], {}, "other clips (got 'clip_00002 is missing')"),
        (["data.clip_end=2", "data.on_error=skip"], {}, "other clips (got 'clip_00002 is missing')"),
        ([], {"clips": "others"}, "other clips (got 'clip_00000 has other content')"),
        (["--source-data-dir", "others"], {}, "other source clips, or one of them has changed"),
        (["--baselines", "periodic_reset"], {}, "another baselines "),
        (["--precision", "bf16"], {}, "another adaptation.precision "),
        (["data.num_timesteps=7"], {}, "another data.num_timesteps "),
    ],
)
def test_resume_refuses_another_stream(
    stopped: Stopped, arguments: list[str], elsewhere: dict[str, str], what: str
) -> None:
    where: dict[str, Any] = {k: stopped.others if v == "others" else v for k, v in elsewhere.items()}
    other = stopped.tta("--resume", *arguments, **where)
    assert other.code == 4, other.err
    assert f"the interrupted stream had {what}" in other.err
    assert (stopped.run / "tta/part" / STATE_FILE).is_file()  # a refusal costs nothing


def test_each_part_of_the_identity_stands_for_itself(stopped: Stopped) -> None:
    """Device and what `auto` precision became depend on the machine, which no flag of this one can change."""
    trained = load_trained(str(stopped.run), None, FAST, str(stopped.clips))
    runtime = start_runtime(TrainingSettings(device="cpu"), "fp32")
    chosen = held_out_or_all(trained, "auto", lambda text: None)
    marks = fingerprints(chosen.store, chosen.names)

    def differing(device: Any = "cpu", precision: Any = "fp32", baselines: Sequence[str] = ("frozen",)) -> set[str]:
        other = replace(runtime, choice=replace(runtime.choice, device=device, precision=precision))
        mine = identity(trained, ["frozen"], runtime, chosen, marks, None)
        found = identity(trained, baselines, other, chosen, marks, None)
        return {key for key in {*mine, *found} if mine.get(key) != found.get(key)}

    assert differing() == set()
    assert differing(precision="bf16") == {"precision"}
    assert differing(device="cuda") == {"device"}
    assert differing(baselines=["frozen", "periodic_reset"]) == {"baselines"}


def test_the_weights_are_those_that_were_read_whatever_takes_their_name_later(stopped: Stopped, tmp_path: Path) -> None:
    """A run that goes on training puts others in their place while the stream is prepared."""
    last, earlier = (stopped.run / "checkpoints" / name / "model.safetensors" for name in ("last", "epoch_0001"))
    file = shutil.copy(last, tmp_path / "m.safetensors")
    trained = load_trained(str(file), None, FAST, str(stopped.clips), hashed=True)
    shutil.copy(earlier, file)
    runtime = start_runtime(TrainingSettings(device="cpu"), "fp32")
    chosen = held_out_or_all(trained, "auto", lambda text: None)
    found = identity(trained, ["frozen"], runtime, chosen, fingerprints(chosen.store, chosen.names), None)
    assert found["checkpoint"] == hashlib.sha256(last.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("factor", "code", "words"),
    [
        (-1.0, 4, "the interrupted stream had other clips (got 'clip_00002 has other content')"),
        (np.nan, 3, "error: clip_00002: features hold NaN"),
    ],
)
def test_resume_refuses_changed_clips(stopped: Stopped, factor: float, code: int, words: str) -> None:
    changed = stopped.clips / "clip_00002/feature_maps/vjepa2_vitl16.npy"
    before = changed.read_bytes()
    np.save(changed, factor * np.load(changed))
    try:
        other = stopped.tta("--resume")
    finally:
        changed.write_bytes(before)
    assert other.code == code, other.err
    assert words in other.err


def test_another_spelling_of_the_source_folder_is_the_same_stream(stopped: Stopped) -> None:
    trained = load_trained(str(stopped.run), None, FAST, str(stopped.clips))
    runtime = start_runtime(TrainingSettings(device="cpu"), "fp32")
    chosen = held_out_or_all(trained, "auto", lambda text: None)
    marks = fingerprints(chosen.store, chosen.names)
    found = []
    for folder in (stopped.others, Path(os.path.relpath(stopped.others))):
        source = find_source(trained, str(folder), chosen, set(marks.values()), lambda text: None)
        assert source is not None
        found.append(identity(trained, ["frozen"], runtime, chosen, marks, source))
    assert found[0] == found[1]


def test_a_refused_stream_opens_no_mirror(stopped: Stopped) -> None:
    other = stopped.tta("--resume", "--wandb", "offline", "adaptation.lr=0.5")
    assert other.code == 4, other.err
    assert "another adaptation.lr " in other.err
    assert not (stopped.run / "tta/part/wandb").exists()


def test_a_stream_of_an_earlier_version_goes_on(stopped: Stopped) -> None:
    """It named the folder of its source clips, as the path was written then."""
    copy = Stopped(stopped.run.with_name("earlier"), stopped.clips, stopped.others)
    shutil.copytree(stopped.run, copy.run)
    file = copy.run / "tta/part" / STATE_FILE
    state = torch.load(file, weights_only=True)
    state["identity"]["source"] = "another spelling"
    torch.save(state, file)
    resumed = copy.tta("--resume")
    assert resumed.code == 0, resumed.err


def test_evaluations_of_weights_that_a_resumed_stream_replaces_are_named(stopped: Stopped) -> None:
    copy = Stopped(stopped.run.with_name("copy"), stopped.clips, stopped.others)
    shutil.copytree(stopped.run, copy.run)
    part = copy.run / "tta/part"
    command = ["eval", "--ckpt", str(part / "adapted.safetensors"), "--data-dir", str(stopped.others)]
    assert hope([*command, "--device", "cpu"], copy.run.parents[2]).code == 0
    resumed = copy.tta("--resume")
    assert resumed.code == 0, resumed.err
    said = f"note: {part / 'eval'} stays: results of the adapted weights that were here before"
    assert said in resumed.err.splitlines()
    assert "will be replaced" not in resumed.err


def test_two_streams_do_not_share_a_folder(stopped: Stopped) -> None:
    with stream_lock(stopped.run / "tta/part"):
        other = stopped.tta()
    assert other.code == 4, other.err
    assert "another process is adapting into it" in other.err
    with stream_lock(stopped.run / "tta/new"):
        pass
    assert not (stopped.run / "tta/new").exists()
