"""Defects of 0.2.0 that must not come back, on a real cluster; each test is named after its row.

Those of lost workers are in `test_losses`, idle CPU in `test_idle`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from distributed import Client, get_client, get_worker, worker_client

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool
from daskqueue.wire.errors import RemoteTraceback

LIMIT = 60


def half(n: int) -> int:
    """Fails for odd numbers."""
    if n % 2:
        raise ValueError(f"odd: {n}")
    return n // 2


def test_d01_failures_are_not_lost(client: Client) -> None:
    """10 tasks, 5 raise: 10 futures, 5 values, 5 original exceptions with the remote traceback."""
    with QueuePool(client) as pool, ConsumerPool(client, pool) as consumers:
        futures = [pool.submit(half, n) for n in range(10)]
        consumers.join(timeout=LIMIT)
        assert len(futures) == 10
        assert [future.result(LIMIT) for future in futures[::2]] == [0, 1, 2, 3, 4]
        for n, future in zip(range(1, 10, 2), futures[1::2]):
            error = future.exception(LIMIT)
            assert type(error) is ValueError
            assert error.args == (f"odd: {n}",)
            assert isinstance(error.__cause__, RemoteTraceback)
            assert "in half" in str(error.__cause__)
            assert future.traceback is not None
            assert "in half" in future.traceback
        assert consumers.results() == {future.key: n for n, future in enumerate(futures[::2])}
        failures = consumers.failures()
        assert list(failures) == [future.key for future in futures[1::2]]
        assert {type(error) for error in failures.values()} == {ValueError}
        with pytest.raises(ValueError, match="odd: 1"):
            consumers.results(raise_on_error=True)


def test_d02_retries_are_made(client: Client, oracle: Any) -> None:
    """3 raising tasks and `retries=3`: each runs 4 times, later each time, and ends as a dead letter."""

    def fails(n: int) -> None:
        oracle.mark(f"{n} {time.monotonic()}")
        raise ValueError(n)

    with QueuePool(client) as pool, ConsumerPool(client, pool, retries=3) as consumers:
        futures = [pool.submit(fails, n) for n in range(3)]
        consumers.join(timeout=LIMIT)
        assert [repr(future.exception(LIMIT)) for future in futures] == [
            "ValueError(0)",
            "ValueError(1)",
            "ValueError(2)",
        ]
        assert [future.attempts for future in futures] == [4, 4, 4]
        runs = [line.split()[0] for line in oracle.lines()]
        assert sorted(runs) == ["0"] * 4 + ["1"] * 4 + ["2"] * 4
        letters = pool.dead_letters()
        assert [(letter.key, letter.attempts) for letter in letters] == [(future.key, 4) for future in futures]
        assert {letter.error_type for letter in letters} == {"ValueError"}


def test_d03_a_batch_larger_than_the_concurrency_is_done(client: Client, oracle: Any) -> None:
    """batch_size=10 and max_concurrency=1: all 10 tasks run, one at a time."""

    def task(n: int) -> int:
        oracle.mark(f"+{n}")
        threading.Event().wait(0.03)
        oracle.mark(f"-{n}")
        return n

    with QueuePool(client) as pool:
        futures = [pool.submit(task, n) for n in range(10)]
        consumers = ConsumerPool(client, pool, n_consumers=1, batch_size=10, max_concurrency=1)
        consumers.start()
        consumers.join(timeout=LIMIT)
        assert [future.result(0) for future in futures] == list(range(10))
    lines = oracle.lines()
    assert sorted(lines[::2]) == sorted(f"+{n}" for n in range(10))
    assert [line[1:] for line in lines[::2]] == [line[1:] for line in lines[1::2]], "two ran at once"


Eventually = Callable[..., Any]


def kill_a_consumer(workers: Any, victims: Any, oracle: Any, gate: Any, eventually: Eventually, **options: Any) -> None:
    """30 tasks through a durable queue; a worker that runs one, and does not host the queue, is killed."""
    client = workers.client
    pool = QueuePool(client, durability="durable", dirpath=f"{oracle.path}-pool")
    consumers = ConsumerPool(client, pool, **options)
    consumers.start()
    victim = victims(client)
    pid = victim.pids()[victim.others(pool)[0]]

    def task(n: int) -> int:
        if os.getpid() == pid:
            oracle.mark("caught")
            gate(n)
        until = time.monotonic() + LIMIT
        while "caught" not in oracle.lines() and time.monotonic() < until:  # else all is done before it gets one
            threading.Event().wait(0.005)
        oracle.mark(n)
        return n

    futures = [pool.submit(task, n) for n in range(30)]
    eventually(lambda: gate.count("came"))
    os.kill(pid, signal.SIGKILL)
    consumers.join(timeout=LIMIT)
    assert [future.result(LIMIT) for future in futures] == list(range(30))
    assert oracle.counts() == {"caught": 1, **{str(n): 1 for n in range(30)}}
    pool.shutdown()


def test_d04_a_killed_consumer_loses_nothing(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Eventually
) -> None:
    """Durable queue, default settings: 30 of 30."""
    kill_a_consumer(new_workers(3), victims, oracle, gate, eventually)


def test_d05_a_killed_consumer_with_a_full_lease_loses_nothing(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, gate: Any, eventually: Eventually
) -> None:
    """The same with batches and retries: what it held and had not begun is run elsewhere."""
    kill_a_consumer(new_workers(3), victims, oracle, gate, eventually, batch_size=10, retries=2)


def test_d06_a_long_task_is_started_once(
    new_workers: Callable[..., Any], oracle: Any, gate: Any, eventually: Eventually
) -> None:
    """Its lease lives two seconds, and it runs for longer than two of them: heartbeats renew it."""
    client = new_workers(2, env={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "2s"}).client
    pool = QueuePool(client, durability="durable", dirpath=f"{oracle.path}-pool")
    consumers = ConsumerPool(client, pool, retries=3)
    consumers.start()

    def task() -> int:
        oracle.mark("started")
        gate()
        return 7

    future = pool.submit(task)
    eventually(lambda: gate.count("came"))
    threading.Event().wait(4.5)
    assert not future.done()
    gate.open()
    consumers.join(timeout=LIMIT)
    assert future.result(LIMIT) == 7
    assert oracle.lines() == ["started"]
    assert pool.stats()[0].stale == 0
    pool.shutdown()


def test_d09_a_killed_host_loses_nothing(
    new_workers: Callable[..., Any], victims: Any, oracle: Any, eventually: Eventually
) -> None:
    """A durable queue is opened by another worker: every task ends, nothing hangs."""
    client = new_workers(3).client
    pool = QueuePool(client, durability="durable", dirpath=f"{oracle.path}-pool")
    consumers = ConsumerPool(client, pool)
    consumers.start()

    def task(n: int) -> int:
        threading.Event().wait(0.01)
        oracle.mark(n)
        return n

    futures = [pool.submit(task, n) for n in range(200)]
    eventually(lambda: len(oracle.lines()) > 20)
    victims(client).kill(victims(client).host(pool))
    consumers.join(timeout=LIMIT)
    assert [future.result(LIMIT) for future in futures] == list(range(200))
    assert set(oracle.lines()) == set(map(str, range(200)))
    assert list(consumers.results().values()) == list(range(200))
    pool.shutdown()


def test_d07_any_consumer_serves_every_queue(client: Client) -> None:
    """2 queues, 1 consumer: all is done."""
    with QueuePool(client, n_queues=2) as pool:
        consumers = ConsumerPool(client, pool, n_consumers=1)
        consumers.start()
        futures = [pool.submit(half, 2 * n) for n in range(20)]
        batch = pool.batch_submit([(half, 2 * n) for n in range(20)], batch_size=5)
        consumers.join(timeout=LIMIT)
        assert [future.result(0) for future in futures] == list(range(20))
        assert batch.results(0) == list(range(20))
        assert all(queue.puts > 0 for queue in pool.stats()), "one queue got everything: the test shows nothing"


def collecting(oracle: Any) -> type[ConsumerBaseClass]:
    """A consumer class that writes down what it gets."""

    class Collecting(ConsumerBaseClass):
        def process_item(self, item: Any) -> None:
            oracle.mark(repr(item))

    return Collecting


def test_d08_custom_consumer_of_tuples(client: Client, oracle: Any) -> None:
    """Tuples go to process_item as they are."""
    items = [(f"/from/{n}", f"/to/{n}") for n in range(20)]
    with QueuePool(client, n_queues=2) as pool:
        pool.put_many(items)
        with ConsumerPool(client, pool, collecting(oracle), n_consumers=1) as consumers:
            consumers.join(timeout=LIMIT)
    assert oracle.counts() == dict.fromkeys(map(repr, items), 1)


def test_d08_falsy_items(client: Client, oracle: Any) -> None:
    """0, "", None, False and () are items as others are."""
    items = [0, "", None, False, ()]
    with QueuePool(client) as pool, ConsumerPool(client, pool, collecting(oracle)) as consumers:
        for item in items:
            pool.put(item)
        pool.put_many(items)
        consumers.join(timeout=LIMIT)
    assert oracle.counts() == dict.fromkeys(map(repr, items), 2)


async def answer(x: int) -> int:
    """Awaits, then answers."""
    await asyncio.sleep(0)
    return x + 1


def test_async_def_task_is_awaited(client: Client) -> None:
    """Its value comes back, not an unpicklable coroutine; a lambda that returns a coroutine too."""
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        assert pool.submit(answer, 1).result(LIMIT) == 2
        assert pool.submit(lambda: answer(2)).result(LIMIT) == 3
        assert list(pool.map(answer, range(50), timeout=LIMIT)) == list(range(1, 51))


def test_closure_runs(client: Client) -> None:
    """What a function captured comes along."""
    captured = {"n": 41}
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        assert pool.submit(lambda x: captured["n"] + x, 1).result(LIMIT) == 42
        captured["n"] = 1
        assert pool.submit(lambda x: captured["n"] + x, 1).result(LIMIT) == 2


def test_consumer_joins_a_worker_that_comes_later(
    new_workers: Callable[..., Any], meeting: Callable[[int], Any]
) -> None:
    """A pool made for one worker uses the second as soon as it is there."""
    workers = new_workers(1)

    pool = QueuePool(workers.client)
    consumers = ConsumerPool(workers.client, pool)
    consumers.start()
    first = pool.submit(os.getpid).result(LIMIT)
    workers.add(1)
    assert len(consumers) == 2
    both = [future.result(LIMIT) for future in [pool.submit(meeting(2)) for _ in range(2)]]
    assert set(both) > {first}, "two tasks ran at once on one worker of one thread"
    pool.shutdown()


def test_get_worker_and_get_client(client: Client, cluster: Any) -> None:
    """Dask's get_worker() and get_client() work inside a task, also in an `async def` one."""

    def inside() -> tuple[str, str]:
        return get_worker().address, get_client().scheduler.address

    async def inside_async() -> str:
        return str(get_worker().address)

    addresses = set(client.scheduler_info()["workers"])
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        address, scheduler = pool.submit(inside).result(LIMIT)
        assert address in addresses
        assert scheduler == cluster.scheduler_address
        assert pool.submit(inside_async).result(LIMIT) in addresses


