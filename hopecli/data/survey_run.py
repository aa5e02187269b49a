"""Surveying a folder of clips without changing it and without assuming its sizes.

Two passes over headers: the first infers T, N, D, the action width and the alignment from what most clips say, the
second runs training's own check (ClipStore.check) on every clip under these settings. Then the content of a sample, or
of every clip. At most one clip is in memory at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hopecli.config.schema import DataSettings
from hopecli.data.folder import numbered_clips
from hopecli.data.headers import ClipProblem
from hopecli.data.store import ClipStore
from hopecli.data.survey import ActionFacts, Geometry, IdFacts, Pictures, StorageFacts, Survey, Surveyed
from hopecli.data.survey_actions import SCATTER_POINTS, even_share
from hopecli.data.survey_check import check_all
from hopecli.data.survey_content import NORM_POINTS, FeatureTally, pca_images
from hopecli.data.survey_files import Look, look_at, read_content
from hopecli.data.survey_findings import CODES, Findings

Progress = Callable[[str, int, int], None]
LISTED_GAPS = 10


def survey_folder(
    folder: Path,
    *,
    feature_map: str | None,
    sample: int,
    deep: bool,
    known_grids: Sequence[int],
    num_timesteps: int,
    shorten: bool,
    pictures: bool,
    on_progress: Progress,
) -> Surveyed:
    """Look at every clip of `folder`, and into `sample` of them (all when `deep`).

    feature_map None takes the default's name, or the most common one where no clip has it. known_grids: grids in use,
    to tell T*N apart where action rows do not. num_timesteps: frames that training would use, with `shorten` no more
    than most clips have. on_progress(stage, done, total) is called after each clip.

    Raises DataError when there are no clips.
    """
    started = time.perf_counter()
    clips = numbered_clips(folder)
    findings = Findings()
    unique: dict[int, str] = {}
    for number, name in clips:
        if number in unique:
            findings.add("duplicate_id", name, f"{unique[number]} has the same number")
        else:
            unique[number] = name
    look = look_at(folder, unique, feature_map, points=SCATTER_POINTS if pictures else 0, on_progress=on_progress)
    geometry = look.shapes.geometry(known_grids)
    alignments = look.shapes.alignments(geometry.patches, look.actions.width)
    actions = look.actions.facts(alignments)
    settings = training_settings(geometry, actions, look.feature_map, num_timesteps, shorten=shorten)
    _collected_earlier(findings, look, actions)
    store = ClipStore(folder, settings, use_extrinsics=False)
    checked = check_all(store, unique, look, findings, on_progress)
    clean, fingerprints = checked.clean, checked.fingerprints
    names = list(clean.values())
    chosen = names if deep or sample >= len(names) else [names[i] for i in _evenly(sample, len(names))]
    content = _read_all(store, chosen, look, findings, NORM_POINTS if pictures else 0, on_progress)
    duplicates = fingerprints.settle(store, everything=deep)
    for name, earlier in duplicates.pairs:
        findings.add("duplicate", name, f"the same content as {earlier}")
    for name, problem in duplicates.unreadable.items():
        if name not in content.unsound:  # a clip counts once
            findings.add_problem(problem, name)
            content.unsound.add(name)
    listing = findings.listing()
    picture = None
    if pictures:
        picture = _pictures(store, look, content, geometry)
    usable = [number for number, name in clean.items() if name not in content.unsound]
    unsound = {number: count for number, count in checked.frames.items() if unique[number] in content.unsound}
    frames = {number: count for number, count in checked.frames.items() if number not in unsound}
    blind = checked.no_extrinsics | {number for number in frames if unique[number] in content.no_extrinsics}
    survey = Survey(
        folder=str(folder),
        feature_map=look.feature_map,
        depth="deep" if deep else "sample",
        clips=len(clips),
        usable=len(usable),
        content_read=len(chosen),
        ids=_ids(list(unique)),
        layouts=dict(look.shapes.layouts.most_common()),
        dtypes=dict(look.shapes.dtypes.most_common()),
        geometry=geometry,
        checked_frames=settings.num_timesteps,
        actions=actions,
        states=look.states,
        extrinsics=look.extrinsics,
        features=content.tally.facts(),
        motion=content.tally.motion(),
        duplicates=duplicates.facts,
        storage=_storage(look, content),
        presets=(),
        findings=listing,
        errors=sum(finding.severity == "error" for finding in listing),
        warnings=sum(finding.severity == "warning" for finding in listing),
        seconds=time.perf_counter() - started,
    )
    return Surveyed(survey, frames, checked.defective | unsound, frozenset(blind), picture)


def training_settings(
    geometry: Geometry, actions: ActionFacts, feature_map: str, num_timesteps: int, *, shorten: bool
) -> DataSettings:
    """The data settings that most clips fit; defaults where the clips do not tell."""
    side = 16
    if geometry.patches is not None:
        side = max(1, round(geometry.patches**0.5))
    wanted = num_timesteps
    if shorten and geometry.frames is not None:
        wanted = max(2, min(num_timesteps, geometry.frames))
    return DataSettings.model_validate(
        {
            "feature_map": feature_map,
            "num_timesteps": wanted,
            "grid": side,
            "embed_dim": max(2, geometry.width or 1024),
            "action_dim": actions.width or 2,
            "action_alignment": actions.suggested_alignment or "impulse",
        }
    )


def _collected_earlier(findings: Findings, look: Look, actions: ActionFacts) -> None:
    tally = look.actions.usual
    if tally is not None:
        findings.add_many("actions_zero", tally.zero_clips, tally.zero_names, "every action row is zero")
    if tally is not None and actions.suggested_alignment == "impulse":
        findings.add_many("actions_dropped", tally.dropped, tally.dropped_clips, "non-zero rows other than index 1")
    usual, *others = [dtype for dtype, _ in look.shapes.dtypes.most_common() if dtype in ("float16", "float32")] or [""]
    for dtype in others:  # one at most: other dtypes are errors
        count, clips = look.shapes.dtypes[dtype], look.shapes.dtype_clips[dtype]
        findings.add_many("mixed_dtypes", count, clips, f"{dtype} among {usual}")


@dataclass
class _Read:
    tally: FeatureTally
    unsound: set[str]
    no_extrinsics: set[str] = field(default_factory=set)  # that hold values which are not finite
    first: str | None = None
    read_bytes: int = 0
    read_seconds: float = 0.0


def _read_all(
    store: ClipStore, names: Sequence[str], look: Look, findings: Findings, points: int, on_progress: Progress
) -> _Read:
    content = _Read(FeatureTally(), set())
    for done, name in enumerate(names, start=1):
        try:
            started = time.perf_counter()
            found = read_content(store, name)
            content.read_seconds += time.perf_counter() - started
            content.read_bytes += found.features.nbytes
        except ClipProblem as problem:
            findings.add_problem(problem, name)
            content.unsound.add(name)
        except OSError as error:
            findings.add("unreadable", name, str(error))
            content.unsound.add(name)
        else:
            for code, message in found.notes:
                if code != "not_finite_unused" or name not in look.bad_actions:  # a clip counts once
                    findings.add(code, name, message)
                if code == "extrinsics_unusable":
                    content.no_extrinsics.add(name)
            share = even_share(points, done - 1, len(names))
            defect = content.tally.add(found.features, horizon=store.settings.num_timesteps - 1, points=share)
            if defect is not None:
                findings.add(defect, name, CODES[defect][1])
            elif content.first is None:
                content.first = name
        on_progress("reading clips", done, len(names))
    return content


def _pictures(store: ClipStore, look: Look, content: _Read, geometry: Geometry) -> Pictures:
    pca = None
    if content.first is not None and geometry.grid is not None:
        pca = pca_images(read_content(store, content.first).features, geometry.grid)
    norms = content.tally.norms
    points = [] if look.actions.usual is None else look.actions.usual.points
    axes = min(2, look.actions.width or 2)
    return Pictures(
        norms=np.concatenate(norms) if norms else np.zeros(0, np.float32),
        actions=np.concatenate(points) if points else np.zeros((0, axes), np.float32),
        pca=pca,
        pca_clip=None if pca is None else content.first,
    )


def _evenly(count: int, total: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, total - 1, count)}) if count else []


def _ids(ids: list[int]) -> IdFacts:
    gaps = [(a + 1, b - 1) for a, b in itertools.pairwise(ids) if b - a > 1]
    return IdFacts(ids[0], ids[-1], sum(b - a + 1 for a, b in gaps), tuple(gaps[:LISTED_GAPS]))


def _storage(look: Look, content: _Read) -> StorageFacts:
    rate = content.read_bytes / content.read_seconds if content.read_seconds > 0 and content.read_bytes else None
    return StorageFacts(look.bytes, content.read_bytes, content.read_seconds, rate)
