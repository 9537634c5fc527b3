"""One thread at a time in a queue, except while it waits for the disk.

A lock that its holder may take again, and may leave for a while with all it took: so many threads can put, and their
waiting for the disk overlaps. Invariant: `depth` is how often the holder took it; only the holder may look at it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

__all__ = ["Turn"]


class Turn:
    """Whose turn it is."""

    __slots__ = ("_holder", "_lock", "depth")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder = 0
        self.depth = 0

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self._holder == get_ident()

    def take(self) -> None:
        """Wait for it, unless this thread has it already."""
        me = get_ident()
        if self._holder != me:
            self._lock.acquire()
            self._holder = me
        self.depth += 1

    def leave(self) -> None:
        """Give back one `take`."""
        self.depth -= 1
        if not self.depth:
            self._holder = 0
            self._lock.release()

    def __enter__(self) -> Turn:
        self.take()
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

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
