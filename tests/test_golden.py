"""The models against reference numbers, through the command that checks any such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.check_golden import TOLERANCE, main

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))


def changed_copy(target: Path, source: Path, key: str, change: float) -> str:
    """A copy of a reference file with `change` added to one value of one array."""
    with np.load(source) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays[key].flat[-1] += change
    np.savez(target, **arrays)
    return str(target)


def test_reference_files_are_there() -> None:
    assert TOLERANCE == 1e-9
    assert {"vjepa2_ac_small.npz", "vjepa2_ac_extrinsics.npz"} <= {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_models_match_the_reference(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    with np.load(path) as archive:
        arrays = set(archive.files)
    expected = {"vjepa2_ac": {"y", "teacher_forced", "rollout"}, "convlstm": {"y"}, "hope_block": {"y", "eta", "alpha"}}
    kind = next(kind for kind in expected if path.stem.startswith(kind))
    checked = {name for _, name, _ in lines}
    assert expected[kind] <= checked
    assert checked - {"teacher_forcing_loss", "rollout_loss"} <= arrays
    assert all(file == str(path) and float(error) <= 1e-9 for file, _, error in lines)


@pytest.mark.parametrize("change", [1e-6, float("nan")])
def test_a_wrong_number_is_found(change: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = GOLDEN / "vjepa2_ac_small.npz"
    bad = changed_copy(tmp_path / "vjepa2_ac_bad.npz", good, "y", change)
    assert main([bad, str(good)]) == 1
    errors = {(file, name): float(error) for file, name, error in map(str.split, capsys.readouterr().out.splitlines())}
    assert not errors[bad, "y"] <= 1e-9
    assert errors[bad, "rollout"] <= 1e-9
    assert errors[str(good), "y"] <= 1e-9


def test_a_wrong_weight_is_found(tmp_path: Path) -> None:
    with np.load(GOLDEN / "vjepa2_ac_small.npz") as archive:
        weight = next(name for name in archive.files if name.endswith("blocks.0.attn.proj.weight"))
    assert main([changed_copy(tmp_path / "vjepa2_ac_w.npz", GOLDEN / "vjepa2_ac_small.npz", weight, 1e-3)]) == 1


def test_files_that_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = GOLDEN / "vjepa2_ac_small.npz"
    unknown = tmp_path / "transformer_small.npz"
    unknown.write_bytes(good.read_bytes())
    assert main([str(unknown)]) == 2
    assert "unknown kind" in capsys.readouterr().err
    broken = tmp_path / "vjepa2_ac_broken.npz"
    broken.write_bytes(good.read_bytes()[:1000])
    assert main([str(broken)]) == 2
    assert main([str(broken), str(good)]) == 2  # a good file after it does not hide it
    assert "vjepa2_ac_small.npz y " in capsys.readouterr().out
    assert main([str(tmp_path / "vjepa2_ac_absent.npz")]) == 2
    assert main([]) == 2
