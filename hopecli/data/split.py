"""Which clips train and which are held out, with fingerprints that recognise a training clip anywhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from hopecli.data.each import Progress, each
from hopecli.data.fingerprint import MARK_BYTES, fingerprints, fingerprints_or_errors
from hopecli.data.headers import ClipProblem
from hopecli.data.store import PUT_BACK, TOO_SHORT, ClipStore
from hopecli.errors import CheckpointError, DataError, accessed

_FIT_OTHER_SETTINGS = ("missing_features", "feature_width", "grid", "not_divisible", "actions_shape")


@dataclass(frozen=True)
class Split:
    """Clip names of both sides, the clips left out with the reason, and a hash.

    fingerprints: content hash per clip name of `train`, for recognising these clips in another folder. unreadable:
    training clips that ended the run, or that it skipped, when it read them: they may come back mended. earlier: hashes
    of the run's split before one did.
    """

    train: tuple[str, ...]
    held_out: tuple[str, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()
    earlier: tuple[str, ...] = ()

    @property
    def hash(self) -> str:
        """Changes when any clip changes side or, on the training side, content; not with what is found unreadable."""
        text = json.dumps([self.train, self.held_out, self.fingerprints], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def comparable(self) -> bool:
        """Whether its fingerprints are made as `fingerprints` makes them now."""
        return all(len(mark) == 2 * MARK_BYTES for mark in self.fingerprints.values())

    def same_clips(self, before: Split) -> bool:
        """Whether a run that was started on `before` has these clips: by content, or by name where a clip could not be
        read then (it ended the run or was skipped) or the fingerprints are of an earlier recipe."""
        if (self.train, self.held_out) != (before.train, before.held_out):
            return False
        return not before.comparable or not self._changed(before)

    def _changed(self, before: Split) -> list[str]:
        """Training clips that were read for `before` and have other content now."""
        unsure, now, then = set(before.unreadable), self.fingerprints, before.fingerprints
        return [name for name in self.train if name not in unsure and now.get(name) != then.get(name)]

    def following(self, before: Split) -> Split:
        """This split as that of a run which had `before`."""
        earlier = (*before.earlier, *([before.hash] if before.hash != self.hash else []))
        return replace(self, earlier=tuple(dict.fromkeys(earlier)))

    def difference(self, before: Split) -> str:
        """What changed since `before`, for a message: the first clip that is new, gone, left out or not the same."""
        now, then = self._sides(), before._sides()
        for name in [*then, *now]:
            if name not in now or name not in then:
                reason = f"left out: {self.skipped[name]}" if name in self.skipped else "gone"
                return f"{name} is {reason if name not in now else 'new'}"
            if now[name] != then[name]:
                return f"{name} is now {now[name]}"
        changed = self._changed(before)
        return f"{changed[0]} has other content" if changed else "the checkpoint was made with another split.json"

    def _sides(self) -> dict[str, str]:
        return dict.fromkeys(self.train, "a training clip") | dict.fromkeys(self.held_out, "held out")

    def to_json(self) -> str:
        """The text of split.json."""
        return json.dumps({"hash": self.hash, **asdict(self)}, indent=1) + "\n"


def read_split(path: Path) -> Split:
    """A run's split.json; CheckpointError when it cannot be read or is damaged."""
    with accessed(path, kind=CheckpointError):
        content = path.read_bytes()
    try:
        tree: dict[str, Any] = json.loads(content.decode())
        for key, kind in (("train", list), ("held_out", list), ("skipped", dict), ("fingerprints", dict)):
            texts = list(tree[key].values()) if isinstance(tree[key], dict) else tree[key]
            if not isinstance(tree[key], kind) or not all(isinstance(text, str) for text in texts):
                raise TypeError(f"{key} is not a {kind.__name__} of texts")
        sides = tuple(tree["train"]), tuple(tree["held_out"])
        since = (tuple(map(str, tree.get(key, ()))) for key in ("unreadable", "earlier"))  # not in early versions
        split = Split(*sides, tree["skipped"], tree["fingerprints"], *since)
        announced = tree["hash"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"not a readable split.json: {error}", where=str(path), fix="restore the file") from error
    if announced != split.hash:
        raise CheckpointError("its hash does not match its content", where=str(path), fix="restore the file")
    return split


def split_ids(ids: Sequence[int], val_split: float) -> tuple[list[int], list[int]]:
    """The last `val_split` of the existing ids (ascending) are held out, at least one on each side."""
    held = min(max(1, round(len(ids) * val_split)), len(ids) - 1)
    return list(ids[: len(ids) - held]), list(ids[len(ids) - held :])


