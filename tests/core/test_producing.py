"""The producer's side of a queue, beside what the conformance suite asks."""

from queue import Full as QueueFull

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate
from daskqueue_core.events import Put
from daskqueue_core.outcomes import End
from daskqueue_core.protocols import Accepted, Full
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.queue_machine import RecordedQueue


def keyed(first: int, keys: str, client: int = 1, way: int = OnDuplicate.RETURN) -> Batch:
    """Calls with keys."""
    named = {"client": client, "first": first, "keep": Keep.KEEP, "keys": tuple(keys)}
    return Batch(len(keys), b"x" * 10, kind=Kind.CALL, on_duplicate=way, **named)  # type: ignore[arg-type]


def new_queue(**options: int) -> RecordedQueue:
    """An empty one."""
    return RecordedQueue(clock=ManualClock(10**9), **options)


def test_nothing_is_recorded_where_nothing_is_put() -> None:
    """Without a number, a put of keys in use leaves no trace; with one, its number."""
    queue = new_queue()
    queue.admit([keyed(0, "a")])
    assert queue.admit([keyed(5, "a")]) == Accepted(1, 0)
    assert len(queue.records) == 1
    assert queue.admit([keyed(5, "a")], producer=3) == Accepted(1, 0)
    event, ride = queue.records[-1]
    assert isinstance(event, Put)
    assert (event.count, event.producer, ride) == (0, 3, ())


def test_a_refused_put_replaces_nothing() -> None:
    """No room, no message: the older ones go on."""
    queue = new_queue(maxsize=3)
    queue.admit([keyed(0, "ab")])
    assert queue.admit([keyed(5, "abcd", way=OnDuplicate.REPLACE)], producer=1) == Full(1)
    assert (queue.stats().cancelled, queue.ready) == (0, 2)
    queue = new_queue(max_bytes=15)
    queue.admit([keyed(0, "a")])
    assert queue.admit([keyed(5, "b")]) == Full(-1)
    assert queue.admit([keyed(5, "a")]) == Accepted(1, 0)


def test_followers_of_what_is_replaced() -> None:
    """It ends for them, too; they do not follow the new one."""
    queue = new_queue()
    queue.admit([keyed(0, "a")])
    queue.admit([keyed(0, "a", client=2)])
    queue.admit([keyed(0, "a", client=3, way=OnDuplicate.REPLACE)])
    assert [[outcome.end for outcome in queue.poll(client).outcomes] for client in (1, 2, 3)] == [
        [End.CANCELLED],
        [End.CANCELLED],
        [],
    ]
    queue.validate()


def test_put_into_a_full_queue() -> None:
    """The simple forms raise what the standard library's queue does, and say how full it is."""
    queue = new_queue(maxsize=2)
    assert queue.put_many([b"a", b"b"]) == range(2)
    with pytest.raises(QueueFull, match="has 2 messages of at most 2"):
        queue.put(b"c")


def test_batches_of_different_keys_in_one_put() -> None:
    """Order and numbers as they came."""
    queue = new_queue()
    queue.admit([keyed(0, "ab"), keyed(10, "bc"), keyed(20, "cd")])
    lease = queue.lease(10)
    assert lease is not None
    assert [(part.first, "".join(part.keys)) for part in lease.parts] == [(0, "ab"), (11, "c"), (21, "d")]
