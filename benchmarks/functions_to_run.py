"""The tasks the benchmarks run: in a module of their own, which the workers of every pool can import."""

from __future__ import annotations

import time

__all__ = ["same", "spin"]


def same(value: int) -> int:
    """An empty task, returning its argument."""
    return value


def spin(_: int) -> None:
    """A millisecond of CPU."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass
