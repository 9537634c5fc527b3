"""A queue that writes down what happens to it, before it happens in memory: core's queue over a store.

`_record` appends each event that core has decided. A put waits for the log before its messages may be leased; what must
last of the rest is owed, and paid at the end of the operation (`upkeep`), when nobody's turn is needed for it.

Not here: what an operation is, and its end (`upkeep`); reading it all back (`restoring`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from daskqueue_core.batch import Run
from daskqueue_core.contents import Ride
from daskqueue_core.errors import DamagedPayload
from daskqueue_core.events import Acked, Delivered, Event, Failed, Put, Reason, Returned
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.queue import TransientQueue
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.keydir import DiskPayloads, Place
from daskqueue_storage.records import draft_events, draft_puts
from daskqueue_storage.store import QueueStore
from daskqueue_storage.turn import Turn
from daskqueue_storage.writer import Placed

__all__ = ["HEADER_BYTES", "JournaledQueue"]

HEADER_BYTES: Final = 512  # about what replaying a put costs, in bytes of a snapshot

_log = logging.getLogger("daskqueue_storage")


class JournaledQueue(TransientQueue):
    """Core's queue whose events are records of a store."""

    _store: QueueStore
    _payloads: DiskPayloads
    _turn: Turn
    _sync: str | float
    _ack_sync: bool
    _rolled = False
    """Whether the log has begun a segment since somebody looked after it."""
    _grown = 0
    """About what would have to be replayed, in bytes of a snapshot."""
    _putting: Placed | None = None  # the last record of the last put
    _owed: Placed | None = None  # what was recorded in this operation and must last
    _last: Placed | None = None  # the same, of all operations

    def _happen(self, event: Event, ride: Ride = None) -> tuple[Run, ...]:
        if isinstance(event, Failed) and isinstance(ride, Mapping):
            ride = self._with_bodies(event, ride)
        return super()._happen(event, ride)

    def _with_bodies(self, event: Failed, failures: Mapping[int, Failure]) -> dict[int, Failure]:
        """What dies takes its own bytes along, so that it needs no segment of the log."""
        filled: dict[int, Failure] = {}
        for entry, start, stop in self._payloads.pieces(event.runs):
            for seq in range(start, stop):
                failure = failures.get(seq)
                if failure is None:
                    continue
                if entry is not None and not failure.body and event.reason is not Reason.DAMAGED:
                    failure = failure._replace(body=self._payloads.own_body(entry, seq))
                filled[seq] = failure
        return filled

    def _record(self, event: Event, ride: Ride) -> None:
        if isinstance(event, Put):
            self._record_put(event, cast("Sequence[Any]", ride))
            return
        store, placed = self._store, None
        for draft in draft_events(event, ride, self._ledger.puts):
            placed = store.index.append(draft)
            self._grown += draft.blen + HEADER_BYTES // 2
        if placed is None:
            return
        if self._must_last(event, ride):
            self._owed = self._last = placed
        else:
            store.index.verify()  # it may be lost, but who was replaced may not even say it

    def _must_last(self, event: Event, ride: Ride) -> bool:
        """Whether to reply only when this is as durable as was asked for; otherwise it may be done again."""
        if isinstance(event, Delivered):
            return event.once or self._ack_sync
        if isinstance(event, Acked):
            return self._ack_sync or (isinstance(ride, Report) and bool(ride.values))
        return not isinstance(event, Returned)

    def _record_put(self, event: Put, batches: Sequence[Any]) -> None:
        store = self._store
        drafts = draft_puts(event, batches)
        segment = store.log.segment
        try:
            placed = store.append_puts(drafts)
        except BaseException:
            self._ledger.pages.skip(store.log.next_seq)  # what of it was written belongs to no put
            raise
        for draft, at in zip(drafts, placed):
            if draft.count:
                self._payloads.places[at.base] = Place(at.segment, at.pos, draft.blen)
        self._putting = placed[-1]
        self._grown += HEADER_BYTES * len(drafts)
        if placed[-1].segment is not segment:
            self._rolled = True

    def _commit(self, event: Put) -> None:
        self._await_put()
        super()._commit(event)

    def _await_put(self) -> None:
        """All that was put is as safe as it must be. Others may have the queue meanwhile, but not what we owe."""
        placed = self._putting
        assert placed is not None
        if self._sync != "batch":
            self._store.log.commit(placed)
            return
        owed, self._owed = self._owed, None
        with self._turn.away():
            self._store.log.commit(placed)
        self._owed = owed

    def _owe_what_is_told(self) -> None:
        """What is read now is told when it is safe, also if another thread still waits for that."""
        self._owed = self._last

    def _fail_damaged(self, runs: Sequence[Run], damage: DamagedRecord) -> None:
        event = self._ledger.decide_damaged(runs, self._clock())
        if event is None:
            return
        what = f"{damage.path} does not hold at byte {damage.position} what was written there"
        text = f"{DamagedPayload.__name__}: {what}"
        self._happen(event, {seq: Failure(0, b"", text) for lo, hi in event.runs for seq in range(lo, hi)})
        _log.error("%s: messages %s cannot be read and failed: %s", self._store.root, event.runs, damage)
