"""Retries end to end: whose policy holds, what a future says of it, and what no policy can help."""

from __future__ import annotations

import asyncio
import operator
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import (
    ConsumerBaseClass,
    ConsumerPool,
    QueueExecutor,
    QueuePool,
    Reject,
    Retry,
    RetryPolicy,
    TaskTimeout,
    WorkerCrashed,
    current_task,
)

LIMIT = 60
AT_ONCE = {"backoff": 0.0, "jitter": False}


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """A pool with one consumer on each worker, which retries once."""
    with QueuePool(client) as pool, ConsumerPool(client, pool, retries=1):
        yield pool


def succeeds_at(attempt: int, error: type[BaseException] = LookupError) -> int:
    """Fails before."""
    now = current_task().attempt
    if now < attempt:
        raise error(f"attempt {now}")
    return now


# --------------------------------------------------------------------------------------------------- whose policy holds


def test_the_consumers_retries(pool: QueuePool) -> None:
    """What brings no policy is tried again as often as the consumers say."""
    good, bad = pool.submit(succeeds_at, 2), pool.submit(succeeds_at, 3)
    assert good.result(LIMIT) == 2
    assert isinstance(bad.exception(LIMIT), LookupError)
    assert (good.attempts, bad.attempts) == (2, 2)
    assert "attempt 2" in str(bad.exception(0))


def test_the_tasks_own_policy(pool: QueuePool) -> None:
    """It replaces that of the consumers, for more and for fewer attempts, in every call."""
    more, none = pool.options(retry=RetryPolicy(4, **AT_ONCE)), pool.options(retry=RetryPolicy())
    assert more.submit(succeeds_at, 4).result(LIMIT) == 4
    assert list(more.map(succeeds_at, [1, 2, 3, 4])) == [1, 2, 3, 4]
    batch = more.submit_many(succeeds_at, [4, 1, 5])
    assert batch.wait(LIMIT)
    assert [future.attempts for future in (batch[0], batch[1], batch[2])] == [4, 1, 4]
    assert isinstance(batch[2].exception(0), LookupError)
    assert none.submit(succeeds_at, 2).exception(LIMIT) is not None
    assert none.batch_submit([(succeeds_at, 2)])[0].exception(LIMIT) is not None


def test_the_pools_policy(client: Client) -> None:
    """Between the two."""
    with QueuePool(client, retry=RetryPolicy(3, **AT_ONCE)) as pool, ConsumerPool(client, pool, retries=9):
        assert pool.submit(succeeds_at, 3).attempts == 0
        good, bad = pool.submit(succeeds_at, 3), pool.options(timeout=30).submit(succeeds_at, 4)
        assert good.result(LIMIT) == 3
        assert bad.exception(LIMIT) is not None
        assert bad.attempts == 3
        assert pool.options(retry=RetryPolicy(4, **AT_ONCE)).submit(succeeds_at, 4).result(LIMIT) == 4


def test_executor(client: Client) -> None:
    """`QueueExecutor` takes both."""
    with QueueExecutor(client, retries=2) as executor:
        assert executor.submit(succeeds_at, 3).result(LIMIT) == 3
    with QueueExecutor(client, retry=RetryPolicy(2, **AT_ONCE)) as executor:
        assert executor.submit(succeeds_at, 2).result(LIMIT) == 2
        assert executor.submit(succeeds_at, 3).exception(LIMIT) is not None


# ------------------------------------------------------------------------------------------------------- what it says


def test_which_errors(pool: QueuePool) -> None:
    """retry_on and never_on, with a class of the caller's own."""

    class Mine(LookupError):
        pass

    view = pool.options(retry=RetryPolicy(3, retry_on=(LookupError,), never_on=(Mine,), **AT_ONCE))
    futures = [view.submit(succeeds_at, 3, error) for error in (LookupError, KeyError, Mine, OSError)]
    assert [future.exception(LIMIT) is None for future in futures] == [True, True, False, False]
    assert [future.attempts for future in futures] == [3, 3, 1, 1]


