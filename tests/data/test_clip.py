"""A batch of clips with a part of it replaced, and moved to another dtype."""

from __future__ import annotations

import torch

from hopecli.data.clip import ClipBatch

BATCH = ClipBatch(
    features=torch.rand(2, 3, 4, 5).half(),
    actions=torch.rand(2, 2, 3),
    states=torch.rand(2, 2, 3),
    extrinsics=torch.rand(2, 2, 2),
    names=("a", "b"),
)


def test_only_the_part_named_is_another() -> None:
    features, actions = torch.rand(2, 3, 4, 5), torch.rand(2, 2, 3)
    for changed, new in (
        (BATCH.with_features(features), {"features": features}),
        (BATCH.with_actions(actions), {"actions": actions}),
    ):
        for part in ("features", "actions", "states", "extrinsics", "names"):
            assert getattr(changed, part) is new.get(part, getattr(BATCH, part))


def test_every_part_is_moved() -> None:
    assert len(BATCH) == 2
    moved = BATCH.to(torch.device("cpu"), torch.float64)
    for part in ("features", "actions", "states", "extrinsics"):
        assert getattr(moved, part).dtype == torch.float64
        assert torch.equal(getattr(moved, part), getattr(BATCH, part).double())
    assert BATCH.to(torch.device("cpu")).features.dtype == torch.float32
