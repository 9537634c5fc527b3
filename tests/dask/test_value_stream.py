"""`map` as a stream: order, an endless input, and that a reader who stops leaves nothing running."""

from __future__ import annotations

import concurrent.futures as cf
import itertools
import operator
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue_core.errors import PoolClosed

LIMIT = 60


@pytest.fixture(scope="module")
def shared_pool(shared_client: Client) -> Iterator[QueuePool]:
    """One for the module, with one consumer on each worker."""
    pool = QueuePool(shared_client)
    ConsumerPool(shared_client, pool).start()
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def pool(client: Client, shared_pool: QueuePool) -> QueuePool:
    """It, on a cluster that is whole."""
    return shared_pool


class Source:
    """An endless input that counts what was taken."""

    def __init__(self) -> None:
        self.taken = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.taken += 1
        return self.taken - 1


def unfinished(pool: QueuePool) -> int:
    """Messages without an outcome."""
    return sum(queue.puts - queue.finished for queue in pool.stats())


def nap(seconds: float, value: Any = None) -> Any:
    """A task that takes its time."""
    threading.Event().wait(seconds)
    return value


def slowly(n: int) -> int:
    """A task that is not over at once."""
    threading.Event().wait(0.002)
    return n


# ----------------------------------------------------------------------------------------------- the reader stops


def stop_by_close(values: Any) -> None:
    """The reader says so."""
    values.close()
    assert next(values, "over") == "over"
    values.close()


def stop_by_an_exception(values: Any) -> None:
    """The reader fails while it reads."""

    def read() -> None:
        for value in values:
            raise ArithmeticError(value)

    with pytest.raises(ArithmeticError):
        read()


def stop_by_dropping(values: Any) -> None:
    """The reader forgets it."""


@pytest.mark.parametrize("buffersize", [1, 10, 4000])
@pytest.mark.parametrize("stop", [stop_by_close, stop_by_an_exception, stop_by_dropping])
def test_an_endless_input_that_is_stopped(
    pool: QueuePool, eventually: Callable[..., Any], stop: Callable[[Any], None], buffersize: int
) -> None:
    """Nothing is left running, and nothing more is taken from the input."""
    source = Source()
    values = pool.map(slowly, source, buffersize=buffersize, timeout=LIMIT)
    assert [next(values) for _ in range(5)] == list(range(5))
    stop(values)
    del values
    eventually(lambda: unfinished(pool) == 0)
    taken = source.taken
    assert taken <= 6 + buffersize
    assert list(pool.map(abs, [-1], timeout=LIMIT)) == [1]
    assert source.taken == taken


@pytest.mark.parametrize("read", [0, 3])
def test_everything_submitted_then_closed(
    client: Client, oracle: Any, eventually: Callable[..., Any], read: int
) -> None:
    """Without a buffersize too, and before anything was read: what has not begun never runs."""
    with QueuePool(client) as pool, ConsumerPool(client, pool, n_consumers=1, concurrency=1):

        def task(n: int) -> int:
            oracle.mark(n)
            return slowly(n)

        values = pool.map(task, range(20_000))
        assert [next(values) for _ in range(read)] == list(range(read))
        values.close()
        eventually(lambda: unfinished(pool) == 0)
    assert len(oracle.lines()) < 10_000


def test_values_that_nobody_reads(pool: QueuePool, eventually: Callable[..., Any], oracle: Any) -> None:
    """A map that is dropped unread runs to its end, as the standard library's; with a buffersize it has not begun."""
    pool.map(oracle.mark, range(50))
    source = Source()
    pool.map(oracle.mark, source, buffersize=10)
    eventually(lambda: len(oracle.lines()) == 50)
    eventually(lambda: unfinished(pool) == 0)
    assert source.taken <= 10


# ------------------------------------------------------------------------------------------------------ buffersize


@pytest.mark.parametrize("buffersize", [1, 2, 3, 7, 100, 999, 1001])
def test_never_more_than_the_buffer(pool: QueuePool, buffersize: int) -> None:
    """At most so many are submitted and not yet yielded, at any time."""
    source = Source()
    values = pool.map(abs, source, buffersize=buffersize, timeout=LIMIT)
    for n in range(max(20, 2 * buffersize)):
        assert next(values) == n
        assert source.taken - (n + 1) <= buffersize
    values.close()


@pytest.mark.parametrize("count", [0, 1, 9, 10, 11, 57])
@pytest.mark.parametrize("buffersize", [1, 10])
def test_a_short_input(pool: QueuePool, count: int, buffersize: int) -> None:
    """It is read to its end, whatever the buffer."""
    assert list(pool.map(operator.neg, range(count), buffersize=buffersize, timeout=LIMIT)) == [
        -n for n in range(count)
    ]