def test_worker_client(client: Client) -> None:
    """A task may submit Dask tasks to the very threads that it occupies."""

    def outer(x: int) -> int:
        with worker_client() as inner:
            return sum(inner.gather(inner.map(abs, [-x, -x - 1, -x - 2])))

    with QueuePool(client) as pool, ConsumerPool(client, pool):
        assert list(pool.map(outer, [1, 10], timeout=LIMIT)) == [6, 33]


def test_logging_is_not_configured_at_import() -> None:
    """Importing everything leaves the root logger and ours alone."""
    code = """
import logging
import distributed
before = logging.root.level, list(logging.root.handlers)
import daskqueue
for name in daskqueue.__all__:
    getattr(daskqueue, name)
from daskqueue.utils import logger
assert (logging.root.level, list(logging.root.handlers)) == before
assert not logger.handlers and logger.level == logging.NOTSET and logger.propagate
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT)


def test_put_does_not_swallow_its_timeout(client: Client, victims: Any, oracle: Any) -> None:
    """A put that was not accepted in time says so, and the pool goes on; it was put once or not at all."""
    with QueuePool(client) as pool:
        pid = victims(client).kill(victims(client).host(pool), signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError, match="did not accept"):
                pool.put("late", timeout=0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        pool.put("again")
        with ConsumerPool(client, pool, collecting(oracle)) as consumers:
            consumers.join(timeout=LIMIT)
    assert sorted(oracle.lines()) in (["'again'"], ["'again'", "'late'"])


class Counted:
    """Counts how often it is pickled, and arrives as a plain number."""

    pickled = 0

    def __reduce__(self) -> Any:
        type(self).pickled += 1
        return int, (7,)


def test_a_message_is_pickled_once(client: Client, oracle: Any) -> None:
    """In the client, however it goes out."""
    with QueuePool(client) as pool, ConsumerPool(client, pool), ConsumerPool(client, pool, collecting(oracle)):
        Counted.pickled = 0
        assert pool.submit(abs, Counted()).result(LIMIT) == 7
        assert Counted.pickled == 1
        pool.put(Counted())
        assert Counted.pickled == 2
        pool.put_many([Counted(), Counted()])
        assert Counted.pickled == 4
        assert list(pool.map(abs, [Counted() for _ in range(3)], timeout=LIMIT)) == [7, 7, 7]
        assert Counted.pickled == 7
        assert pool.batch_submit([(abs, Counted())]).results(LIMIT) == [7]
        assert Counted.pickled == 8


def test_retire_workers_with_a_live_pool(new_cluster: Callable[..., Any], victims: Any) -> None:
    """The queue's host can be retired: the queue goes elsewhere and all tasks finish."""
    _, client = new_cluster()

    def task(n: int) -> int:
        threading.Event().wait(0.002)
        return n

    pool = QueuePool(client)
    consumers = ConsumerPool(client, pool)
    consumers.start()
    batch = pool.batch_submit([(task, n) for n in range(600)], batch_size=50)
    futures = [pool.submit(task, n) for n in range(100)]
    host = victims(client).host(pool)
    client.retire_workers([host])
    assert batch.results(LIMIT) == list(range(600))
    assert [future.result(LIMIT) for future in futures] == list(range(100))
    assert victims(client).host(pool) != host
    consumers.join(timeout=LIMIT)
    pool.shutdown()
