"""Recovery when records are missing: what of an event still fits the ledger.

A record can be lost (a torn tail, a flipped bit, one log ahead of the other), and those after it then speak of
messages that are elsewhere, or were never put. What fits of an event is applied, the rest is dropped and counted: the
ledger stays valid, and at worst a message is delivered again.
"""

from __future__ import annotations

from daskqueue_core.batch import Run
from daskqueue_core.events import (
    Acked,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Purged,
    Put,
    Reason,
    Requeued,
    Returned,
)
from daskqueue_core.ledger_state import LedgerState
from daskqueue_core.runs import clean, intersection, total
from daskqueue_core.states import ByteClass, Move, accepted

__all__ = ["fitting"]

_ACCEPTED = {
    Delivered: accepted(Move.DELIVERED),
    Acked: accepted(Move.ACKED_DROP),
    Returned: accepted(Move.RETURNED),
    Failed: accepted(Move.FAILED),
    CancelAsked: accepted(Move.CANCEL_ASKED),
    Cancelled: accepted(Move.CANCELLED),
    Expired: accepted(Move.EXPIRED),
    Requeued: accepted(Move.REQUEUED),
    Purged: accepted(Move.PURGED),
    Forgotten: accepted(Move.FORGOTTEN),
}
_DAMAGED = accepted(Move.DAMAGED)
_HOLDERS = (Returned, Failed, Cancelled, Expired)


def fitting(ledger: LedgerState, event: Event) -> tuple[Event | None, int]:
    """`event` as far as it fits, None if not at all; how many messages of it do not."""
    if isinstance(event, Put):
        return _put(ledger, event)
    wanted: ByteClass = _ACCEPTED[type(event)]
    runs: list[Run] = list(event.runs)
    if isinstance(event, Failed) and event.reason is Reason.DAMAGED:
        wanted = _DAMAGED
    elif isinstance(event, Expired) and event.agreed:
        wanted = _ACCEPTED[Cancelled]
    if isinstance(event, Delivered) and event.lease in ledger.leases.by_id:
        runs = []
    elif isinstance(event, _HOLDERS) and event.lease:
        lease = ledger.leases.by_id.get(event.lease)
        runs = intersection(clean(runs), clean(lease.runs)) if lease is not None else []
    puts = ledger.puts
    fit = tuple(ledger.pages.select([(start, min(stop, puts)) for start, stop in runs if start < puts], wanted))
    if not fit:
        return None, total(event.runs)
    if fit == event.runs:
        return event, 0
    return event._replace(runs=fit), total(event.runs) - total(fit)


def _put(ledger: LedgerState, event: Put) -> tuple[Event | None, int]:
    """A put whose predecessors are lost leaves a hole; one that is known already is dropped."""
    if event.base < ledger.puts:
        return None, event.count
    if event.base > ledger.puts:
        ledger.pages.skip(event.base)
    return event, 0
