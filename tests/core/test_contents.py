"""What a queue holds changes by one door, where it can be recorded."""

from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, times_column
from daskqueue_core.contents import Ride
from daskqueue_core.events import Acked, CancelAsked, Delivered, Event, Failed, Put, Reason, Requeued, Returned
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.protocols import Accepted
from daskqueue_core.queue import TransientQueue
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.queue_machine import RecordedQueue

SECOND = 10**9


class DiskFull(Exception):
    """The record could not be written."""


class BrokenQueue(TransientQueue):
    """One that cannot record any more when it is told so."""

    broken = False

    def _record(self, event: Event, ride: Ride) -> None:
        if self.broken:
            raise DiskFull


class SlowQueue(TransientQueue):
    """One whose puts are not durable before it says so."""

    puts_taken: list[Put]

    def _commit(self, event: Put) -> None:
        self.puts_taken = [*getattr(self, "puts_taken", []), event]


def calls(first: int, count: int, **options: Any) -> Batch:
    """Calls of client 1."""
    return Batch(count, b"block", kind=Kind.CALL, client=1, first=first, keep=Keep.STREAM)._replace(**options)


def lease_of(queue: TransientQueue, limit: int = 100) -> int:
    """The id of a lease that must be granted."""
    lease = queue.lease(limit, owner="a")
    assert lease is not None
    return lease.id


def test_what_rides_along() -> None:
    """With each event what is needed to take it again."""
    queue = RecordedQueue(clock=ManualClock(SECOND))
    batch, report = calls(0, 4), Report(0, 3, b"values", (Failure(1, b"E", "Boom"), Failure(2, b"F", "again", 0)))
    queue.admit([batch])
    lease = lease_of(queue)
    queue.settle(lease, [report])
    queue.cancel([(3, 4)])
    queue.release(lease)
    queue.requeue()
    events = [event for event, _ in queue.records]
    assert [type(event) for event in events] == [
        Put,
        Delivered,
        Acked,
        Returned,
        Failed,
        CancelAsked,
        Returned,
        Requeued,
    ]
    rides = [ride for _, ride in queue.records]
    assert rides[0] == [batch]
    assert rides[2] is report
    assert rides[3] == rides[4] == {1: Failure(1, b"E", "Boom"), 2: Failure(2, b"F", "again", 0)}
    assert rides[1] is rides[5] is rides[6] is rides[7] is None


def test_reasons_are_recorded() -> None:
    """Rejected by the policy, or out of attempts."""
    queue = RecordedQueue(clock=ManualClock(SECOND))
    queue.admit([calls(0, 4)])
    reasons = (FailureReason.FAILED, FailureReason.REJECTED, FailureReason.TIMEOUT)
    failures = tuple(Failure(at, b"", "", reason=reason) for at, reason in enumerate(reasons))
    queue.settle(lease_of(queue), [Report(0, 4, errors=failures)])
    failed = {event.reason: event.runs for event, _ in queue.records if isinstance(event, Failed)}
    assert failed == {Reason.RETRY: ((0, 1), (2, 3)), Reason.REJECTED: ((1, 2),)}


def test_only_what_is_put_rides_with_a_put() -> None:
    """Messages whose keys were in use are not recorded."""
    queue = RecordedQueue(clock=ManualClock(SECOND))
    queue.admit([calls(0, 1, keys=("a",))])
    queue.admit([calls(1, 3, keys=("b", "a", "c"))])
    _, ride = queue.records[-1]
    assert isinstance(ride, tuple)
    assert [(batch.first, batch.keys) for batch in ride] == [(1, ("b",)), (3, ("c",))]


