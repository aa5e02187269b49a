"""Surveys of clips whose headers are sound and whose content cannot be read: a finding, and the survey goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.broken_clips import write_healthy
from tests.clips import action_file, feature_file
from tests.data.io_errors import fail_reading
from tests.data.surveys import look


@pytest.mark.parametrize("file", [feature_file, action_file])
def test_a_clip_that_cannot_be_read_is_a_finding(file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        write_healthy(tmp_path, number)
    fail_reading(monkeypatch, file(tmp_path, "clip_00002"), file(tmp_path, "clip_00004"))
    found = look(tmp_path)
    (finding,) = found.survey.findings
    assert (finding.code, finding.count, finding.clips) == ("unreadable", 2, ("clip_00002", "clip_00004"))
    assert finding.example == "cannot be read: Input/output error"
    assert (found.survey.clips, found.survey.usable, found.survey.content_read) == (6, 4, 4)
    assert list(found.frames) == [0, 1, 3, 5]


@pytest.mark.parametrize("file", [feature_file, action_file])
def test_a_clip_that_fails_when_it_is_compared(file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three copies: the first can be fingerprinted, but not be read again; the others are still told as copies."""
    for number in range(3):
        write_healthy(tmp_path, number)
    for copy in (7, 8):
        shutil.copytree(tmp_path / "clip_00000", tmp_path / f"clip_0000{copy}")
    reads = 1 if file is feature_file else 2  # features: its fingerprint; actions: the first pass as well
    fail_reading(monkeypatch, file(tmp_path, "clip_00000"), after=reads)
    found = look(tmp_path)
    named = {f.code: f.clips for f in found.survey.findings}
    assert named == {"unreadable": ("clip_00000",), "duplicate": ("clip_00008",)}
    assert list(found.frames) == [1, 2, 7, 8]


def test_a_clip_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsound when it was read, and a failing disk when it is compared with its copy."""
    for number in range(3):
        write_healthy(tmp_path, number)
    features = np.load(feature_file(tmp_path, "clip_00000"))
    features[0, 0] = np.nan
    np.save(feature_file(tmp_path, "clip_00000"), features)
    shutil.copytree(tmp_path / "clip_00000", tmp_path / "clip_00007")
    fail_reading(monkeypatch, feature_file(tmp_path, "clip_00000"), after=1)
    found = look(tmp_path)
    assert {f.code: f.clips for f in found.survey.findings} == {"not_finite": ("clip_00000", "clip_00007")}
    assert list(found.frames) == [1, 2]
