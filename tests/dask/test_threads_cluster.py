"""A cluster in one process (`processes=False`): what goes between its workers is not serialized."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster

from daskqueue import ConsumerBaseClass, ConsumerPool, QueueExecutor, QueuePool
from daskqueue.wire import nested
from daskqueue.wire.link import Link, Route
from daskqueue.wire.operations import INLINE_BYTES
from daskqueue.worker import queue_actor
from daskqueue.worker.chunk import Chunk
from daskqueue.worker.slots import Slots

LIMIT = 60
LARGE = b"x" * (2 * INLINE_BYTES)


def new_threads(stack: contextlib.ExitStack) -> Client:
    """The client of a cluster of two workers in this process."""
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=False,
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": ":0"},  # else it warns when another cluster has the default port
        memory_limit=0,
        silence_logs=logging.CRITICAL,
    )
    return stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))


@pytest.fixture(scope="module")
def threads() -> Iterator[Client]:
    """The shared one."""
    with contextlib.ExitStack() as stack:
        yield new_threads(stack)


def fill(n: int) -> bytes:
    """A value that travels as a frame of its own."""
    return LARGE if n % 2 else b""


def fail(data: bytes) -> None:
    """An error of that size."""
    raise ValueError(data)


def test_large_arguments_and_values(threads: Client) -> None:
    """They arrive, alone and many together, also those of errors."""
    with QueueExecutor(threads) as executor:
        assert executor.submit(len, LARGE).result(LIMIT) == len(LARGE)
        assert executor.submit(fill, 1).result(LIMIT) == LARGE
        assert list(executor.map(bytes.upper, [LARGE] * 40, timeout=LIMIT)) == [LARGE.upper()] * 40
        different = [LARGE + b"%d" % n for n in range(40)]
        assert list(executor.map(bytes.upper, different, timeout=LIMIT)) == [each.upper() for each in different]
        assert list(executor.map(fill, range(40), timeout=LIMIT)) == [fill(n) for n in range(40)]
        error = executor.submit(fail, LARGE).exception(LIMIT)
        assert isinstance(error, ValueError)
        assert error.args == (LARGE,)


def test_kept_ones(threads: Client) -> None:
    """Results, dead letters, and the items of a custom consumer."""

    class Sizes(ConsumerBaseClass):
        def process_item(self, item: bytes) -> None:
            if len(item) != len(LARGE):
                raise ValueError(item)

    with QueuePool(threads, n_queues=2) as pool, ConsumerPool(threads, pool), ConsumerPool(threads, pool, Sizes):
        good, bad = pool.submit(fill, 1), pool.submit(fail, LARGE)
        pool.put_many([LARGE] * 10)
        pool.join(timeout=LIMIT)
        assert pool.results() == {good.key: LARGE}
        assert list(pool.failures()) == [bad.key] == [letter.key for letter in pool.dead_letters()]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each operation was asked of a queue; a put that is alone waits as long as it takes."""
    ops: Counter[str] = Counter()
    call = Link.call

    async def counted(link: Link, route: Route, index: int, op: str, **arguments: Any) -> Any:
        ops[op] += 1
        return await call(link, route, index, op, **arguments)

    monkeypatch.setattr(Link, "call", counted)
    monkeypatch.setattr(queue_actor, "SOON_S", 10 * LIMIT)
    monkeypatch.setattr(queue_actor, "REMIND_S", 10 * LIMIT)
    return ops


def test_tasks_one_by_one_need_no_poll(threads: Client, asked: Counter[str]) -> None:
    """Their outcomes come with the answers to their puts."""
    with QueuePool(threads) as pool, ConsumerPool(threads, pool):
        assert [pool.submit(fill, 0).result(LIMIT) for _ in range(10)] == [b""] * 10
        assert (asked["admit_alone"], asked["admit"], asked["poll"]) == (10, 0, 1)


def test_who_is_flushed_when_a_task_ends_waits_for_no_outcomes(threads: Client, asked: Counter[str]) -> None:
    """The task would keep its slot meanwhile, which the other may need."""
    with QueuePool(threads) as pool, ConsumerPool(threads, pool):
        nested.register(pool._connection)
        assert pool.submit(fill, 0).result(LIMIT) == b""
        assert (asked["admit_alone"], asked["admit"]) == (0, 1)


def test_drained_when_all_is_handed_in(threads: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that has ended its task has yet to say so: its consumers are not over before."""
    ended, may_say_so = threading.Event(), threading.Event()
    honest = Slots.next_after

    def next_after(slots: Slots, chunk: Chunk) -> Chunk | None:
        following = honest(slots, chunk)
        ended.set()
        assert may_say_so.wait(LIMIT)
        return following

    monkeypatch.setattr(Slots, "next_after", next_after)
    with QueuePool(threads) as pool, ConsumerPool(threads, pool) as consumers:
        future = pool.submit(fill, 0)
        assert ended.wait(LIMIT)
        assert not consumers.drain(timeout=0.2)
        may_say_so.set()
        assert future.result(LIMIT) == b""


def test_a_queue_moves(victims: Any, eventually: Callable[..., Any]) -> None:
    """From a worker that retires to the other, with large bodies: the same queue, and nothing is put again."""
    with contextlib.ExitStack() as stack:
        client = new_threads(stack)
        pool = stack.enter_context(QueuePool(client))
        futures = [pool.submit(len, LARGE + bytes(n)) for n in range(5)]
        pool.flush()
        before, host = pool.stats()[0], victims(client).host(pool)
        client.retire_workers([host])
        eventually(lambda: victims(client).host(pool) != host)
        after = pool.stats()[0]
        assert (after.uuid, after.puts) == (before.uuid, before.puts)
        with ConsumerPool(client, pool):
            assert [future.result(LIMIT) for future in futures] == [len(LARGE) + n for n in range(5)]
