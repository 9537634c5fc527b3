"""The edge's clock: nanoseconds, wall clock at the start and monotonic from there, so it never steps."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["edge_clock"]


def edge_clock() -> Callable[[], int]:
    """A clock for a queue."""
    start = time.time_ns() - time.monotonic_ns()

    def now() -> int:
        return start + time.monotonic_ns()

    return now
