"""Group commit: threads that wait for the same disk share one sync.

Whoever finds nobody syncing leads: it syncs what has been written until now and wakes all it covered; who came later
finds the next leader among themselves. So one sync serves as many callers as wrote during the one before it.

Not here: writing. The writer says `wrote(ticket, handle)`, in the order of its tickets.

Invariants:
- `wait(ticket)` returns only after a sync that began after the ticket was written.
- A sync that failed is never repeated on that file: the kernel may have dropped the data and marked it clean, so that
  the next one succeeds and proves nothing. From then on every wait for what was not yet durable fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Commit", "SyncFailed"]


class SyncFailed(Exception):
    """The sync that should have covered this failed."""


class Commit:
    """The durable end of a file that is being written. Thread-safe; `wrote` is the writer's, under its own lock."""

    def __init__(self, sync: Callable[[int], None]) -> None:
        self._sync = sync
        self._turn = threading.Condition(threading.Lock())
        self._leading = self._ended = False
        self._written = (0, -1)  # one attribute, so that a leader without the writer's lock reads a true pair
        self._synced = 0
        self._close: Callable[[], None] | None = None
        self.failure: OSError | None = None
        self.syncs = 0

    @property
    def synced(self) -> int:
        """The last ticket that is durable."""
        return self._synced

    @property
    def written(self) -> int:
        """The last ticket that is written."""
        return self._written[0]

    def wrote(self, ticket: int, handle: int) -> None:
        """Everything up to `ticket` is written, the last of it to `handle`."""
        self._written = (ticket, handle)

    def began(self, ticket: int, handle: int) -> None:
        """Another file from here on; everything up to `ticket` is durable already."""
        self._written = (ticket, handle)
        self._synced = max(self._synced, ticket)

    def wait(self, ticket: int) -> None:
        """Return when `ticket` is durable; `SyncFailed` if it may never be."""
        assert ticket <= self._written[0], "nobody would ever sync what is not written"
        while self._synced < ticket:
            with self._turn:
                while self._leading and self._synced < ticket and self.failure is None:
                    self._turn.wait()
                if self._synced >= ticket:
                    return
                if self.failure is not None:
                    raise SyncFailed from self.failure
                self._leading = True
            self._lead()

    def flush(self) -> None:
        """Sync what is written, unless somebody is at it: so that who must wait later waits for less."""
        with self._turn:
            if self._leading or self._ended or self.failure is not None:
                return
            self._leading = True
        try:
            self._lead()
        except SyncFailed:
            pass  # who writes next is told

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Everything written is durable, and nobody syncs until the end of the block: the file may be exchanged."""
        with self._turn:
            while self._leading:
                self._turn.wait()
            if self.failure is not None:
                raise SyncFailed from self.failure
            self._leading = True
        try:
            self._sync_now()
            yield
        finally:
            self._done()

    def end(self, close: Callable[[], None]) -> None:
        """`close` the file as soon as nobody syncs: now, or whoever does it will.

        Not waited for: in a fork, or when Python is ending, that thread may be gone.
        """
        with self._turn:
            self._ended = True
            if self._leading:
                self._close = close
                return
        close()

    def _lead(self) -> None:
        try:
            self._sync_now()
        finally:
            self._done()

    def _sync_now(self) -> None:
        ticket, handle = self._written
        if self._synced >= ticket:
            return
        try:
            self._sync(handle)
        except OSError as problem:
            self.failure = problem
            raise SyncFailed from problem
        self.syncs += 1
        self._synced = ticket

    def _done(self) -> None:
        with self._turn:
            self._leading = False
            self._turn.notify_all()
            close, self._close = self._close, None
        if close is not None:
            close()
