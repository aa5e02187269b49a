"""A preset of one's own that extends the packaged one of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hopecli.config.load import load_preset
from hopecli.errors import SettingsError


def test_ones_own_preset_extends_the_packaged_one_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = load_preset("quickstart")
    (tmp_path / "presets").mkdir()
    path = tmp_path / "presets/quickstart.yaml"
    path.write_text("extends: quickstart\ntraining: {epochs: 77}\n")
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", str(path)):
        found = load_preset(name)
        assert found.settings.training.epochs == 77
        assert found.settings.model == packaged.settings.model
        assert found.origins["training.epochs"] == "quickstart"
        assert found.origins["model.depth"].endswith("presets/quickstart.yaml")
        assert not found.origins["model.depth"].startswith(str(tmp_path))


def test_a_preset_that_extends_itself_alone_is_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: mine\n")
    with pytest.raises(SettingsError, match=r"circle.*mine -> mine"):
        load_preset(str(path))
