"""Recovery with records missing: what fits is applied, the rest dropped and counted."""

import pytest

from daskqueue_core.events import (
    Acked,
    Blame,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Put,
    Reason,
    Requeued,
    Returned,
)
from daskqueue_core.ledger import Ledger
from daskqueue_core.states import MessageState

GONE, READY, DELIVERED = MessageState.GONE, MessageState.READY, MessageState.DELIVERED
FAILED, CANCELLED, SCHEDULED = MessageState.FAILED, MessageState.CANCELLED, MessageState.SCHEDULED


def replayed(*events: Event) -> Ledger:
    """A ledger that is told these; valid after each."""
    ledger = Ledger(page_size=4)
    for event in events:
        ledger.replay(event)
        ledger.validate()
    return ledger


def states(ledger: Ledger) -> list[MessageState]:
    """Of all messages."""
    return [ledger.state(seq) for seq in range(ledger.puts)]


def test_nothing_is_dropped_of_what_fits() -> None:
    """Then a replay is an `apply`."""
    ledger = replayed(
        Put(0, 0, 4),
        Delivered(1, ((0, 3),), 1, "a"),
        Acked(2, ((0, 1),), 1, False),
        Failed(3, ((1, 2),), 1, Reason.RETRY),
    )
    assert states(ledger) == [GONE, FAILED, DELIVERED, READY]
    assert ledger.dropped == 0


def test_a_lost_put_leaves_a_hole() -> None:
    """Its numbers are GONE, what speaks of them is dropped, and the numbers after it are right (case 13)."""
    ledger = replayed(
        Put(0, 0, 2), Put(0, 7, 3), Delivered(1, ((0, 2), (5, 9)), 1, "a"), Acked(2, ((4, 10),), 1, False)
    )
    assert states(ledger) == [DELIVERED] * 2 + [GONE] * 8
    assert ledger.dropped == 2 + 3
    lease = ledger.lease(1)
    assert lease is not None
    assert lease.granted == ((0, 2), (5, 9))
    assert ledger.replay(Acked(3, ((50, 60),), 1, False)) == ()
    assert ledger.dropped == 15


def test_a_put_that_is_known_already() -> None:
    """It is in the snapshot: dropped."""
    ledger = replayed(Put(0, 0, 2), Put(0, 0, 2))
    assert (ledger.puts, ledger.dropped) == (2, 2)


def test_progress_counts_in_what_was_granted() -> None:
    """Although some of it is GONE since (case 12)."""
    ledger = replayed(Put(0, 0, 4), Acked(1, ((0, 1),), 7, False), Delivered(2, ((0, 4),), 1, "a", deadline=99))
    ledger.heartbeat("a", {1: (1, 2)}, (), 0, 3, 100)
    back, crash = ledger.decide_owner_lost("a", 4, reason=Reason.OWNER_LOST)
    assert back == Returned(4, ((2, 4),), 1, Reason.OWNER_LOST)
    assert crash == Returned(4, ((1, 2),), 1, Reason.OWNER_LOST, Blame.CRASH)


def test_a_lease_of_nothing_is_no_lease() -> None:
    """Its number is used all the same."""
    ledger = replayed(Put(0, 0, 2), Acked(1, ((0, 2),), 5, False), Delivered(2, ((0, 2),), 5, "a"))
    assert (ledger.owners(), ledger.dropped) == ([], 2)
    ledger.apply(Put(3, 2, 1))
    ledger.commit(3)
    event = ledger.decide_lease(1, "b", 3, 9)
    assert event is not None
    assert event.lease == 6


@pytest.mark.parametrize(
    "event",
    [
        Returned(2, ((0, 2),), 1, Reason.RELEASED),
        Failed(2, ((0, 2),), 1, Reason.RETRY),
        Cancelled(2, ((0, 2),), 1),
        Expired(2, ((0, 2),), 1, True),
        Requeued(2, ((0, 2),)),
        Forgotten(2, ((0, 2),)),
    ],
    ids=lambda event: type(event).__name__,
)
def test_its_predecessor_is_lost(event: Event) -> None:
    """The lease was never recorded, or the end: nothing happens."""
    ledger = replayed(Put(0, 0, 2), event)
    assert (states(ledger), ledger.dropped) == ([READY, READY], 2)


def test_the_end_of_an_older_lease_is_lost() -> None:
    """Delivered twice, as it seems: it stays with the first; good news is taken from the second, bad news is not."""
    ledger = replayed(
        Put(0, 0, 3),
        Delivered(1, ((0, 2),), 1, "a"),
        Delivered(2, ((0, 3),), 2, "b"),
        Failed(3, ((1, 2),), 2, Reason.RETRY),
        Acked(4, ((0, 1),), 2, False),
    )
    assert states(ledger) == [GONE, DELIVERED, DELIVERED]
    assert (ledger.held(1), ledger.held(2), ledger.dropped) == (((1, 2),), ((2, 3),), 3)


def test_damage_and_expiry_without_a_lease() -> None:
    """They need no holder."""
    ledger = replayed(Put(0, 0, 3), Failed(1, ((0, 1), (5, 6)), 0, Reason.DAMAGED), Expired(2, ((0, 2),)))
    assert states(ledger) == [FAILED, MessageState.EXPIRED, READY]
    assert ledger.dropped == 2


def test_a_keyed_put_proves_the_end_of_the_older_holder() -> None:
    """In whatever state it seems to be: the record of its end is lost (case 11). Its payload is freed."""
    old = Put(0, 0, 2, keys=("x", "y"))
    for between in (
        [],
        [Delivered(1, ((0, 2),), 1, "a")],
        [Acked(1, ((0, 2),), 1, True)],
        [Delivered(1, ((0, 2),), 1, "a"), Failed(2, ((0, 2),), 1, Reason.RETRY)],
    ):
        ledger = replayed(old, *between)
        freed = ledger.replay(Put(3, 2, 1, keys=("x",)))
        ledger.validate()
        assert ledger.state(0) is GONE
        assert (ledger.find_key("x"), ledger.find_key("y"), ledger.dropped) == (2, 1, 0)
        assert freed == (() if between and isinstance(between[-1], Acked) else ((0, 1),))


def test_a_key_taken_from_one_that_is_asked_to_stop() -> None:
    """That is how it was: it keeps its lease."""
    ledger = replayed(Put(0, 0, 1, keys=("x",)), Delivered(1, ((0, 1),), 1, "a"))
    event = ledger.decide_cancel([(0, 1)], 2)
    assert event is not None
    ledger.replay(event)
    assert ledger.replay(Put(3, 1, 1, keys=("x",))) == ()
    ledger.validate()
    assert (ledger.state(0), ledger.held(1)) == (DELIVERED, ((0, 1),))


def test_a_replay_reads_the_time_in_events() -> None:
    """What was scheduled falls due when an event says so; what was recorded of it before stays right."""
    ledger = replayed(
        Put(0, 0, 2, ready_at=10),
        Delivered(11, ((0, 2),), 1, "a", deadline=99),
        Returned(12, ((0, 2),), 1, Reason.RETRY, Blame.ATTEMPT, 30),
    )
    assert ledger.decide_due(29) == []
    assert states(ledger) == [SCHEDULED] * 2
    assert len(ledger.waiting) == 1
    assert ledger.decide_due(30) == []
    assert states(ledger) == [READY] * 2
