"""A queue that writes down what happens to it, before it happens in memory: core's queue over a store.

`_record` appends each event that core has decided. A put waits for the log before its messages may be leased; what must
last of the rest is owed, and paid at the end of the operation (`upkeep`), when nobody's turn is needed for it.

Not here: what an operation is, and its end (`upkeep`); reading it all back (`restoring`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from daskqueue_core.batch import Run
from daskqueue_core.contents import Ride
from daskqueue_core.errors import DamagedPayload
from daskqueue_core.events import Acked, Delivered, Event, Failed, Put, Returned
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.queue import TransientQueue
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.keydir import DiskPayloads, Place
from daskqueue_storage.records import draft_events, draft_packed, draft_puts
from daskqueue_storage.store import QueueStore
from daskqueue_storage.turn import Turn
from daskqueue_storage.writer import Placed

__all__ = ["HEADER_BYTES", "JournaledQueue"]

HEADER_BYTES: Final = 512  # about what replaying a put costs, in bytes of a snapshot
_EVENT_BYTES: Final = HEADER_BYTES // 2  # any other event, beside its body

_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_log = logging.getLogger("daskqueue_storage")


class JournaledQueue(TransientQueue):
    """Core's queue whose events are records of a store."""

    _store: QueueStore
    _payloads: DiskPayloads
    _turn: Turn
    _sync: str | float
    _ack_sync: bool
    _grown = 0
    """About what would have to be replayed, in bytes of a snapshot."""
    _putting: Placed | None = None  # the last record of the last put

    def _last_words(self, event: Failed, failures: Mapping[int, Failure]) -> Mapping[int, Failure]:
        """What dies takes its own bytes along, so that it needs no segment of the log."""
        filled: dict[int, Failure] = {}
        for entry, start, stop in self._payloads.pieces(event.runs):
            for seq in range(start, stop):
                failure = failures.get(seq)
                if failure is None:
                    continue
                if entry is not None and not failure.body:
                    failure = failure._replace(body=self._payloads.own_body(entry, seq))
                filled[seq] = failure
        return filled

    def _record(self, event: Event, ride: Ride) -> None:
        if event.__class__ is Put:
            self._record_put(event, ride)  # type: ignore[arg-type]  # with a put ride its batches
            return
        index, puts = self._store.index, self._ledger.pages.next_seq
        packed = draft_packed(event, ride, puts)
        if packed is not None:
            placed = index.append(packed)
            self._grown += packed.blen + _EVENT_BYTES
            must_last = self._ack_sync or (isinstance(event, Delivered) and event.once)
        else:
            for draft in draft_events(event, ride, puts):
                placed = index.append(draft)
                self._grown += draft.blen + _EVENT_BYTES
            must_last = self._must_last(event, ride)
        if must_last:
            self._turn.owed = self._turn.last = placed
        else:
            index.verify()  # it may be lost, but who was replaced may not even say it

    def _must_last(self, event: Event, ride: Ride) -> bool:
        """Whether to reply only when this is as durable as was asked for; otherwise it may be done again."""
        if isinstance(event, Delivered):
            return self._ack_sync or event.once
        if isinstance(event, Acked):
            return self._ack_sync or (ride is not None and isinstance(ride, Report) and bool(ride.values))
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
                self._payloads.places[at.base] = _new(Place, (at.segment, at.pos, draft.blen))
        self._putting = placed[-1]
        self._grown += HEADER_BYTES * len(drafts)
        if placed[-1].segment is not segment:
            store.shelf.has_grown = True

    def _commit(self, event: Put) -> None:
        self._await_put()
        self._ledger.commit(event.base + event.count)

    def _await_put(self) -> None:
        """All that was put is as safe as it must be. Others may have the queue meanwhile, but not what we owe."""
        placed = self._putting
        assert placed is not None
        if self._sync != "batch":
            self._store.log.verify()
            return
        turn = self._turn
        owed, turn.owed = turn.owed, None
        with self._turn.away():
            self._store.log.commit(placed)
        turn.owed = owed

    def _owe_what_is_told(self) -> None:
        """What is read now is told when it is safe, also if another thread still waits for that."""
        self._turn.owed = self._turn.last

    def _fail_damaged(self, runs: Sequence[Run], damage: DamagedRecord) -> None:
        event = self._ledger.decide_damaged(runs, self._clock())
        if event is None:
            return
        what = f"{damage.path} does not hold at byte {damage.position} what was written there"
        text = f"{DamagedPayload.__name__}: {what}"
        self._happen(event, {seq: Failure(0, b"", text) for lo, hi in event.runs for seq in range(lo, hi)})
        _log.error("%s: messages %s cannot be read and failed: %s", self._store.root, event.runs, damage)
