"""One thread at a time in a queue, except while it waits for the disk.

A lock that its holder may take again, and may leave for a while with all it took: so many threads can put, and their
waiting for the disk overlaps. Invariant: `depth` is how often the holder took it; only the holder may look at it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Turn"]


class Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0
        self.depth = 0

    def __enter__(self) -> Turn:
        me = threading.get_ident()
        if self._holder != me:
            self._lock.acquire()
            self._holder = me
        self.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.depth -= 1
        if not self.depth:
            self._holder = 0
            self._lock.release()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Others may have it until the end of the block."""
        depth, self.depth = self.depth, 0
        me, self._holder = self._holder, 0
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
            self._holder, self.depth = me, depth