@pytest.mark.parametrize("what", ["put", "keyed", "lease", "ack", "fail", "cancel", "owner lost", "tick", "requeue"])
def test_what_cannot_be_recorded_has_not_happened(what: str) -> None:
    """Nothing changes, and the next try may succeed."""
    clock = ManualClock(SECOND)
    queue = BrokenQueue(clock=clock)
    queue.admit([calls(0, 3), calls(3, 1)])
    queue.admit([calls(10, 1, expires_at=2 * SECOND)])
    dead = lease_of(queue, 1)
    queue.nack(dead)
    held = lease_of(queue, 1)
    clock.advance(5)
    acts = {
        "put": lambda: queue.admit([calls(20, 1)], producer=5),
        "keyed": lambda: queue.admit([calls(20, 1, keys=("a",))], producer=5),
        "lease": lambda: queue.lease(1, owner="b"),
        "ack": lambda: queue.ack(held),
        "fail": lambda: queue.nack(held),
        "cancel": lambda: queue.cancel([(2, 4)]),
        "owner lost": lambda: queue.owner_lost("a"),
        "tick": queue.tick,
        "requeue": queue.requeue,
    }
    before, outcomes = queue.stats(), queue.poll(1)
    queue.broken = True
    for _ in range(2):
        with pytest.raises(DiskFull):
            acts[what]()
    queue.validate()
    assert (queue.stats(), queue.poll(1)) == (before, outcomes)
    queue.broken = False
    acts[what]()
    assert queue.stats() != before
    queue.validate()


def test_a_put_is_leased_when_it_is_committed() -> None:
    """Whoever overrides `_commit` says when."""
    queue = SlowQueue(clock=ManualClock(SECOND))
    assert queue.admit([calls(0, 2)]) == Accepted(0, 2)
    assert queue.lease(1) is None
    [event] = queue.puts_taken
    TransientQueue._commit(queue, event)
    assert len(queue.lease(9) or ()) == 2


def test_a_queue_is_rebuilt_from_what_was_recorded() -> None:
    """Payloads, names, attempts, times, keys and dead letters."""
    clock = ManualClock(SECOND)
    queue = RecordedQueue(clock=clock, result_max_bytes=None)
    queue.admit([calls(0, 4, keep=Keep.KEEP, keys=("a", "b", "c", "d"))])
    queue.admit([calls(10, 2, ready_ats=times_column([0, 9 * SECOND]), priority=-1)])
    lease = lease_of(queue, 4)
    failures = (Failure(1, b"E", "Boom", body=b"own"), Failure(2, b"", "again", 5 * SECOND))
    queue.settle(lease, [Report(0, 4, b"values", failures)])
    other = queue.rebuilt()
    other.validate()
    assert other.dead_letters() == queue.dead_letters() != []
    assert other.read_kept() == queue.read_kept()
    assert other.poll(1).outcomes == queue.poll(1).outcomes
    assert other.next_ready_at() == queue.next_ready_at() == 6 * SECOND
    clock.advance(9)
    other.tick()
    again = other.lease(9)
    assert again is not None
    assert [(part.first, part.keys, list(part.attempts)) for part in again.parts] == [(2, ("c",), [1]), (10, (), [])]
    assert other.subscribe(9, 0, ["d", (1, 1)]) == [1, 1]
    assert other.requeue(["b"]) == 1


def test_too_much_is_let_go_after_the_event() -> None:
    """Exceptions first, since they leave a text; what was collected next."""
    queue = TransientQueue(clock=ManualClock(SECOND), result_max_bytes=3_000)
    queue.admit([calls(0, 5, keep=Keep.KEEP)])
    lease = lease_of(queue)
    queue.settle(lease, [Report(0, 1, bytes(1_000))])
    queue.poll(1, queue.poll(1).cursor)
    queue.settle(lease, [Report(1, 2, b"", (Failure(0, bytes(500), "Boom"),))])
    queue.settle(lease, [Report(2, 3, bytes(800))])
    stats = queue.stats()
    assert (stats.dead_bytes, stats.acked, 2_900 < stats.kept_bytes + 500 <= 3_000) == (500, 2, True)
    queue.settle(lease, [Report(3, 4, bytes(100))])
    assert (queue.stats().dead_bytes, queue.stats().acked) == (0, 3)
    queue.settle(lease, [Report(4, 5, bytes(500))])
    assert (queue.stats().acked, queue.stats().kept_bytes < 3_000) == (3, True)
    queue.validate()
