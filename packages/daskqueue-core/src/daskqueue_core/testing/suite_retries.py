"""Conformance: messages that fail. Tried again, dead, run again or purged, and those that kill their workers."""

from __future__ import annotations

from daskqueue_core.batch import Keep
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.states import MessageState
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls, refused, singles

__all__ = ["RetryRules"]

FAILED = MessageState.FAILED
HOUR = 3600 * SECOND


class RetryRules(SuiteBase):
    """Failures."""

    # -- tried again

    def test_tried_again_at_once(self) -> None:
        """A failure with attempts left is no outcome: the message comes back, and says how often it failed."""
        self.admit(calls(0, 2))
        lease = self.lease()
        assert self.settle(lease, Report(0, 2, b"values", (Failure(1, b"E", "Boom", 0),))) == 2
        assert self.ended() == [(0, "ok")]
        again = self.lease()
        assert (again.ids, list(again.attempts)) == ([1], [1])
        assert (self.queue.stats().retries, self.queue.stats().failed) == (1, 0)

    def test_tried_again_later(self) -> None:
        """Not before the time it asked for; failures that wait equally long come back together."""
        queue = self.timed_queue()
        self.admit(calls(0, 4))
        waits = (10 * SECOND, 20 * SECOND, 10 * SECOND, 0)
        failures = tuple(Failure(at, b"", "Boom", wait) for at, wait in enumerate(waits))
        self.settle(self.lease(), Report(0, 4, b"", failures))
        stats = queue.stats()
        assert (stats.scheduled, stats.ready, stats.delivered) == (3, 1, 0)
        assert self.lease().ids == [3]
        self.wait(10 * SECOND)
        queue.tick()
        assert self.lease().ids == [0, 2]
        self.wait(10 * SECOND)
        queue.tick()
        assert self.lease().ids == [1]

    def test_nack_with_a_delay_that_is_none(self) -> None:
        """It is refused, and nothing has changed."""
        self.admit(calls(0, 1))
        lease = self.lease()
        for delay in (-1.0, float("nan"), float("inf")):
            refused(self.queue.nack, lease, delay=delay)
        assert self.queue.stats().delivered == 1
        assert self.queue.nack(lease, delay=0.0) == 1

    def test_nack_with_a_delay(self) -> None:
        """The simple form, in seconds."""
        queue = self.timed_queue()
        self.queue.put_many([b"a", b"b"])
        lease = self.lease()
        assert queue.nack(lease, [0], text="Boom", delay=0.0) == 1
        assert queue.nack(lease, [1], text="Boom", delay=1.5) == 1
        assert self.lease().ids == [0]
        self.wait(int(1.5 * SECOND))
        queue.tick()
        assert self.lease().ids == [1]

    def test_attempts_are_told(self) -> None:
        """An outcome says how many attempts each message took, when it was more than one."""
        self.admit(calls(0, 3))
        for _ in range(2):
            lease = self.lease()
            self.settle(lease, *(Report(seq, seq + 1, b"", (Failure(0, b"", "Boom", 0),)) for seq in lease.ids if seq))
            self.queue.release(lease)
        self.settle(self.lease(), Report(0, 3, b"values"))
        [outcome] = self.poll().outcomes
        assert list(outcome.attempts) == [1, 3, 3]
        assert self.queue.stats().retries == 4

    def test_attempts_of_a_report_that_is_partly_accepted(self) -> None:
        """Each is told for its own message, whatever of the report counts."""
        self.admit(calls(0, 4))
        lease = self.lease()
        self.settle(lease, *(Report(seq, seq + 1, b"", (Failure(0, b"", "Boom", 0),)) for seq in (1, 2)))
        again = self.lease()
        self.queue.ack(lease, [0])
        self.settle(again, Report(0, 4, b"values", (Failure(2, b"", "Boom", 0),)))
        outcome = self.poll().outcomes[-1]
        attempts = list(outcome.attempts)
        assert (outcome.index, outcome.count, len(attempts)) == (0, 4, 4)
        assert [attempts[at] for start, stop in outcome.runs for at in range(start, stop)] == [2, 1]

    def test_a_failure_outside_of_its_report(self) -> None:
        """Says nothing: a report speaks of its own messages."""
        self.admit(calls(0, 4))
        lease = self.lease()
        failures = tuple(Failure(at, b"", "Boom") for at in (-1, 2))
        assert self.settle(lease, Report(1, 3, b"values", failures)) == 2
        assert (self.ended(), self.queue.stats().delivered) == ([(1, "ok"), (2, "ok")], 2)

    def test_a_lost_lease_is_no_attempt(self) -> None:
        """Attempts are failures that the function reported."""
        self.admit(calls(0, 1))
        self.queue.release(self.lease())
        self.lease(owner="a")
        self.queue.owner_lost("a")
        assert list(self.lease(owner="b").attempts) == [0]

    def test_a_late_failure_is_no_attempt(self) -> None:
        """Only the holder may give it back."""
        self.admit(calls(0, 1))
        old = self.lease()
        self.queue.release(old)
        assert self.settle(old, Report(0, 1, b"", (Failure(0, b"", "late", 0),))) == 0
        assert list(self.lease().attempts) == [0]
        assert self.queue.stats().retries == 0

    def test_a_failure_after_a_cancel(self) -> None:
        """What was asked to stop is not tried again."""
        self.admit(calls(0, 1))
        lease = self.lease()
        self.queue.cancel([(0, 1)])
        assert self.settle(lease, Report(0, 1, b"", (Failure(0, b"", "Boom", 0),))) == 1
        assert self.ended() == [(0, "CANCELLED")]
        assert self.queue.stats().retries == 0

    def test_stopped_because_it_was_asked_to(self) -> None:
        """No failure, and no dead letter."""
        self.admit(calls(0, 2))
        lease = self.lease()
        self.queue.cancel([(0, 1)])
        stopped = Failure(0, b"", "stopped", reason=FailureReason.CANCELLED)
        assert self.settle(lease, Report(0, 2, b"", (stopped,))) == 2
        assert sorted(self.ended()) == [(0, "CANCELLED"), (1, "ok")]
        assert (self.queue.stats().failed, self.queue.dead_letters()) == (0, [])

    # -- dead letters

    def test_a_dead_letter_says_why(self) -> None:
        """Name, error, attempts, holder, and when."""
        self.admit(calls(0, 3, keep=Keep.KEEP))
        self.fail(self.lease(1), retry_in=0)
        lease = self.lease(2, owner="w7")
        failures = (
            Failure(0, b"E0", "over", reason=FailureReason.FAILED),
            Failure(1, b"E1", "rejected", reason=FailureReason.REJECTED),
        )
        self.settle(lease, Report(0, 2, b"", failures))
        first, second = self.queue.dead_letters()
        assert (first.seq, first.client, first.number, first.key) == (0, CLIENT, 0, None)
        assert (first.text, bytes(first.blob), first.attempts, first.crashes) == ("over", b"E0", 2, 0)
        assert (first.reason, first.owner, first.end) == ("failed", "w7", 0)
        assert 0 < first.put_at <= first.failed_at
        assert (second.seq, second.attempts, second.reason) == (1, 1, "rejected")
        assert sorted(self.ended()) == [(0, "over"), (1, "rejected")]

    def test_a_timeout_is_a_reason(self) -> None:
        """It says so."""
        self.admit(calls(0, 1))
        self.fail(self.lease(), reason=FailureReason.TIMEOUT)
        assert self.queue.dead_letters()[0].reason == "timeout"

    def test_dead_letters_in_pages(self) -> None:
        """From a number on, at most so many, in the order of numbers."""
        self.admit(calls(0, 5))
        lease = self.lease()
        for seq in (3, 1, 4, 0):
            self.queue.nack(lease, [seq])
        assert [letter.seq for letter in self.queue.dead_letters()] == [0, 1, 3, 4]
        assert [letter.seq for letter in self.queue.dead_letters(1, 2)] == [1, 3]
        assert [letter.seq for letter in self.queue.dead_letters(after=4)] == [4]
        assert self.queue.dead_letters(limit=0) == []

    def test_dead_items_are_named_by_number(self) -> None:
        """Nobody waits for items, so no client counts them."""
        self.admit(singles(b"a", b"b", client=CLIENT, first=5))
        self.queue.nack(self.lease(), text="Boom")
        assert [(letter.client, letter.number) for letter in self.queue.dead_letters()] == [(0, 0), (0, 1)]
        assert self.queue.requeue([(0, 1)]) == 1
        assert [bytes(body) for body in self.lease().payloads] == [b"b"]

    def test_too_many_bytes_of_exceptions(self) -> None:
        """Beyond the limit of results the oldest are dropped; a short text stays."""
        queue = self.timed_queue(result_max_bytes=2_500)
        self.admit(calls(0, 3))
        lease = self.lease()
        for seq in range(3):
            self.settle(lease, Report(seq, seq + 1, b"", (Failure(0, b"E" * 1_000, "text" * 500),)))
        letters = queue.dead_letters()
        assert [len(letter.blob) for letter in letters] == [0, 1_000, 1_000]
        assert [len(letter.text) for letter in letters] == [500, 2_000, 2_000]
        assert queue.stats().dead_bytes == 2_000
        assert queue.purge(FAILED) == 3
        assert queue.stats().dead_bytes == 0

    # -- run again

    def test_requeue_is_a_new_life(self) -> None:
        """Without attempts; its outcome says which life it was, and goes to its client again."""
        self.admit(calls(0, 2, keep=Keep.KEEP))
        self.fail(self.lease(), retry_in=0)
        self.fail(self.lease())
        before = self.poll()
        assert self.queue.requeue() == 2
        assert (self.queue.stats().ready, self.queue.dead_letters()) == (2, [])
        lease = self.lease()
        assert (lease.ids, list(lease.attempts)) == ([0, 1], [0, 0])
        self.queue.ack(lease)
        outcomes = self.poll(before.cursor).outcomes
        assert [(outcome.life, outcome.first + outcome.index) for outcome in outcomes] == [(1, 0), (1, 1)]
        assert self.kept() == [(0, "ok"), (1, "ok")]

    def test_requeue_of_some(self) -> None:
        """By name; what is not dead is left alone."""
        self.admit(calls(10, 4, keys=("a", "b", "c", "d"), keep=Keep.KEEP))
        lease = self.lease(3)
        self.queue.nack(lease, [0, 1])
        assert self.queue.requeue(["b", (CLIENT, 12), (CLIENT, 99), "nobody", (1, 1)]) == 1
        assert [letter.key for letter in self.queue.dead_letters()] == ["a"]
        assert self.lease().ids == [1, 3]

    def test_requeue_has_what_is_needed_to_run(self) -> None:
        """A single has its own bytes, what came in a block the body that was sent along; the rest as before."""
        self.admit(singles(b"aa", b"bb", b"cc", client=CLIENT, first=5, keep=Keep.STREAM, shared=b"S", control=b"C"))
        self.admit(calls(10, 3, shared=b"F", control=b"C", priority=-1))
        self.queue.nack(self.lease(2), [1])
        self.settle(self.lease(4), Report(4, 5, b"", (Failure(0, b"", "Boom", body=b"call 11"),)))
        self.queue.requeue()
        single, call = (self.lease(1).parts[0] for _ in range(2))
        assert ([bytes(body) for body in single.bodies()], single.first, single.shared) == ([b"bb"], 6, b"S")
        assert ([bytes(body) for body in call.bodies()], call.first, call.function) == ([b"call 11"], 11, b"f")
        assert (bytes(call.shared), bytes(call.control), call.client) == (b"F", b"C", CLIENT)

    def test_a_block_stays_for_its_dead(self) -> None:
        """A dead letter without a body of its own is run out of its block."""
        self.admit(calls(0, 3, body=b"x" * 1_000, offset=7))
        lease = self.lease()
        self.queue.nack(lease, [1])
        self.queue.ack(lease, [0, 2])
        assert self.queue.stats().nbytes == 1_000
        self.queue.requeue()
        [part] = self.lease().parts
        assert (bytes(part.body or b""), part.offset, part.count, part.first) == (b"x" * 1_000, 8, 1, 1)
        self.queue.ack(1, [1])
        assert self.queue.stats().nbytes == 0

    def test_dead_twice(self) -> None:
        """A requeued message that fails again is a dead letter again, of the next life."""
        self.admit(singles(b"a", client=CLIENT, keep=Keep.STREAM))
        for life in range(3):
            self.fail(self.lease(), f"life {life}")
            [letter] = self.queue.dead_letters()
            assert (letter.text, letter.attempts, letter.number) == (f"life {life}", 1, 0)
            assert self.queue.stats().nbytes == 1
            assert self.queue.requeue() == 1
        self.queue.ack(self.lease())
        assert [outcome.life for outcome in self.poll().outcomes] == [0, 1, 2, 3]
        assert self.queue.stats().nbytes == 0

    # -- purged

    def test_purge_of_dead_letters(self) -> None:
        """They and their bytes are gone, and so is the error that was kept."""
        self.admit(calls(0, 3, keep=Keep.KEEP))
        lease = self.lease()
        self.queue.nack(lease, [0, 2], error=b"E", text="Boom")
        self.queue.ack(lease)
        assert self.queue.purge(FAILED, [(CLIENT, 0), (CLIENT, 1)]) == 1
        assert [letter.seq for letter in self.queue.dead_letters()] == [2]
        assert self.kept() == [(2, "Boom"), (1, "ok")]
        assert self.queue.purge(FAILED) == 1
        stats = self.queue.stats()
        assert (stats.failed, stats.dead_bytes, stats.nbytes, stats.acked) == (0, 0, 0, 1)

    def test_purge_of_what_waits(self) -> None:
        """Whoever waits for it hears that it was cancelled."""
        self.admit(calls(0, 3))
        self.admit(calls(10, 2, ready_at=1 << 62))
        self.lease(1)
        assert self.queue.purge(MessageState.READY) == 2
        assert self.queue.purge(MessageState.SCHEDULED) == 2
        assert [how for _, how in self.ended()] == ["CANCELLED"] * 4
        assert (self.queue.stats().unfinished, self.queue.stats().cancelled) == (1, 0)

    def test_purge_of_what_has_ended(self) -> None:
        """It is forgotten."""
        self.admit(calls(0, 2, keep=Keep.KEEP))
        self.queue.ack(self.lease(1))
        self.queue.cancel([(1, 2)])
        assert self.queue.purge(MessageState.ACKED) == 1
        assert self.queue.purge(MessageState.CANCELLED) == 1
        assert self.kept() == []

    def test_purge_of_delivered_messages(self) -> None:
        """They belong to their holders: a mistake."""
        self.admit(calls(0, 1))
        self.lease()
        refused(self.queue.purge, MessageState.DELIVERED)
        refused(self.queue.purge, MessageState.GONE)

    # -- what kills its workers

    def test_suspects_are_delivered_apart(self) -> None:
        """What may have killed its worker comes in ever smaller pieces; the one that does it ends."""
        self.admit(calls(0, 16, max_crashes=2), calls(100, 4))
        poison, killed = 5, 0
        while (lease := self.queue.lease(100, owner=f"w{killed}")) is not None:
            if poison in lease.ids:
                self.queue.owner_lost(f"w{killed}")
                killed += 1
            else:
                self.queue.ack(lease)
            assert killed < 8
        assert dict(self.ended()) == {**dict.fromkeys([*range(16), *range(100, 104)], "ok"), poison: "CRASHED"}
        [letter] = self.queue.dead_letters()
        assert (letter.seq, letter.crashes, letter.reason, letter.end) == (poison, 2, "crashed", 2)
        assert letter.owner == f"w{killed - 1}"

    def test_neighbours_on_the_same_worker_are_not_blamed(self) -> None:
        """Two leases of one message each: nobody knows which one took the worker along, so no crash is counted."""
        self.admit(calls(0, 2, max_crashes=1))
        self.lease(1, owner="a")
        self.lease(1, owner="a")
        self.queue.owner_lost("a")
        assert self.queue.stats().failed == 0
        assert self.lease(owner="b").ids == [0]
        assert self.queue.lease(1, owner="b") is None  # one at a time, else nobody would ever know
        self.queue.owner_lost("b")
        assert self.ended() == [(0, "CRASHED")]
        assert self.lease(owner="c").ids == [1]

    def test_a_suspect_beside_others_did_it(self) -> None:
        """What was a suspect before is blamed; what ran beside it becomes one."""
        self.admit(calls(0, 2, max_crashes=1))
        self.lease(owner="a")
        self.queue.owner_lost("a")
        self.admit(calls(100, 1, max_crashes=1))
        assert self.lease(owner="b").ids == [0]
        assert self.lease(owner="b", suspects=False).ids == [2]
        self.queue.owner_lost("b")
        assert self.ended() == [(0, "CRASHED")]
        assert self.queue.lease(1, owner="c", suspects=False) is None

    def test_only_what_may_have_begun_is_suspect(self) -> None:
        """What the owner said it had not begun comes back as it was."""
        self.admit(calls(0, 8))
        lease = self.lease(owner="a")
        self.queue.heartbeat("a", {lease.id: (2, 3)}, [], 0)
        self.queue.owner_lost("a")
        without = self.lease(owner="b", suspects=False)
        assert without.ids == [0, 1, 3, 4, 5, 6, 7]
        assert self.queue.lease(1, suspects=False) is None
        assert self.lease().ids == [2]

    def test_put_again_and_again(self) -> None:
        """What was lost twice with its queue is suspect from the start."""
        self.admit(calls(0, 2, resent=2))
        assert self.queue.lease(2, suspects=False) is None
        assert self.lease_all() == [[0], [1]]

    def test_an_end_without_suspicion(self) -> None:
        """A failure clears it: it ran to its end."""
        self.admit(calls(0, 1))
        self.lease(owner="a")
        self.queue.owner_lost("a")
        self.fail(self.lease(owner="b"), retry_in=0)
        assert self.lease(suspects=False).ids == [0]

    def test_crashed_messages_are_requeued_without_crashes(self) -> None:
        """A new life has its own count."""
        self.admit(calls(0, 1, max_crashes=1))
        self.lease(owner="a")
        self.queue.owner_lost("a")
        assert self.ended() == [(0, "CRASHED")]
        assert self.queue.requeue() == 1
        assert self.lease(owner="b").ids == [0]
        self.queue.owner_lost("b")
        assert self.queue.dead_letters()[0].crashes == 1

    def test_dead_letters_do_not_expire(self) -> None:
        """Not with the results."""
        queue = self.timed_queue(result_ttl=HOUR)
        self.admit(calls(0, 1, keep=Keep.KEEP))
        self.fail(self.lease())
        self.poll(self.poll().cursor)
        self.wait(2 * HOUR)
        queue.tick()
        assert self.kept() == []
        assert len(queue.dead_letters()) == 1
        assert queue.requeue([(CLIENT, 0)]) == 1
