"""A queue as its directory says it was: the newest snapshot, the puts of the log's end, then what happened to them.

Invariants: what is replayed is taken as far as it fits what else is known, and the rest is counted as dropped; nothing
that is replayed is recorded again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping

from daskqueue_core.contents import Ride
from daskqueue_core.events import Delivered, Event, Put, Reason
from daskqueue_core.replay import fitting
from daskqueue_storage.journal import HEADER_BYTES, JournaledQueue
from daskqueue_storage.keydir import Place
from daskqueue_storage.tail import FoundPut, FoundSingles

__all__ = ["RestoredQueue"]


class RestoredQueue(JournaledQueue):
    """A journaled queue that comes back."""

    taken_back: int = 0
    """Messages that were delivered when the directory was left, to owners that are not here any more."""

    def _restore(self) -> None:
        """Hold what the directory says."""
        store, snapshot = self._store, self._store.snapshot
        if snapshot is not None:
            self._payloads.places = dict(snapshot.places)
            self._payloads.singles_rows = snapshot.singles
            self._load(snapshot.state)
            store.covered = snapshot.covered
        puts, moved = store.puts(self._payloads.knows)
        for base, place in moved.items():
            self._payloads.move(base, place)
        if store.shelf.segments:
            store.covered = max(store.covered, store.shelf.segments[-1].last_rno + 1)
        self._payloads.places.clear()
        waiting, now = deque(puts), self._clock()
        for event, ride, before in store.events():
            while waiting and waiting[0].base < before:
                put = waiting.popleft()
                if isinstance(put, FoundSingles) and put.stop > before:
                    put, rest = put.cut(before)
                    waiting.appendleft(rest)
                self._replay_put(put, moved)
            if isinstance(event, Delivered):  # who is kept has a time to live from now on
                event = event._replace(deadline=now + max(0, event.deadline - event.time))
            self._replay(event, ride)
            self._grown += HEADER_BYTES
        for put in waiting:
            self._replay_put(put, moved)
        self._grown += HEADER_BYTES * sum(len(put.positions) if isinstance(put, FoundSingles) else 1 for put in puts)

    def _replay_singles(self, found: FoundSingles, moved: Mapping[int, Place]) -> None:
        """As so many puts."""
        ledger = self._ledger
        known = ledger.puts - found.base
        if known > 0:
            ledger.dropped += min(known, len(found.positions))
            if known >= len(found.positions):
                return
            found = found.cut(ledger.puts)[1]
        batch, count = found.batch, len(found.positions)
        route = self._routes.number(batch.kind, batch.tags)
        event = Put(found.put_at, found.base, count, None, 0, batch.priority, route)
        fit, _ = fitting(ledger, event)
        assert fit is not None
        ledger.apply(fit)
        self._payloads.add_singles(found, route)
        for seq in moved.keys() & range(found.base, found.stop) if moved else ():
            self._payloads.move(seq, moved[seq])

    def _replay_put(self, put: FoundPut | FoundSingles, moved: Mapping[int, Place]) -> None:
        """Its batches stand where they stood, or where they were moved since."""
        if isinstance(put, FoundSingles):
            self._replay_singles(put, moved)
            return
        event, base = put.event, put.event.base
        if put.batches:
            first = put.batches[0]
            event = event._replace(route=self._routes.number(first.kind, first.tags))
        for batch, place in zip(put.batches, put.places):
            self._payloads.places[base] = moved.get(base, place)
            base += batch.count
        self._replay(event, put.batches)

    def _replay(self, event: Event, ride: Ride) -> None:
        """Take what was recorded, as far as it fits what else is known."""
        ledger = self._ledger
        fit, dropped = fitting(ledger, event)
        ledger.dropped += dropped
        if isinstance(event, Delivered):
            ledger.next_lease = max(ledger.next_lease, event.lease + 1)
        if fit is None:
            return
        ledger._replaying = True
        try:
            self._take(fit, ride)
        finally:
            ledger._replaying = False
        if isinstance(event, Delivered):
            ledger.leases.by_id[event.lease].regrant(event.runs)

    def _reopen(self, owners: Collection[str], lost: Collection[str]) -> None:
        """What nobody of `owners` holds is ready again; what must not run twice fails."""
        ledger, now = self._ledger, self._clock()
        for owner in ledger.owners():
            if owner in owners:
                continue
            if owner in lost:
                self.taken_back += self.owner_lost(owner)
                continue
            for lease in list(ledger.leases.of(owner)):
                event: Event | None
                if lease.once:
                    event = ledger.decide_fail(lease.id, None, now, reason=Reason.EARLY_ACK)
                else:
                    event = ledger.decide_return(lease.id, None, now, reason=Reason.REOPENED)
                if event is not None:
                    self.taken_back += sum(stop - start for start, stop in event.runs)
                    self._happen(event)
        self._expire_kept()
