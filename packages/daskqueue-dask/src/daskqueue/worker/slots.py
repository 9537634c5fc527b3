"""The slots of one consumer pool on one worker: which chunks run, which wait, and who takes the next.

A thread that has ended a chunk takes the next one itself. Waiting for the event loop to hand it over costs a
millisecond each time, since the loop shares the interpreter lock with the tasks. What a thread takes, it tells the
event loop afterwards; until then the chunk counts as running already. Knows nothing of queues, timers or reports.

Thread-safe. A chunk is in one place at a time: waiting, running, or nowhere.
"""

from __future__ import annotations

import threading
from collections import deque

from daskqueue.worker.chunk import Chunk

__all__ = ["Slots"]


class Slots:
    """`size` chunks run at once."""

    def __init__(self) -> None:
        self.size = 0
        self._lock = threading.Lock()
        self._running: set[Chunk] = set()
        self._waiting: deque[Chunk] = deque()

    @property
    def free(self) -> int:
        """Slots for which nothing runs or waits; negative if more waits than runs soon."""
        return self.size - len(self._running) - len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether nothing more can begin now."""
        return len(self._running) >= self.size

    @property
    def is_waiting(self) -> bool:
        """Whether something waits for a slot."""
        return bool(self._waiting)

    def running(self) -> list[Chunk]:
        """What runs now."""
        with self._lock:
            return list(self._running)

    def waiting(self) -> list[Chunk]:
        """What waits for a slot, in order."""
        with self._lock:
            return list(self._waiting)

    def add(self, chunk: Chunk) -> None:
        """Let `chunk` wait for a slot."""
        with self._lock:
            self._waiting.append(chunk)

    def take(self) -> Chunk | None:
        """The next chunk, which runs from now on; None if nothing waits or no slot is free."""
        with self._lock:
            return self._next()

    def next_after(self, chunk: Chunk) -> Chunk | None:
        """`chunk` has ended in this thread: what the thread is to run next, if that is for a thread."""
        with self._lock:
            self._running.discard(chunk)
            return self._next() if self._waiting and not self._waiting[0].is_async else None

    def ended(self, chunk: Chunk) -> None:
        """`chunk` has ended."""
        with self._lock:
            self._running.discard(chunk)

    def take_waiting(self, uuid: str | None = None) -> list[Chunk]:
        """Take away what waits: nobody runs it here. `uuid`: only of that life of a queue."""
        with self._lock:
            taken = [chunk for chunk in self._waiting if uuid is None or chunk.uuid == uuid]
            if taken:
                self._waiting = deque(chunk for chunk in self._waiting if chunk not in taken)
            return taken

    def _next(self) -> Chunk | None:
        if not self._waiting or len(self._running) >= self.size:
            return None
        chunk = self._waiting.popleft()
        self._running.add(chunk)
        return chunk
