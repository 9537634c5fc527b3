"""The ledger's promises, one by one. (`test_ledger_machine` walks at random; here are the walks worth a name.)"""

from array import array
from typing import Any

import pytest

from daskqueue_core.errors import DaskQueueError, IllegalMove
from daskqueue_core.events import (
    Acked,
    Blame,
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
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.states import MessageFlag, MessageState

GONE, READY, DELIVERED = MessageState.GONE, MessageState.READY, MessageState.DELIVERED
ACKED, FAILED, CANCELLED = MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED
SCHEDULED, EXPIRED = MessageState.SCHEDULED, MessageState.EXPIRED
SUSPECT, CANCEL, OVERDUE = MessageFlag.SUSPECT, MessageFlag.CANCEL, MessageFlag.OVERDUE
Runs = list[tuple[int, int]]


class Desk:
    """A ledger whose events are applied as they are decided, and which is validated each time."""

    def __init__(self, count: int = 0, page_size: int = 4) -> None:
        self.ledger = Ledger(page_size=page_size)
        self.now = 0
        self.freed: Runs = []
        if count:
            self.put(count)

    def do(self, event: Event | None) -> Runs:
        """Apply; returns what was freed."""
        freed = self.ledger.apply(event) if event is not None else ()
        self.ledger.validate()
        return list(freed)

    def put(self, count: int, **options: Any) -> object:
        """Put and commit; returns the answer. `freed`: what the last put freed."""
        answer = self.ledger.decide_put(count, self.now, **options)
        if isinstance(answer, Put):
            self.freed = self.do(answer)
            self.ledger.commit(self.ledger.puts)
        return answer

    def lease(self, limit: int = 100, owner: str = "a", *, once: bool = False, request: int = 0) -> Delivered:
        """Lease for 100 ns."""
        event = self.ledger.decide_lease(limit, owner, self.now, 100, once=once, request=request)
        assert event is not None
        self.do(event)
        return event

    def ack(self, lease: int, runs: Runs | None = None, *, keep: bool = False) -> Runs:
        """Returns what was news."""
        event = self.ledger.decide_ack(lease, runs, self.now, keep=keep)
        assert self.do(event) == list(event.runs if event else ())
        return list(event.runs) if event else []

    def give_back(self, lease: int, runs: Runs | None = None) -> Runs:
        """Returns what was freed."""
        return self.do(self.ledger.decide_return(lease, runs, self.now, reason=Reason.RELEASED))

    def lost(self, owner: str) -> list[Event]:
        """Returns what happened."""
        events = self.ledger.decide_owner_lost(owner, self.now, reason=Reason.OWNER_LOST)
        for event in events:
            self.do(event)
        return events

    def forget_lease(self, lease: Delivered) -> None:
        """The owner is heard of, and does not hold it."""
        for event in self.ledger.heartbeat(lease.owner, {}, (), 1 << 30, self.now, 100):
            self.do(event)

    def fail(self, lease: int, runs: Runs | None = None, reason: Reason = Reason.REJECTED) -> Runs:
        """Returns what was freed."""
        return self.do(self.ledger.decide_fail(lease, runs, self.now, reason=reason))

    def due(self, now: int, **kwargs: Any) -> list[Event]:
        """Let time pass; returns what happened."""
        self.now = now
        happened: list[Event] = []
        while events := self.ledger.decide_due(now, **kwargs):
            for event in events:
                self.do(event)
            happened += events
        return happened

    def states(self) -> list[MessageState]:
        """Of all messages."""
        return [self.ledger.state(seq) for seq in range(self.ledger.puts)]


# -- the life of a message


def test_what_asks_for_nothing_is_decided_the_short_way() -> None:
    """A put without options is the same event; the next message is, where nothing is in the way of it."""
    desk = Desk(2)
    ledger = desk.ledger
    for route in (0, 3):
        assert ledger.decide_plain_put(5, 7, route) == ledger.decide_put(5, 7, route=route)
    event = ledger.decide_next("a", 7, 100, True)
    assert event == ledger.decide_lease(1, "a", 7, 100, once=True) == Delivered(7, ((0, 1),), 1, "a", True, 107)
    desk.do(event)
    assert ledger.decide_next("a", 7, 100, False) == Delivered(7, ((1, 2),), 2, "a", False, 107)


def test_where_the_next_message_is_not_simply_the_next() -> None:
    """Nothing there, not committed, one came back, a suspect, one was cancelled, another lane: `decide_lease` knows."""

    def following(desk: Desk) -> Delivered | None:
        return desk.ledger.decide_next("a", desk.now, 100, False)

    assert following(Desk()) is None
    desk = Desk()
    desk.do(desk.ledger.decide_put(1, 0))  # type: ignore[arg-type]
    assert following(desk) is None
    desk = Desk(3)
    lease = desk.lease(1)
    assert following(desk) is not None
    desk.give_back(lease.lease)
    assert following(desk) is None
    desk = Desk()
    desk.put(1, suspect=True)
    desk.put(2)
    assert following(desk) is None
    desk = Desk(3)
    desk.do(desk.ledger.decide_cancel([(0, 1)], 0))
    assert following(desk) is None
    desk = Desk(3)
    desk.put(1, priority=1)
    assert following(desk) is None
    desk = Desk(1)
    desk.put(1, route=1)
    desk.ack(desk.lease(1).lease)
    desk.ack(desk.lease(1).lease)
    desk.put(1, route=1)
    assert following(desk) in (None, desk.ledger.decide_lease(1, "a", 0, 100))


def test_put_lease_ack() -> None:
    """The common life: nothing is left of it but the numbers."""
    desk = Desk(10)
    lease = desk.lease(10)
    assert lease == Delivered(0, ((0, 10),), 1, "a", False, 100, 0)
    assert desk.ack(lease.lease) == [(0, 10)]
    assert desk.states() == [GONE] * 10
    assert (desk.ledger.puts, desk.ledger.finished, desk.ledger.unfinished, desk.ledger.ready) == (10, 10, 0, 0)
    assert desk.ledger.owners() == []


def test_kept_outcome_until_forgotten() -> None:
    """The payload is freed at the ack, once; forgetting frees nothing."""
    desk = Desk(4)
    desk.ack(desk.lease().lease, keep=True)
    assert desk.ledger.counts()[ACKED] == 4
    event = desk.ledger.decide_forget([(0, 2), (3, 9)], 0)
    assert desk.do(event) == []
    assert desk.states() == [GONE, GONE, ACKED, GONE]


def test_lowest_number_first_and_returned_to_the_front() -> None:
    """FIFO at first delivery; what comes back is next."""
    desk = Desk(20)
    first = desk.lease(8)
    assert desk.lease(4).runs == ((8, 12),)
    desk.give_back(first.lease, [(2, 4)])
    assert desk.lease(4).runs == ((2, 4), (12, 14))


def test_only_committed_messages_are_leased() -> None:
    """A put whose record is not on disk yet is nobody's."""
    desk = Desk(3)
    desk.do(desk.ledger.decide_put(5, 0))
    assert desk.lease().runs == ((0, 3),)
    assert desk.ledger.decide_lease(9, "a", 0, 100) is None
    desk.ledger.commit(8)
    desk.ledger.commit(2)
    assert desk.lease().runs == ((3, 8),)
    with pytest.raises(ValueError, match="commit\\(9\\)"):
        desk.ledger.commit(9)


def test_no_lease_of_nothing() -> None:
    """An empty queue, and a limit of 0, grant nothing."""
    desk = Desk()
    assert desk.ledger.decide_lease(1, "a", 0, 100) is None
    desk.put(1)
    assert desk.ledger.decide_lease(0, "a", 0, 100) is None


def test_failed_is_final() -> None:
    """A dead letter: its payload is kept, and a late success is stale."""
    desk = Desk(4)
    lease = desk.lease()
    event = desk.ledger.decide_fail(lease.lease, [(1, 2)], 5, reason=Reason.REJECTED)
    assert event == Failed(5, ((1, 2),), 1, Reason.REJECTED)
    assert desk.do(event) == []
    assert desk.ack(lease.lease, [(0, 2)]) == [(0, 1)]
    assert desk.ledger.stale == 1
    assert desk.ledger.decide_forget([(1, 2)], 0) is None
    assert desk.states() == [GONE, FAILED, DELIVERED, DELIVERED]


# -- who may report what


def test_half_acked_then_lost() -> None:
    """Only what is still delivered goes back (interleaving 10)."""
    desk = Desk(10)
    lease = desk.lease()
    desk.ack(lease.lease, [(0, 5)])
    assert desk.lost("a") == [Returned(0, ((5, 10),), 1, Reason.OWNER_LOST, Blame.SUSPECTED)]
    assert [desk.lease(owner="b").runs for _ in range(5)] == [((seq, seq + 1),) for seq in range(5, 10)]


def test_late_success_wins_late_failure_is_stale() -> None:
    """A lapses, B runs it: A's success ends it, B's is stale; A's failure is nothing (interleaving 5)."""
    desk = Desk(2)
    a = desk.lease(owner="a")
    desk.forget_lease(a)
    b = desk.lease(owner="b")
    assert desk.ledger.decide_fail(a.lease, [(1, 2)], 0, reason=Reason.REJECTED) is None
    assert desk.ack(a.lease, [(0, 1)]) == [(0, 1)]
    assert desk.ack(b.lease, [(0, 1)]) == []
    assert desk.ledger.stale == 2
    assert desk.ledger.held(b.lease) == ((1, 2),)


def test_late_success_partly_accepted() -> None:
    """A loses 0..1000, B finishes half, A's one answer comes: the other half is accepted (interleaving 6)."""
    desk = Desk(1000, page_size=64)
    a = desk.lease(1000, "a")
    desk.forget_lease(a)
    b = desk.lease(1000, "b")
    desk.ack(b.lease, [(0, 500)])
    assert desk.ack(a.lease, [(0, 1000)]) == [(500, 1000)]
    assert desk.ledger.stale == 500
    assert desk.ledger.lease(b.lease) is None


def test_late_success_of_a_ready_message() -> None:
    """Nobody has it now: the rerun is saved."""
    desk = Desk(10)
    a = desk.lease(4)
    desk.forget_lease(a)
    assert desk.ack(a.lease, [(1, 3)]) == [(1, 3)]
    assert desk.lease().runs == ((0, 1), (3, 10))


def test_failed_part_is_no_longer_its_own() -> None:
    """What a lease failed or gave back it cannot report again, though somebody else holds it now."""
    desk = Desk(4)
    a = desk.lease(4, "a")
    desk.give_back(a.lease, [(1, 2)])
    b = desk.lease(4, "b")
    assert b.runs == ((1, 2),)
    assert desk.ledger.decide_return(a.lease, [(1, 2)], 0, reason=Reason.RELEASED) is None
    assert desk.ledger.decide_fail(a.lease, [(1, 2)], 0, reason=Reason.REJECTED) is None
    assert desk.ledger.held(b.lease) == ((1, 2),)


def test_ack_shuffled_twice_and_of_strange_numbers() -> None:
    """The set of messages counts, each once; what was never put is stale."""
    desk = Desk(6)
    lease = desk.lease()
    assert desk.ack(lease.lease, [(4, 5), (0, 2), (1, 2), (-3, 0), (6, 8), (3, 3)]) == [(0, 2), (4, 5)]
    assert desk.ledger.stale == 5


# -- cancel


def test_cancel_ready_and_delivered() -> None:
    """Ready ones end at once; of delivered ones the holder is asked, once."""
    desk = Desk(6)
    lease = desk.lease(3)
    assert desk.do(desk.ledger.decide_cancel([(2, 5)], 0)) == [(3, 5)]
    assert desk.ledger.flags(2) is MessageFlag.CANCEL
    assert desk.ledger.cancels("a") == {lease.lease: ((2, 3),)}
    assert desk.ledger.cancels("b") == {}
    assert desk.ledger.decide_cancel([(2, 5)], 0) is None
    event = desk.ledger.decide_agree(lease.lease, [(2, 3)], 0)
    assert event == Cancelled(0, ((2, 3),), lease.lease)
    assert desk.do(event) == [(2, 3)]
    assert desk.ledger.cancels("a") == {}


def test_cancelled_while_delivered_never_runs_again() -> None:
    """Its consumer dies before it agrees: CANCELLED (interleaving 8)."""
    desk = Desk(4)
    desk.lease(4)
    desk.do(desk.ledger.decide_cancel([(1, 3)], 0))
    [event] = desk.ledger.decide_owner_lost("a", 0, reason=Reason.OWNER_LOST)
    assert desk.do(event) == [(1, 3)]
    assert desk.states() == [READY, CANCELLED, CANCELLED, READY]
    assert [desk.lease().runs for _ in range(2)] == [((0, 1),), ((3, 4),)]


def test_first_outcome_wins_over_a_cancel() -> None:
    """It ran after all: a success is a success, a failure a failure."""
    desk = Desk(2)
    lease = desk.lease()
    desk.do(desk.ledger.decide_cancel([(0, 2)], 0))
    assert desk.ack(lease.lease, [(0, 1)], keep=True) == [(0, 1)]
    assert desk.do(desk.ledger.decide_fail(lease.lease, [(1, 2)], 0, reason=Reason.REJECTED)) == []
    assert desk.states() == [ACKED, FAILED]
    assert desk.ledger.flags(0) == MessageFlag(0)


# -- owners and time


def test_deadline_of_a_silent_owner() -> None:
    """At its deadline an owner is lost, not before; a heartbeat renews all its leases."""
    desk = Desk(4)
    desk.lease(2)
    desk.now = 60
    desk.ledger.heartbeat("a", {1: (0, 2)}, (), 0, 60, 100)
    assert desk.ledger.next_at() == desk.ledger.deadline("a") == 160
    assert desk.ledger.decide_due(159) == []
    assert desk.ledger.decide_due(160) == [Returned(160, ((0, 2),), 1, Reason.LAPSED, Blame.SUSPECTED)]


def test_clock_going_back_shortens_nothing() -> None:
    """Deadlines only grow."""
    desk = Desk(4)
    desk.lease(2)
    desk.now = -500
    desk.lease(2)
    desk.ledger.heartbeat("a", {1: (0, 2), 2: (0, 2)}, (), 0, -400, 100)
    assert desk.ledger.deadline("a") == 100


def test_deaf_queue_expires_nobody() -> None:
    """The host was away for 90 s: deadlines move by the gap (interleaving 11)."""
    desk = Desk(1)
    desk.lease()
    desk.ledger.shift_deadlines(90)
    assert desk.ledger.decide_due(189) == []
    assert len(desk.ledger.decide_due(190)) == 1
    with pytest.raises(ValueError, match="only grow"):
        desk.ledger.shift_deadlines(-1)


def test_heartbeat_before_the_grant() -> None:
    """Sent while the request was open, or before it: nothing is released (interleaving 3)."""
    desk = Desk(4)
    desk.lease(2, request=7)
    assert desk.ledger.heartbeat("a", {}, [7], 7, 0, 100) == []
    assert desk.ledger.heartbeat("a", {}, [], 6, 0, 100) == []


def test_lost_grant_is_released_once() -> None:
    """The owner asked, never got it, and does not ask any more (interleaving 4)."""
    desk = Desk(4)
    lease = desk.lease(2, request=7)
    grant = desk.ledger.find_grant("a", 7)
    assert grant is not None
    assert grant.id == lease.lease
    [event] = desk.ledger.heartbeat("a", {}, [], 7, 5, 100)
    assert event == Returned(5, ((0, 2),), lease.lease, Reason.UNLISTED)
    desk.do(event)
    assert desk.ledger.heartbeat("a", {}, [], 7, 5, 100) == []
    assert desk.ledger.find_grant("a", 7) is None


def test_find_grant_is_by_owner_and_number() -> None:
    """Request 0 is no request; another owner's number is another request."""
    desk = Desk(4)
    desk.lease(2, request=7)
    desk.lease(2)
    assert desk.ledger.find_grant("b", 7) is None
    assert desk.ledger.find_grant("a", 0) is None


def test_progress_is_only_taken_from_the_owner() -> None:
    """And of leases it has."""
    desk = Desk(4)
    lease = desk.lease()
    desk.ledger.heartbeat("b", {lease.lease: (1, 1), 99: (0, 0)}, (), 0, 0, 100)
    held = desk.ledger.lease(lease.lease)
    assert held is not None
    assert (held.finished, held.started) == (0, 4)


def test_once_never_runs_twice() -> None:
    """Early ack, owner lost: what may have begun fails, also what had finished; the rest goes back (interleaving 9)."""
    desk = Desk(10)
    lease = desk.lease(once=True)
    desk.ledger.heartbeat("a", {lease.lease: (2, 4)}, (), 0, 0, 100)
    desk.ack(lease.lease, [(0, 1)])
    events = desk.lost("a")
    assert events == [
        Failed(0, ((1, 4),), lease.lease, Reason.EARLY_ACK),
        Returned(0, ((4, 10),), lease.lease, Reason.OWNER_LOST),
    ]


def test_progress_counts_what_was_granted() -> None:
    """Parts that failed or went back since do not shift its positions."""
    desk = Desk(10)
    lease = desk.lease(once=True)
    desk.give_back(lease.lease, [(1, 3)])
    desk.ledger.heartbeat("a", {lease.lease: (0, 5)}, (), 0, 0, 100)
    assert [event.runs for event in desk.lost("a") if isinstance(event, (Failed, Returned))] == [
        ((0, 1), (3, 5)),
        ((5, 10),),
    ]


def test_once_without_a_word_fails_whole() -> None:
    """Nothing was said of its progress, so all of it may have begun."""
    desk = Desk(3)
    lease = desk.lease(once=True)
    assert desk.lost("a") == [Failed(0, ((0, 3),), lease.lease, Reason.EARLY_ACK)]


def test_once_whose_grant_was_lost_goes_back() -> None:
    """It never arrived, so it never began. Once it was listed, that is not sure any more."""
    desk = Desk(4)
    desk.lease(2, once=True, request=1)
    [event] = desk.ledger.heartbeat("a", {}, (), 1, 0, 100)
    assert isinstance(event, Returned)
    desk.do(event)
    lease = desk.lease(2, once=True, request=2)
    desk.ledger.heartbeat("a", {lease.lease: (0, 1)}, (), 2, 0, 100)
    events = desk.ledger.heartbeat("a", {}, (), 2, 0, 100)
    assert [type(event) for event in events] == [Failed, Returned]


# -- choosing


def test_choose_is_offered_runs_as_it_asks() -> None:
    """Ascending, committed, and not one more than asked for."""
    desk = Desk(100_000, page_size=64)
    first = desk.lease(300)
    desk.give_back(first.lease, [(10, 20), (290, 300)])
    offered: Runs = []

    def choose(runs):  # type: ignore[no-untyped-def]
        for run in runs:
            offered.append(run)
            if len(offered) == 3:
                break
        return [(12, 14), (295, 300)]

    event = desk.ledger.decide_lease(5, "b", 0, 100, choose=choose)
    assert event is not None
    assert event.runs == ((12, 14), (295, 298))
    assert offered[:2] == [(10, 20), (290, 300)]
    assert offered[2][0] == 300
    desk.do(event)


def test_choose_may_skip() -> None:
    """Holes stay ready, in their place; what is next to each other is one run."""
    desk = Desk(12)
    event = desk.ledger.decide_lease(9, "a", 0, 100, choose=lambda runs: [*runs] and [(5, 6), (6, 8)])
    assert event is not None
    assert event.runs == ((5, 8),)
    desk.do(event)
    assert desk.lease().runs == ((0, 5), (8, 12))


def test_choose_nothing() -> None:
    """No lease."""
    assert Desk(4).ledger.decide_lease(9, "a", 0, 100, choose=lambda runs: []) is None


@pytest.mark.parametrize("picked", [[(0, 2)], [(9, 13)], [(3, 5), (11, 12)]])
def test_choose_must_stay_inside_what_it_was_offered(picked: Runs) -> None:
    """A mistake of the caller, named, before anything happens."""
    desk = Desk(12)
    desk.lease(3)
    desk.ledger.committed = 11
    with pytest.raises(ValueError, match="not offered"):
        desk.ledger.decide_lease(9, "a", 0, 100, choose=lambda runs: [*runs] and picked)


# -- producers


def test_puts_of_a_producer() -> None:
    """In order and once: early ones wait, repeated ones get the first answer (interleaving 1)."""
    desk = Desk(5)
    assert isinstance(desk.put(3, producer=9, number=1), UnknownProducer)
    desk.put(2, producer=9, number=0)
    assert isinstance(desk.put(3, producer=9, number=2), Early)
    desk.put(3, producer=9, number=1)
    assert desk.put(3, producer=9, number=1) == Duplicate(7, 3)
    assert desk.ledger.puts == 10


def test_put_of_nothing() -> None:
    """At least one message."""
    with pytest.raises(ValueError, match="count=0"):
        Desk().ledger.decide_put(0, 0)


# -- events


def test_a_decision_that_is_not_recorded_did_not_happen() -> None:
    """Ask again and get the same: number, lease, messages."""
    desk = Desk(4)
    assert desk.ledger.decide_lease(2, "a", 0, 9) == desk.ledger.decide_lease(2, "a", 0, 9)
    assert desk.ledger.decide_put(3, 0) == desk.ledger.decide_put(3, 0)
    assert desk.states() == [READY] * 4


def test_lease_ids_carry_the_epoch() -> None:
    """An id of an earlier epoch is never given again."""
    ledger = Ledger(epoch=6)
    ledger.apply(Put(0, 0, 2))
    ledger.commit(2)
    event = ledger.decide_lease(1, "a", 0, 9)
    assert event is not None
    assert event.lease == (6 << 40) + 1
    ledger.apply(Delivered(0, ((1, 2),), (5 << 40) + 77, "b"))
    assert ledger.decide_lease(1, "a", 0, 9) == event


@pytest.mark.parametrize(
    "event",
    [
        Put(0, 5, 1),
        Put(0, 4, 0),
        Delivered(0, ((0, 2),), 9, "b"),
        Delivered(0, ((2, 3),), 1, "b"),
        Delivered(0, (), 9, "b"),
        Delivered(0, ((2, 3), (2, 3)), 9, "b"),
        Delivered(0, ((3, 5),), 9, "b"),
        Acked(0, ((2, 4), (1, 2)), 1, True),
        Acked(0, ((0, 1), (0, 1)), 1, True),
        Returned(0, ((0, 1),), 2, Reason.RELEASED),
        Returned(0, ((0, 1), (2, 3)), 1, Reason.RELEASED),
        Returned(0, ((0, 2),), 1, Reason.RELEASED),
        Failed(0, ((1, 2),), 1, Reason.REJECTED),
        Cancelled(0, ((2, 3),), 1),
    ],
    ids=repr,
)
def test_illegal_move_raises_and_changes_nothing(event: Event) -> None:
    """0 is delivered in lease 1, 1 was acked there, 2 and 3 are ready."""
    desk = Desk(4)
    lease = desk.lease(2)
    desk.ack(lease.lease, [(1, 2)])
    with pytest.raises(IllegalMove) as caught:
        desk.ledger.apply(event)
    assert caught.value.event is event
    assert isinstance(caught.value, DaskQueueError)
    assert "nothing was changed" in str(caught.value)
    desk.ledger.validate()
    assert desk.states() == [DELIVERED, GONE, READY, READY]
    assert desk.ledger.held(lease.lease) == ((0, 1),)
    assert desk.ledger.puts == 4


def test_illegal_move_names_the_message() -> None:
    """What happened, to what, in which state."""
    desk = Desk(4)
    desk.lease(2)
    with pytest.raises(IllegalMove, match="Delivered does not apply to message 1, which is DELIVERED") as caught:
        desk.ledger.apply(Delivered(0, ((1, 3),), 9, "b"))
    assert (caught.value.state, caught.value.seq) == (DELIVERED, 1)


def test_looking_at_what_was_never_put() -> None:
    """An error, not GONE."""
    with pytest.raises(ValueError, match="message 4 was never put; there are 4"):
        Desk(4).ledger.state(4)


def test_large_numbers_of_runs() -> None:
    """Every second message of many, in one event."""
    desk = Desk(5000, page_size=1024)
    lease = desk.lease(5000)
    odd = [(seq, seq + 1) for seq in range(1, 5000, 2)]
    assert desk.ack(lease.lease, odd) == odd
    assert desk.ledger.counts()[DELIVERED] == 2500
    desk.lost("a")
    assert desk.ledger.ready == 2500


# -- priorities and routes


def test_priority_before_number() -> None:
    """Also over one page, and for what came back."""
    desk = Desk(4)
    desk.put(2, priority=5)
    desk.put(1, priority=-5)
    first = desk.lease(3)
    assert first.runs == ((4, 6), (0, 1))
    desk.give_back(first.lease)
    assert desk.lease(2).runs == ((4, 6),)
    assert desk.lease().runs == ((0, 4), (6, 7))


def test_a_lease_over_priorities_is_reported_by_position() -> None:
    """Its runs are not in number order: what was running is found by position."""
    desk = Desk(4)
    desk.put(2, priority=5)
    lease = desk.lease()
    desk.ledger.heartbeat("a", {lease.lease: (1, 3)}, (), 0, 0, 100)
    back, suspects = desk.lost("a")
    assert isinstance(back, Returned)
    assert isinstance(suspects, Returned)
    assert (back.runs, suspects.runs) == (((1, 5),), ((0, 1), (5, 6)))


def test_only_served_routes() -> None:
    """The others wait, in their order."""
    desk = Desk()
    for route in (1, 2, 1, 3):
        desk.put(2, route=route)
    event = desk.ledger.decide_lease(99, "a", 0, 100, routes={1, 3})
    assert event is not None
    assert event.runs == ((0, 2), (4, 8))
    desk.do(event)
    assert desk.ledger.decide_lease(99, "a", 0, 100, routes=[1]) is None
    assert desk.lease().runs == ((2, 4),)


@pytest.mark.parametrize("choosy", [False, True])
def test_routes_of_the_only_lane(choosy: bool) -> None:
    """One kind of message, and somebody who does not serve it."""
    desk = Desk()
    desk.put(2, route=3)
    choose = (lambda runs: list(runs)) if choosy else None
    assert desk.ledger.decide_lease(9, "a", 0, 100, routes=(1, 2), choose=choose) is None
    event = desk.ledger.decide_lease(9, "a", 0, 100, routes=(3,), choose=choose)
    assert event is not None
    assert event.runs == ((0, 2),)


def test_choose_keeps_the_order_of_priorities() -> None:
    """It is offered them in order, and what it picks is leased in that order."""
    desk = Desk(3)
    desk.put(3, priority=1)
    offered: Runs = []

    def choose(runs):  # type: ignore[no-untyped-def]
        offered.extend(runs)
        return [(4, 6), (0, 1), (2, 3)]

    event = desk.ledger.decide_lease(3, "a", 0, 100, choose=choose)
    assert event is not None
    assert event.runs == ((4, 6), (0, 1))
    assert offered == [(3, 6), (0, 3)]


# -- time


def test_a_message_for_later() -> None:
    """It waits, counts as unfinished, and is leased in its place once its time has come."""
    desk = Desk(2)
    desk.put(2, ready_at=50)
    desk.put(1, ready_at=-1)
    assert desk.states() == [READY, READY, SCHEDULED, SCHEDULED, READY]
    assert (desk.ledger.ready, desk.ledger.unfinished, desk.ledger.next_at()) == (3, 5, 50)
    assert desk.lease(owner="b").runs == ((0, 2), (4, 5))
    assert desk.due(49) == []
    assert desk.ledger.decide_lease(9, "a", 49, 100) is None
    assert desk.due(50) == []
    assert desk.lease().runs == ((2, 4),)


def test_no_time_is_at_once_on_any_clock() -> None:
    """0 is no time, for a put and for a return, also before the epoch."""
    desk = Desk()
    desk.now = -500
    desk.put(2, expires_at=10)
    assert desk.states() == [READY, READY]
    desk.give_back(desk.lease().lease)
    assert desk.states() == [READY, READY]


def test_a_time_for_each_message() -> None:
    """Some of them at once; what falls due together is one run."""
    desk = Desk(page_size=8)
    desk.now = 10
    desk.put(6, ready_ats=array("Q", [30, 5, 20, 20, 10, 40]).tobytes())
    assert desk.states() == [SCHEDULED, READY, SCHEDULED, SCHEDULED, READY, SCHEDULED]
    desk.due(30)
    assert desk.lease().runs == ((0, 5),)
    with pytest.raises(ValueError, match="ready_ats has 8 bytes: 2 messages need 16"):
        desk.ledger.decide_put(2, 0, ready_ats=bytes(8))


def test_a_limit_of_what_falls_due() -> None:
    """`next_at` says that there is more, and it is not ahead."""
    desk = Desk()
    desk.put(5, ready_ats=array("Q", [9, 1, 3, 5, 7]).tobytes())
    assert desk.ledger.decide_due(100, limit=2) == []
    assert desk.ledger.counts()[READY] == 2
    assert desk.ledger.next_at() == 5
    while (at := desk.ledger.next_at()) is not None and at <= 100:
        desk.ledger.decide_due(100, limit=2)
        desk.ledger.validate()
    assert desk.ledger.counts()[READY] == 5


def test_retry_with_delay() -> None:
    """An attempt is counted, it is no suspect, and it waits."""
    desk = Desk(3)
    lease = desk.lease()
    event = desk.ledger.decide_return(lease.lease, [(1, 3)], 5, reason=Reason.RETRY, blame=Blame.ATTEMPT, ready_at=20)
    assert event == Returned(5, ((1, 3),), lease.lease, Reason.RETRY, Blame.ATTEMPT, 20)
    desk.do(event)
    assert desk.states() == [DELIVERED, SCHEDULED, SCHEDULED]
    assert desk.ledger.attempts_of(0, 3) == bytes([0, 1, 1])
    desk.due(20)
    again = desk.lease()
    assert again.runs == ((1, 3),)
    desk.fail(again.lease, [(1, 2)], Reason.RETRY)
    assert (desk.ledger.attempts(1), desk.ledger.attempts(2)) == (2, 1)


def test_retry_of_a_cancelled_message() -> None:
    """It ends."""
    desk = Desk(2)
    lease = desk.lease()
    desk.do(desk.ledger.decide_cancel([(0, 1)], 0))
    event = desk.ledger.decide_return(lease.lease, None, 0, reason=Reason.RETRY, blame=Blame.ATTEMPT, ready_at=9)
    assert desk.do(event) == [(0, 1)]
    assert desk.states() == [CANCELLED, SCHEDULED]


def test_expires_before_it_starts() -> None:
    """Also while it waits for its time; freed at once."""
    desk = Desk()
    desk.put(2, expires_at=10)
    desk.put(2, expires_at=20, ready_at=15)
    assert desk.ledger.next_at() == 10
    assert desk.due(9) == []
    assert desk.ledger.decide_due(10) == desk.ledger.decide_due(10) == [Expired(10, ((0, 2),))]
    assert desk.do(desk.ledger.decide_due(10)[0]) == [(0, 2)]
    assert desk.due(30) == [Expired(30, ((2, 4),))]
    assert desk.states() == [EXPIRED] * 4
    assert desk.do(desk.ledger.decide_forget([(0, 9)], 0)) == []
    assert desk.states() == [GONE] * 4


def test_put_that_has_expired_already() -> None:
    """Accepted, then expired."""
    desk = Desk()
    desk.now = 50
    desk.put(1, expires_at=20)
    assert desk.due(50) == [Expired(50, ((0, 1),))]


def test_overdue_while_delivered() -> None:
    """Its time passes in somebody's hands: a success counts, anything else ends it, and it is asked for."""
    desk = Desk()
    desk.put(5, expires_at=10)
    lease = desk.lease()
    desk.due(10)
    assert desk.ledger.flags(0) is OVERDUE
    assert desk.ledger.overdue("a") == {lease.lease: ((0, 5),)}
    desk.do(desk.ledger.decide_cancel([(4, 5)], 0))
    assert desk.ledger.overdue("a") == {lease.lease: ((0, 4),)}
    assert desk.ledger.cancels("a") == {lease.lease: ((4, 5),)}
    assert desk.ack(lease.lease, [(0, 1)]) == [(0, 1)]
    assert desk.give_back(lease.lease, [(1, 2), (4, 5)]) == [(1, 2), (4, 5)]
    event = desk.ledger.decide_agree(lease.lease, [(2, 3)], 11, expired=True)
    assert event == Expired(11, ((2, 3),), lease.lease, True)
    assert desk.do(event) == [(2, 3)]
    desk.fail(lease.lease, [(3, 4)])
    assert desk.states() == [GONE, EXPIRED, EXPIRED, FAILED, CANCELLED]


def test_requeue_after_it_expired_as_a_dead_letter() -> None:
    """It runs; one requeued before its time can still expire."""
    desk = Desk()
    desk.put(2, expires_at=10)
    lease = desk.lease()
    desk.fail(lease.lease)
    desk.do(desk.ledger.decide_requeue([(0, 1)], 5))
    assert desk.due(10) == [Expired(10, ((0, 1),))]
    desk.do(desk.ledger.decide_requeue([(1, 2)], 12))
    assert desk.due(99) == []
    assert desk.states() == [EXPIRED, READY]


def test_requeue_after_an_expiry_that_nobody_looked_at() -> None:
    """Its time passed while it was a dead letter, whether or not time was let pass in between."""
    desk = Desk()
    desk.put(1, expires_at=10)
    desk.fail(desk.lease().lease)
    desk.do(desk.ledger.decide_requeue([(0, 1)], 12))
    assert desk.due(99) == []
    assert desk.states() == [READY]


def test_a_dead_letter_keeps_its_expiry_among_many() -> None:
    """What ended is pruned from the schedule, what may be requeued is not."""
    desk = Desk(page_size=4096)
    desk.put(1, expires_at=10**9)
    desk.fail(desk.lease().lease)
    for time in range(1, 40_000):
        event = desk.ledger.decide_put(1, 0, expires_at=10**9 + 2 * time)
        assert isinstance(event, Put)
        desk.ledger.apply(event)
        done = desk.ledger.decide_cancel([(time, time + 1)], 0)
        assert done is not None
        desk.ledger.apply(done)
    assert len(desk.ledger.expiring) < 20_000
    desk.do(desk.ledger.decide_requeue([(0, 1)], 5))
    assert desk.due(10**9) == [Expired(10**9, ((0, 1),))]


def test_an_expiry_is_not_forgotten_with_the_delivery() -> None:
    """Returned before its time, it can still expire, also when nobody looked in between."""
    desk = Desk()
    desk.put(1, expires_at=10)
    desk.give_back(desk.lease().lease)
    assert desk.due(10) == [Expired(10, ((0, 1),))]


def test_a_wait_that_ended_otherwise_is_no_hint() -> None:
    """Damaged while it waits, requeued, tried and delayed again: the first time has no meaning any more (case 10)."""
    desk = Desk()
    desk.put(1, ready_at=10)
    desk.do(desk.ledger.decide_damaged([(0, 1)], 0))
    desk.do(desk.ledger.decide_requeue([(0, 1)], 0))
    lease = desk.lease()
    desk.do(desk.ledger.decide_return(lease.lease, None, 5, reason=Reason.RETRY, blame=Blame.ATTEMPT, ready_at=50))
    desk.due(49)
    assert desk.states() == [SCHEDULED]


@pytest.mark.parametrize("runs", [((1, 2),), ((0, 2),)], ids=["alone", "with a ready one"])
def test_delivered_before_its_time(runs: tuple[tuple[int, int], ...]) -> None:
    """The clock went back after it fell due, or this is a replay: its old time has no meaning any more (case 10)."""
    desk = Desk(1)
    desk.put(1, ready_at=10)
    desk.do(Delivered(0, runs, 1, "a", deadline=1000))
    desk.do(Returned(1, ((1, 2),), 1, Reason.RETRY, Blame.ATTEMPT, 50))
    desk.due(49)
    assert desk.states()[1] is SCHEDULED
    desk.due(50)
    assert desk.states()[1] is READY


def test_many_that_ended_before_they_expired_cost_nothing() -> None:
    """An hour of messages that live a second leaves no hour of entries."""
    desk = Desk(page_size=4096)
    ledger = desk.ledger
    for seq in range(40_000):
        event = ledger.decide_put(1, seq, expires_at=10**9 + seq)
        assert isinstance(event, Put)
        ledger.apply(event)
        ledger.commit(seq + 1)
        lease = ledger.decide_lease(1, "a", seq, 100)
        assert lease is not None
        ledger.apply(lease)
        done = ledger.decide_ack(lease.lease, None, seq, keep=False)
        assert done is not None
        ledger.apply(done)
    assert len(ledger.expiring) < 20_000


# -- dead letters


def test_requeue_begins_anew() -> None:
    """In its old place, without attempts and crashes; what is no dead letter is not touched."""
    desk = Desk(4)
    lease = desk.lease(2)
    desk.ledger.heartbeat("a", {lease.lease: (0, 1)}, (), 0, 0, 100)
    desk.lost("a")
    again = desk.lease(1)
    assert (again.runs, desk.ledger.crashes(0)) == (((0, 1),), 1)
    desk.fail(again.lease)
    assert (desk.ledger.attempts(0), desk.ledger.crashes(0), desk.ledger.flags(0)) == (1, 1, MessageFlag(0))
    event = desk.ledger.decide_requeue([(0, 9)], 3)
    assert event == Requeued(3, ((0, 1),))
    assert desk.do(event) == []
    assert (desk.ledger.attempts(0), desk.ledger.crashes(0)) == (0, 0)
    assert desk.lease().runs == ((0, 4),)
    assert desk.ledger.decide_requeue([(0, 9)], 3) is None


def test_a_requeued_message_is_its_new_holders() -> None:
    """Failed in lease A, requeued, delivered in B: A's second report is stale, also after damage (case 7)."""
    desk = Desk(4)
    a = desk.lease(owner="a")
    desk.fail(a.lease, [(1, 2)])
    desk.do(desk.ledger.decide_damaged([(2, 3)], 0))
    desk.do(desk.ledger.decide_requeue([(1, 3)], 0))
    b = desk.lease(owner="b")
    assert b.runs == ((1, 3),)
    assert desk.fail(a.lease, [(1, 3)]) == []
    assert desk.ledger.held(b.lease) == ((1, 3),)
    assert desk.ack(b.lease) == [(1, 3)]


def test_purge() -> None:
    """Dead letters and what is not delivered are gone, and their payloads; the rest is refused."""
    desk = Desk(4)
    desk.put(2, ready_at=9)
    lease = desk.lease(3)
    desk.fail(lease.lease, [(0, 1)])
    desk.ack(lease.lease, [(1, 2)], keep=True)
    event = desk.ledger.decide_purge([(0, 9)], 1)
    assert event == Purged(1, ((0, 1), (3, 6)))
    assert desk.do(event) == [(0, 1), (3, 6)]
    assert desk.states() == [GONE, ACKED, DELIVERED, GONE, GONE, GONE]
    assert desk.ledger.decide_forget([(0, 9)], 1) == Forgotten(1, ((1, 2),))


def test_damaged_wherever_it_is() -> None:
    """Waiting, ready or in somebody's hands; what has ended is left alone."""
    desk = Desk(3)
    desk.put(1, ready_at=9)
    lease = desk.lease(2)
    desk.ack(lease.lease, [(0, 1)])
    event = desk.ledger.decide_damaged([(0, 9)], 4)
    assert event == Failed(4, ((1, 4),), 0, Reason.DAMAGED)
    assert desk.do(event) == []
    assert desk.states() == [GONE, FAILED, FAILED, FAILED]
    assert desk.ledger.owners() == []


# -- suspects


def test_suspects_are_leased_apart() -> None:
    """A piece and nothing else; who may not have them passes them over."""
    desk = Desk(20)
    desk.lease(10)
    desk.lost("a")
    event = desk.ledger.decide_lease(99, "host", 0, 100, suspects=False)
    assert event is not None
    assert event.runs == ((10, 20),)
    assert desk.lease().runs == ((0, 2),)
    assert desk.ledger.flags(0) is SUSPECT
    assert desk.lease(1).runs == ((2, 3),)
    assert desk.lease().runs == ((3, 4),)


def test_a_choosy_consumer_and_suspects() -> None:
    """It may decline them; of what it picks, a lease takes what is before the next suspect, or part of one piece."""
    desk = Desk(20)
    desk.lease(8)
    desk.ledger.heartbeat("a", {1: (0, 4)}, (), 0, 0, 100)
    desk.lost("a")

    def pick(*picked: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        event = desk.ledger.decide_lease(99, "b", 0, 100, choose=lambda runs: [*runs] and list(picked))
        assert event is not None
        return event.runs

    assert pick((1, 2), (2, 3), (5, 6)) == ((1, 2),)
    assert pick((5, 6), (2, 3)) == ((5, 6),)
    assert pick((0, 8)) == ((0, 1),)
    assert pick((9, 12)) == ((9, 12),)


def test_crashes_are_counted_until_it_fails() -> None:
    """As often as `max_crashes` says, asked with the message."""
    desk = Desk(1)
    for crashes in (1, 2):
        desk.lease()
        events = desk.lost("a")
        assert events == [Returned(0, ((0, 1),), crashes, Reason.OWNER_LOST, Blame.CRASH)]
        assert desk.ledger.crashes(0) == crashes
    lease = desk.lease()
    assert desk.ledger.decide_owner_lost("a", 0, reason=Reason.OWNER_LOST, max_crashes=lambda seq: 4 + seq) == [
        Returned(0, ((0, 1),), 3, Reason.OWNER_LOST, Blame.CRASH)
    ]
    assert desk.due(100) == [Failed(100, ((0, 1),), lease.lease, Reason.CRASHED)]
    assert (desk.states(), desk.ledger.crashes(0)) == ([FAILED], 3)


@pytest.mark.parametrize("flag", [CANCEL, OVERDUE])
def test_last_crash_of_a_flagged_message(flag: MessageFlag) -> None:
    """It was not to run again anyway: it ends as it was asked to, without a crash count (case 5)."""
    desk = Desk()
    desk.put(1, expires_at=50 if flag is OVERDUE else 0)
    desk.lease()
    if flag is OVERDUE:
        desk.due(50)
    else:
        desk.do(desk.ledger.decide_cancel([(0, 1)], 0))
    [event] = desk.ledger.decide_owner_lost("a", 50, reason=Reason.OWNER_LOST, max_crashes=lambda seq: 1)
    assert desk.do(event) == [(0, 1)]
    assert desk.states() == [CANCELLED if flag is CANCEL else EXPIRED]
    assert desk.ledger.crashes(0) == 0


@pytest.mark.parametrize("end", ["ack", "cancel", "purge"])
def test_a_crash_count_ends_with_its_message(end: str) -> None:
    """It is kept for dead letters only."""
    desk = Desk(1)
    desk.lease()
    desk.lost("a")
    assert desk.ledger.crashes(0) == 1
    if end == "ack":
        desk.ack(desk.lease().lease, keep=True)
    elif end == "cancel":
        desk.do(desk.ledger.decide_cancel([(0, 1)], 0))
    else:
        desk.do(desk.ledger.decide_purge([(0, 1)], 0))
    assert desk.ledger.crashes(0) == 0


def test_candidates_of_all_leases_of_an_owner() -> None:
    """One message was running in each of two leases: nobody knows which did it, so no crash is counted."""
    desk = Desk(2)
    for _ in range(2):
        desk.lease(1)
    events = desk.lost("a")
    assert [event.blame for event in events if isinstance(event, Returned)] == [Blame.SUSPECTED] * 2
    assert (desk.ledger.crashes(0), desk.ledger.crashes(1)) == (0, 0)


def test_an_exception_clears_suspicion() -> None:
    """It ran to its end, so it kills nobody. A release says nothing."""
    desk = Desk(2)
    desk.lease()
    desk.lost("a")
    desk.give_back(desk.lease().lease)
    assert desk.ledger.flags(0) is SUSPECT
    lease = desk.lease()
    desk.do(desk.ledger.decide_return(lease.lease, None, 0, reason=Reason.RETRY, blame=Blame.ATTEMPT))
    assert desk.ledger.flags(0) == MessageFlag(0)
    assert desk.lease().runs == ((0, 1),)


def test_an_unlisted_lease_is_not_suspect() -> None:
    """Its owner lives: nothing of it ever ran."""
    desk = Desk(4)
    desk.forget_lease(desk.lease(request=3))
    assert [desk.ledger.flags(seq) for seq in range(4)] == [MessageFlag(0)] * 4


def test_put_again_as_suspect() -> None:
    """After its queue was lost twice: leased apart from the beginning, or when its time has come."""
    desk = Desk()
    desk.put(16, suspect=True)
    assert desk.lease().runs == ((0, 2),)
    desk.put(8, suspect=True, ready_at=10, priority=1)
    desk.due(10)
    assert desk.lease().runs == ((16, 17),)


# -- keys


def test_a_key_names_its_message_while_it_is_there() -> None:
    """Unfinished and kept ones block their key; dead, cancelled and expired ones are superseded; gone ones free."""
    desk = Desk()
    desk.put(3, keys=("x", "y", "z"))
    assert (desk.ledger.find_key("y"), desk.ledger.key_of(2), desk.ledger.find_key("?")) == (1, "z", None)
    lease = desk.lease()
    desk.ack(lease.lease, [(0, 1)], keep=True)
    desk.fail(lease.lease, [(1, 2)])
    desk.ack(lease.lease, [(2, 3)])
    assert [desk.ledger.is_taken(key) for key in "xyz?"] == [True, False, False, False]
    assert desk.ledger.key_of(2) is None
    for keys, why in ((("x", "w"), "'x' is in use: message 0 is ACKED"), (("v", "v"), "1 different ones")):
        with pytest.raises(ValueError, match=why):
            desk.ledger.decide_put(2, 0, keys=keys)
    with pytest.raises(ValueError, match="1 keys, 1 different ones, for 2 messages"):
        desk.ledger.decide_put(2, 0, keys=("v",))
    desk.put(2, keys=("y", "z"))
    assert desk.freed == [(1, 2)]
    assert desk.states() == [ACKED, GONE, GONE, READY, READY]
    assert desk.ledger.find_key("y") == 3
    desk.do(desk.ledger.decide_forget([(0, 1)], 0))
    assert not desk.ledger.is_taken("x")


@pytest.mark.parametrize("end", ["ack", "ack of two", "purge", "forget"])
def test_a_key_is_free_when_its_message_is_gone(end: str) -> None:
    """However it went."""
    desk = Desk()
    desk.put(3, keys=("x", "y", "z"))
    if end == "purge":
        desk.do(desk.ledger.decide_purge([(0, 1)], 0))
    else:
        lease = desk.lease()
        desk.ack(lease.lease, [(0, 1), (2, 3)] if end == "ack of two" else [(0, 1)], keep=end == "forget")
    if end == "forget":
        desk.do(desk.ledger.decide_forget([(0, 1)], 0))
    assert (desk.ledger.find_key("x"), desk.ledger.find_key("y")) == (None, 1)
    desk.put(1, keys=("x",))
    assert desk.ledger.find_key("x") == 3


def test_superseded_ones_that_were_freed_before() -> None:
    """A cancelled message gave its payload back when it ended, once."""
    desk = Desk()
    desk.put(1, keys=("x",))
    assert desk.do(desk.ledger.decide_cancel([(0, 1)], 0)) == [(0, 1)]
    desk.put(1, keys=("x",))
    assert (desk.freed, desk.states()) == ([], [GONE, READY])


def test_the_key_of_one_that_is_asked_to_stop() -> None:
    """The new message takes it over; the old one ends without a key, and its end leaves the new one alone."""
    desk = Desk()
    desk.put(1, keys=("x",))
    lease = desk.lease()
    assert desk.ledger.is_blocked("x")
    desk.do(desk.ledger.decide_cancel([(0, 1)], 0))
    assert (desk.ledger.is_blocked("x"), desk.ledger.is_taken("x")) == (False, True)
    desk.put(1, keys=("x",))
    assert (desk.ledger.find_key("x"), desk.ledger.key_of(0), desk.freed) == (1, None, [])
    assert desk.give_back(lease.lease) == [(0, 1)]
    desk.do(desk.ledger.decide_forget([(0, 1)], 0))
    assert desk.ledger.find_key("x") == 1


def test_a_put_with_a_key_in_use_changes_nothing() -> None:
    """Applied in spite of the decision: refused whole."""
    desk = Desk()
    desk.put(1, keys=("x",))
    with pytest.raises(IllegalMove, match="Put does not apply to message 0, which is READY: its key 'x' is in use"):
        desk.ledger.apply(Put(0, 1, 2, keys=("w", "x")))
    desk.ledger.validate()
    assert (desk.ledger.puts, desk.ledger.find_key("w")) == (1, None)


def test_a_put_without_messages() -> None:
    """All its keys were taken: the producer's number is used, once, and the numbers go on."""
    desk = Desk()
    desk.put(0, producer=9, number=0)
    event = desk.ledger.decide_put(0, 0, producer=9, number=1)
    assert isinstance(event, Put)
    desk.do(event)
    with pytest.raises(IllegalMove, match="put 1 of producer 0x9 was admitted"):
        desk.ledger.apply(event)
    assert desk.put(3, producer=9, number=1) == Duplicate(0, 0)
    desk.put(3, producer=9, number=2)
    assert desk.ledger.puts == 3
    with pytest.raises(ValueError, match="count=-1"):
        desk.ledger.decide_put(-1, 0, producer=9, number=3)