def test_many_with_a_buffer(pool: QueuePool) -> None:
    """20,000 of them, through a list, a range and a generator."""
    for inputs in (range(20_000), list(range(20_000)), (n for n in range(20_000))):
        values = pool.map(operator.neg, inputs, buffersize=3000, timeout=LIMIT)
        assert all(map(operator.eq, values, range(0, -20_000, -1)))


def test_several_iterables_with_a_buffer(pool: QueuePool) -> None:
    """To the end of the shortest."""
    values = pool.map(operator.add, itertools.count(), range(30), buffersize=8, timeout=LIMIT)
    assert list(values) == list(range(0, 60, 2))


# ----------------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize("buffersize", [None, 20])
def test_order_with_mixed_durations(client: Client, buffersize: int | None) -> None:
    """However they end, two queues and many slots: values are in the order of the input."""
    seconds = [random.Random(7).choice([0.0, 0.0, 0.001, 0.02]) for _ in range(300)]
    with QueuePool(client, 2) as pool, ConsumerPool(client, pool, concurrency=4):
        values = pool.map(nap, seconds, range(300), buffersize=buffersize, timeout=LIMIT)
        assert list(values) == list(range(300))


def test_two_streams_side_by_side(pool: QueuePool) -> None:
    """Read in turns, each has its own."""
    up = pool.map(operator.pos, itertools.count(), buffersize=5, timeout=LIMIT)
    down = pool.map(operator.neg, itertools.count(), buffersize=50, timeout=LIMIT)
    for n in range(100):
        assert (next(up), next(down)) == (n, -n)
    up.close()
    assert next(down) == -100
    down.close()


def test_a_map_within_a_map(pool: QueuePool) -> None:
    """Values of one are the input of another."""
    inner = pool.map(operator.neg, range(500), buffersize=30, timeout=LIMIT)
    assert list(pool.map(abs, inner, buffersize=10, timeout=LIMIT)) == list(range(500))


def test_read_from_several_threads(pool: QueuePool) -> None:
    """With a lock around it, as any iterator: each value once."""
    values = pool.map(operator.pos, range(2000), timeout=LIMIT)
    lock, seen = threading.Lock(), []

    def read() -> None:
        while True:
            with lock:
                value = next(values, None)
            if value is None:
                return
            seen.append(value)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert sorted(seen) == list(range(2000))


# ---------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("buffersize", [None, 1, 7, 5000])
def test_nothing_comes_after_an_error(pool: QueuePool, eventually: Callable[..., Any], buffersize: int | None) -> None:
    """The iterator is over, as the standard library's, and what was submitted beyond it is cancelled."""

    def task(n: int) -> int:
        if n % 100 == 50:
            raise LookupError(n)
        return n

    source = itertools.count() if buffersize else range(3000)
    values = pool.map(task, source, buffersize=buffersize, timeout=LIMIT)
    assert list(itertools.islice(values, 50)) == list(range(50))
    with pytest.raises(LookupError) as caught:
        next(values)
    assert caught.value.args == (50,)
    for _ in range(3):
        assert next(values, "over") == "over"
    assert list(values) == []
    eventually(lambda: unfinished(pool) == 0)


def test_late_values_leave_nothing_running(pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """After a TimeoutError the rest is cancelled."""
    values = pool.map(nap, itertools.repeat(0.05), buffersize=100, timeout=0.2)
    with pytest.raises(TimeoutError, match=r"task \d+ of a map has not ended within 0.2 s"):
        list(values)
    eventually(lambda: unfinished(pool) == 0)
    assert list(values) == []


def test_an_input_that_raises_when_it_is_pulled(pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """The error comes from `next`, and what was sent is cancelled."""

    def inputs() -> Iterator[int]:
        yield from range(25)
        raise OSError("no more")

    values = pool.map(slowly, inputs(), buffersize=10, timeout=LIMIT)
    with pytest.raises(OSError, match="no more"):
        list(values)
    assert list(values) == []
    eventually(lambda: unfinished(pool) == 0)


def test_a_pool_that_ends_while_it_is_read(client: Client, eventually: Callable[..., Any]) -> None:
    """What is there is read, then the error; never a hang."""
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    values = pool.map(slowly, itertools.count(), buffersize=50, timeout=LIMIT)
    assert next(values) == 0
    pool.shutdown(cancel_futures=True)
    with pytest.raises((cf.CancelledError, PoolClosed)):
        list(values)
