"""What all tests share: one thread, since the test models are tiny and two that wait for each other are slower on
shared cores; and permissions that hold."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.permissions import obeyed

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def permissions_obeyed() -> Iterator[None]:
    """File permissions hold for root too: CI runs as root, users do not."""
    with obeyed():
        yield
