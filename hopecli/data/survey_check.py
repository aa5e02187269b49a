"""Training's own check on every clip of a survey."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from hopecli.data.each import each
from hopecli.data.headers import ClipProblem
from hopecli.data.store import TOO_SHORT, ClipStore
from hopecli.data.survey_duplicates import Fingerprints, fingerprint_of
from hopecli.data.survey_files import Look
from hopecli.data.survey_findings import Findings
from hopecli.errors import DataError, exists

Progress = Callable[[str, int, int], None]


@dataclass
class Checked:
    """clean: clips without a defect. frames: T of these and of those that are only too short for the settings.
    defective: T of others, where it is known. no_extrinsics: ids among `frames` without usable ones. fingerprints: of
    all that could be read."""

    clean: dict[int, str] = field(default_factory=dict)
    frames: dict[int, int] = field(default_factory=dict)
    defective: dict[int, int] = field(default_factory=dict)
    no_extrinsics: set[int] = field(default_factory=set)
    fingerprints: Fingerprints = field(default_factory=Fingerprints)


@dataclass(frozen=True)
class _Clip:
    """What training's check says of a clip. frames: T, None where it is not known. error: its defect, `short` whether
    that is only its length. unused: whether actions that training does not use are not finite. states: whether there is
    the file. extrinsics: what is wrong with them, where any clip has them."""

    frames: int | None
    error: DataError | OSError | None
    short: bool
    unused: bool
    mark: bytes | None
    states: bool
    extrinsics: ClipProblem | None


def _check(store: ClipStore, look: Look, name: str) -> _Clip:
    any_length = store.settings.model_copy(update={"num_timesteps": 1})
    of_any_length = ClipStore(store.folder, any_length, use_extrinsics=False)
    frames = error = mark = extrinsics = None
    short, states, bad_actions = False, True, name in look.bad_actions
    try:
        frames = store.check(name)
        if bad_actions:
            store.read_actions(name)  # raises where training would
        states = not look.states or exists(store.paths(name)[2])
        mark = fingerprint_of(store, name)
    except (DataError, OSError) as problem:
        error = problem
        with suppress(DataError, OSError):
            frames = of_any_length.frames(name)
            if isinstance(problem, ClipProblem) and problem.code == TOO_SHORT:
                of_any_length.check(name)
                if bad_actions and frames > 1:  # a single frame has no transition
                    whole = store.settings.model_copy(update={"num_timesteps": frames})
                    ClipStore(store.folder, whole, use_extrinsics=False).read_actions(name)
                short = True
    if look.extrinsics and (error is None or short):
        try:
            ClipStore(store.folder, any_length, use_extrinsics=True).check(name)
        except ClipProblem as problem:
            extrinsics = problem
    return _Clip(frames, error, short, bad_actions and error is None, mark, states, extrinsics)


def check_all(
    store: ClipStore, clips: dict[int, str], look: Look, findings: Findings, on_progress: Progress
) -> Checked:
    """Training's check on every clip."""
    checked, names = Checked(), list(clips.values())
    read = each(partial(_check, store, look), names)
    for done, (number, clip) in enumerate(zip(clips, read, strict=True), start=1):
        name = clips[number]
        if isinstance(clip.error, DataError):
            findings.add_problem(clip.error, name)
        elif clip.error is not None:
            findings.add("unreadable", name, str(clip.error))
        if clip.unused:
            findings.add("not_finite_unused", name, "actions hold NaN or infinite values")
        if clip.mark is not None:
            checked.fingerprints.add(name, clip.mark)
        if clip.frames is not None:
            sound = clip.error is None or clip.short
            (checked.frames if sound else checked.defective)[number] = clip.frames
        if clip.error is None:
            checked.clean[number] = name
            if not clip.states:
                findings.add("missing_states", name, "states.npy is missing")
        if clip.extrinsics is not None:
            checked.no_extrinsics.add(number)
            if clip.error is None:
                code = "missing_extrinsics" if clip.extrinsics.code == "missing_extrinsics" else "extrinsics_unusable"
                findings.add(code, name, clip.extrinsics.what)
        on_progress("checking clips", done, len(names))
    return checked
