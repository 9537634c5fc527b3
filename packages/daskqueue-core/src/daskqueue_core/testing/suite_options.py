"""Conformance: what a put can ask for. Priority, a time, an end of time, tags; and what travels with its messages."""

from __future__ import annotations

from daskqueue_core.batch import Batch, times_column
from daskqueue_core.outcomes import Report
from daskqueue_core.queue import Demand
from daskqueue_core.states import MessageState
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls, refused, singles
from daskqueue_core.time_requests import time_tag

__all__ = ["OptionRules"]

NEVER = 1 << 62  # nanoseconds: later than any clock of a test
LONG_AGO = 1
ANY = 1_000


class OptionRules(SuiteBase):
    """Options of a batch."""

    # -- one set of options for each put

    def test_one_put_has_one_set_of_options(self) -> None:
        """Batches that differ are not put together, and the put's number stays free."""
        plain = calls(0, 1)
        for other in (
            singles(b"item"),
            calls(1, 1, priority=1),
            calls(1, 1, ready_at=NEVER),
            calls(1, 1, ready_ats=times_column([NEVER])),
            calls(1, 1, expires_at=NEVER),
            calls(1, 1, tags=("gpu",)),
            calls(1, 1, keys=("a",)),
            calls(1, 1, resent=2),
        ):
            refused(self.queue.admit, [plain, other], producer=7, number=0)
        assert self.queue.stats().puts == 0
        assert self.admit(plain, calls(1, 1, function=b"g", control=b"c", max_crashes=1), producer=7) == range(2)

    def test_what_cannot_be_put(self) -> None:
        """A priority beyond 16 bits, columns of another length, a kind that nobody has."""
        for priority in (-(1 << 15) - 1, 1 << 15):
            refused(self.queue.admit, [calls(0, 1, priority=priority)])
        refused(self.queue.admit, [calls(0, 2, keys=("a",))])
        refused(self.queue.admit, [calls(0, 2, ready_ats=times_column([1]))])
        refused(self.queue.admit, [calls(0, 1, kind=9)])
        assert self.queue.stats().puts == 0

    def test_what_travels_with_a_lease(self) -> None:
        """A part says whose it is, by number and key, how to run it, and that it never failed before."""
        self.admit(singles(b"a", b"b", b"c", client=CLIENT, first=40, keep=1, control=b"limits", keys=("x", "y", "z")))
        self.lease(1)
        [part] = self.lease(1).parts
        assert (part.client, part.first, tuple(part.keys), bytes(part.control)) == (CLIENT, 41, ("y",), b"limits")
        assert not any(part.attempts)

    # -- priority

    def test_higher_priority_first(self) -> None:
        """Whenever it was put; in the order of the puts among equals."""
        for first, priority in ((0, 0), (10, 5), (20, -3), (30, 5), (40, 32767), (50, -32768)):
            self.admit(calls(first, 2, priority=priority))
        assert [self.lease(2).parts[0].first for _ in range(6)] == [40, 10, 30, 0, 20, 50]

    def test_a_lease_over_priorities(self) -> None:
        """The highest first, then what else it may have."""
        self.admit(calls(0, 2))
        self.admit(calls(10, 2, priority=1))
        assert self.lease(3).ids == [2, 3, 0]

    def test_a_returned_message_keeps_its_priority(self) -> None:
        """It goes to the front of its equals, not of the queue."""
        self.admit(calls(0, 3))
        low = self.lease(1)
        self.admit(calls(10, 1, priority=1))
        self.queue.release(low)
        assert self.lease(2).ids == [3, 0]

    # -- a time

    def test_not_before_its_time(self) -> None:
        """A message for later is not leased, and unfinished."""
        self.admit(calls(0, 2, ready_at=NEVER))
        assert self.queue.lease(1) is None
        stats = self.queue.stats()
        assert (stats.scheduled, stats.ready, stats.unfinished) == (2, 0, 2)

    def test_a_time_that_has_passed(self) -> None:
        """It is ready at once."""
        self.admit(calls(0, 2, ready_at=LONG_AGO))
        assert self.lease().ids == [0, 1]

    def test_a_time_for_each_message(self) -> None:
        """Each by itself; 0 is at once."""
        self.admit(calls(0, 4, ready_ats=times_column([NEVER, 0, NEVER, LONG_AGO])))
        assert self.lease().ids == [1, 3]
        assert self.queue.stats().scheduled == 2

    def test_times_of_several_batches(self) -> None:
        """A column each."""
        self.admit(calls(0, 2, ready_ats=times_column([NEVER, 0])), calls(10, 2, ready_ats=times_column([0, NEVER])))
        assert self.lease().ids == [1, 2]

    def test_when_the_time_has_come(self) -> None:
        """It is leased in the order of numbers, and the queue says when to look."""
        queue = self.timed_queue()
        start = self.clock()
        self.admit(calls(0, 2, ready_at=start + 20 * SECOND))
        self.admit(calls(10, 2, ready_at=start + 10 * SECOND))
        assert queue.next_ready_at() == start + 10 * SECOND
        self.wait(10 * SECOND - 1)
        queue.tick()
        assert queue.lease(1) is None
        self.wait(1)
        queue.tick()
        assert queue.stats().ready == 2
        assert queue.next_ready_at() == start + 20 * SECOND
        self.wait(10 * SECOND)
        queue.tick()
        assert self.lease().ids == [0, 1, 2, 3]

    def test_a_lease_needs_no_tick(self) -> None:
        """What is due is leased although nobody ticked the queue."""
        queue = self.timed_queue()
        self.admit(calls(0, 1, ready_at=self.clock() + SECOND))
        assert queue.lease(1) is None
        self.wait(SECOND)
        assert self.lease().ids == [0]

    def test_cancel_of_what_is_scheduled(self) -> None:
        """It ends at once."""
        self.admit(calls(0, 2, ready_at=NEVER))
        assert self.queue.cancel([(0, 1)]) == 1
        assert self.ended() == [(0, "CANCELLED")]
        assert self.queue.stats().scheduled == 1

    # -- an end of time

    def test_too_late_to_begin(self) -> None:
        """What was not delivered in time ends as EXPIRED, and is never leased."""
        self.admit(calls(0, 2, expires_at=LONG_AGO))
        self.admit(calls(10, 1))
        assert self.lease().ids == [2]
        self.queue.tick()
        assert self.ended() == [(0, "EXPIRED"), (1, "EXPIRED")]
        stats = self.queue.stats()
        assert (stats.expired, stats.unfinished) == (2, 1)

    def test_scheduled_messages_expire_too(self) -> None:
        """Before their time has come."""
        self.admit(calls(0, 1, ready_at=NEVER, expires_at=LONG_AGO))
        self.queue.tick()
        assert self.ended() == [(0, "EXPIRED")]

    def test_delivered_in_time(self) -> None:
        """What has begun may end as it likes, what has not is given up; neither is delivered again."""
        queue = self.timed_queue()
        self.admit(calls(0, 5, expires_at=self.clock() + SECOND))
        lease, other = self.lease(4, owner="a"), self.lease(1, owner="b")
        self.wait(SECOND)
        queue.tick()
        assert queue.stats().delivered == 5
        asked = queue.heartbeat("a", {lease.id: (0, 2)}, [], 0)
        assert {key: [tuple(run) for run in runs] for key, runs in asked.items()} == {lease.id: [(2, 4)]}
        assert queue.agree(lease, [(2, 4)]) == 2
        assert self.ended() == [(2, "EXPIRED"), (3, "EXPIRED")]
        assert self.settle(lease, Report(0, 1)) == 1
        assert queue.release(lease) == 1
        assert queue.release(other) == 1
        assert self.ended()[2:] == [(0, "ok"), (1, "EXPIRED"), (4, "EXPIRED")]
        assert queue.lease(1) is None

    def test_cancelled_before_it_expired(self) -> None:
        """Given up as cancelled, whatever the time."""
        queue = self.timed_queue()
        self.admit(calls(0, 2, expires_at=self.clock() + SECOND))
        lease = self.lease(owner="a")
        queue.cancel([(0, 1)])
        self.wait(SECOND)
        queue.tick()
        queue.heartbeat("a", {lease.id: (0, 0)}, [], 0)
        assert queue.agree(lease, [(0, 2)]) == 2
        assert sorted(self.ended()) == [(0, "CANCELLED"), (1, "EXPIRED")]

    def test_expired_messages_can_be_forgotten(self) -> None:
        """Then nothing is left of them but their numbers."""
        self.admit(calls(0, 2, expires_at=LONG_AGO))
        self.queue.tick()
        assert self.count(MessageState.EXPIRED) == 2
        assert self.queue.forget([(0, 2)]) == 2
        assert self.count(MessageState.EXPIRED) == 0

    # -- tags

    def test_all_tags_are_needed(self) -> None:
        """A message goes to a consumer that has all of its tags, and perhaps others."""
        for first, tags in ((0, ("big", "gpu")), (10, ("gpu",)), (20, ())):
            self.admit(calls(first, 1, tags=tags))
        assert self.lease(demand=Demand(ANY)).ids == [2]
        assert self.queue.lease(1, demand=Demand(ANY)) is None
        assert self.queue.lease(1, demand=Demand(ANY, tags=("big",))) is None
        assert self.lease(demand=Demand(ANY, tags=("x", "gpu"))).ids == [1]
        assert self.lease(demand=Demand(ANY, tags=("gpu", "big"))).ids == [0]

    def test_tags_and_kinds(self) -> None:
        """Both must fit."""
        self.admit(calls(0, 1, tags=("gpu",)))
        self.admit(singles(b"item", tags=("gpu",)))
        assert self.lease(demand=Demand(ANY, kinds=(0,), tags=("gpu",))).ids == [1]
        assert self.queue.lease(1, demand=Demand(ANY, kinds=(0,), tags=("gpu",))) is None

    def test_without_a_demand_everything_is_leased(self) -> None:
        """Whoever asks by hand takes what comes."""
        self.admit(calls(0, 1, tags=("gpu",)))
        assert self.lease().ids == [0]

    def test_order_over_routes(self) -> None:
        """Priority first, then numbers, over all that a consumer serves."""
        for first, priority, tags in ((0, 0, ()), (10, 1, ("gpu",)), (20, 0, ("gpu",)), (30, 1, ())):
            self.admit(calls(first, 1, priority=priority, tags=tags))
        assert self.lease(demand=Demand(ANY, tags=("gpu",))).ids == [1, 3, 0, 2]

    # -- time requests

    def test_time_requests(self) -> None:
        """A message that requests time goes to a consumer whose job lasts as long, or has no end."""
        for first, tags in ((0, (time_tag(1200), "gpu")), (10, (time_tag(60),)), (20, ())):
            self.admit(calls(first, 1, tags=tuple(sorted(tags))))
        assert self.lease(demand=Demand(ANY, tags=("gpu",), time_left=59.9)).ids == [2]
        assert self.queue.lease(1, demand=Demand(ANY, tags=("gpu",), time_left=-5.0)) is None
        assert self.lease(demand=Demand(ANY, tags=("gpu",), time_left=1199.9)).ids == [1]
        assert self.queue.lease(1, demand=Demand(ANY, time_left=9999.0)) is None
        assert self.lease(demand=Demand(ANY, tags=("gpu",))).ids == [0]

    def test_time_requests_after_a_release(self) -> None:
        """What comes back waits for the same."""
        self.admit(calls(0, 2, tags=(time_tag(100),)))
        self.queue.release(self.lease(demand=Demand(ANY, time_left=101.0)))
        assert self.queue.lease(2, demand=Demand(ANY, time_left=99.0)) is None
        assert self.lease(demand=Demand(ANY, time_left=101.0)).ids == [0, 1]

    def test_stats_say_what_waits(self) -> None:
        """By kind and tags, ready and scheduled together, and since when the oldest ready one waits."""
        self.admit(calls(0, 3, tags=("gpu",)))
        self.admit(calls(10, 2, ready_at=NEVER))
        self.admit(singles(b"a", b"b", b"c", b"d"))
        self.lease(2, demand=Demand(ANY, kinds=(0,)))
        waiting = {(kind, tuple(tags), count) for kind, tags, count in self.queue.stats().waiting}
        assert waiting == {(1, ("gpu",), 3), (1, (), 2), (0, (), 2)}
        assert self.queue.stats().oldest_ready_at > 0
        self.queue.cancel([(0, 9)])
        stats = self.queue.stats()
        assert (stats.oldest_ready_at, tuple(stats.waiting)) == (0, ())

    # -- room

    def test_scheduled_messages_take_room(self) -> None:
        """Since they may become ready."""
        self.timed_queue(maxsize=3)
        self.admit(calls(0, 3, ready_at=NEVER))
        assert self.queue.admit([calls(3, 1)]).room == 0  # type: ignore[union-attr]

    def test_columns_count_in_bytes(self) -> None:
        """Keys and what controls the consumer are held with the batch."""
        self.admit(Batch(2, b"12345", keys=("k" * 40, "l" * 40), control=b"control"))
        assert self.queue.stats().nbytes == 5 + 80 + 7
