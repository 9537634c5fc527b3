"""The ledger's promises, one by one. (`test_ledger_machine` walks at random; here are the walks worth a name.)"""

import pytest

from daskqueue_core.errors import DaskQueueError, IllegalMove
from daskqueue_core.events import Acked, Cancelled, Delivered, Event, Failed, Put, Reason, Returned
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.states import MessageFlag, MessageState

GONE, READY, DELIVERED = MessageState.GONE, MessageState.READY, MessageState.DELIVERED
ACKED, FAILED, CANCELLED = MessageState.ACKED, MessageState.FAILED, MessageState.CANCELLED
Runs = list[tuple[int, int]]


class Desk:
    """A ledger whose events are applied as they are decided, and which is validated each time."""

    def __init__(self, count: int = 0, page_size: int = 4) -> None:
        self.ledger = Ledger(page_size=page_size)
        self.now = 0
        if count:
            self.put(count)

    def do(self, event: Event | None) -> Runs:
        """Apply; returns what was freed."""
        freed = self.ledger.apply(event) if event is not None else ()
        self.ledger.validate()
        return list(freed)

    def put(self, count: int, producer: int | None = None, number: int = 0) -> object:
        """Put and commit; returns the answer."""
        answer = self.ledger.decide_put(count, self.now, producer=producer, number=number)
        if isinstance(answer, Put):
            self.do(answer)
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

    def states(self) -> list[MessageState]:
        """Of all messages."""
        return [self.ledger.state(seq) for seq in range(self.ledger.puts)]


# -- the life of a message


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
    """A dead letter: freed, kept as FAILED, and a late success is stale."""
    desk = Desk(4)
    lease = desk.lease()
    event = desk.ledger.decide_fail(lease.lease, [(1, 2)], 5, reason=Reason.REJECTED)
    assert event == Failed(5, ((1, 2),), 1, Reason.REJECTED)
    assert desk.do(event) == [(1, 2)]
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
    assert desk.lost("a") == [Returned(0, ((5, 10),), 1, Reason.OWNER_LOST)]
    assert desk.lease(owner="b").runs == ((5, 10),)


def test_late_success_wins_late_failure_is_stale() -> None:
    """A lapses, B runs it: A's success ends it, B's is stale; A's failure is nothing (interleaving 5)."""
    desk = Desk(2)
    a = desk.lease(owner="a")
    desk.lost("a")
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
    desk.lost("a")
    b = desk.lease(1000, "b")
    desk.ack(b.lease, [(0, 500)])
    assert desk.ack(a.lease, [(0, 1000)]) == [(500, 1000)]
    assert desk.ledger.stale == 500
    assert desk.ledger.lease(b.lease) is None


def test_late_success_of_a_ready_message() -> None:
    """Nobody has it now: the rerun is saved."""
    desk = Desk(10)
    a = desk.lease(4)
    desk.lost("a")
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
    assert desk.lease().runs == ((0, 1), (3, 4))


def test_first_outcome_wins_over_a_cancel() -> None:
    """It ran after all: a success is a success, a failure a failure."""
    desk = Desk(2)
    lease = desk.lease()
    desk.do(desk.ledger.decide_cancel([(0, 2)], 0))
    assert desk.ack(lease.lease, [(0, 1)], keep=True) == [(0, 1)]
    assert desk.do(desk.ledger.decide_fail(lease.lease, [(1, 2)], 0, reason=Reason.REJECTED)) == [(1, 2)]
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
    assert desk.ledger.decide_due(160) == [Returned(160, ((0, 2),), 1, Reason.LAPSED)]


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
