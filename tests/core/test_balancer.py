"""Which queue a batch goes to, and which one is asked for work."""

from collections import Counter

import pytest

from daskqueue_core.balancer import ConsumerBalancer, RoundRobin


@pytest.mark.parametrize("n", [1, 2, 5])
def test_round_robin_is_even(n: int) -> None:
    """Every queue gets the same number."""
    robin = RoundRobin(n)
    assert set(Counter(robin.pick() for _ in range(7 * n)).values()) == {7}


def test_round_robin_starts_anywhere() -> None:
    """So that many clients do not begin at the same queue."""
    robin = RoundRobin(3, start=7)
    assert [robin.pick() for _ in range(5)] == [1, 2, 0, 1, 2]


def test_a_consumer_asks_in_turn() -> None:
    """From its own start, all queues once."""
    assert ConsumerBalancer(4, start=6).order() == (2, 3, 0, 1)
    assert ConsumerBalancer(1, start=6).order() == (0,)


def test_a_queue_that_gave_comes_last() -> None:
    """One that gave nothing keeps its place."""
    balancer = ConsumerBalancer(4)
    balancer.granted(0)
    assert balancer.order() == (1, 2, 3, 0)
    balancer.granted(2)
    assert balancer.order() == (1, 3, 0, 2)


def test_busy_queues_are_served_alike() -> None:
    """A consumer that always gets work from the first it asks visits all."""
    balancer = ConsumerBalancer(3)
    asked: Counter[int] = Counter()
    for _ in range(30):
        index = balancer.order()[0]
        asked[index] += 1
        balancer.granted(index)
    assert asked == {0: 10, 1: 10, 2: 10}
