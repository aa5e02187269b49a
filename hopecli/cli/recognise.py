"""Which clips of a folder a checkpoint has seen, recognised by content, and whether they are fed as those were."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hopecli.errors import DataError

if TYPE_CHECKING:
    from hopecli.config.schema import DataSettings
    from hopecli.data.split import Split
    from hopecli.data.store import ClipStore

GONE = "it is not in the folder"
COMPARED_CLIPS = 256  # at most, to tell whether a folder is the one trained on


def compare_inputs(
    store: ClipStore, names: Sequence[str], expected: object, say: Callable[[str], None], clips: str = "clips"
) -> None:
    """Warn when the `clips` (as the lines call them) have no states for a model that was trained with them (`expected`:
    whether it was, None when that is not known) or the other way round, and when the alignment leaves actions out."""
    compare_states(store, names, expected, say, clips)
    if store.settings.action_alignment == "impulse":  # how rows are reduced was training's choice, said there
        warn_of_dropped_actions(store, names, clips, say)


def compare_states(
    store: ClipStore, names: Sequence[str], expected: object, say: Callable[[str], None], clips: str = "clips"
) -> None:
    """The part of `compare_inputs` that is about states."""
    found, of = store.sampled_states(names)
    if expected is True and found < of:
        lack = f"{of - found} of {among(names, of, clips)} lack the states.npy it was trained with"
        say(f"warning: {lack}: zeros stand in")
    if expected is False and found:
        have = f"{found} of {among(names, of, clips)} have a states.npy"
        say(f"warning: {have}, but it was trained on clips without")


def warn_of_dropped_actions(store: ClipStore, names: Sequence[str], clips: str, say: Callable[[str], None]) -> None:
    """Say when the alignment leaves actions of the `clips` (as the line calls them) out."""
    dropped, of = store.dropped_actions(names)
    which = f"{dropped} of {among(names, of, clips)}"
    if dropped and store.settings.action_alignment == "impulse":
        say(
            f"warning: {which} have non-zero actions outside row 1, which data.action_alignment=impulse leaves out; "
            "per_timestep uses them (with data.action_reduce=last every second row, with mean or sum all)"
        )
    elif dropped:
        say(
            f"note: in {which} data.action_reduce=last leaves out rows 2t that differ from rows 2t+1: right for poses, "
            "not for increments (sum or mean take both rows)"
        )


def among(names: Sequence[str], looked_at: int, clips: str) -> str:
    """The clips that were looked at, as a line calls them."""
    return f"{looked_at} {'' if looked_at == len(names) else 'sampled '}{clips}"


def readings_of(store: ClipStore, other: DataSettings) -> list[ClipStore]:
    """The clips as they are read here and, where that is another feature map, as under the `other` settings (those of
    training, or of the stream): fingerprints are of what is read. A clip too short for one of them is still itself."""
    from hopecli.data.store import ClipStore

    maps = dict.fromkeys([store.settings.feature_map, other.feature_map])
    frames = min(store.settings.num_timesteps, other.num_timesteps)
    changes = [{"feature_map": feature_map, "num_timesteps": frames} for feature_map in maps]
    return [ClipStore(store.folder, store.settings.model_copy(update=c), use_extrinsics=False) for c in changes]


def held_out_here(
    store: ClipStore, readings: list[ClipStore], split: Split, adapted_on: set[str]
) -> tuple[list[str], dict[str, str]]:
    """The held-out clips of a training run in its folder or a copy of it, and why others of them are left out; none
    in any other folder. readings: how the clips of `store` may be recognised.

    A folder is taken for the one trained on when most clips (a sample of them) with the names of training clips have
    their content (some may have been removed or changed since), whatever clip_start and clip_end select. Left out: a
    held-out clip that is gone, one that training found unreadable and that still is, one with the content of a training
    clip, and one that the weights were adapted on.
    """
    from hopecli.data.folder import CLIP_NAME, clip_names, within
    from hopecli.data.resumed_split import unreadable

    here = set(clip_names(store.folder).values())
    named = [name for name in split.train if name in here]
    named = named[:: len(named) // COMPARED_CLIPS + 1]  # evenly: to read all of a large folder would take long
    trained_on = set(split.fingerprints.values())
    if 2 * len(recognised(readings, named, trained_on)) <= len(named):
        return [], {}
    numbers = {name: match for name in split.held_out if (match := CLIP_NAME.match(name))}
    selected = [name for name, match in numbers.items() if within(int(match.group(1)), store.settings)]
    left_out = {name: GONE for name in selected if name not in here}
    held_out = [name for name in selected if name in here]
    broken = unreadable(store, [name for name in held_out if name in split.skipped])
    left_out |= {name: split.skipped[name] for name in broken}
    left_out |= dict.fromkeys(recognised(readings, held_out, adapted_on), "the weights were adapted on it")
    left_out |= dict.fromkeys(recognised(readings, held_out, trained_on), "it has the content of a training clip")
    return [name for name in held_out if name not in left_out], left_out


def all_readable(store: ClipStore, names: Sequence[str]) -> bool:
    """Whether every clip has features and actions that fit the settings, to be recognised by."""
    from hopecli.data.fingerprint import fingerprints

    try:
        fingerprints(store, names)
    except DataError:
        return False
    return True


def recognised(readings: Sequence[ClipStore], names: Sequence[str], marks: set[str]) -> set[str]:
    """Those of the clips whose content, in one of the readings, has one of the fingerprints; a clip that cannot be read
    has none."""
    from hopecli.data.fingerprint import readable_fingerprints

    found: set[str] = set()
    for store in readings if marks else ():
        found |= {name for name, mark in readable_fingerprints(store, names).items() if mark in marks}
    return found
