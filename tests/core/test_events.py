"""Events are plain values."""

import pickle

import pytest

from daskqueue_core.events import (
    Acked,
    Blame,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Purged,
    Put,
    Reason,
    Requeued,
    Returned,
)

RUNS = ((0, 3), (7, 8))
EVENTS: list[Event] = [
    Put(5, 0, 10, 2**63, 4, -7, 2, 6, b"", 9, tuple("abcdefghij"), True),
    Delivered(5, RUNS, 1, "tcp://a:1/ff", True, 105, 9),
    Acked(5, RUNS, 1, True),
    Returned(5, RUNS, 1, Reason.RETRY, Blame.ATTEMPT, 99),
    Failed(5, RUNS, 1, Reason.REJECTED),
    CancelAsked(5, RUNS),
    Cancelled(5, RUNS, 1),
    Expired(5, RUNS, 1, True),
    Requeued(5, RUNS),
    Purged(5, RUNS),
    Forgotten(5, RUNS),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_are_values(event: Event) -> None:
    """Immutable, comparable, with the time of their decision, and the same after a journey."""
    assert event.time == 5
    assert pickle.loads(pickle.dumps(event)) == event
    assert type(event)(*event) == event
    with pytest.raises(AttributeError):
        event.time = 6  # type: ignore[misc]


def test_every_event_is_in_the_union() -> None:
    """A new event must be added to `Event`, or nothing can apply it."""
    assert {type(event) for event in EVENTS} == set(Event.__args__)


def test_numbers_on_disk() -> None:
    """Stores write them: they never change."""
    assert [int(blame) for blame in (Blame.NONE, Blame.ATTEMPT, Blame.SUSPECTED, Blame.CRASH)] == [0, 1, 2, 3]
