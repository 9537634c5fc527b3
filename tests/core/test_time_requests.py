"""Time requests: as tags, and who is there for long enough."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskqueue_core.batch import Batch, Kind
from daskqueue_core.protocols import Demand
from daskqueue_core.queue import TransientQueue
from daskqueue_core.routes import Routes
from daskqueue_core.stats import QueueDepth
from daskqueue_core.testing import ManualClock
from daskqueue_core.time_requests import split_request, time_tag

seconds = st.floats(min_value=1e-3, max_value=3.2e9)


@pytest.mark.parametrize(
    ("asked", "tag"),
    [(0.001, 1), (1, 1), (1.5, 2), (999, 999), (1000, 1000), (1001, 1010), (1200, 1200), (43_200, 43_200),
     (86_400, 86_400), (86_401, 86_500), (129_600, 130_000)],
)  # fmt: skip
def test_rounded_up_to_three_digits(asked: float, tag: int) -> None:
    """So that there are not as many routes as requests."""
    assert time_tag(asked) == f"time>={tag}"


@given(seconds)
def test_never_less_than_asked(asked: float) -> None:
    """And hardly more."""
    _, found = split_request([time_tag(asked)])
    assert asked <= found <= max(asked + 1, asked * 1.011)
    assert time_tag(found) == time_tag(asked)


@pytest.mark.parametrize("asked", [0, -1, math.nan, math.inf])
def test_no_request(asked: float) -> None:
    """It is for some time."""
    with pytest.raises(ValueError, match="some seconds"):
        time_tag(asked)


def test_split() -> None:
    """Beside other tags, the longest counts; what only begins so is a tag."""
    assert split_request(("a", "time>=60", "z")) == (("a", "z"), 60)
    assert split_request(("time>=60", "time>=7200")) == ((), 7200)
    assert split_request(("time>=", "time>=x", "a")) == (("time>=", "time>=x", "a"), 0)


@given(
    st.lists(st.tuples(st.sampled_from([(), ("a",), ("a", "b")]), st.none() | seconds), max_size=8),
    st.sampled_from([(), ("a",), ("b", "a")]),
    st.none() | st.floats(min_value=-1e3, max_value=3.2e9),
)
def test_routes_served(puts: list[tuple[tuple[str, ...], float | None]], has: tuple[str, ...], left: Any) -> None:
    """A consumer serves a route if it has its tags, and until its end as much time as is requested."""
    routes = Routes()
    for tags, asked in puts:
        routes.number(Kind.CALL, (*tags, time_tag(asked)) if asked is not None else tags)
    expected = []
    for number in range(len(routes)):
        plain, asks = split_request(routes[number].tags)
        if set(plain) <= set(has) and (not asks or left is None or asks <= left):
            expected.append(number)
    assert routes.served((Kind.CALL,), has, left) == tuple(expected)
    again = Routes()
    for kind, tags in routes.rows():
        again.number(kind, tags)
    assert again.served((Kind.CALL,), has, left) == tuple(expected)


def test_depth() -> None:
    """What there is to do, by tags and requests."""
    queue = TransientQueue(clock=ManualClock(10**9))
    assert queue.depth() == QueueDepth()
    queue.admit([Batch(3, b"", kind=Kind.CALL, tags=(time_tag(60),))])
    queue.admit([Batch(2, b"", kind=Kind.CALL, ready_at=10**18)])
    lease = queue.lease(1, demand=Demand(9))
    assert queue.depth() == QueueDepth(2, 1, 2, 0, ((Kind.CALL, ("time>=60",), 2), (Kind.CALL, (), 2)))
    assert lease is not None
    queue.ack(lease)
    assert queue.depth().delivered == 0
