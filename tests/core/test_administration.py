"""The operator's side of a queue, beside what the conformance suite asks."""

import pytest

from daskqueue_core.administration import as_runs
from daskqueue_core.batch import Batch, Keep, Kind
from daskqueue_core.queue import TransientQueue
from daskqueue_core.states import MessageState
from daskqueue_core.testing.clock import ManualClock


@pytest.fixture
def queue() -> TransientQueue:
    """Six calls of client 1, numbered from 10, with keys a to f; the first two have failed, the third runs."""
    queue = TransientQueue(clock=ManualClock(10**9))
    named = {"client": 1, "first": 10, "keep": Keep.KEEP, "keys": tuple("abcdef")}
    queue.admit([Batch(6, b"block", kind=Kind.CALL, **named)])  # type: ignore[arg-type]
    for _ in range(3):
        lease = queue.lease(1, owner="w")
        assert lease is not None
        if lease.ids[0] < 2:
            queue.nack(lease, text="Boom")
    return queue


def test_as_runs() -> None:
    """Ascending numbers."""
    assert as_runs([]) == []
    assert as_runs([1, 2, 5]) == [(1, 3), (5, 6)]


def test_a_name_said_twice(queue: TransientQueue) -> None:
    """By key and by number: the same message."""
    assert queue.requeue(["a", (1, 10), "a"]) == 1
    assert queue.cancel_named(["d", (1, 13)]) == [(1, 13)]


def test_purge_by_the_number_of_a_state(queue: TransientQueue) -> None:
    """It may have travelled."""
    assert queue.purge(int(MessageState.FAILED), ["b"]) == 1
    with pytest.raises(ValueError, match="DELIVERED cannot be purged"):
        queue.purge(MessageState.DELIVERED)
    with pytest.raises(ValueError, match="99"):
        queue.purge(99)
    queue.validate()


def test_only_what_is_in_the_state_is_purged(queue: TransientQueue) -> None:
    """Whatever was named."""
    assert queue.purge(MessageState.READY, ["a", "b", "c", "d", "nobody"]) == 1
    assert (queue.stats().failed, queue.stats().delivered, queue.stats().ready) == (2, 1, 2)


def test_requeued_messages_can_be_cancelled_by_their_numbers(queue: TransientQueue) -> None:
    """In the middle of their batch, which is partly dead, running and ready."""
    queue.requeue(["b"])
    assert queue.cancel_tasks(1, [(10, 0, 6)]) == [(10, 1, 2), (10, 3, 6)]
    assert queue.cancel_tasks(1, [(10, 0, 6)]) == []
    queue.validate()


def test_counts_of_kinds(queue: TransientQueue) -> None:
    """Dead letters are finished, requeued ones are not."""
    assert (queue.unfinished_of((Kind.CALL,)), queue.unfinished_of((Kind.ITEM,)), queue.unfinished_of(())) == (4, 0, 0)
    queue.requeue()
    assert (queue.unfinished_of((0, 1)), queue.unfinished, queue.ready, queue.puts) == (6, 6, 5, 6)


def test_closed(queue: TransientQueue) -> None:
    """Nothing is held any more."""
    queue.close()
    assert (queue.dead_letters(), queue.has_outcomes(1)) == ([], False)
