"""How far the reading processes run ahead of the training."""

from __future__ import annotations

import os
import time
from pathlib import Path

from hopecli.data.loader import InOrder, load_batches, require_all
from hopecli.data.store import ClipStore, Sample
from tests.clips import data_settings, write_clips


class Marking(ClipStore):
    """Leaves a file beside the clips for each one that is read, with the process group of who reads it."""

    def read(self, name: str) -> Sample:
        (self.folder / f"read_{name}").write_text(str(os.getpgrp()))
        return super().read(name)


def test_a_reader_holds_one_batch(tmp_path: Path) -> None:
    """Protocol: never more than a batch per worker, whatever the memory that a batch takes."""
    write_clips(tmp_path, range(10))
    store = Marking(tmp_path, data_settings({"workers": 1}), use_extrinsics=False)
    names = list(store.select().values())

    def read(expected: int) -> int:
        """How many clips have been read, once there were so many and a quarter of a second for more."""
        end = time.monotonic() + 20
        while len(list(tmp_path.glob("read_*"))) < expected and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.25)
        return len(list(tmp_path.glob("read_*")))

    batches = load_batches(store, names, InOrder(clips=10, batch=2), pin_memory=False)
    assert read(2) == 2
    for taken in range(1, 5):
        assert require_all(next(batches)).names == tuple(names[2 * taken - 2 : 2 * taken])
        if taken in (1, 4):
            assert read(2 * taken + 2) == 2 * taken + 2
    assert len(list(batches)) == 1
    # A signal to the group of this process, as of Ctrl-C, leaves the readers to a run that is about to save.
    assert str(os.getpgrp()) not in {path.read_text() for path in tmp_path.glob("read_*")}
