"""Which of the ready messages a lease takes."""

from collections.abc import Iterator

from daskqueue_core.batch import Batch, Run, lengths_column
from daskqueue_core.choosing import DEEP, LEASE_BYTES, chooser
from daskqueue_core.payloads import Payloads
from daskqueue_core.protocols import Demand

PLENTY = 10**9


def filled(*batches: Batch) -> Payloads:
    """These were put."""
    payloads, base = Payloads(), 0
    for batch in batches:
        payloads.add(base, batch, 0, 0)
        base += batch.count
    return payloads


def chosen(payloads: Payloads, demand: Demand, *ready: Run, limit: int = 1_000, count: int = PLENTY) -> list[Run]:
    """What is taken of what is ready."""
    return list(chooser(limit, demand, payloads, count)(iter(ready)))


def test_of_one_function() -> None:
    """Up to where another begins, over batches and gaps."""
    payloads = filled(Batch(5, b"", function=b"f"), Batch(5, b"", function=b"f"), Batch(5, b"", function=b"g"))
    assert chosen(payloads, Demand(99), (0, 3), (4, 15)) == [(0, 3), (4, 10)]
    assert chosen(payloads, Demand(99), (12, 13), (0, 2)) == [(12, 13)]
    assert chosen(payloads, Demand(99), (8, 10), (0, 2)) == [(8, 10), (0, 2)]


def test_as_many_as_are_wanted() -> None:
    """Of this function, or of any other, within the limit."""
    payloads = filled(Batch(50, b"", function=b"f"))
    assert chosen(payloads, Demand(1, {b"f": 7}), (0, 50)) == [(0, 7)]
    assert chosen(payloads, Demand(2, {b"g": 7}), (0, 50)) == [(0, 2)]
    assert chosen(payloads, Demand(99), (0, 50), limit=3) == [(0, 3)]
    assert chosen(payloads, Demand(99, {b"f": 0}), (0, 50)) == []
    assert chosen(payloads, Demand(99)) == []


def test_a_queue_that_runs_dry_is_shared() -> None:
    """Where few leases are left, each is shorter, down to a quarter, and never empty."""
    payloads = filled(Batch(50, b"", function=b"f"))
    demand = Demand(1, {b"f": 28})
    taken = [chosen(payloads, demand, (0, 50), count=n * DEEP) for n in (28, 27, 20, 7, 6, 0)]
    assert taken == [[(0, 28)], [(0, 27)], [(0, 20)], [(0, 7)], [(0, 7)], [(0, 7)]]
    assert chosen(payloads, Demand(1, {b"f": 1}), (0, 1), count=1) == [(0, 1)]


def test_who_has_many_slots_takes_something_for_each_second() -> None:
    """One request for each of them would take longer than the end can win."""
    payloads = filled(Batch(50, b"", function=b"f"))
    assert chosen(payloads, Demand(8, {b"f": 8}), (0, 50), count=9) == [(0, 4)]
    assert chosen(payloads, Demand(8, {b"f": 32}), (0, 50), count=9) == [(0, 8)]


def test_no_more_is_offered_than_needed() -> None:
    """The rest is not looked at."""
    payloads = filled(Batch(50, b""))
    looked: list[int] = []

    def ready() -> Iterator[Run]:
        for start in range(0, 50, 5):
            looked.append(start)
            yield start, start + 5

    assert chooser(12, Demand(99), payloads, PLENTY)(ready()) == [(0, 12)]
    assert looked == [0, 5, 10]


def test_bytes_of_what_is_sent() -> None:
    """A block counts as a whole unless the consumer has it, singles by what is taken of them."""
    big = b"x" * (LEASE_BYTES // 2)
    blocks = filled(*[Batch(2, big, function=b"f")] * 4)
    assert chosen(blocks, Demand(99), (0, 8)) == [(0, 4)]
    assert chosen(blocks, Demand(99, have=(0, 2)), (0, 8)) == [(0, 8)]
    singles = [b"x" * (LEASE_BYTES // 8)] * 16
    assert chosen(filled(Batch(16, b"".join(singles), lengths_column(singles))), Demand(99), (0, 4), (8, 16)) == [
        (0, 4),
        (8, 16),
    ]
