"""Weights & Biases as a mirror of metrics.jsonl: it is told what happened and can never stop a run."""

from __future__ import annotations

import netrc
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hopecli.engine.results import DiagnosticsRecord, StepRecord, ValidationRecord, to_tree
from hopecli.errors import AbortedError, SettingsError

_NOT_IN_ID = r"[/\\:;,#?']"  # as W&B says it
_MODES = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}  # of WANDB_MODE; online needs a key


def has_key() -> bool:
    """Whether W&B could log in without asking: WANDB_API_KEY, or an entry in the user's netrc for its server."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = os.environ.get("NETRC")
    try:
        hosts = netrc.netrc(Path(file).expanduser() if file else None).hosts
        own = urlsplit(os.environ.get("WANDB_BASE_URL", "")).netloc  # with its port, as `wandb login` writes it
    except (OSError, RuntimeError, ValueError, netrc.NetrcParseError):
        return False
    return any(host == own if own else "wandb" in host for host in hosts)


def resolve_mode(asked: str) -> tuple[str, str]:
    """The mode to use (online, offline, disabled) and one line that says why; auto follows W&B's own WANDB_MODE.

    Raises SettingsError for online without a key: W&B would otherwise stop and ask, or raise.
    """
    if asked == "online" and not has_key():
        fix = "set WANDB_API_KEY (in .env) or use --wandb offline"
        raise SettingsError("there is no W&B key", where="--wandb", value=asked, fix=fix)
    if asked != "auto":
        return asked, f"W&B: {asked}"
    wanted = os.environ.get("WANDB_MODE", "").strip().lower()
    if wanted in _MODES:
        return _MODES[wanted], f"W&B: {_MODES[wanted]} (WANDB_MODE={wanted})"
    if has_key():
        return "online", "W&B: online (a key was found)"
    return "disabled", "W&B: off (no WANDB_API_KEY; metrics.jsonl is the record)"


class WandbSink:
    """Mirrors records; the first failure turns it off with one line."""

    def __init__(
        self,
        *,
        mode: str,
        project: str | None,
        entity: str | None,
        run_dir: Path,
        config: Mapping[str, Any],
        say: Callable[[str], None],
        label: str | None = None,
        mark: str = "",
        record: str = "metrics.jsonl",
    ):
        """label: the run's name in W&B, by default its preset and date; mark: added to its id, where another run may
        have the same label; record: the file that goes on without W&B. project, entity: by default those of the
        environment, or the project hopecli."""
        self.say, self.run, self.record = say, None, record
        label = label or f"{run_dir.parent.name}/{run_dir.name}"
        with self._or_off():
            import wandb

            self.run = wandb.init(
                mode="online" if mode == "online" else "offline",
                project=project or os.environ.get("WANDB_PROJECT") or "hopecli",
                entity=entity or os.environ.get("WANDB_ENTITY"),
                dir=str(run_dir),
                id=re.sub(_NOT_IN_ID, "-", f"{label}/{mark}" if mark else label),
                name=label,
                resume="allow",
                config=dict(config),
                settings=wandb.Settings(init_timeout=60, silent=True),
            )

    def begin(self, *, first_step: int, total_steps: int, steps_per_epoch: int) -> None: ...

    def tick(self, step: int) -> None: ...

    def steps(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            tree = to_tree(record)
            self.log({f"train/{k}": v for k, v in tree.items() if k != "step"}, record.step)

    def validation(self, record: ValidationRecord) -> None:
        tree = to_tree(record)
        values = {f"validation/{k}": v for k, v in tree.items() if not isinstance(v, list) and k != "step"}
        for key in ("rollout_per_horizon", "copy_last_per_horizon"):
            values |= {f"validation/{key}/{i}": v for i, v in enumerate(tree[key], start=1)}
        self.log(values, record.step)

    def diagnostics(self, record: DiagnosticsRecord) -> None:
        self.log(dict(record.values), record.step)

    def message(self, text: str) -> None: ...

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Mirror named values of one step."""
        if self.run is None:
            return
        with self._or_off():
            self.run.log(dict(values), step=step)

    @contextmanager
    def _or_off(self) -> Iterator[None]:
        """Around a call of W&B: whatever fails turns the mirror off. A second Ctrl-C is no failure: it aborts."""
        try:
            yield
        except AbortedError:
            raise
        except Exception as error:
            self.run = None
            self.say(f"W&B: turned off for this run ({' '.join(str(error).split())[:200]}); {self.record} goes on")

    def close(self) -> None:
        if self.run is not None:
            with self._or_off():
                self.run.finish()
