"""What an installed copy must have: presets in the wheel, found from any working directory; only light imports."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(shutil.which("uv") is None, reason="building a wheel needs uv")
def test_wheel_has_the_presets_and_finds_them(tmp_path: Path) -> None:
    subprocess.run(["uv", "build", "--wheel", "--out-dir", str(tmp_path), str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    packaged = {path.name for path in (installed / "hopecli/_presets").glob("*.yaml")}
    assert packaged == {path.name for path in (ROOT / "presets").glob("*.yaml")}
    code = "import hopecli, hopecli.config.files as f; print(hopecli.__file__); print(*f.list_presets().values())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, found = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert {Path(path).name for path in found.split()} == packaged
    assert all(Path(path).is_relative_to(installed) for path in found.split())


def test_environment_example_names_every_variable() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    names = [line.partition("=")[0] for line in lines if "=" in line and not line.startswith("#")]
    assert names == [
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "HOPE_DATA_DIR",
        "HOPE_RUNS_DIR",
        "HOPE_CACHE_DIR",
    ]


def test_shell_completion_offers_presets() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.argv = ['hope']; from hopecli.cli.main import app; app(prog_name='hope')",
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "_HOPE_COMPLETE": "complete_bash",
            "COMP_WORDS": "hope train --preset quick",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    names = sorted(path.stem for path in (ROOT / "presets").glob("quick*.yaml"))
    assert "quickstart" in names
    assert done.stdout.split() == names


def test_python_m_hopecli_is_hope() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hopecli", "presets", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "nowhere" in done.stderr.splitlines()[-1]
