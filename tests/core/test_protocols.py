"""The values that pass between a queue and those who use it."""

from daskqueue_core.batch import Batch, lengths_column
from daskqueue_core.payloads import Entry
from daskqueue_core.protocols import Demand, Known, Lease


def test_a_lease_over_singles_and_a_block() -> None:
    """Its messages one by one, with their payloads and attempts."""
    bodies = [b"a", b"bb", b"c"]
    singles = Entry(0, Batch(3, b"".join(bodies), lengths_column(bodies)), 0, 0)
    block = Entry(3, Batch(10, b"block", offset=5), 0, 0)
    lease = Lease(7, 1, (singles.part(1, 3, (), b"\0\2"), block.part(4, 6, ())), 100)
    assert (lease.ids, lease.runs, len(lease)) == ([1, 2, 4, 5], ((1, 3), (4, 6)), 4)
    assert lease.attempts == [0, 2, 0, 0]
    first, second, third = lease.payloads
    assert (bytes(first), bytes(second), third) == (b"bb", b"c", (b"block", 6, 8))


def test_a_demand_asks_for_no_tags() -> None:
    """Unless it says so: what it says first is what it always said."""
    assert Demand(5) == Demand(5, {}, (0, 1), (), ())


def test_known_is_true() -> None:
    """Unknown is not."""
    assert [bool(each) for each in (Known.UNKNOWN, Known.KNOWN, Known.EXPIRED)] == [False, True, True]
