"""One thread: the test models are tiny, and two threads that wait for each other are slower on shared cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
