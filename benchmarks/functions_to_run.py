"""The tasks the benchmarks run: in a module of their own, which the workers of every pool can import."""

from __future__ import annotations

import os
import time

__all__ = ["append", "kilobyte", "nap", "same", "short_nap", "spin"]


def same(value: int) -> int:
    """An empty task, returning its argument."""
    return value


def spin(_: int) -> None:
    """A millisecond of CPU."""
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass


def kilobyte(number: int) -> bytes:
    """A result of 1 KB."""
    return b"%08d" % number * 128


def nap(seconds: float) -> None:
    """Waits."""
    time.sleep(seconds)


def short_nap(seconds: float) -> None:
    """The same under another name."""
    time.sleep(seconds)


def append(path: str, number: int, seconds: float) -> int:
    """Waits, and then leaves a line in a file that no kill can tear."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        time.sleep(seconds)
        os.write(file, f"{number} {os.getpid()}\n".encode())
    finally:
        os.close(file)
    return number
