"""Conformance: what a consumer is given. Order, limits, repeated requests, what it can use and what it has."""

from __future__ import annotations

from daskqueue_core.batch import Batch, Kind
from daskqueue_core.queue import Demand
from daskqueue_core.testing.suite_base import SECOND, SuiteBase, calls, singles

__all__ = ["LeaseRules"]

ANY = 1_000


def items(count: int, shared: bytes = b"") -> Batch:
    """A block of items."""
    return Batch(count, b"items", shared=shared, kind=Kind.ITEM)


class LeaseRules(SuiteBase):
    """Leasing."""

    def test_first_in_first_out(self) -> None:
        """Messages are leased in the order of their numbers."""
        self.queue.put_many([b"a", b"b"])
        self.queue.put_block(b"block", 3)
        assert self.lease(1).ids == [0]
        assert self.lease(3).ids == [1, 2, 3]
        assert self.lease().ids == [4]

    def test_a_lease_has_at_most_its_limit(self) -> None:
        """And fewer when there are no more."""
        self.queue.put_block(b"block", 10)
        assert len(self.lease(7)) == 7
        assert len(self.lease(7)) == 3

    def test_nothing_is_leased_when_nothing_is_ready(self) -> None:
        """An empty queue grants nothing, nor does one whose messages are all delivered, nor a limit of 0."""
        assert self.queue.lease(1) is None
        self.queue.put(b"a")
        assert self.queue.lease(0) is None
        self.lease()
        assert self.queue.lease(1) is None

    def test_a_lease_says_what_it_is(self) -> None:
        """Its id, its request, its messages as runs and one by one."""
        self.queue.put_block(b"block", 5)
        first, second = self.lease(2, request=11), self.lease(2, request=12)
        assert first.id != second.id
        assert (first.request, second.request) == (11, 12)
        assert (first.runs, second.runs) == (((0, 2),), ((2, 4),))
        assert (first.ids, second.ids) == ([0, 1], [2, 3])
        assert (len(first), first.once) == (2, False)

    def test_a_lease_ends_after_its_ttl(self) -> None:
        """The deadline is as far away as was asked for."""
        queue = self.timed_queue()
        queue.put(b"a")
        assert self.lease(ttl=5 * SECOND).deadline == self.clock() + 5 * SECOND

    def test_the_same_request_gets_the_same_grant(self) -> None:
        """An answer that was lost can be asked for again."""
        self.queue.put_block(b"block", 10)
        first = self.lease(4, owner="a", request=1)
        again = self.lease(4, owner="a", request=1)
        assert (again.id, again.runs, again.payloads) == (first.id, first.runs, first.payloads)
        assert self.queue.stats().delivered == 4

    def test_another_request_gets_another_grant(self) -> None:
        """Numbers mean something within one owner only, and 0 means no number."""
        self.queue.put_block(b"block", 10)
        leases = [self.lease(1, owner=owner, request=request) for owner in "ab" for request in (1, 2, 0, 0)]
        assert len({lease.id for lease in leases}) == 8
        assert [lease.ids for lease in leases] == [[seq] for seq in range(8)]

    def test_a_repeated_request_gets_what_is_left(self) -> None:
        """A request that comes again after part of its messages ended is granted those that did not."""
        self.queue.put_many([b"a", b"b"])
        self.queue.put_many([b"c", b"d"])
        first = self.lease(4, owner="a", request=1)
        self.queue.ack(first, [0, 1])
        again = self.lease(4, owner="a", request=1)
        assert (again.id, again.ids) == (first.id, [2, 3])
        assert [bytes(body) for body in again.payloads] == [b"c", b"d"]

    def test_once_is_said_in_the_lease(self) -> None:
        """A lease that must not be delivered again says so, also when it is asked for again."""
        self.queue.put(b"a")
        assert self.lease(owner="a", request=1, once=True).once
        assert self.lease(owner="a", request=1).once

    def test_a_part_for_each_batch(self) -> None:
        """A lease over two batches keeps them apart, with what each needs to be run."""
        self.admit(items(3, shared=b"one"), items(2, shared=b"two"))
        first, second = self.lease(4).parts
        assert (first.start, first.stop, first.base, first.offset, first.shared) == (0, 3, 0, 0, b"one")
        assert (second.start, second.stop, second.base, second.offset, second.shared) == (3, 4, 3, 0, b"two")
        assert (first.kind, first.function, bytes(first.body or b"")) == (Kind.ITEM, b"", b"items")

    def test_a_part_of_a_block_says_where_it_begins(self) -> None:
        """The block comes whole; positions count from the block's own first element."""
        self.admit(calls(0, 10, offset=100))
        self.lease(3)
        [part] = self.lease(4).parts
        assert (part.start, part.stop, part.base, part.offset) == (3, 7, 0, 103)

    def test_a_part_of_singles_has_only_its_own(self) -> None:
        """Bodies that were not leased do not travel."""
        self.admit(singles(b"a", b"bb", b"", b"dddd"))
        self.lease(1)
        [part] = self.lease(2).parts
        assert bytes(part.body or b"") == b"bb"
        assert [bytes(body) for body in part.bodies()] == [b"bb", b""]

    def test_only_what_the_consumer_can_run(self) -> None:
        """Calls in front do not keep items from a consumer of items, and stay in order for others."""
        for batch in (calls(0, 2), items(2), calls(2, 2), items(2)):
            self.admit(batch)
        for_items = Demand(ANY, kinds=(Kind.ITEM,))
        assert self.lease(1, demand=for_items).ids == [2]
        assert self.lease(demand=for_items).ids == [3, 6, 7]
        assert self.queue.lease(1, demand=for_items) is None
        assert self.lease().ids == [0, 1, 4, 5]

    def test_one_function_for_each_lease(self) -> None:
        """A lease ends where another function begins, so that its time can be estimated."""
        self.admit(calls(0, 2, function=b"f"), calls(2, 2, function=b"f"), calls(4, 2, function=b"g"))
        assert self.lease(demand=Demand(ANY)).ids == [0, 1, 2, 3]
        assert self.lease(demand=Demand(ANY)).ids == [4, 5]

    def test_as_much_as_is_wanted_of_a_function(self) -> None:
        """Of a queue that has plenty: known functions by the consumer's own figures, others by one figure."""
        self.admit(calls(0, 400, function=b"f"), calls(400, 100, function=b"g"))
        assert len(self.lease(demand=Demand(1, {b"f": 4}))) == 4
        assert len(self.lease(demand=Demand(1, {b"g": 4}))) == 1
        assert len(self.lease(2, demand=Demand(1, {b"f": 4}))) == 2
        assert self.lease(demand=Demand(1, {b"f": 10_000})).ids == list(range(7, 400))

    def test_a_block_is_not_sent_to_who_has_it(self) -> None:
        """Named by its first message, it is left out; everything else is said as always."""
        self.admit(calls(0, 10), calls(10, 10))
        self.lease(5)
        first, second = self.lease(demand=Demand(ANY, have=(0,))).parts
        assert (first.body, first.start, first.stop, first.base, first.offset) == (None, 5, 10, 0, 5)
        assert second.body is not None

    def test_singles_are_always_sent(self) -> None:
        """Nobody can have those that were not leased before."""
        self.admit(singles(b"a", b"b"))
        [part] = self.lease(demand=Demand(ANY, have=(0,))).parts
        assert bytes(part.body or b"") == b"ab"

    def test_a_lease_is_bounded_in_bytes(self) -> None:
        """A lease stops at the batch that exceeds a few megabytes; the rest comes with the next."""
        self.admit(*(calls(n, 1, body=b"x" * (1 << 20)) for n in range(8)))
        first = self.lease(demand=Demand(ANY))
        assert 1 <= len(first) < 8
        assert self.lease(demand=Demand(ANY)).ids[0] == len(first)