def usable_clips(
    store: ClipStore,
    among: Collection[str] | None = None,
    progress: Progress | None = None,
    *,
    any_share: bool = False,
    of_run: Collection[str] = (),
) -> tuple[dict[int, str], dict[str, str]]:
    """Selected clips (those `among` the names, if given) whose headers pass the checks, and the reason for each one
    left out.

    data.on_short and data.on_error say whether a clip that does not fit is an error; more than data.max_skipped
    (short ones not counted) is an error too, unless `any_share`. of_run: clips that a run has used; one that has become
    short since is damaged, which is for data.on_error to say.
    """
    s = store.settings
    wanted = None if among is None else set(among)
    chosen = {number: name for number, name in store.select().items() if wanted is None or name in wanted}
    usable: dict[int, str] = {}
    problems: list[ClipProblem] = []
    skipped: dict[str, str] = {}

    def problem_of(name: str) -> ClipProblem | None:
        try:
            store.check(name)
        except ClipProblem as problem:
            return problem
        return None

    found = each(problem_of, list(chosen.values()), progress)
    for (number, name), problem in zip(chosen.items(), found, strict=True):
        if problem is None:
            usable[number] = name
            continue
        if (s.on_short if problem.code == TOO_SHORT and name not in of_run else s.on_error) == "error":
            problems.append(problem)
        skipped[name] = reason_of(problem)
    if problems:
        first = problems[0]
        more = f"; {len(problems) - 1} more of {len(chosen)} clips have problems" if len(problems) > 1 else ""
        fix = _mend(first, of_run=first.clip in of_run, odd=len(problems) <= len(usable)) + more
        raise DataError(first.what, where=str(store.folder / first.clip), value=first.value, fix=fix)
    if not any_share:
        check_skipped(count_defects(skipped), len(chosen), s.max_skipped, str(store.folder))
    if not usable:
        raise DataError("no usable clip is left", where=str(store.folder), value=_why_none(skipped))
    return usable, skipped


def _mend(problem: ClipProblem, *, of_run: bool, odd: bool) -> str:
    """What to do about a clip that does not fit: not to change the settings that a run goes on with, nor those that
    the other clips fit (`odd`)."""
    if of_run and problem.code in (TOO_SHORT, *_FIT_OTHER_SETTINGS):
        return PUT_BACK
    if odd and problem.code in _FIT_OTHER_SETTINGS:
        return "mend it, or leave it out with data.on_error=skip and data.max_skipped"
    return problem.fix or "fix the clip"


def _why_none(skipped: Mapping[str, str]) -> str:
    """How many clips were skipped, and the first one's reason."""
    first = next(iter(skipped.items()), None)
    return f"{len(skipped)} skipped" + ("" if first is None else f", the first {first[0]}: {first[1]}")


def count_defects(skipped: Mapping[str, str]) -> int:
    """How many of the clips that `usable_clips` left out count against data.max_skipped: all but short ones."""
    return sum(not reason.startswith(f"{TOO_SHORT}:") for reason in skipped.values())


def check_skipped(bad: int, total: int, allowed: float, where: str) -> None:
    """DataError when more than `allowed` (a share) of `total` clips were left out for a defect."""
    if total and bad / total > allowed:  # as the share is printed; 0.29 * 100 is less than 29
        raised = " or raise data.max_skipped" if bad < total else ""
        raise DataError(
            f"{bad} of {total} clips cannot be used, more than data.max_skipped allows",
            where=where,
            value=allowed,
            fix=f"run `hope inspect-data --deep` on the folder, repair it{raised}",
        )


def make_split(store: ClipStore, progress: Callable[[str, int, int], None] | None = None) -> Split:
    """Check, select and split the folder's clips for training; DataError when fewer than two can be used.

    A training clip whose content cannot be read for its fingerprint is an error or, with data.on_error "skip", left out
    of the training side; the held-out side stays as it is. progress: called with (stage, clips done, all clips) now and
    then.
    """

    def stage(name: str) -> Progress | None:
        return None if progress is None else partial(progress, name)

    usable, skipped = usable_clips(store, progress=stage("checking clips"))
    if len(usable) < 2:
        raise too_few(store.folder, len(usable))
    train, held_out = split_ids(list(usable), store.settings.val_split)
    names = tuple(usable[i] for i in train)
    marking = stage("fingerprints of training clips")
    if store.settings.on_error == "error":
        marks = fingerprints(store, names, marking)
    else:
        marks, errors = fingerprints_or_errors(store, names, marking)
        total = len(usable) + len(skipped)
        skipped |= {name: reason_of(error) for name, error in errors.items()}
        check_skipped(count_defects(skipped), total, store.settings.max_skipped, str(store.folder))
        if not marks:
            raise too_few(store.folder, len(held_out))
    return Split(tuple(marks), tuple(usable[i] for i in held_out), skipped, marks)


def too_few(folder: Path | str, usable: int, fix: str | None = None) -> DataError:
    """The error of a folder with so few usable clips that a side of the split is empty."""
    return DataError(
        "training needs at least 2 clips, one of them held out",
        where=str(folder),
        value=f"{usable} usable",
        fix=fix or "add clips or widen data.clip_start and data.clip_end",
    )


def reason_of(error: DataError) -> str:
    """Why a clip is left out, as split.json says it."""
    return f"{error.code if isinstance(error, ClipProblem) else 'unreadable'}: {error.what}"
