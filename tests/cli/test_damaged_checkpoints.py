"""A checkpoint of another run, or one that holds what it should not: one line that says so, and exit code 4."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.cli.runner import TINY, Outcome, hope, one_line


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs: of two widths, of other steps, and of HOPE with a group that waits."""
    folder = tmp_path_factory.mktemp("runs")
    found = {}
    for name, preset, changes in (
        ("narrow", "quickstart", []),
        ("wide", "quickstart", ["model.width=32"]),
        ("long", "quickstart", ["training.epochs=3"]),
        ("deep", "quickstart", ["model.depth=2"]),
    ):
        command = ["train", "--preset", preset, "--device", "cpu", *TINY, *changes, f"logging.runs_dir={name}"]
        outcome = hope(command, folder)
        assert outcome.code == 0, outcome.err
        found[name] = next((folder / name).glob("*/*/config.yaml")).parent
    return found


@pytest.fixture
def run(runs: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the narrow run, to be damaged."""
    return shutil.copytree(runs["narrow"], tmp_path / "run")


def resume(run: Path, runs: dict[str, Path]) -> Outcome:
    return hope(["train", "--resume", str(run)], run.parent, HOPE_CACHE_DIR=str(runs["narrow"].parents[2] / "cache"))


def refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 4, outcome.err
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in line, line


def trainer(run: Path) -> Any:
    return torch.load(run / "checkpoints/last/trainer.pt", weights_only=True)


def put_trainer(run: Path, state: object) -> None:
    torch.save(state, run / "checkpoints/last/trainer.pt")


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("wide", "trainer.pt does not fit this run: the exp_avg of parameter"),
        ("deep", "trainer.pt does not fit this run: group rest does not have"),
        ("long", "trainer.pt is not of step 8, of which model.safetensors is (got 12)"),
    ],
)
def test_the_trainer_state_of_another_run(other: str, words: str, run: Path, runs: dict[str, Path]) -> None:
    shutil.copy(runs[other] / "checkpoints/last/trainer.pt", run / "checkpoints/last/trainer.pt")
    refused(resume(run, runs), words)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("wide", ["the checkpoint is of another run: its model.width is 32 (got 16)"]),
        ("long", ["the checkpoint is of another run: its training.epochs is 3 (got 2)"]),
    ],
)
def test_all_checkpoints_of_another_run(other: str, words: list[str], run: Path, runs: dict[str, Path]) -> None:
    """On the same clips, so that their split fits: nothing of the run may be lost."""
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(runs[other] / "checkpoints", run / "checkpoints")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    refused(resume(run, runs), "config.yaml", *words)
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_config_that_was_edited_or_damaged(run: Path, runs: dict[str, Path]) -> None:
    config = run / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("epochs: 2", "epochs: 9"))
    refused(resume(run, runs), "its training.epochs is 2 (got 9)")
    config.write_text(text[: len(text) // 2] + "\n  [")
    refused(resume(run, runs), "config.yaml: does not hold a run's settings")
    config.write_text(re.sub(r"wandb: .*", "wandb: offline", text))  # what a resumed run may change
    assert "wandb: offline" in config.read_text()
    assert resume(run, runs).code == 0


def test_an_undamaged_run_is_resumed(run: Path, runs: dict[str, Path]) -> None:
    outcome = resume(run, runs)
    assert outcome.code == 0, outcome.err


def changed(**values: object) -> Callable[[Any], object]:
    return lambda state: {**state, **values}


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda state: {}, "trainer.pt.optimizer is missing"),
        (lambda state: [state], "trainer.pt does not hold what it should: trainer.pt is"),
        (lambda state: torch.zeros(2), "trainer.pt does not hold what it should"),
        (lambda state: None, "trainer.pt does not hold what it should"),
        (changed(optimizer=None), "trainer.pt.optimizer is"),
        (changed(optimizer={}), "trainer.pt does not fit this run: it holds no optimizer state"),
        (changed(optimizer={"param_groups": [], "state": {}, "accumulated": {}}), "it has 0 groups of parameters"),
        (changed(validation={"a": 1}), "trainer.pt.validation."),
        (changed(validation=[1]), "trainer.pt.validation is"),
        (changed(scaler={"scale": "x"}), "trainer.pt.scaler.scale is"),
        (changed(loss="low"), "trainer.pt.loss is"),
        (changed(step="8"), "trainer.pt.step is"),
        (changed(step=True), "trainer.pt.step is"),
        (changed(step=-1), "trainer.pt is not of step 8"),
    ],
)
def test_a_trainer_state_that_holds_something_else(
    damage: Callable[[Any], object], words: str, run: Path, runs: dict[str, Path]
) -> None:
    put_trainer(run, damage(trainer(run)))
    refused(resume(run, runs), words)


def test_an_empty_trainer_state_has_a_reason(run: Path, runs: dict[str, Path]) -> None:
    (run / "checkpoints/last/trainer.pt").write_bytes(b"")
    refused(resume(run, runs), "trainer.pt cannot be read: it is damaged, cut short or not of hopecli.")
    (run / "checkpoints/last/trainer.pt").unlink()
    refused(resume(run, runs), "trainer.pt cannot be read: No such file or directory.")


def put_metadata(run: Path, **values: str | None) -> None:
    """Replace entries of the weights' metadata; None removes one."""
    file = run / "checkpoints/last/model.safetensors"
    with safe_open(file, framework="pt") as archive:
        metadata = {**archive.metadata(), **values}
    save_file(load_file(file), file, {key: text for key, text in metadata.items() if text is not None})


DEEP = "[" * 100_000 + "]" * 100_000
MODERATE = '{"a": ' * 400 + "1" + "}" * 400  # json reads it; a copy in depth would fail


@pytest.mark.parametrize(
    ("values", "words"),
    [
        *(({"info": text}, "info") for text in ("[]", "null", '"text"', "3", DEEP, MODERATE)),
        *(({"settings": text}, "settings") for text in ("[]", "null", '"text"', "3", DEEP, MODERATE)),
        ({"info": '{"step": "8"}'}, "info.step"),
        ({"info": '{"step": -8}'}, "info.step"),
        ({"info": '{"step": 8.0}'}, "info.step"),
        ({"info": '{"preset": []}'}, "info.preset"),
        ({"info": '{"split": {}}'}, "info.split"),
        ({"info": '{"tta": []}'}, "info.tta"),
        ({"info": '{"tta": {"fingerprints": null}}'}, "info.tta.fingerprints"),
        ({"info": '{"tta": {"fingerprints": [[]]}}'}, "info.tta.fingerprints[0]"),
    ],
)
def test_metadata_that_holds_something_else(values: dict[str, str], words: str, run: Path) -> None:
    put_metadata(run, **values)
    for command in (["train", "--resume", str(run)], ["eval", "--ckpt", str(run)], ["tta", "--ckpt", str(run)]):
        outcome = hope(command, run.parent)
        refused(outcome, f"its metadata does not hold what it should: {words} is ")
        one_line(outcome)


def test_weights_without_a_step_are_not_gone_on_with(run: Path, runs: dict[str, Path]) -> None:
    file = run / "checkpoints/last/model.safetensors"
    with safe_open(file, framework="pt") as archive:
        info = json.loads(archive.metadata()["info"])
    put_metadata(run, info=json.dumps({key: value for key, value in info.items() if key != "step"}))
    refused(resume(run, runs), "trainer.pt is not of step None")


@pytest.mark.parametrize("command", [["eval", "--ckpt"], ["tta", "--ckpt"], ["train", "--resume"]])
def test_weights_that_are_not_finite(command: list[str], run: Path, runs: dict[str, Path]) -> None:
    file = run / "checkpoints/last/model.safetensors"
    with safe_open(file, framework="pt") as archive:
        metadata = archive.metadata()
    damaged = load_file(file)
    damaged["predictor_embed.weight"][0, 0] = torch.nan
    save_file(damaged, file, metadata)
    outcome = hope([*command, str(run)], run.parent, HOPE_CACHE_DIR=str(runs["narrow"].parents[2] / "cache"))
    refused(
        outcome, "model.safetensors: predictor_embed.weight holds NaN or infinite values. Use an earlier checkpoint"
    )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"skipped": None}, "skipped is not a dict of texts"),
        ({"skipped": []}, "skipped is not a dict of texts"),
        ({"skipped": "text"}, "skipped is not a dict of texts"),
        ({"skipped": {"clip_00001": None}}, "skipped is not a dict of texts"),
        ({"fingerprints": {"clip_00001": 1}}, "fingerprints is not a dict of texts"),
        ({"train": "text"}, "train is not a list of texts"),
        ({"held_out": [["clip_00001"]]}, "held_out is not a list of texts"),
        ({"held_out": None}, "held_out is not a list of texts"),
        (None, "while decoding a JSON array"),
    ],
)
def test_a_split_that_holds_something_else(
    values: dict[str, object] | None, words: str, run: Path, runs: dict[str, Path]
) -> None:
    tree = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(DEEP if values is None else json.dumps({**tree, **values}))
    refused(resume(run, runs), "split.json: not a readable split.json: ", words)
    outcome = hope(["eval", "--ckpt", str(run)], run.parent, HOPE_CACHE_DIR=str(runs["narrow"].parents[2] / "cache"))
    refused(outcome, "split.json: not a readable split.json: ", words)


@pytest.mark.parametrize("command", [["eval", "--ckpt"], ["train", "--resume"]])
def test_settings_that_are_not_valid(command: list[str], run: Path, runs: dict[str, Path]) -> None:
    with safe_open(run / "checkpoints/last/model.safetensors", "pt") as archive:
        settings = json.loads(archive.metadata()["settings"])
    settings["optimizer"]["lr"] = "fast"
    put_metadata(run, settings=json.dumps(settings))
    outcome = hope([*command, str(run)], run.parent, HOPE_CACHE_DIR=str(runs["narrow"].parents[2] / "cache"))
    refused(outcome, "its settings are not valid", "optimizer.lr")
