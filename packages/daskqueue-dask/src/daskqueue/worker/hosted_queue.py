"""`HostedQueue`: a durable queue that says at a glance what those who wait for it need to know.

Its host looks after each operation, in the thread that did it: no reader on the event loop ever takes the queue's turn,
or sees it half changed. And with many callers at a time, nothing is told before it is as safe as the sync policy says:
an outcome whose record is still being synced for whoever reported it is not read by another thread.

Not here: who waits (`queue_actor`), and threads (`durable_actor`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from daskqueue_core.batch import Kind
from daskqueue_core.contents import Ride
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.events import Event, Put
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Outcome, Outcomes
from daskqueue_core.protocols import REPLY_BYTES
from daskqueue_storage import DurableQueue
from daskqueue_storage.writer import Placed

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

    _last: Placed | None = None  # what was recorded last of all that must last

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

    def _record(self, event: Event, ride: Ride) -> None:
        super()._record(event, ride)
        if self._owed is not None:
            self._last = self._owed

    def _commit(self, event: Put) -> None:
        self.on_put_recorded()
        super()._commit(event)

    def _owe_what_is_told(self) -> None:
        """What is read now is told when it is safe: this costs nothing once it is."""
        self._owed = self._last

    def poll(self, client: int, cursor: Cursor | None = None, limit_bytes: int = REPLY_BYTES) -> Outcomes:
        """As `DurableQueue.poll`."""
        with self._operation():
            answer = super().poll(client, cursor, limit_bytes)
            if answer.outcomes:
                self._owe_what_is_told()
            return answer

    def subscribe(self, client: int, first: int, names: Sequence[TaskName]) -> list[int]:
        """As `DurableQueue.subscribe`."""
        with self._operation():
            self._owe_what_is_told()
            return super().subscribe(client, first, names)

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]:
        """As `DurableQueue.read_kept`."""
        with self._operation():
            self._owe_what_is_told()
            return super().read_kept(after, limit_bytes)

    def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]:
        """As `DurableQueue.dead_letters`."""
        with self._operation():
            self._owe_what_is_told()
            return super().dead_letters(after, limit)
