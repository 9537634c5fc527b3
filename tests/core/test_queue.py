"""TransientQueue: what it has besides the protocols. What it promises as a queue is in tests/conformance."""

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.mail import OUTBOX_BYTES
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.queue import Accepted, Demand, TransientQueue
from daskqueue_core.testing.clock import ManualClock

SECOND = 10**9


@pytest.fixture
def clock() -> ManualClock:
    """The test's time."""
    return ManualClock()


@pytest.fixture
def queue(clock: ManualClock) -> TransientQueue:
    """An empty queue."""
    return TransientQueue(clock=clock, uuid="q", epoch=3)


def calls(first: int, count: int, keep: int = Keep.STREAM, **options: object) -> Batch:
    """A block of calls."""
    return Batch(count, b"block", kind=Kind.CALL, function=b"f", client=1, first=first, keep=keep)._replace(**options)


def test_lengths_by_state(queue: TransientQueue) -> None:
    """Ready, unfinished and ever put, without a full count."""
    queue.put_block(b"block", 10)
    lease = queue.lease(4)
    assert lease is not None
    queue.ack(lease, [0])
    assert (queue.puts, queue.ready, queue.unfinished) == (10, 6, 9)


def test_the_cursor_names_this_life(queue: TransientQueue) -> None:
    """Uuid and epoch: another life's cursor is another's."""
    assert queue.poll(1).cursor == ("q:3", 0)


def test_lease_ids_name_the_epoch(queue: TransientQueue) -> None:
    """Two epochs of a queue never give the same lease."""
    queue.put(b"a")
    lease = queue.lease(1)
    assert lease is not None
    assert lease.id >> 40 == 3


def test_has_outcomes(queue: TransientQueue) -> None:
    """Whether a poll would find something; asking makes no outbox."""
    queue.admit([calls(0, 1)])
    assert not queue.has_outcomes(1)
    lease = queue.lease(1)
    assert lease is not None
    queue.ack(lease)
    assert queue.has_outcomes(1)
    assert not queue.has_outcomes(2)
    queue.poll(1, queue.poll(1).cursor)
    assert not queue.has_outcomes(1)


def test_a_client_that_is_gone(clock: ManualClock) -> None:
    """Its outcomes go when it has not polled for the results' time to live; what it did not collect stays kept."""
    queue = TransientQueue(clock=clock, result_ttl=10 * SECOND)
    queue.admit([calls(0, 1, Keep.KEEP)])
    lease = queue.lease(1)
    assert lease is not None
    queue.ack(lease)
    assert queue.next_ready_at() == clock() + 10 * SECOND
    clock.advance(9)
    queue.tick()
    assert queue.has_outcomes(1)
    clock.advance(1)
    queue.tick()
    assert not queue.has_outcomes(1)
    assert len(queue.read_kept()[1]) == 1


def test_nothing_is_leased_while_results_pile_up(queue: TransientQueue, clock: ManualClock) -> None:
    """A client that is there and reads more slowly than consumers work holds them back, until it has read; one that
    is away does not."""
    queue.admit([calls(0, 10)])
    lease = queue.lease(1)
    assert lease is not None
    queue.settle(lease.id, [Report(*lease.runs[0], values=bytes(OUTBOX_BYTES))])
    assert queue.lease(1) is None
    queue.poll(1, queue.poll(1).cursor)
    lease = queue.lease(1)
    assert lease is not None
    queue.settle(lease.id, [Report(*lease.runs[0], values=bytes(OUTBOX_BYTES))])
    assert queue.lease(1) is None
    clock.advance(60)
    assert queue.lease(1) is not None


def test_owners(queue: TransientQueue) -> None:
    """Who holds leases, until nothing of them is left."""
    queue.put_block(b"block", 2)
    first, second = queue.lease(1, owner="a"), queue.lease(1, owner="b")
    assert first is not None
    assert second is not None
    assert sorted(queue.owners()) == ["a", "b"]
    queue.ack(first)
    assert queue.owners() == ["b"]


def test_a_deaf_queue_expires_nobody(queue: TransientQueue, clock: ManualClock) -> None:
    """All deadlines move by the time in which nobody could be heard."""
    queue.put(b"a")
    queue.lease(1, owner="a", ttl=30 * SECOND)
    clock.advance(90)
    queue.shift_deadlines(90 * SECOND)
    queue.tick()
    assert queue.owners() == ["a"]
    assert queue.next_ready_at() == 120 * SECOND
    clock.advance(30)
    queue.tick()
    assert queue.owners() == []


def test_the_earlier_of_lease_and_result(queue: TransientQueue, clock: ManualClock) -> None:
    """The timer is set for whichever comes first."""
    queue.admit([calls(0, 2, Keep.KEEP)])
    lease = queue.lease(1, owner="a")
    assert lease is not None
    queue.ack(lease)
    queue.poll(1, queue.poll(1).cursor)
    assert queue.next_ready_at() == 3600 * SECOND
    queue.lease(1, owner="a", ttl=10 * SECOND)
    assert queue.next_ready_at() == 10 * SECOND


