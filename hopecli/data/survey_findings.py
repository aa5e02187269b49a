"""What can be wrong with clips: stable codes with a severity, collected as counts and the first clips of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hopecli.data.headers import ClipProblem
from hopecli.errors import DataError

Severity = Literal["error", "warning"]
NAMED_CLIPS = 5

# An error is what training refuses (the codes of ClipProblem); a warning trains, but may not mean anything.
CODES: dict[str, tuple[Severity, str]] = {
    "missing_features": ("error", "no feature file"),
    "missing_actions": ("error", "no actions.npy"),
    "unreadable": ("error", "a file that is no readable .npy file"),
    "truncated": ("error", "a file shorter than its header announces"),
    "pickled": ("error", "a file of pickled objects, which are never loaded"),
    "odd_shape": ("error", "features that are not [T*N, D], [T, N, D] or [T, gh, gw, D]"),
    "odd_dtype": ("error", "features that are neither float16 nor float32"),
    "float64": ("error", "features in float64"),
    "feature_width": ("error", "mixed widths: a feature width that most clips do not have"),
    "grid": ("error", "mixed grids: a number of patches that most clips do not have, or that is no square"),
    "not_divisible": ("error", "feature rows that are not a multiple of the patches per frame"),
    "too_few_frames": ("error", "fewer encoded frames than training would use"),
    "actions_shape": ("error", "action rows or width that fit neither the clip nor the suggested alignment"),
    "actions_dtype": ("error", "actions that are not numbers"),
    "states_shape": ("error", "state rows or width that do not fit the clip"),
    "states_dtype": ("error", "states that are not numbers"),
    "not_finite": ("error", "NaN or infinite values"),
    "duplicate_id": ("error", "two clip folders with the same number"),
    "duplicate": ("warning", "the same features and actions as an earlier clip"),
    "zero_variance": ("warning", "constant features, which carry no signal"),
    "no_motion": ("warning", "features that do not change over time"),
    "actions_zero": ("warning", "actions that are all zero"),
    "actions_dropped": ("warning", "non-zero action rows that the suggested impulse alignment drops"),
    "not_finite_unused": ("warning", "NaN or infinite values in frames or rows that training does not use"),
    "mixed_dtypes": ("warning", "a feature dtype that most clips do not have"),
    "missing_states": ("warning", "no states where other clips have them (zeros are used)"),
    "missing_extrinsics": ("warning", "no extrinsics where other clips have them"),
    "extrinsics_unusable": ("warning", "extrinsics that a model with use_extrinsics would refuse"),
}


@dataclass(frozen=True)
class Finding:
    """One kind of defect: how many clips have it, the first five, and the first one's message."""

    severity: Severity
    code: str
    meaning: str
    count: int
    clips: tuple[str, ...]
    example: str


@dataclass
class _Tally:
    count: int = 0
    clips: list[str] = field(default_factory=list)
    example: str = ""
    last: str = ""


class Findings:
    """Collects defects; holds no more than five names per code, whatever the number of clips."""

    def __init__(self) -> None:
        self._tallies: dict[str, _Tally] = {}

    def add(self, code: str, clip: str, example: str) -> None:
        """Count a clip's defect once, also when two of its files have it."""
        tally = self._tallies.setdefault(code, _Tally(example=example))
        if tally.last == clip:
            return
        tally.last = clip
        tally.count += 1
        if len(tally.clips) < NAMED_CLIPS:
            tally.clips.append(clip)

    def add_problem(self, problem: DataError, clip: str) -> None:
        """Count a defect that training's check found, or that the clip's content cannot be read."""
        value = "" if problem.value is None else f" (got {problem.value})"
        code = problem.code if isinstance(problem, ClipProblem) and problem.code in CODES else "unreadable"
        self.add(code, clip, f"{problem.what}{value}")

    def add_many(self, code: str, count: int, clips: list[str], example: str) -> None:
        """Clips that were counted elsewhere."""
        if count:
            self._tallies[code] = _Tally(count, clips[:NAMED_CLIPS], example)

    def listing(self) -> tuple[Finding, ...]:
        """Errors first, then in the order of CODES."""
        found = [
            Finding(severity, code, meaning, tally.count, tuple(sorted(tally.clips)), tally.example)
            for code, (severity, meaning) in CODES.items()
            if (tally := self._tallies.get(code)) is not None
        ]
        return tuple(sorted(found, key=lambda finding: finding.severity))
