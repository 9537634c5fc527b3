"""Conformance: how messages end, and who hears of it. Acknowledged, rejected, reported late, read, kept, forgotten."""

from __future__ import annotations

from daskqueue_core.batch import Keep
from daskqueue_core.outcomes import Cursor, End, Failure, Outcome, Report
from daskqueue_core.states import MessageState
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls, ends, singles

__all__ = ["OutcomeRules"]

HOUR = 3600 * SECOND
FAILED, GONE = MessageState.FAILED, MessageState.GONE


class OutcomeRules(SuiteBase):
    """Settling and polling."""

    # -- ack, nack, settle

    def test_ack_ends_a_lease(self) -> None:
        """All of it succeeded: nothing is left of it, and it is not delivered again."""
        self.queue.put_block(b"block", 5)
        assert self.queue.ack(self.lease()) == 5
        stats = self.queue.stats()
        assert (stats.finished, stats.delivered, stats.ready, stats.owners) == (5, 0, 0, 0)
        assert self.queue.lease(1) is None

    def test_ack_by_the_number_of_a_lease(self) -> None:
        """A lease can be named by its id."""
        self.queue.put_block(b"block", 5)
        lease = self.lease()
        assert self.queue.ack(lease.id, [1]) == 1
        assert self.queue.ack(lease.id) == 4

    def test_ack_of_a_part(self) -> None:
        """The rest stays delivered, whatever the order of the numbers."""
        self.queue.put_block(b"block", 10)
        lease = self.lease()
        assert self.queue.ack(lease, [7, 1, 2]) == 3
        assert self.queue.stats().delivered == 7
        assert self.queue.ack(lease) == 7

    def test_ack_over_several_batches(self) -> None:
        """What a consumer says of its lease need not know the batches, and each client hears of its own."""
        self.admit(calls(0, 3), calls(10, 3), calls(20, 3))
        lease = self.lease()
        assert self.queue.ack(lease, [2, 3, 4, 6]) == 4
        assert self.ended() == [(2, "ok"), (10, "ok"), (11, "ok"), (20, "ok")]
        assert self.queue.ack(lease) == 5

    def test_ack_twice(self) -> None:
        """The second is no news, but counted."""
        self.queue.put_block(b"block", 5)
        lease = self.lease()
        assert self.queue.ack(lease, [0, 1]) == 2
        assert self.queue.ack(lease, [0, 1]) == 0
        assert self.queue.stats().stale == 2

    def test_ack_of_what_was_never_put(self) -> None:
        """Numbers and leases that nobody gave change nothing."""
        assert self.queue.ack(99, [0, 1, 2]) == 0
        assert self.queue.ack(99) == 0
        self.queue.put(b"a")
        assert self.queue.ack(99, [5]) == 0
        assert self.queue.stats().ready == 1

    def test_good_news_from_a_former_holder(self) -> None:
        """A success is taken wherever the message is: it is not run again."""
        self.admit(calls(0, 2))
        old = self.lease(1)
        self.queue.release(old)
        assert self.queue.ack(old, [0]) == 1
        assert self.lease().ids == [1]
        assert self.ended() == [(0, "ok")]

    def test_late_news_names_its_messages(self) -> None:
        """Without numbers, an ack means what the lease holds: what it gave back is run by somebody else."""
        self.queue.put_block(b"block", 6)
        lease = self.lease(4)
        self.queue.release(lease, [(2, 4)])
        assert self.queue.ack(lease) == 2
        assert self.queue.ack(lease) == 0
        assert self.lease().ids == [2, 3, 4, 5]

    def test_good_news_while_another_holds_it(self) -> None:
        """The first success counts, the holder's is stale."""
        self.admit(calls(0, 1))
        old = self.lease(owner="a")
        self.queue.owner_lost("a")
        new = self.lease(owner="b")
        assert self.settle(old, Report(0, 1, b"old")) == 1
        assert self.settle(new, Report(0, 1, b"new")) == 0
        [outcome] = self.poll().outcomes
        assert bytes(outcome.values) == b"old"

    def test_bad_news_from_a_former_holder(self) -> None:
        """A late failure is stale: the new holder may succeed."""
        self.admit(calls(0, 1))
        old = self.lease()
        self.queue.release(old)
        assert self.queue.nack(old, [0], text="late") == 0
        new = self.lease()
        assert self.queue.nack(old, [0], text="late") == 0
        assert self.queue.stats().stale == 2
        assert self.queue.ack(new) == 1
        assert self.ended() == [(0, "ok")]

    def test_nack_fails(self) -> None:
        """A rejected message ends as FAILED, and its client gets the error."""
        self.admit(calls(0, 3))
        lease = self.lease()
        assert self.queue.nack(lease, [1], error=b"pickled", text="Boom") == 1
        assert self.queue.ack(lease) == 2
        assert self.count(FAILED) == 1
        assert sorted(self.ended()) == [(0, "ok"), (1, "Boom"), (2, "ok")]
        assert any(outcome.errors == ((0, b"pickled", "Boom"),) for outcome in self.poll().outcomes)

    def test_nack_of_a_whole_lease(self) -> None:
        """Without numbers, all it holds."""
        self.admit(calls(0, 2), calls(2, 2))
        assert self.queue.nack(self.lease(3), text="Boom") == 3
        assert self.ended() == [(0, "Boom"), (1, "Boom"), (2, "Boom")]
        assert self.queue.stats().ready == 1

    def test_settle_with_values_and_errors(self) -> None:
        """A run's values arrive as they were sent, and its errors, addressed as the client counts."""
        self.admit(calls(0, 5), calls(100, 10))
        self.lease(7)
        lease = self.lease(4)
        report = Report(7, 11, b"values", (Failure(1, b"E1", "one"), Failure(3, b"E3", "three")))
        assert self.settle(lease, report) == 4
        good, bad = self.poll().outcomes
        assert good == Outcome(100, 2, 4, ((0, 1), (2, 3)), b"values")
        assert [(bad.first + bad.index + at, blob, text) for at, blob, text in bad.errors] == [
            (103, b"E1", "one"),
            (105, b"E3", "three"),
        ]
        assert self.ended() == [(102, "ok"), (104, "ok"), (103, "one"), (105, "three")]
        assert self.count(FAILED) == 2

    def test_errors_in_any_order(self) -> None:
        """Each error ends the message it names."""
        self.admit(calls(0, 4))
        assert self.settle(self.lease(), Report(0, 4, b"", (Failure(2, b"", "two"), Failure(0, b"", "zero")))) == 4
        assert sorted(self.ended()) == [(0, "zero"), (1, "ok"), (2, "two"), (3, "ok")]
        assert self.count(FAILED) == 2

    def test_a_report_that_is_partly_accepted(self) -> None:
        """What somebody else finished first is left out, and the values still decode: their base stays."""
        self.admit(calls(0, 10))
        a = self.lease(owner="a")
        self.queue.owner_lost("a")
        b = self.lease(5, owner="b")
        assert self.settle(b, Report(0, 5, b"b")) == 5
        assert self.settle(a, Report(0, 10, b"a", (Failure(2, b"", "late"), Failure(7, b"", "late")))) == 4
        first, second = self.poll().outcomes
        assert ends([first]) == [(n, "ok") for n in range(5)]
        assert (second.first, second.index, second.count, bytes(second.values)) == (0, 0, 10, b"a")
        assert (second.accepted, second.errors) == (((5, 7), (8, 10)), ())
        assert self.lease().ids == [7]

    # -- polls

    def test_a_poll_acknowledges_by_its_cursor(self) -> None:
        """Outcomes are sent until the cursor that came with them comes back."""
        self.admit(calls(0, 4))
        lease = self.lease()
        assert self.poll().outcomes == ()
        self.queue.ack(lease, [0])
        first = self.poll()
        assert ends(first.outcomes) == [(0, "ok")]
        assert self.poll() == first
        self.queue.ack(lease, [1])
        second = self.poll(first.cursor)
        assert ends(second.outcomes) == [(1, "ok")]
        assert self.poll(second.cursor).outcomes == ()

    def test_a_cursor_that_comes_again(self) -> None:
        """An old cursor acknowledges nothing more than it did."""
        self.admit(calls(0, 3))
        lease = self.lease()
        cursors: list[Cursor] = []
        for seq in range(3):
            self.queue.ack(lease, [seq])
            cursors.append(self.poll(cursors[-1] if cursors else None).cursor)
        self.poll(cursors[0])
        assert ends(self.poll(cursors[1]).outcomes) == [(2, "ok")]
        assert ends(self.poll(cursors[0]).outcomes) == [(2, "ok")]

    def test_a_cursor_of_another_epoch(self) -> None:
        """It acknowledges nothing: everything that was not acknowledged is sent again."""
        self.admit(calls(0, 3))
        self.queue.ack(self.lease())
        epoch, number = self.poll().cursor
        assert len(ends(self.poll((epoch + "?", number)).outcomes)) == 3
        assert self.poll((epoch, number)).outcomes == ()

    def test_outcomes_in_the_order_they_happened(self) -> None:
        """Whatever the order of the messages."""
        self.admit(calls(0, 4))
        lease = self.lease()
        for seq in (2, 0, 3, 1):
            self.queue.ack(lease, [seq])
        assert [number for number, _ in self.ended()] == [2, 0, 3, 1]

    def test_clients_hear_of_their_own(self) -> None:
        """An outcome goes to the client of its batch."""
        self.admit(calls(0, 2), calls(0, 3, client=CLIENT + 1))
        self.queue.ack(self.lease())
        assert len(self.ended()) == 2
        other = self.poll(client=CLIENT + 1)
        assert len(ends(other.outcomes)) == 3
        self.poll(other.cursor, client=CLIENT + 1)
        assert len(self.ended()) == 2

    def test_a_poll_is_bounded_in_bytes(self) -> None:
        """One outcome at least, the rest with the next poll."""
        self.admit(calls(0, 3))
        lease = self.lease()
        for seq in range(3):
            self.settle(lease, Report(seq, seq + 1, b"v" * 1_000))
        heard, cursor = [], None
        while (answer := self.queue.poll(CLIENT, cursor, limit_bytes=500)).outcomes:
            assert len(answer.outcomes) == 1
            heard += ends(answer.outcomes)
            cursor = answer.cursor
        assert heard == [(0, "ok"), (1, "ok"), (2, "ok")]

    # -- who keeps them

    def test_items_have_no_outcome(self) -> None:
        """Keep.NONE: nobody is told, the counts know."""
        self.admit(singles(b"a", b"b", client=CLIENT))
        lease = self.lease()
        self.queue.ack(lease, [0])
        self.queue.nack(lease, [1], text="Boom")
        stats = self.queue.stats()
        assert (stats.finished, stats.failed, stats.undelivered_outcomes, stats.kept_bytes) == (2, 1, 0, 0)
        assert self.poll().outcomes == ()

    def test_streamed_results_go_when_collected(self) -> None:
        """Keep.STREAM: kept for its client until acknowledged, and for nobody else."""
        self.admit(calls(0, 3))
        self.queue.ack(self.lease())
        assert self.kept() == []
        assert self.queue.stats().undelivered_outcomes == 1
        self.poll(self.poll().cursor)
        stats = self.queue.stats()
        assert (stats.undelivered_outcomes, stats.kept_bytes, stats.nbytes, stats.acked) == (0, 0, 0, 0)

    def test_kept_results_can_be_read_by_all(self) -> None:
        """Keep.KEEP: readable after its client collected it, values and errors."""
        self.admit(calls(0, 3, keep=Keep.KEEP))
        self.settle(self.lease(), Report(0, 3, b"values", (Failure(1, b"E", "Boom"),)))
        self.poll(self.poll().cursor)
        after, [(client, good), (_, bad)] = self.queue.read_kept()
        assert (after, client, good) == (-1, CLIENT, Outcome(0, 0, 3, ((0, 1), (2, 3)), b"values"))
        assert bad == Outcome(0, 1, 1, (), b"", ((0, b"E", "Boom"),))
        stats = self.queue.stats()
        assert (stats.acked, stats.failed) == (2, 1)
        assert stats.kept_bytes > 0

    def test_kept_results_tell_their_keys(self) -> None:
        """Readers know a task by its explicit key, whoever submitted it, also where it failed."""
        self.admit(calls(0, 3, keep=Keep.KEEP, keys=("a", "b", "c")))
        self.admit(calls(3, 1, keep=Keep.KEEP))
        self.settle(self.lease(), Report(0, 3, b"values", (Failure(1, b"E", "Boom"),)), Report(3, 4, b"value"))
        read = [outcome for _, outcome in self.queue.read_kept()[1]]
        assert [(outcome.keys, outcome.runs) for outcome in read] == [
            (("a", "b", "c"), ((0, 1), (2, 3))),
            (("b",), ((0, 1),)),
            ((), ((0, 1),)),
        ]

    def test_kept_results_are_read_in_pages(self) -> None:
        """Each answer says where to go on, until -1."""
        self.admit(calls(0, 3, keep=Keep.KEEP))
        lease = self.lease()
        for seq in range(3):
            self.settle(lease, Report(seq, seq + 1, b"v" * 1_000))
        read, after = [], 0
        while after >= 0:
            after, some = self.queue.read_kept(after, limit_bytes=500)
            assert len(some) == 1
            read += ends(outcome for _, outcome in some)
        assert read == [(0, "ok"), (1, "ok"), (2, "ok")]

    def test_forgotten_results_are_gone(self) -> None:
        """They are not readable any more; the bytes of a run are free when all of it is forgotten."""
        self.admit(calls(0, 4, keep=Keep.KEEP))
        lease = self.lease()
        self.settle(lease, Report(0, 2, b"values"))
        self.settle(lease, Report(2, 4, b"values"))
        kept = self.queue.stats().kept_bytes
        assert self.queue.forget([(0, 3)]) == 3
        assert self.kept() == [(3, "ok")]
        assert self.queue.forget([(0, 4)]) == 1
        stats = self.queue.stats()
        assert (self.kept(), stats.acked, stats.kept_bytes, kept > 0) == ([], 0, 0, True)

    def test_forget_keeps_what_has_not_ended(self) -> None:
        """Ready, delivered and failed messages are not forgotten."""
        self.admit(calls(0, 3, keep=Keep.KEEP))
        self.queue.nack(self.lease(1), text="Boom")
        self.lease(1)
        assert self.queue.forget([(0, 3)]) == 0
        stats = self.queue.stats()
        assert (stats.failed, stats.delivered, stats.ready) == (1, 1, 1)
        assert self.kept() == [(0, "Boom")]

    def test_collected_results_expire(self) -> None:
        """The time to live begins when the client has them; what it has not collected stays."""
        queue = self.timed_queue(result_ttl=HOUR)
        self.admit(calls(0, 2, keep=Keep.KEEP))
        lease = self.lease()
        queue.ack(lease, [0])
        self.poll(self.poll().cursor)
        queue.ack(lease, [1])
        collected_at = self.clock()
        assert queue.next_ready_at() == collected_at + HOUR
        self.wait(HOUR - 1)
        queue.tick()
        assert self.kept() == [(0, "ok"), (1, "ok")]
        self.wait(1)
        queue.tick()
        assert self.kept() == [(1, "ok")]
        assert self.count(MessageState.ACKED) == 1
        self.wait(100 * HOUR)
        queue.tick()
        assert self.kept() == [(1, "ok")]

    def test_kept_for_ever(self) -> None:
        """Without a time to live, collected results stay."""
        queue = self.timed_queue(result_ttl=None)
        self.admit(calls(0, 1, keep=Keep.KEEP))
        queue.ack(self.lease())
        self.poll(self.poll().cursor)
        self.wait(10_000 * HOUR)
        queue.tick()
        assert self.kept() == [(0, "ok")]

    def test_too_many_bytes_of_results(self) -> None:
        """Beyond the limit the oldest collected go first; what was not collected never does."""
        queue = self.timed_queue(result_max_bytes=2_500)
        self.admit(calls(0, 6, keep=Keep.KEEP))
        lease = self.lease()
        for seq in range(3):
            self.settle(lease, Report(seq, seq + 1, b"v" * 1_000))
        assert len(self.kept()) == 3
        self.poll(self.poll().cursor)
        queue.tick()
        assert self.kept() == [(1, "ok"), (2, "ok")]
        self.settle(lease, Report(3, 4, b"v" * 1_000))
        assert self.kept() == [(2, "ok"), (3, "ok")]
        for seq in (4, 5):
            self.settle(lease, Report(seq, seq + 1, b"v" * 1_000))
        assert self.kept() == [(3, "ok"), (4, "ok"), (5, "ok")]

    def test_how_it_ended_is_said(self) -> None:
        """What ran is told apart from what was cancelled."""
        self.admit(calls(0, 2))
        self.queue.cancel([(1, 2)])
        self.queue.ack(self.lease())
        assert {outcome.end for outcome in self.poll().outcomes} == {End.RUN, End.CANCELLED}