def test_entries_are_found_after_many_have_gone(queue: TransientQueue) -> None:
    """The index of batches is rebuilt while gaps grow in it."""
    for n in range(1_000):
        queue.admit([calls(10 * n, 10)])
    lease = queue.lease(10_000)
    assert lease is not None
    queue.ack(lease, [seq for seq in lease.ids if seq // 10 % 50])
    assert queue.stats().nbytes == 20 * len(b"block")
    assert len(queue._payloads._bases) < 200
    assert queue.ack(lease, lease.ids) == 200
    assert (queue.stats().nbytes, queue.unfinished) == (0, 0)
    assert queue.admit([calls(0, 1)]) == Accepted(10_000, 1)


def test_a_report_over_gone_batches(queue: TransientQueue) -> None:
    """What ended long ago is stale, what did not is taken."""
    for n in range(5):
        queue.admit([calls(n, 1)])
    lease = queue.lease(5)
    assert lease is not None
    queue.ack(lease, [0, 1, 3])
    assert queue.ack(lease, range(5)) == 2
    assert queue.stats().stale == 3


def test_a_block_that_was_cut_by_its_client(queue: TransientQueue) -> None:
    """Positions count from the block's first element, outcomes from the client's first number."""
    queue.admit([calls(0, 10).cut(4, 8)])
    assert queue.lease(1) is not None
    lease = queue.lease(10)
    assert lease is not None
    assert [(part.start, part.offset, part.count) for part in lease.parts] == [(1, 5, 3)]
    assert lease.payloads == [(b"block", 5, 8)]
    queue.ack(lease)
    [outcome] = queue.poll(1).outcomes
    assert (outcome.first, outcome.index, outcome.count) == (4, 1, 3)


def test_bytes_of_singles_count_by_what_is_leased(queue: TransientQueue) -> None:
    """A small share of a big batch leaves room for more in the lease."""
    body = b"x" * (3 << 20)
    queue.admit([Batch(1, body, lengths_column([body])), Batch(1, body, lengths_column([body]))])
    queue.admit([calls(0, 1)])
    lease = queue.lease(10, demand=Demand(10, kinds=(Kind.ITEM,)))
    assert lease is not None
    assert len(lease) == 2
    queue.release(lease)
    many = [b"y" * 1_000] * 4_000
    queue.admit([Batch(4_000, b"".join(many), lengths_column(many)), Batch(1, b"z")])
    lease = queue.lease(1, demand=Demand(1, kinds=(Kind.ITEM,)))
    assert lease is not None
    assert lease.ids == [0]


def test_a_cached_block_costs_no_bytes(queue: TransientQueue) -> None:
    """What is not sent leaves room in the lease."""
    big = b"x" * (5 << 20)
    queue.admit([calls(0, 10, body=big), calls(10, 1)])
    assert queue.lease(1) is not None
    lease = queue.lease(100, demand=Demand(100, have=(0,)))
    assert lease is not None
    assert lease.ids == list(range(1, 11))


def test_nothing_is_wanted(queue: TransientQueue) -> None:
    """A function of which none is wanted is not leased."""
    queue.admit([calls(0, 3)])
    assert queue.lease(10, demand=Demand(5, {b"f": 0})) is None
    assert queue.ready == 3


def test_settle_of_a_part_with_errors_over_batches(queue: TransientQueue) -> None:
    """Errors keep to their messages where a report is cut."""
    queue.admit([calls(0, 3), calls(10, 3)])
    lease = queue.lease(6)
    assert lease is not None
    assert queue.settle(lease.id, [Report(0, 6, errors=(Failure(2, b"", "two"), Failure(4, b"", "four")))]) == 6
    heard = [(o.first, o.index, o.count, o.errors) for o in queue.poll(1).outcomes]
    assert heard == [
        (0, 0, 2, ()),
        (10, 0, 3, ()),
        (0, 2, 1, ((0, b"", "two"),)),
        (10, 1, 1, ((0, b"", "four"),)),
    ]


def test_closed(queue: TransientQueue) -> None:
    """Payloads and outcomes are let go."""
    queue.admit([calls(0, 2)])
    lease = queue.lease(1)
    assert lease is not None
    queue.ack(lease)
    queue.close()
    assert not queue.has_outcomes(1)


@pytest.mark.parametrize("alone", [True, False])
def test_who_judges_silent_owners(alone: bool) -> None:
    """A queue by itself does when somebody asks for work; one with a host leaves it to `tick`, which knows more."""
    now = [0]
    queue = TransientQueue(clock=lambda: now[0])
    queue.lapses_in_lease = alone
    queue.put_many([b"a", b"b"])
    assert queue.lease(1, owner="silent", ttl=10) is not None
    now[0] = 20
    got: list[int] = []
    while (lease := queue.lease(2, owner=f"other {len(got)}")) is not None:
        got += lease.ids
    assert sorted(got) == ([0, 1] if alone else [1])
    if not alone:
        queue.shift_deadlines(20)
        queue.tick()
        assert queue.lease(1, owner="third") is None
        now[0] = 40
        queue.tick()
        again = queue.lease(1, owner="third")
        assert again is not None
        assert again.ids == [0]