def test_what_a_task_asks_for(pool: QueuePool) -> None:
    """Retry with a delay of its own, and Reject."""

    def task() -> float:
        if current_task().attempt == 1:
            raise Retry(0.3)
        return time.time()

    began = time.time()
    future = pool.options(retry=RetryPolicy(2, retry_on=())).submit(task)
    assert future.result(LIMIT) - began >= 0.3
    assert future.attempts == 2

    def reject() -> None:
        raise Reject("never")

    rejected = pool.options(retry=RetryPolicy(9, **AT_ONCE)).submit(reject)
    assert isinstance(rejected.exception(LIMIT), Reject)
    assert rejected.attempts == 1


def test_timeouts_are_failures(pool: QueuePool) -> None:
    """Tried again as the policy says, and a `TimeoutError` in the end."""

    async def slow() -> int:
        if current_task().attempt < 2:
            await asyncio.sleep(60)
        return current_task().attempt

    view = pool.options(timeout=0.2)
    # a machine that stands still may be late a second time
    assert view.options(retry=RetryPolicy(5, **AT_ONCE)).submit(slow).result(LIMIT) in (2, 3, 4, 5)
    late = view.options(retry=RetryPolicy()).submit(slow)
    assert isinstance(late.exception(LIMIT), TaskTimeout)
    assert isinstance(late.exception(0), TimeoutError)


class Trying(ConsumerBaseClass):
    """Fails at the first attempt."""

    oracle: Any = None

    def process_item(self, item: Any) -> None:
        """A line at the second."""
        self.oracle.mark(f"{item}-{succeeds_at(2)}")


def test_items(client: Client, oracle: Any) -> None:
    """Items are tried again too."""
    trying = type("Here", (Trying,), {"oracle": oracle})
    with QueuePool(client) as pool, ConsumerPool(client, pool, trying):
        pool.options(retry=RetryPolicy(2, **AT_ONCE)).put_many(range(3))
        pool.put("never")
        pool.join(timeout=LIMIT)
        assert sorted(oracle.lines()) == ["0-2", "1-2", "2-2"]
        assert [dead.message for dead in pool.dead_letters()] == ["attempt 1"]


def test_attempts_stay_with_the_future(pool: QueuePool) -> None:
    """Also after its value was read, which lets go of the outcome."""
    future = pool.submit(succeeds_at, 2)
    assert future.attempts in (0, 2)
    for _ in range(2):
        assert (future.result(LIMIT), future.attempts, future.life) == (2, 2, 0)
    plain = pool.submit(abs, -1)
    assert (plain.result(LIMIT), plain.attempts, plain.life) == (1, 1, 0)
    assert "_made" not in vars(plain), "ordinary futures pay nothing for it"
    never = pool.options(delay=60).submit(abs, -1)
    pool.flush()
    assert never.cancel()
    assert never.attempts == 0


# ------------------------------------------------------------------------------------------------------------- crashes


def test_a_task_that_kills_its_worker(new_cluster: Callable[..., Any], oracle: Any, tmp_path: Path) -> None:
    """WorkerCrashed after `max_crashes` of the policy, named in the dead letters; its neighbours succeed."""
    _, client = new_cluster(n_workers=2)
    policy = RetryPolicy(max_crashes=1)
    with QueuePool(client, name="crashing") as pool, ConsumerPool(client, pool):

        def die() -> None:
            oracle.mark("died")
            os._exit(1)

        neighbours = pool.submit_many(operator.neg, range(50))
        killer = pool.options(retry=policy, key="killer").submit(die)
        error = killer.exception(60)
        assert isinstance(error, WorkerCrashed)
        assert "task killer" in str(error)
        assert "max_crashes" in str(error)
        assert neighbours.results(60) == [-n for n in range(50)]
        for dead in pool.dead_letters():  # none if the queue's own host was the victim: then only the client knows
            assert (dead.key, dead.error_type) == ("killer", "daskqueue_core.errors.WorkerCrashed")
            assert dead.crashes >= 1
            assert dead.worker in dead.message
