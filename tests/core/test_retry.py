"""daskqueue_core.retry: whether and when a task is tried again."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskqueue_core.retry import ATTEMPTS_MAX, LONGEST_S, ON_REQUEST, Reject, Retry, RetryPolicy

STEADY = RetryPolicy(max_attempts=5, jitter=False)


def no_chance() -> float:
    """For policies that must not roll dice."""
    raise AssertionError("asked for a random number")


def test_the_delay_grows_and_is_capped() -> None:
    """By `factor` from `backoff` up to `max_backoff`, without dice if there is no jitter."""
    policy = RetryPolicy(max_attempts=9, backoff=2.0, factor=3.0, max_backoff=50.0, jitter=False)
    assert [policy.delay(attempt, no_chance) for attempt in range(1, 6)] == [2.0, 6.0, 18.0, 50.0, 50.0]


def test_jitter_is_full() -> None:
    """Anything between nothing and the whole delay."""
    policy = RetryPolicy(max_attempts=9, backoff=8.0)
    dice = iter([0.0, 0.25, 1.0])
    assert [policy.delay(1, lambda: next(dice)) for _ in range(3)] == [0.0, 2.0, 8.0]


@given(
    attempt=st.integers(1, ATTEMPTS_MAX),
    backoff=st.floats(0, LONGEST_S),
    factor=st.floats(1, 1e308),
    longest=st.floats(0, LONGEST_S),
    part=st.floats(0, 1),
)
def test_the_delay_never_leaves_its_bounds(
    attempt: int, backoff: float, factor: float, longest: float, part: float
) -> None:
    """Numbers that overflow included."""
    delay = RetryPolicy(backoff=backoff, factor=factor, max_backoff=longest).delay(attempt, lambda: part)
    assert 0 <= delay <= longest


def test_no_backoff_is_no_delay() -> None:
    """Also where the factor overflows."""
    policy = RetryPolicy(max_attempts=250, backoff=0, factor=1e10, jitter=False)
    assert [policy.delay(attempt, no_chance) for attempt in (1, 249)] == [0.0, 0.0]


def test_attempts_count_from_one() -> None:
    """A mistake in counting is not a delay."""
    with pytest.raises(ValueError, match="count from 1"):
        STEADY.delay(0, no_chance)


def test_attempts_run_out() -> None:
    """`max_attempts` counts the first run."""
    delays = [STEADY.next_delay(ValueError(), attempt, no_chance) for attempt in range(1, 7)]
    assert delays == [1.0, 2.0, 4.0, 8.0, None, None]
    assert RetryPolicy().next_delay(ValueError(), 1, no_chance) is None


def test_the_kind_of_error_decides() -> None:
    """`never_on` beats `retry_on`; what neither names is final."""
    policy = RetryPolicy(max_attempts=3, jitter=False, retry_on=OSError, never_on=(FileNotFoundError, PermissionError))
    assert policy.next_delay(ConnectionError(), 1, no_chance) == 1.0
    assert policy.next_delay(FileNotFoundError(), 1, no_chance) is None
    assert policy.next_delay(ValueError(), 1, no_chance) is None
    assert STEADY.next_delay(SystemExit(), 1, no_chance) is None


def test_a_task_may_ask_for_another_attempt() -> None:
    """With its own delay or the policy's, whatever retry_on says, as long as attempts are left."""
    policy = RetryPolicy(max_attempts=3, jitter=False, retry_on=(), never_on=(Exception,))
    assert policy.next_delay(Retry(10), 2, no_chance) == 10.0
    assert policy.next_delay(Retry(0), 1, no_chance) == 0.0
    assert policy.next_delay(Retry(), 2, no_chance) == 2.0
    assert policy.next_delay(Retry(10), 3, no_chance) is None


def test_a_task_may_refuse_another_attempt() -> None:
    """Reject is final, whatever the policy says."""
    assert STEADY.next_delay(Reject("bad input"), 1, no_chance) is None


def test_without_a_policy_only_the_task_asks() -> None:
    """Three times more."""
    assert ON_REQUEST.next_delay(ValueError(), 1, no_chance) is None
    assert [ON_REQUEST.next_delay(Retry(1), attempt, no_chance) for attempt in (1, 3, 4)] == [1.0, 1.0, None]


@pytest.mark.parametrize("error", [Retry(), Retry(2.5), Retry(1, "not there yet"), Reject("why", 3)])
def test_signals_travel(error: Exception) -> None:
    """By pickle, with their fields."""
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def test_retry_says_what_was_asked() -> None:
    """Its text is what a future shows when no attempt was left."""
    assert str(Retry(2.5, "locked")) == "the task asked to be run again in 2.5 s: locked"
    assert str(Retry()) == "the task asked to be run again"


@pytest.mark.parametrize("delay", [-1, math.nan, math.inf, "1", 2 * LONGEST_S, True])
def test_retry_refuses_a_delay_that_is_none(delay: Any) -> None:
    """Where it is raised."""
    with pytest.raises((ValueError, TypeError), match="delay"):
        Retry(delay)


def test_a_policy_travels_and_compares() -> None:
    """It is data; one class is as good as a tuple of it."""
    policy = RetryPolicy(max_attempts=4, retry_on=OSError, never_on=[KeyError, ValueError])  # type: ignore[arg-type]
    assert policy == RetryPolicy(max_attempts=4, retry_on=(OSError,), never_on=(KeyError, ValueError))
    assert pickle.loads(pickle.dumps(policy)) == policy
    assert hash(policy) == hash(pickle.loads(pickle.dumps(policy)))
    with pytest.raises(AttributeError):
        policy.backoff = 3.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": 0},
        {"max_attempts": 251},
        {"max_attempts": True},
        {"max_attempts": 2.0},
        {"max_crashes": 0},
        {"max_crashes": 1000},
        {"backoff": -1},
        {"backoff": math.nan},
        {"backoff": "1"},
        {"backoff": None},
        {"factor": 0.5},
        {"factor": math.inf},
        {"factor": 10**400},
        {"max_backoff": math.inf},
        {"max_backoff": 2 * LONGEST_S},
        {"jitter": 0.5},
        {"retry_on": "ValueError"},
        {"retry_on": (ValueError, int)},
        {"retry_on": ValueError()},
        {"never_on": None},
        {"never_on": ("KeyError",)},
    ],
)
def test_what_makes_no_policy_is_refused_by_name(options: dict[str, Any]) -> None:
    """ValueError or TypeError that names the option."""
    (name,) = options
    with pytest.raises((ValueError, TypeError), match=name):
        RetryPolicy(**options)
