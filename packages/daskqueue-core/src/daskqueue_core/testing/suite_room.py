"""Conformance: back-pressure. A put that does not fit is refused whole, leaves no trace, and may be repeated.

Room is counted in messages without an outcome (`maxsize`) and in bytes of payloads (`max_bytes`). Whoever hosts the
queue may let a put wait for room; here each answer comes at once. A queue without options is not limited: these tests
are skipped where options cannot be given.
"""

from __future__ import annotations

from queue import Full as QueueFull
from typing import Any

from daskqueue_core.batch import Batch, Keep
from daskqueue_core.ledger import Early
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.queue import Accepted, Full
from daskqueue_core.testing.suite_base import CLIENT, SECOND, SuiteBase, calls

__all__ = ["RoomRules"]


class RoomRules(SuiteBase):
    """Full queues."""

    def full_queue(self, count: int = 10, **options: Any) -> None:
        """This test's queue, with room for `count` messages and as many in it, of one client."""
        self.timed_queue(maxsize=count, **options)
        self.admit(calls(0, count), producer=7, number=0)

    def put_one(self, number: int = 1, count: int = 1) -> Any:
        """The next put of the producer that filled it."""
        return self.queue.admit([calls(100 * number, count)], producer=7, number=number)

    def test_no_limit_without_options(self) -> None:
        """Nobody is refused."""
        for _ in range(100):
            self.queue.put_block(b"x" * 10_000, 1_000)
        assert self.queue.stats().puts == 100_000

    def test_a_full_queue_refuses(self) -> None:
        """It says that nothing would fit, and nothing was put."""
        self.full_queue()
        assert self.put_one() == Full(0)
        stats = self.queue.stats()
        assert (stats.puts, stats.ready, stats.nbytes) == (10, 10, len(b"arguments"))

    def test_it_says_how_many_would_fit(self) -> None:
        """A put is admitted whole or not at all."""
        self.timed_queue(maxsize=10)
        self.admit(calls(0, 7), producer=7, number=0)
        assert self.put_one(count=4) == Full(3)
        assert self.put_one(count=3) == Accepted(7, 3)
        assert self.put_one(2) == Full(0)

    def test_a_put_of_several_batches_counts_as_one(self) -> None:
        """What does not fit together does not go in apart."""
        self.timed_queue(maxsize=10)
        self.queue.put(b"a")
        assert self.queue.admit([calls(0, 5), calls(5, 5)], producer=7, number=0) == Full(9)
        assert self.queue.stats().puts == 1
        assert self.admit(calls(0, 5), calls(5, 4), producer=7, number=0) == range(1, 10)

    def test_simple_puts_raise(self) -> None:
        """`queue.Full`, and nothing was put."""
        self.full_queue(2)
        for put in (
            lambda: self.queue.put(b"a"),
            lambda: self.queue.put_many([b"a", b"b"]),
            lambda: self.queue.put_block(b"block", 3),
        ):
            try:
                put()
            except QueueFull:
                continue
            raise AssertionError("a put into a full queue was let in")
        assert self.queue.put_many([]) == range(2, 2)
        assert self.queue.stats().puts == 2

    def test_more_than_fits_into_an_empty_queue(self) -> None:
        """It could wait for ever, so an empty queue takes it; only an empty one."""
        self.timed_queue(maxsize=10)
        self.admit(calls(0, 25), producer=7, number=0)
        assert self.put_one() == Full(0)
        self.settle(self.lease(24), Report(0, 24))
        assert self.put_one(count=25) == Full(9)
        self.settle(self.lease(1), Report(24, 25))
        assert self.put_one(count=25) == Accepted(25, 25)

    def test_delivered_messages_take_room(self) -> None:
        """A lease makes none: its messages may come back."""
        self.full_queue()
        lease = self.lease(10)
        assert self.put_one() == Full(0)
        self.queue.release(lease)
        assert self.put_one() == Full(0)

    def test_every_end_makes_room(self) -> None:
        """Success, failure and cancellation alike, kept results too."""
        self.timed_queue(maxsize=4)
        self.admit(calls(0, 4, keep=Keep.KEEP), producer=7, number=0)
        assert self.put_one() == Full(0)
        lease = self.lease(2)
        self.settle(lease, Report(0, 1, b"value"))
        assert self.put_one(1) == Accepted(4, 1)
        assert self.put_one(2) == Full(0)
        self.settle(lease, Report(1, 2, errors=(Failure(0, b"error", "it failed"),)))
        assert self.put_one(2) == Accepted(5, 1)
        assert self.put_one(3) == Full(0)
        assert self.queue.cancel_tasks(CLIENT, [(0, 2, 3)]) == [(0, 2, 3)]
        assert self.put_one(3) == Accepted(6, 1)
        assert self.kept() == [(0, "ok"), (1, "it failed"), (2, "CANCELLED")]

    def test_a_lost_owner_makes_no_room(self) -> None:
        """What it held is ready again."""
        self.full_queue()
        self.lease(10, owner="a", ttl=SECOND)
        self.wait(2 * SECOND)
        self.queue.tick()
        assert self.put_one() == Full(0)
        assert self.queue.stats().ready == 10

    def test_a_refused_number_stays_free(self) -> None:
        """The put can be repeated until there is room, and goes in once."""
        self.full_queue()
        assert self.put_one() == self.put_one() == Full(0)
        self.settle(self.lease(1), Report(0, 1))
        assert self.put_one() == self.put_one() == Accepted(10, 1)
        assert self.queue.stats().puts == 11

    def test_successors_wait_for_a_refused_put(self) -> None:
        """They are not admitted before it, although they would fit."""
        self.timed_queue(maxsize=10)
        self.admit(calls(0, 8), producer=7, number=0)
        assert self.put_one(1, count=5) == Full(2)
        assert isinstance(self.put_one(2), (Early, Full))
        assert self.queue.stats().puts == 8
        self.settle(self.lease(4), Report(0, 4))
        assert self.put_one(1, count=5) == Accepted(8, 5)
        assert self.put_one(2) == Accepted(13, 1)

    def test_another_put_under_a_refused_number(self) -> None:
        """What was refused may be left out: its number says nothing of it."""
        self.timed_queue(maxsize=10)
        self.admit(calls(0, 8), producer=7, number=0)
        assert self.put_one(1, count=5) == Full(2)
        assert self.queue.admit([calls(500, 2)], producer=7, number=1) == Accepted(8, 2)

    def test_an_admitted_put_is_answered_although_it_is_full(self) -> None:
        """A repetition takes no room."""
        self.full_queue()
        assert self.queue.admit([calls(0, 10)], producer=7, number=0) == Accepted(0, 10)

    def test_one_that_is_too_large_blocks_no_other_producer(self) -> None:
        """Who fits is let in."""
        self.timed_queue(maxsize=10)
        self.admit(calls(0, 8), producer=7, number=0)
        assert self.put_one(count=5) == Full(2)
        assert self.queue.admit([calls(0, 2)], producer=8, number=0) == Accepted(8, 2)

    def test_an_empty_put_is_not_too_large(self) -> None:
        """It is a mistake in a full queue as in an empty one."""
        self.full_queue()
        try:
            self.queue.admit([Batch(0, b"")], producer=7, number=1)
        except ValueError:
            return
        raise AssertionError("no ValueError")

    # -- bytes

    def test_bytes_are_counted(self) -> None:
        """Full by bytes says so, by a room of -1; what fits exactly is let in."""
        self.timed_queue(max_bytes=1_000)
        self.admit(block(600), producer=7, number=0)
        assert self.queue.admit([block(401)], producer=7, number=1) == Full(-1)
        assert self.queue.stats().nbytes == 600
        assert self.queue.admit([block(400)], producer=7, number=1) == Accepted(1, 1)
        assert self.queue.admit([block(1)], producer=7, number=2) == Full(-1)

    def test_more_bytes_than_fit_into_an_empty_queue(self) -> None:
        """It takes them, once it is empty."""
        self.timed_queue(max_bytes=1_000)
        self.admit(block(5_000), producer=7, number=0)
        assert self.queue.admit([block(5_000)], producer=7, number=1) == Full(-1)
        self.settle(self.lease(1), Report(0, 1))
        assert self.queue.admit([block(5_000)], producer=7, number=1) == Accepted(1, 1)

    def test_a_batch_is_freed_as_a_whole(self) -> None:
        """One message of a block needs all of its bytes."""
        self.timed_queue(max_bytes=1_000)
        self.admit(block(900, 2), producer=7, number=0)
        self.settle(self.lease(1), Report(0, 1))
        assert self.queue.admit([block(200)], producer=7, number=1) == Full(-1)
        self.settle(self.lease(1), Report(1, 2))
        assert self.queue.admit([block(200)], producer=7, number=1) == Accepted(2, 1)

    def test_shared_bytes_count_too(self) -> None:
        """The function that all calls of a batch share is held with it."""
        self.timed_queue(max_bytes=1_000)
        self.admit(calls(0, 2, shared=b"f" * 990), producer=7, number=0)
        assert self.queue.admit([calls(2, 2)], producer=7, number=1) == Full(-1)

    def test_whichever_limit_is_met_first(self) -> None:
        """Both hold."""
        self.timed_queue(maxsize=3, max_bytes=1_000)
        self.admit(block(100, 2), producer=7, number=0)
        assert self.queue.admit([block(950)], producer=7, number=1) == Full(-1)
        assert self.queue.admit([block(2, 2)], producer=7, number=1) == Full(1)
        assert self.queue.admit([block(1)], producer=7, number=1) == Accepted(2, 1)


def block(nbytes: int, count: int = 1) -> Batch:
    """Messages with one payload."""
    return Batch(count, b"x" * nbytes)
