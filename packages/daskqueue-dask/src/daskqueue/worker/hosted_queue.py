"""`HostedQueue`: a durable queue that says at a glance what those who wait for it need to know.

Its host looks after each operation, in the thread that did it: no reader on the event loop ever takes the queue's turn,
or sees it half changed.

Not here: who waits (`queue_actor`), and threads (`durable_actor`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from daskqueue_core.batch import Kind
from daskqueue_storage import DurableQueue

__all__ = ["Glance", "HostedQueue"]


class Glance(NamedTuple):
    """A queue at one moment."""

    ready: int
    puts: int
    unfinished: int
    of_kind: dict[int, int]  # unfinished ones
    news: frozenset[int]  # clients, of those asked about, that have something to read
    next_in: float | None  # seconds until time brings something
    owners: frozenset[str]


class HostedQueue(DurableQueue):
    """A queue in a directory, for a host that serves many callers."""

    on_put_recorded: Callable[[], None] = staticmethod(lambda: None)
    """Called in the thread of a put before it waits for the disk: the next may be recorded."""

    def glance(self, clients: Collection[int]) -> Glance:
        """How it stands. Raises `FencedError` if somebody else has the directory, whoever finds out."""
        with self._operation():
            self._store.log.verify()
            next_at = self.next_ready_at()
            return Glance(
                self.ready,
                self.puts,
                self.unfinished,
                {kind: self.unfinished_of((kind,)) for kind in Kind},
                frozenset([client for client in clients if self._mail.waits_for(client)]),
                None if next_at is None else (next_at - self._clock()) / 1e9,
                frozenset(self._ledger.owners()),
            )

    def _await_put(self) -> None:
        self.on_put_recorded()
        super()._await_put()
