"""Conformance: what happens to leases otherwise. Given back, silent owners, lost owners, cancel, time, counts."""

from __future__ import annotations

from daskqueue_core.batch import Keep
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.states import MessageState
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls

__all__ = ["ControlRules"]


class ControlRules(SuiteBase):
    """Releasing, heartbeats, losses, cancelling, ticking, counting."""

    # -- release

    def test_released_messages_come_first(self) -> None:
        """What was given back is leased before what was never delivered, in the order of its numbers."""
        self.queue.put_block(b"block", 10)
        first, second = self.lease(3), self.lease(3)
        assert self.queue.release(second) == 3
        assert self.queue.release(first) == 3
        assert self.lease(8).ids == list(range(8))

    def test_release_of_a_part(self) -> None:
        """A consumer gives its unstarted tail back and keeps the rest."""
        self.queue.put_block(b"block", 10)
        lease = self.lease(6)
        assert self.queue.release(lease, [(4, 6)]) == 2
        assert self.lease(3).ids == [4, 5, 6]
        assert self.queue.ack(lease) == 4

    def test_release_after_a_part_has_ended(self) -> None:
        """Only what is still held goes back."""
        self.queue.put_block(b"block", 5)
        lease = self.lease()
        self.queue.ack(lease, [0, 3])
        assert self.queue.release(lease.id) == 3
        assert self.lease().ids == [1, 2, 4]

    def test_release_of_what_is_not_held(self) -> None:
        """Twice, or of a lease nobody has: nothing moves."""
        self.queue.put_block(b"block", 5)
        lease = self.lease()
        assert self.queue.release(lease, [(0, 2)]) == 2
        assert self.queue.release(lease, [(0, 2)]) == 0
        other = self.lease(2, owner="b")
        assert self.queue.release(lease, [(0, 5)]) == 3
        assert self.queue.release(lease) == 0
        assert self.queue.release(99) == 0
        assert self.queue.ack(other) == 2

    def test_a_release_tells_nobody(self) -> None:
        """A message that goes back has not ended."""
        self.admit(calls(0, 3))
        self.queue.release(self.lease())
        assert self.ended() == []
        assert self.queue.stats().unfinished == 3

    # -- heartbeats

    def test_a_heartbeat_keeps_what_is_listed(self) -> None:
        """Held leases stay, and there is nothing to answer."""
        self.queue.put_block(b"block", 5)
        lease = self.lease(owner="a", request=1)
        assert self.queue.heartbeat("a", {lease.id: (0, 5)}, [], 1) == {}
        assert self.queue.stats().delivered == 5

    def test_a_heartbeat_renews(self) -> None:
        """All leases of the owner live on until its next deadline, never a shorter one."""
        queue = self.timed_queue()
        queue.put_block(b"block", 2)
        held = {self.lease(1, owner="a", ttl=10 * SECOND).id: (0, 1) for _ in range(2)}
        start = self.clock()
        self.wait(9 * SECOND)
        queue.heartbeat("a", held, [], 0, ttl=10 * SECOND)
        assert queue.next_ready_at() == start + 19 * SECOND
        queue.heartbeat("a", held, [], 0, ttl=1)
        self.wait(10 * SECOND - 1)
        queue.tick()
        assert queue.stats().delivered == 2

    def test_a_lost_grant_goes_back(self) -> None:
        """A lease whose request is over and which its owner does not list never arrived there."""
        self.queue.put_block(b"block", 5)
        held, lost = self.lease(2, owner="a", request=1), self.lease(2, owner="a", request=2)
        self.queue.heartbeat("a", {held.id: (0, 2)}, [], 2)
        assert self.queue.stats().delivered == 2
        assert self.lease(owner="b").ids == [2, 3, 4]
        assert self.queue.nack(lost, text="Boom") == 0

    def test_an_open_request_keeps_its_lease(self) -> None:
        """The answer may still be on its way."""
        self.queue.put_block(b"block", 5)
        self.lease(owner="a", request=1)
        self.queue.heartbeat("a", {}, [1], 1)
        assert self.queue.stats().delivered == 5

    def test_a_heartbeat_older_than_the_grant(self) -> None:
        """Sent before the request was: it says nothing about it."""
        self.queue.put_block(b"block", 5)
        self.lease(owner="a", request=8)
        self.queue.heartbeat("a", {}, [], 7)
        assert self.queue.stats().delivered == 5

    def test_a_heartbeat_concerns_its_owner_only(self) -> None:
        """Leases of others stay, and nobody can renew or list them."""
        self.queue.put_block(b"block", 2)
        first, second = self.lease(1, owner="a", request=1), self.lease(1, owner="b", request=1)
        self.queue.heartbeat("a", {second.id: (0, 1)}, [], 5)
        assert self.lease(owner="c").ids == [0]
        assert self.queue.ack(second) == 1
        assert self.queue.nack(first) == 0

    def test_a_heartbeat_of_somebody_without_leases(self) -> None:
        """Nothing to say and nothing to do."""
        assert self.queue.heartbeat("nobody", {}, [1], 1) == {}
        assert self.queue.heartbeat("nobody", {99: (0, 1)}, [], 1) == {}

    # -- lost owners

    def test_a_lost_owner(self) -> None:
        """What it held and had not begun goes to the front without blame, what others hold stays."""
        self.admit(calls(0, 9))
        a, b, more = self.lease(2, owner="a"), self.lease(2, owner="b"), self.lease(2, owner="a")
        self.not_begun("a", a, more)
        assert self.queue.owner_lost("a") == 4
        assert self.queue.owner_lost("a") == 0
        stats = self.queue.stats()
        assert (stats.ready, stats.delivered, stats.failed, stats.owners) == (7, 2, 0, 1)
        assert self.ended() == []
        assert self.lease(owner="c").ids == [*a.ids, *more.ids, 6, 7, 8]
        assert self.queue.ack(b) == 2

    def test_a_lost_owner_gets_nothing_more(self) -> None:
        """A request of it that was under way is not granted: nobody would end that lease. Others are served."""
        self.admit(calls(0, 2))
        self.not_begun("a", self.lease(1, owner="a", request=1))
        self.queue.owner_lost("a")
        assert self.queue.lease(1, owner="a", request=2) is None
        assert self.queue.lease(1, owner="a", request=1) is None
        assert self.lease(owner="b").ids == [0, 1]

    def test_half_of_a_lease_was_acknowledged(self) -> None:
        """The other half returns."""
        self.admit(calls(0, 10))
        self.queue.ack(self.lease(owner="a"), range(5))
        assert self.queue.owner_lost("a") == 5
        assert sorted(seq for ids in self.lease_all() for seq in ids) == [5, 6, 7, 8, 9]
        assert [number for number, _ in self.ended()] == [0, 1, 2, 3, 4]

    def test_once_is_not_delivered_again(self) -> None:
        """The owner of a lease that must not run twice is lost: what may have begun ends, and its client hears it."""
        self.admit(calls(0, 3))
        self.lease(owner="a", once=True)
        assert self.queue.owner_lost("a") == 3
        assert self.queue.lease(1) is None
        assert self.queue.stats().failed == 3
        assert self.ended() == [(0, "CRASHED"), (1, "CRASHED"), (2, "CRASHED")]

    def test_once_and_not_begun(self) -> None:
        """What its owner's last heartbeat said has not begun goes back."""
        self.admit(calls(0, 5))
        lease = self.lease(owner="a", once=True)
        self.queue.ack(lease, [0])
        self.queue.heartbeat("a", {lease.id: (1, 3)}, [], 0)
        assert self.queue.owner_lost("a") == 4
        assert self.ended() == [(0, "ok"), (1, "CRASHED"), (2, "CRASHED")]
        assert self.lease().ids == [3, 4]

    def test_once_and_the_grant_was_lost(self) -> None:
        """A grant that never arrived was not run: it goes back."""
        self.admit(calls(0, 5))
        self.lease(owner="a", request=1, once=True)
        self.queue.heartbeat("a", {}, [], 1)
        assert self.queue.stats().ready == 5

    def test_once_and_good_news_in_time(self) -> None:
        """A success counts; after the end it is stale."""
        self.admit(calls(0, 2))
        lease = self.lease(owner="a", once=True)
        assert self.queue.ack(lease, [0]) == 1
        self.queue.owner_lost("a")
        assert self.queue.ack(lease, [1]) == 0
        assert self.ended() == [(0, "ok"), (1, "CRASHED")]

    # -- cancel

    def test_cancel_of_ready_messages(self) -> None:
        """They end at once, and their client hears of it."""
        self.admit(calls(0, 5))
        assert self.queue.cancel([(1, 3), (4, 5)]) == 3
        assert self.ended() == [(1, "CANCELLED"), (2, "CANCELLED"), (4, "CANCELLED")]
        assert self.queue.stats().cancelled == 3
        assert self.lease().ids == [0, 3]

    def test_cancel_over_several_batches(self) -> None:
        """Each part ends for its own batch."""
        self.admit(calls(0, 3), calls(10, 3))
        assert self.queue.cancel([(0, 6)]) == 6
        assert [number for number, _ in self.ended()] == [0, 1, 2, 10, 11, 12]

    def test_cancel_of_delivered_messages(self) -> None:
        """Their owner is asked with the answer to its heartbeat, until it agrees."""
        self.admit(calls(0, 6))
        lease, other = self.lease(4, owner="a"), self.lease(1, owner="b")
        assert self.queue.cancel([(1, 3), (4, 5)]) == 3
        assert self.ended() == []
        for _ in range(2):
            assert _plain(self.queue.heartbeat("a", {lease.id: (0, 0)}, [], 0)) == {lease.id: [(1, 3)]}
        assert _plain(self.queue.heartbeat("b", {other.id: (0, 0)}, [], 0)) == {other.id: [(4, 5)]}
        assert self.queue.agree(lease, [(1, 3)]) == 2
        assert self.queue.heartbeat("a", {lease.id: (0, 0)}, [], 0) == {}
        assert self.ended() == [(1, "CANCELLED"), (2, "CANCELLED")]
        assert self.queue.ack(lease) == 2

    def test_cancel_by_the_names_of_a_client(self) -> None:
        """A client names its batch and positions in it; it hears which have ended by this, by the same names."""
        self.queue.put(b"a")
        self.admit(calls(0, 3, client=CLIENT + 1), calls(10, 6), calls(20, 3))
        self.lease(6, owner="a")
        tasks = [(10, 1, 5), (20, 0, 1), (99, 0, 1), (0, 0, 3)]
        ended = self.queue.cancel_tasks(CLIENT, tasks)
        assert [tuple(task) for task in ended] == [(10, 2, 5), (20, 0, 1)]
        stats = self.queue.stats()
        assert (stats.cancelled, stats.delivered, stats.ready) == (4, 6, 3)
        assert self.ended() == [(12, "CANCELLED"), (13, "CANCELLED"), (14, "CANCELLED"), (20, "CANCELLED")]
        assert self.queue.owner_lost("a") == 6
        assert self.count(MessageState.CANCELLED) == 5

    def test_cancel_by_name_is_asked_once(self) -> None:
        """What has ended does not end again, also when its batch is gone."""
        self.admit(calls(0, 2))
        self.queue.ack(self.lease(1))
        assert [tuple(task) for task in self.queue.cancel_tasks(CLIENT, [(0, 0, 2)])] == [(0, 1, 2)]
        assert list(self.queue.cancel_tasks(CLIENT, [(0, 0, 2)])) == []

    def test_cancel_comes_too_late(self) -> None:
        """What ran anyway counts as it ended, and what has ended is not cancelled."""
        self.admit(calls(0, 3))
        lease = self.lease()
        assert self.queue.cancel([(0, 2)]) == 2
        self.queue.ack(lease, [0])
        self.queue.nack(lease, [1], text="Boom")
        self.queue.ack(lease, [2])
        assert self.queue.cancel([(0, 3)]) == 0
        assert self.ended() == [(0, "ok"), (1, "Boom"), (2, "ok")]

    def test_cancel_is_asked_once(self) -> None:
        """Asked again, it concerns nobody new."""
        self.admit(calls(0, 2))
        self.lease(1)
        assert self.queue.cancel([(0, 2)]) == 2
        assert self.queue.cancel([(0, 2)]) == 0

    def test_cancelled_messages_do_not_come_back(self) -> None:
        """Given back or lost with their owner, those with a cancel asked end."""
        self.admit(calls(0, 4))
        lease, other = self.lease(2, owner="a"), self.lease(2, owner="b")
        self.not_begun("b", other)
        self.queue.cancel([(1, 3)])
        assert self.queue.release(lease) == 2
        assert self.queue.owner_lost("b") == 2
        assert self.ended() == [(1, "CANCELLED"), (2, "CANCELLED")]
        assert self.lease().ids == [0, 3]

    def test_only_the_holder_agrees(self) -> None:
        """A former holder has nothing to give up."""
        self.admit(calls(0, 2))
        old = self.lease(owner="a")
        self.queue.release(old)
        new = self.lease(owner="b")
        self.queue.cancel([(0, 2)])
        assert self.queue.agree(old, [(0, 2)]) == 0
        assert self.queue.agree(new, [(0, 2)]) == 2

    def test_cancelled_messages_can_be_forgotten(self) -> None:
        """Then nothing is left of them but their numbers."""
        self.admit(calls(0, 2))
        self.queue.cancel([(0, 2)])
        assert self.queue.forget([(0, 2)]) == 2
        assert self.queue.forget([(0, 2)]) == 0
        stats = self.queue.stats()
        assert (stats.cancelled, stats.finished, stats.puts) == (0, 2, 2)

    # -- time

    def test_the_lease_of_a_silent_owner_lapses(self) -> None:
        """After its deadline, not before, and no other."""
        queue = self.timed_queue()
        queue.put_block(b"block", 4)
        self.lease(2, owner="a", ttl=10 * SECOND)
        self.lease(2, owner="b", ttl=20 * SECOND)
        assert queue.next_ready_at() == self.clock() + 10 * SECOND
        self.wait(10 * SECOND - 1)
        queue.tick()
        assert queue.stats().delivered == 4
        self.wait(1)
        queue.tick()
        assert (queue.stats().delivered, queue.stats().failed) == (2, 0)
        assert queue.next_ready_at() == self.clock() + 10 * SECOND
        assert self.lease_all(owner="c") == [[0], [1]]

    def test_a_lapsed_lease_reports_late(self) -> None:
        """Its success is taken, its failure is not."""
        queue = self.timed_queue()
        self.admit(calls(0, 2))
        lease = self.lease(owner="a", ttl=SECOND)
        self.wait(SECOND)
        queue.tick()
        assert queue.nack(lease, [1], text="Boom") == 0
        assert queue.ack(lease, [0]) == 1
        assert self.lease().ids == [1]

    def test_nothing_to_wait_for(self) -> None:
        """An empty queue needs no timer, and ticking it changes nothing."""
        assert self.queue.next_ready_at() is None
        self.queue.put(b"a")
        assert self.queue.next_ready_at() is None
        before = self.queue.stats()
        self.queue.tick()
        assert self.queue.stats() == before

    # -- counts

    def test_stats_count(self) -> None:
        """Every message is counted once, where it is."""
        self.admit(calls(0, 10, keep=Keep.KEEP))
        self.queue.cancel([(9, 10)])
        a, _ = self.lease(4, owner="a"), self.lease(2, owner="b")
        self.queue.ack(a, [0, 1])
        self.queue.nack(a, [2], text="Boom")
        stats = self.queue.stats()
        assert (stats.puts, stats.ready, stats.delivered) == (10, 3, 3)
        assert (stats.acked, stats.failed, stats.cancelled) == (2, 1, 1)
        assert (stats.finished, stats.unfinished, stats.owners, stats.stale) == (4, 6, 2, 0)
        assert (stats.undelivered_outcomes, stats.kept_bytes > 0, stats.nbytes > 0) == (3, True, True)

    def test_payloads_are_freed(self) -> None:
        """A batch is held until its last message has ended, however it ends."""
        self.admit(calls(0, 4, body=b"x" * 1_000))
        assert self.queue.stats().nbytes >= 1_000
        lease = self.lease(3)
        self.queue.cancel([(3, 4)])
        self.queue.ack(lease, [0])
        self.settle(lease, Report(1, 2, errors=(Failure(0, b"", "Boom", body=b"own"),)))
        assert self.queue.stats().nbytes >= 1_000
        self.queue.ack(lease, [2])
        assert self.queue.stats().nbytes == len(b"own")

    def test_many_small_batches(self) -> None:
        """Messages are found however many batches have come and gone around them."""
        for n in range(300):
            self.queue.put(b"%d" % n)
        lease = self.lease()
        self.queue.ack(lease, [seq for seq in lease.ids if seq % 7])
        self.queue.release(lease)
        again = self.lease()
        assert [bytes(body) for body in again.payloads] == [b"%d" % seq for seq in range(0, 300, 7)]
        assert self.queue.ack(again) == len(again)
        assert self.queue.stats().nbytes == 0

    def test_close_twice(self) -> None:
        """Closing a closed queue is no mistake."""
        self.queue.put(b"a")
        self.queue.close()
        self.queue.close()


def _plain(cancels: dict[int, tuple[tuple[int, int], ...]]) -> dict[int, list[tuple[int, int]]]:
    """The runs of a heartbeat's answer as a list of pairs: they may have travelled."""
    return {lease: [(start, stop) for start, stop in runs] for lease, runs in cancels.items()}
