"""One thread at a time in a queue, except while it waits for the disk.

A lock that its holder may take again, and may leave for a while with all it took: so many threads can put, and their
waiting for the disk overlaps. Invariant: `depth` is how often the holder took it; only the holder may look at it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from daskqueue_storage.writer import Placed

__all__ = ["Turn"]


class Turn:
    """Whose turn it is."""

    __slots__ = ("depth", "last", "lock", "owed")

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.depth = 0
        self.owed: Placed | None = None
        """What was recorded in this turn and must last."""
        self.last: Placed | None = None
        """The same, of all turns."""

    def take(self) -> None:
        """Wait for it, unless this thread has it already."""
        self.lock.acquire()
        self.depth += 1

    def leave(self) -> None:
        """Give back one `take`."""
        self.depth -= 1
        self.lock.release()

    def __enter__(self) -> Turn:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Others may have it until the end of the block."""
        depth, self.depth = self.depth, 0
        for _ in range(depth):
            self.lock.release()
        try:
            yield
        finally:
            for _ in range(depth):
                self.lock.acquire()
            self.depth = depth
