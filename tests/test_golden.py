"""The models against reference numbers, through the command that checks any such file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


Change = dict[str, Any]


def written(target: Path, source: str, *, meta: Change | None = None, whole_meta: Any = ..., **arrays: Any) -> str:
    """A copy of a reference file under other meta values and arrays; None leaves one out."""
    with np.load(GOLDEN / source) as archive:
        content = {name: archive[name] for name in archive.files}
    values = {**json.loads(str(content["meta"])), **(meta or {})} if whole_meta is ... else whole_meta
    content = {**content, "meta": np.array(json.dumps(values)), **arrays}
    np.savez(target, **{name: array for name, array in content.items() if array is not None})
    return str(target)


VIT, LSTM, HOPE = "vjepa2_ac_small.npz", "convlstm_small.npz", "hope_block_small.npz"
REFUSED: list[tuple[str, Change, str]] = [
    (VIT, {"meta": {"norm_eps": 1e-5}}, "meta norm_eps must be 1e-06 as in the code, not 1e-05"),
    (
        VIT,
        {"meta": {"layer_norm_eps_of_representations": 1e-6}},
        "meta layer_norm_eps_of_representations must be 1e-05",
    ),
    (VIT, {"meta": {"rope": "sideways"}}, 'meta rope must be vjepa2 or exact, not "sideways"'),
    (VIT, {"meta": {"T": 0}}, "meta T must be a whole number of at least 1, not 0"),
    (VIT, {"meta": {"num_heads": 0}}, "meta num_heads must be a whole number of at least 1"),
    (VIT, {"meta": {"num_heads": 5}}, "not a multiple of num_heads 5"),
    (VIT, {"meta": {"depth": 2.5}}, "meta depth must be a whole number of at least 1, not 2.5"),
    (VIT, {"meta": {"depth": 2}}, "Error(s) in loading state_dict"),
    (VIT, {"meta": {"mlp_ratio": "4"}}, "meta mlp_ratio must be a positive number"),
    (VIT, {"meta": {"use_extrinsics": 1}}, "meta use_extrinsics must be true or false"),
    (VIT, {"meta": {"rollout_steps": 4}}, "meta rollout_steps 4 after 1 context frames exceed the 4 frames"),
    (VIT, {"meta": {"rollout_loss": "1"}}, "meta rollout_loss must be a number"),
    (VIT, {"meta": {"hindsight_loss": 1.0}}, "nothing here computes hindsight_loss"),
    (VIT, {"whole_meta": [1]}, "meta must be a JSON object, not [1]"),
    (VIT, {"whole_meta": None}, "meta must be a JSON object, not null"),
    (VIT, {"meta": {"grid": None}}, "meta grid must be a whole number"),
    (VIT, {"x": None}, "there is no x"),
    (VIT, {"y": None}, "it has no expected y"),
    (VIT, {"rollout_loss": np.array(1.0)}, "rollout_loss is both an array and in meta"),
    (LSTM, {"meta": {"hidden_dim": "8"}}, "meta hidden_dim must be a whole number"),
    (LSTM, {"meta": {"grid": 2}}, "x has shape (2, 80, 12), by meta it must be (any, 20, 12)"),
    (LSTM, {"cell": np.zeros(3)}, "nothing here computes cell"),
    (HOPE, {"meta": {"rms_eps": 1e-5}}, "meta rms_eps must be 1e-06"),
    (HOPE, {"meta": {"layer_norm_eps": 1e-5}}, "meta layer_norm_eps must be 1e-06"),
    (HOPE, {"meta": {"memory_order": ["v", "k", "eta", "alpha", "mem"]}}, "meta memory_order must be"),
    (HOPE, {"meta": {"rope": "sideways"}}, "meta rope must be vjepa2 or exact"),
    (HOPE, {"meta": {"rope": ["exact"]}}, "meta rope must be vjepa2 or exact"),
    (HOPE, {"meta": {"frames": 9}}, "by meta it must be (any, 9, 6, 24)"),
    (HOPE, {"meta": {"cms_hidden_multipliers": 2.0}}, "meta cms_hidden_multipliers must be a list of positive numbers"),
    (HOPE, {"meta": {"read": "sideways"}}, "read is 'sideways'"),
    (HOPE, {"meta": {"num_heads": 5}}, "dim 24 is not a multiple of num_heads 5"),
    (HOPE, {"states": np.zeros(3)}, "nothing here computes states"),
]


@pytest.mark.parametrize(("source", "change", "text"), REFUSED)
def test_a_file_that_is_not_what_the_code_does_is_refused(
    source: str, change: Change, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = written(tmp_path / source, source, **change)
    assert main([bad, str(GOLDEN / LSTM)]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith(f"{bad}: ")
    assert text in line
    assert [row.split()[:2] for row in shown.out.splitlines()] == [[str(GOLDEN / LSTM), "y"]]  # the next one is checked


def test_what_is_no_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed, text = tmp_path / "convlstm_renamed.npz", tmp_path / "convlstm_text.npz"
    with open(renamed, "wb") as file:
        np.save(file, np.zeros(3))
    text.write_text("nothing")
    assert main([str(renamed), str(text), str(tmp_path), str(GOLDEN / LSTM)]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 3
    assert "a single array, not an .npz archive" in shown.err
    assert shown.out.startswith(str(GOLDEN / LSTM))


def test_another_rope_layout_is_honoured_and_a_wrong_loss_found(tmp_path: Path) -> None:
    assert main([written(tmp_path / VIT, VIT, meta={"rope": "exact"})]) == 1  # these numbers are of the other layout
    assert main([written(tmp_path / HOPE, HOPE, meta={"rope": "exact"})]) == 1
    assert main([written(tmp_path / VIT, VIT, meta={"rollout_loss": 1.0})]) == 1
    assert main([written(tmp_path / VIT, VIT, meta={"rollout_loss": float("nan")})]) == 1
    assert main([written(tmp_path / VIT, VIT, meta={"rope": "vjepa2", "note": "by hand"})]) == 0


def test_a_file_may_expect_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every expected array is compared; a file without the training passes, or with one frame, has none of theirs."""
    only_y: Change = {"teacher_forced": None, "rollout": None}
    with np.load(GOLDEN / VIT) as archive:
        meta, x, y = json.loads(str(archive["meta"])), archive["x"], archive["y"]
        actions, states = archive["actions"], archive["states"]
    for key in ("teacher_forcing_loss", "rollout_loss", "rollout_steps", "context_frames"):
        del meta[key]
    assert main([written(tmp_path / VIT, VIT, whole_meta=meta, **only_y)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["y"]
    assert main([written(tmp_path / VIT, VIT, whole_meta=meta)]) == 0  # T-1 steps from one context frame
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["y", "teacher_forced", "rollout"]
    patches = meta["grid"] ** 2
    first: Change = {"x": x[:, :patches], "y": y[:, :patches], "actions": actions[:, :1], "states": states[:, :1]}
    one = {**meta, "T": 1}
    assert (
        main([written(tmp_path / VIT, VIT, whole_meta=one, **only_y, **first)]) == 0
    )  # causal: y needs no later frame
    assert main([written(tmp_path / VIT, VIT, whole_meta=one, **first)]) == 2
    assert "nothing here computes rollout, teacher_forced" in capsys.readouterr().err
    first["y"] = first["y"] + 1e-8
    assert main([written(tmp_path / VIT, VIT, whole_meta=one, **only_y, **first)]) == 1
    fewer: Change = {"w_in_after": None, "w_out_after": None, "eta": None}
    assert main([written(tmp_path / HOPE, HOPE, **fewer)]) == 0
    assert main([written(tmp_path / HOPE, HOPE, **fewer, alpha=np.zeros(3))]) == 2


@pytest.mark.parametrize(
    ("meta", "text"),
    [
        (np.frombuffer(b"{}", np.uint8), "meta must be one string of JSON, not uint8 of shape (2,)"),
        (np.array(["{}", "{}"]), "meta must be one string of JSON, not <U2 of shape (2,)"),
        (np.array("grid: 4"), "meta is not JSON: Expecting value"),
    ],
)
def test_a_meta_that_is_no_json_text_is_named(
    meta: Any, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(GOLDEN / LSTM) as archive:
        content = {name: archive[name] for name in archive.files}
    np.savez(tmp_path / LSTM, **{**content, "meta": meta})
    assert main([str(tmp_path / LSTM)]) == 2
    assert text in capsys.readouterr().err
    np.savez(tmp_path / LSTM, **{**content, "meta": np.array([str(content["meta"]).encode()])})
    assert main([str(tmp_path / LSTM)]) == 0
