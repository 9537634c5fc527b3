"""A ledger as columns, and back."""

import pickle
import time
from array import array
from typing import Any

import pytest

from daskqueue_core.events import Blame, Delivered, Event, Expired, Put, Reason
from daskqueue_core.ledger import Duplicate, Early, Ledger
from daskqueue_core.states import MessageFlag, MessageState


def put(ledger: Ledger, count: int, now: int = 0, **options: Any) -> None:
    """Put and commit."""
    event = ledger.decide_put(count, now, **options)
    assert isinstance(event, Put)
    ledger.apply(event)
    ledger.commit(ledger.puts)


def do(ledger: Ledger, event: Event | None) -> None:
    """Apply what was decided."""
    assert event is not None
    ledger.apply(event)


def lease(ledger: Ledger, limit: int, owner: str = "a", **options: Any) -> Delivered:
    """A lease until 100."""
    event = ledger.decide_lease(limit, owner, 0, 100, **options)
    assert event is not None
    ledger.apply(event)
    return event


def busy() -> Ledger:
    """A ledger with something of everything."""
    ledger = Ledger(epoch=3, page_size=4)
    put(ledger, 10)
    put(ledger, 3, priority=-5, route=7)
    put(ledger, 2, keys=("käse", "\ud800"), producer=2**63, number=0)
    put(ledger, 0, producer=2**63, number=1)
    put(ledger, 4, ready_ats=array("Q", [90, 70, 80, 70]).tobytes(), expires_at=500)
    put(ledger, 2, priority=3, expires_at=40)
    first = lease(ledger, 5, "ä", request=9)
    second = lease(ledger, 5, "b", once=True)
    do(ledger, ledger.decide_cancel([(1, 2)], 0))
    do(ledger, ledger.decide_ack(first.lease, [(0, 1)], 0, keep=True))
    do(ledger, ledger.decide_return(first.lease, [(2, 3)], 0, reason=Reason.RETRY, blame=Blame.ATTEMPT, ready_at=60))
    ledger.heartbeat("b", {second.lease: (1, 3)}, (), 0, 0, 333)
    ledger.decide_ack(77, [(0, 1)], 0, keep=False)
    third = lease(ledger, 1, "c")
    for _ in range(2):
        for lost in ledger.decide_owner_lost("c", 0, reason=Reason.OWNER_LOST):
            do(ledger, lost)
        third = lease(ledger, 1, "c")
    do(ledger, ledger.decide_fail(third.lease, None, 0, reason=Reason.RETRY))
    ledger.validate()
    return ledger


def test_everything_is_there_again() -> None:
    """Its columns are the same, and it would go on the same."""
    ledger = busy()
    columns = ledger.snapshot()
    again = Ledger.restore(columns)
    again.validate()
    assert again.snapshot() == columns
    assert all(isinstance(column, bytes) for column in columns.values())
    for seq in range(ledger.puts):
        mine, theirs = (
            (one.state(seq), one.flags(seq), one.attempts(seq), one.crashes(seq), one.key_of(seq))
            for one in (ledger, again)
        )
        assert mine == theirs
    assert again.counts() == ledger.counts()
    assert again.counts()[MessageState.FAILED] == 1
    assert again.find_key("\ud800") == 14
    for one in (ledger, again):
        assert one.decide_put(1, 0, producer=2**63, number=0) == Duplicate(13, 2)
        assert isinstance(one.decide_put(1, 0, producer=2**63, number=3), Early)
        assert one.stale == 1
    held = again.find_grant("ä", 9)
    assert held is not None
    assert (held.granted, again.held(held.id)) == (((19, 21), (0, 3)), ledger.held(held.id))
    second = again.leases_of("b")[0]
    assert (second.once, second.finished, second.started, again.deadline("b")) == (True, 1, 3, 333)
    assert again.next_at() == ledger.next_at()
    mine, theirs = ([one.decide_due(now) for now in (39, 40, 61, 75, 99)] for one in (ledger, again))
    assert mine == theirs
    assert any(mine)


