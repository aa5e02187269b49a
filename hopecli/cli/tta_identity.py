"""What identifies a stream of hope tta: a command with another identity cannot go on with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hopecli.cli.checkpoints import ChosenClips, Trained
from hopecli.cli.tta_source import Source

if TYPE_CHECKING:
    from hopecli.engine.runtime import Runtime


def identity(
    trained: Trained,
    baselines: Sequence[str],
    runtime: Runtime,
    chosen: ChosenClips,
    marks: Mapping[str, str],
    source: Source | None,
) -> dict[str, Any]:
    """What two commands must share for one to go on with the other's stream: all that a score depends on.

    `trained`: loaded with its digest. `marks`: the fingerprints of the stream's clips.
    """
    from hopecli.data.fingerprint import fingerprints, readable_fingerprints
    from hopecli.engine.reading import reading

    s = trained.settings
    mark = fingerprints if s.data.on_error == "error" else readable_fingerprints
    source_marks = {} if source is None else mark(source.store, source.names)
    return {
        **{f"adaptation.{key}": v for key, v in s.adaptation.model_dump(mode="json", exclude={"save_every"}).items()},
        **{f"data.{key}": value for key, value in reading(s).items()},
        "objective.normalize_reps": s.objective.normalize_reps,
        "objective.loss_exp": s.objective.loss_exp,
        "device": runtime.choice.device,
        "precision": runtime.choice.precision,
        "checkpoint": trained.checkpoint.digest,
        "clips": _hash("\n".join([str(chosen.store.folder.resolve()), *chosen.names]).encode(errors="surrogateescape")),
        "clips' content": _hash("\n".join(marks[name] for name in chosen.names).encode()),
        "source clips' content": "" if source is None else _hash("\n".join(source_marks.values()).encode()),
        "baselines": ",".join(sorted(baselines)),
    }


def mark_of(own: Mapping[str, Any]) -> str:
    """A few characters that tell streams of other identities apart."""
    return _hash(repr(sorted(own.items())).encode())[:8]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
