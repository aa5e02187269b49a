"""hope presets: a bad file hides no good one; names and folders that the system refuses; paths that are not UTF-8."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hopecli.config.load import load_preset
from hopecli.config.yaml_text import parse_yaml
from tests.cli.runner import ROOT, TINY, hope, one_line
from tests.cli.test_system import in_shell


def test_bad_files_are_left_out_of_the_list_one_line_each(tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    (folder / "folder.yaml").mkdir(parents=True)
    (folder / "quickstart.yaml").mkdir()  # no file: the built-in preset stays
    (folder / "dangling.yaml").symlink_to("nowhere")
    (folder / "broken.yaml").write_text("data: [")
    (folder / "foreign.yaml").write_text("apiVersion: v1\nkind: Pod\nmetadata: {name: x}\n")
    (folder / "orphan.yaml").write_text("extends: absent\n")
    (folder / "mine.yaml").write_text("description: my own\n")
    (folder / "._mine.yaml").write_bytes(b"Mac OS X\xff")  # which macOS makes on disks of other systems: no preset
    outcome = hope(["presets", "--json"], tmp_path)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["mine"] == "my own"
    assert "quickstart" in found
    lines = outcome.err.splitlines()
    assert len(lines) == 5
    for line, name in zip(lines, ["broken", "dangling", "folder", "foreign", "orphan"], strict=True):
        assert line.startswith("left out: ")
        assert name in line


@pytest.mark.parametrize("name", ["a" * 400, "extends"])
def test_a_name_too_long_for_a_file(name: str, tmp_path: Path) -> None:
    if name == "extends":
        (tmp_path / "mine.yaml").write_text(f"extends: {'a' * 400}\n")
        name = "mine.yaml"
    outcome = hope(["train", "--preset", name], tmp_path)
    assert outcome.code == 2
    assert "no such preset (got 'aaaa" in one_line(outcome)


@pytest.mark.usefixtures("permissions_obeyed")
def test_a_presets_folder_that_may_not_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "presets"
    folder.mkdir(mode=0)
    try:
        assert hope(["presets", "quickstart"], tmp_path).code == 0
        outcome = hope(["presets", "mine"], tmp_path)
    finally:
        folder.chmod(0o700)
    assert outcome.code == 2
    assert "presets/mine.yaml: cannot be read: Permission denied" in one_line(outcome)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["presets", "--diff", "quickstart"], "hope presets NAME --diff quickstart"),
        (["presets", "QUICKSTART"], "hope presets: no such preset (got 'QUICKSTART'). Did you mean quickstart?"),
        (["presets", "quickstart", "--diff", "absent"], "--diff: no such preset (got 'absent')"),
    ],
)
def test_mistakes(arguments: list[str], words: str, tmp_path: Path) -> None:
    outcome = hope(arguments, tmp_path)
    assert outcome.code == 2
    assert words in one_line(outcome)


@pytest.mark.slow
def test_paths_that_are_not_utf8(tmp_path: Path) -> None:
    odd = "odd\udcff"
    (tmp_path / f"{odd}.yaml").write_text((ROOT / "presets/quickstart.yaml").read_text(encoding="utf-8"))
    command = ["train", "-p", f"{odd}.yaml", "--device", "cpu", *TINY, "training.epochs=1"]
    outcome = in_shell('exec "$@"', tmp_path, *command, HOPE_RUNS_DIR=f"{odd}/runs")
    assert outcome.code == 0, outcome.err
    (log,) = (tmp_path / odd / "runs" / odd).glob("*/train.log")
    assert f"run directory: odd\\udcff/runs/odd\\udcff/{log.parent.name}" in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["c😀", "é, #1: 'two' \"𠮷\"", "null", "12", "a\nb ", "\t"])
def test_a_data_folder_with_unusual_characters(name: str, tmp_path: Path) -> None:
    outcome = hope(["train", "-p", "quickstart", "--data-dir", name, "--print-config"], tmp_path)
    assert outcome.code == 0, outcome.err
    assert parse_yaml(outcome.out, "config")["data"]["data_dir"] == f"{tmp_path}/{name}"


def test_a_data_folder_that_is_not_utf8(tmp_path: Path) -> None:
    for given in (["--data-dir", "c\udcff"], ["data.source=folder", "data.data_dir=c\udcff"]):
        outcome = hope(["train", "-p", "quickstart", *given, "--print-config"], tmp_path)
        assert outcome.code == 0, outcome.err
        (tmp_path / "again.yaml").write_text(outcome.out, encoding="utf-8")
        again = hope(["train", "-p", "again.yaml", "--print-config"], tmp_path)
        assert f'data_dir: "{tmp_path}/c\\uDCFF"' in again.out


def test_a_difference_names_the_other_preset_s_value_first(tmp_path: Path) -> None:
    command = ["presets", "quickstart", "--diff", "quickstart", "optimizer.lr=0.5", "training.epochs=3"]
    outcome = hope([*command, "--json"], tmp_path)
    settings = load_preset("quickstart").settings
    assert json.loads(outcome.out) == {
        "optimizer.lr": [str(settings.optimizer.lr), "0.5"],
        "training.epochs": [str(settings.training.epochs), "3"],
    }
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(hope(["presets", "quickstart", "optimizer.lr=0.5", "--json"], tmp_path).out)
    assert found["settings"]["optimizer"]["lr"] == 0.5
    assert found["origins"]["optimizer.lr"] != found["origins"]["training.epochs"]