def test_it_survives_a_journey_and_is_independent() -> None:
    """Restored from copied bytes, twice: what happens to one does not reach the other."""
    columns = pickle.loads(pickle.dumps(busy().snapshot()))
    one, other = Ledger.restore(columns), Ledger.restore(columns)
    lease(one, 3, "d")
    for event in one.decide_owner_lost("b", 0, reason=Reason.OWNER_LOST):
        do(one, event)
    one.validate()
    other.validate()
    assert other.snapshot() == columns


def test_the_expiry_of_a_dead_letter() -> None:
    """Requeued after a restart, and before its time, it can still expire."""
    ledger = Ledger(page_size=4)
    put(ledger, 1, expires_at=50)
    do(ledger, ledger.decide_fail(lease(ledger, 1).lease, None, 0, reason=Reason.RETRY))
    again = Ledger.restore(ledger.snapshot())
    do(again, again.decide_requeue([(0, 1)], 10))
    assert again.decide_due(50) == [Expired(50, ((0, 1),))]


def test_an_expiry_that_was_decided_and_not_recorded() -> None:
    """It is decided again."""
    ledger = Ledger(page_size=4)
    put(ledger, 2, expires_at=50)
    assert ledger.decide_due(60) == [Expired(60, ((0, 2),))]
    again = Ledger.restore(ledger.snapshot())
    assert again.next_at() == 60
    assert again.decide_due(61) == [Expired(61, ((0, 2),))]


def test_pieces_are_cut_anew() -> None:
    """Suspects stay apart; where they were cut is forgotten."""
    ledger = Ledger(page_size=4)
    put(ledger, 20)
    lease(ledger, 16)
    for event in ledger.decide_owner_lost("a", 0, reason=Reason.OWNER_LOST):
        do(ledger, event)
    assert lease(ledger, 99).runs == ((0, 2),)
    again = Ledger.restore(ledger.snapshot())
    again.validate()
    assert lease(again, 99).runs == ((2, 4),)
    assert again.flags(5) is MessageFlag.SUSPECT


def test_a_new_epoch() -> None:
    """Leases of the old host go along; the new one numbers its own."""
    ledger = Ledger(epoch=3)
    put(ledger, 4)
    old = lease(ledger, 2)
    assert Ledger.restore(ledger.snapshot()).decide_lease(1, "a", 0, 9) == ledger.decide_lease(1, "a", 0, 9)
    again = Ledger.restore(ledger.snapshot(), epoch=8)
    assert again.epoch == 8
    assert again.held(old.lease) == ((0, 2),)
    assert lease(again, 2).lease == (8 << 40) + 1


def test_another_format() -> None:
    """Refused, and named."""
    columns = Ledger().snapshot()
    columns["META"] = (99).to_bytes(4, "little") + columns["META"][4:]
    with pytest.raises(ValueError, match="format 99"):
        Ledger.restore(columns)


def test_ten_million_ready_messages_are_small_and_quick() -> None:
    """Nothing for each message: 100 kB, and restored in far less than a second."""
    ledger = Ledger()
    for _ in range(1000):
        put(ledger, 10_000)
    columns = ledger.snapshot()
    assert sum(map(len, columns.values())) < 100_000
    start = time.process_time()
    again = Ledger.restore(columns)
    assert time.process_time() - start < 0.5
    assert (again.ready, again.puts) == (10_000_000, 10_000_000)
    assert lease(again, 1000).runs == ((0, 1000),)


def test_a_million_with_every_second_one_finished() -> None:
    """A byte each, and no loop over them."""
    ledger = Ledger()
    put(ledger, 1_000_000)
    do(ledger, ledger.decide_ack(1, [(seq, seq + 1) for seq in range(0, 1_000_000, 2)], 0, keep=False))
    columns = ledger.snapshot()
    assert sum(map(len, columns.values())) < 1_100_000
    start = time.process_time()
    again = Ledger.restore(columns)
    assert time.process_time() - start < 0.5
    assert again.ready == 500_000
    assert lease(again, 2).runs == ((1, 2), (3, 4))
