"""What recovery makes of the events of a `LedgerPair`: the same ledger, or with records missing a valid one.

A replay looks at the clock when an event says what time it is, the living ledger also between events. So both are
brought to the same time before they are compared.
"""

from __future__ import annotations

from collections.abc import Collection

from daskqueue_core.events import Put
from daskqueue_core.ledger import Ledger
from daskqueue_core.testing.ledger_compare import compare_lasting
from daskqueue_core.testing.ledger_pair import EPOCH, LedgerPair

__all__ = ["compare_incomplete", "compare_puts_first", "compare_replayed"]


def compare_replayed(pair: LedgerPair) -> None:
    """A fresh ledger that is told the events knows the same, and would go on the same."""
    again = _fresh(pair)
    for event in pair.events:
        again.apply(event)
    _compare(pair, again)


def compare_puts_first(pair: LedgerPair) -> None:
    """So it is if it hears of all puts before everything else, as a store with a log for each tells it."""
    if pair.model.replaced:
        return  # a key taken from a message in somebody's hands: gone at once here, when it ends there
    again = _fresh(pair)
    for event in sorted(pair.events, key=lambda event: not isinstance(event, Put)):
        again.replay(event)
    _compare(pair, again)


def compare_incomplete(pair: LedgerPair, lost: Collection[int]) -> None:
    """With the events at these positions lost the ledger is valid, and everything unfinished can still be ended."""
    again = _fresh(pair)
    for at, event in enumerate(pair.events):
        if at not in lost:
            again.replay(event)
            again.validate()
    if not lost:
        assert again.dropped == 0
    again.commit(again.puts)
    again.decide_due(pair.latest)
    while (lease := again.decide_lease(3, "z", pair.latest, 1)) is not None:
        again.apply(lease)
        again.validate()
    for owner in again.owners():
        for held in again.leases_of(owner):
            done = again.decide_ack(held.id, None, pair.latest, keep=False)
            assert done is not None
            again.apply(done)
            again.validate()
    assert again.ready == 0
    assert again.owners() == []


def _fresh(pair: LedgerPair) -> Ledger:
    return Ledger(epoch=EPOCH, page_size=pair.page_size)


def _compare(pair: LedgerPair, again: Ledger) -> None:
    again.commit(pair.model.committed)
    for ledger in (pair.ledger, again):
        ledger.decide_due(pair.latest)
    pair.model.ripen(pair.latest)
    pair.model.collect(pair.latest)
    compare_lasting(pair.model, again, live=False)
    for producer, puts in pair.model.producers.items():
        answers = [ledger.decide_put(1, 0, producer=producer, number=len(puts)) for ledger in (pair.ledger, again)]
        assert answers[0] == answers[1]
    if not any(message.suspect for message in pair.model.messages):  # where their pieces were cut is not recorded
        mine, theirs = (ledger.decide_lease(1 << 30, "a", 0, 1) for ledger in (pair.ledger, again))
        assert mine == theirs, f"{mine} and {theirs}"
