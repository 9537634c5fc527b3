"""Conformance: what a producer can rely on. Numbers, bodies, and puts that are admitted once and in order."""

from __future__ import annotations

from daskqueue_core.batch import Batch
from daskqueue_core.ledger import Early, UnknownProducer
from daskqueue_core.queue import Accepted
from daskqueue_core.testing.suite_base import SuiteBase, calls, refused, singles

__all__ = ["PutRules"]


class PutRules(SuiteBase):
    """Putting."""

    def test_put_numbers_from_zero(self) -> None:
        """Each message gets the next number."""
        assert [self.queue.put(b"a"), self.queue.put(b"b"), self.queue.put(b"c")] == [0, 1, 2]

    def test_put_many_answers_a_range(self) -> None:
        """Many messages get consecutive numbers."""
        assert self.queue.put_many([b"a", b"b"]) == range(2)
        assert self.queue.put_many([b"c", b"d", b"e"]) == range(2, 5)

    def test_put_many_of_nothing(self) -> None:
        """No message is put and no number used."""
        self.queue.put(b"a")
        assert len(self.queue.put_many([])) == 0
        assert self.queue.put(b"b") == 1

    def test_put_block_answers_a_range(self) -> None:
        """One payload for a thousand messages."""
        assert self.queue.put_block(b"block", 1_000) == range(1_000)
        assert self.queue.stats().puts == 1_000

    def test_all_puts_share_the_numbers(self) -> None:
        """Whichever way a message comes in, numbers go on."""
        assert self.queue.put(b"a") == 0
        assert self.queue.put_block(b"block", 10) == range(1, 11)
        assert self.admit(calls(0, 5), calls(5, 2), producer=1) == range(11, 18)
        assert self.admit(singles(b"x", b"y"), producer=1, number=1) == range(18, 20)
        assert self.queue.put_many([b"b"]) == range(20, 21)

    def test_bodies_come_back(self) -> None:
        """Singles come back byte for byte, empty ones too."""
        bodies = [b"a", b"", b"\x00\xff", b"x" * 100_000]
        self.queue.put_many(bodies)
        assert [bytes(body) for body in self.lease().payloads] == bodies

    def test_a_block_comes_back(self) -> None:
        """A block comes back whole, with the positions that were leased."""
        self.queue.put_block(b"block", 10)
        self.lease(4)
        [(body, start, stop)] = self.lease(4).payloads
        assert (bytes(body), start, stop) == (b"block", 4, 8)

    def test_a_put_is_admitted_once(self) -> None:
        """A repeated put gets the answer of the first, and nothing is put twice."""
        first = self.queue.admit([calls(0, 3)], producer=7, number=0)
        assert first == self.queue.admit([calls(0, 3)], producer=7, number=0) == Accepted(0, 3)
        assert self.queue.stats().puts == 3

    def test_the_last_64_puts_can_be_repeated(self) -> None:
        """Older repeats are refused rather than admitted again."""
        for number in range(66):
            self.admit(calls(number, 1), producer=7, number=number)
        assert self.queue.admit([calls(2, 1)], producer=7, number=2) == Accepted(2, 1)
        assert isinstance(self.queue.admit([calls(1, 1)], producer=7, number=1), UnknownProducer)
        assert self.queue.stats().puts == 66

    def test_an_early_put_is_not_admitted(self) -> None:
        """A put that overtook its predecessor leaves no trace, and comes after it."""
        self.admit(calls(0, 1), producer=7, number=0)
        assert isinstance(self.queue.admit([calls(5, 5)], producer=7, number=2), Early)
        assert self.queue.stats().puts == 1
        assert self.admit(calls(1, 4), producer=7, number=1) == range(1, 5)
        assert self.admit(calls(5, 5), producer=7, number=2) == range(5, 10)

    def test_an_unknown_producer(self) -> None:
        """Somebody whose earlier puts are not known must take a fresh id."""
        assert isinstance(self.queue.admit([calls(0, 1)], producer=7, number=3), UnknownProducer)
        assert self.queue.stats().puts == 0
        assert self.admit(calls(0, 1), producer=8, number=0) == range(1)

    def test_producers_do_not_disturb_each_other(self) -> None:
        """Each producer has its own numbers."""
        assert self.admit(calls(0, 2), producer=1, number=0) == range(2)
        assert self.admit(calls(0, 2), producer=2, number=0) == range(2, 4)
        assert self.admit(calls(2, 2), producer=1, number=1) == range(4, 6)
        assert self.admit(calls(0, 2), producer=1, number=0) == range(2)

    def test_a_put_without_a_producer_is_always_new(self) -> None:
        """Who does not number its puts cannot repeat them."""
        assert self.admit(calls(0, 2)) == range(2)
        assert self.admit(calls(0, 2)) == range(2, 4)

    def test_an_empty_put_is_refused(self) -> None:
        """A put or a batch without a message is a mistake, and its number stays free."""
        refused(self.queue.admit, [], producer=7, number=0)
        refused(self.queue.admit, [calls(0, 1), Batch(0, b"")], producer=7, number=0)
        refused(self.queue.put_block, b"block", 0)
        assert self.admit(calls(0, 1), producer=7, number=0) == range(1)
