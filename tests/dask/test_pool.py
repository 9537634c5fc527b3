"""`QueuePool` on a cluster: every call, in its plain and in its odd uses."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import itertools
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerBaseClass, ConsumerPool, QueuePool

LIMIT = 60


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """An unnamed pool with one consumer on each worker."""
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        yield pool


def slow(seconds: float, value: Any = None) -> Any:
    """A task that takes its time."""
    threading.Event().wait(seconds)
    return value


def failing(n: int) -> int:
    """Fails for 3 and 7."""
    if n in (3, 7):
        raise LookupError(n)
    return n


# ---------------------------------------------------------------------------------------------------------- submit


def test_submit_with_arguments(pool: QueuePool) -> None:
    """Positional, keyword, and a function whose keyword is `fn` or `self`."""

    def task(a: int, b: int = 1, *rest: int, fn: int = 0, self: int = 0) -> Any:
        return a, b, rest, fn, self

    assert pool.submit(task, 1).result(LIMIT) == (1, 1, (), 0, 0)
    assert pool.submit(task, 1, 2, 3, fn=4, self=5).result(LIMIT) == (1, 2, (3,), 4, 5)


def test_futures_in_the_order_of_submission(pool: QueuePool) -> None:
    """Keys are unique, numbered in order, and results() lists them so."""
    futures = [pool.submit(operator.neg, n) for n in range(2500)]
    pool.join(timeout=LIMIT)
    assert [future.result(0) for future in futures] == [-n for n in range(2500)]
    keys = [future.key for future in futures]
    assert len(set(keys)) == 2500
    assert list(pool.results().items()) == [(key, -n) for n, key in enumerate(keys)]
    assert pool.results(keys[10:12]) == {keys[10]: -10, keys[11]: -11}
    assert pool.results(["nobody-0"]) == {}


def test_results_twice_and_after_more(pool: QueuePool) -> None:
    """Reading takes nothing away."""
    first = pool.submit(abs, -1)
    batch = pool.batch_submit([(abs, -2), (operator.truediv, 1, 0), (abs, -3)])
    pool.join(timeout=LIMIT)
    assert list(pool.results().values()) == [1, 2, 3]
    second = pool.submit(abs, -4)
    assert second.result(LIMIT) == 4
    assert list(pool.results().values()) == [1, 2, 3, 4]
    assert {key: type(error) for key, error in pool.failures().items()} == {batch[1].key: ZeroDivisionError}
    assert pool.results([first.key]) == {first.key: 1}
    with pytest.raises(ZeroDivisionError):
        pool.results(raise_on_error=True)


def test_submit_from_many_threads(pool: QueuePool) -> None:
    """Each gets its own."""
    with cf.ThreadPoolExecutor(8) as threads:
        futures = list(threads.map(lambda n: pool.submit(operator.neg, n), range(1000)))
    assert [future.result(LIMIT) for future in futures] == [-n for n in range(1000)]


def test_batch_submit_of_mixed_functions(pool: QueuePool) -> None:
    """In order, whatever the functions and batch sizes."""
    calls = [(abs, -n) if n % 3 else (operator.add, n, 1) for n in range(100)]
    expected = [n if n % 3 else n + 1 for n in range(100)]
    batch = pool.batch_submit(calls, batch_size=7)
    assert len(batch) == 100
    assert batch.results(LIMIT) == expected
    assert batch.counts() == (0, 100, 0)
    assert [future.result(0) for future in batch] == expected or sorted(f.result(0) for f in batch) == sorted(expected)
    assert batch[-1].result(0) == expected[-1]
    assert [future.result(0) for future in batch[2:5]] == expected[2:5]
    with pytest.raises(IndexError):
        batch[100]
    assert pool.batch_submit([]).results(LIMIT) == []


def test_submit_many(pool: QueuePool) -> None:
    """One object for many tasks, with the failures by index."""
    batch = pool.submit_many(failing, iter(range(10)))
    assert batch.wait(LIMIT)
    assert {index: type(error) for index, error in batch.failures().items()} == {3: LookupError, 7: LookupError}
    assert batch.counts() == (0, 8, 2)
    with pytest.raises(LookupError):
        batch.results()
    assert pool.results() == {}, "a stream is not kept"


# ------------------------------------------------------------------------------------------------------------- map


def test_map_order_and_several_iterables(pool: QueuePool) -> None:
    """As Executor.map: shortest input, order of input, chunksize as a hint."""
    assert list(pool.map(operator.add, range(5000), itertools.count(1), timeout=LIMIT)) == list(range(1, 10000, 2))
    assert list(pool.map(slow, [0.1, 0.0, 0.05], "abc", timeout=LIMIT)) == ["a", "b", "c"]
    assert list(pool.map(abs, [-1, -2], chunksize=100, timeout=LIMIT)) == [1, 2]
    assert list(pool.map(abs, [])) == []
    with pytest.raises(ValueError, match="chunksize"):
        pool.map(abs, [1], chunksize=0)
    with pytest.raises(ValueError, match="buffersize"):
        pool.map(abs, [1], buffersize=0)


def test_map_of_large_bytes(pool: QueuePool) -> None:
    """They travel as they are, not joined, and each is made where it runs."""
    values = [bytes([n]) * 100_000 for n in range(50)]
    assert list(pool.map(bytes.hex, values, timeout=LIMIT)) == [each.hex() for each in values]
    batch = pool.submit_many(bytes.decode, [*values, b"\xff" * 100_000])
    assert {index: type(error) for index, error in batch.failures(LIMIT).items()} == {50: UnicodeDecodeError}


def test_map_starts_at_the_call(pool: QueuePool, oracle: Any, eventually: Callable[..., Any]) -> None:
    """Nobody has to read for the work to be done."""
    values = pool.map(oracle.mark, range(20))
    eventually(lambda: len(oracle.lines()) == 20)
    assert list(values) == [None] * 20


def test_map_exception_in_its_place(pool: QueuePool) -> None:
    """The values before it come first, then it."""
    values = pool.map(failing, range(10), timeout=LIMIT)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError) as caught:
        next(values)
    assert caught.value.args == (3,)
    with pytest.raises(StopIteration):
        next(values)


def test_map_exception_of_the_input(pool: QueuePool) -> None:
    """It is raised at the call."""

    def inputs() -> Iterator[int]:
        yield 1
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        pool.map(abs, inputs())


def test_map_timeout(pool: QueuePool, gate: Any) -> None:
    """Counted from the call; raised at the value that is not there."""
    began = time.monotonic()
    values = pool.map(gate, range(4), timeout=0.3)
    with pytest.raises(TimeoutError):
        next(values)
    assert 0.25 < time.monotonic() - began < 10.0


@pytest.mark.parametrize("buffersize", [1, 3, 50, 5000])
def test_map_buffersize_with_an_endless_input(pool: QueuePool, buffersize: int) -> None:
    """At most so many are taken from the input beyond what was yielded."""
    taken = itertools.count()
    values = pool.map(operator.neg, (next(taken) for _ in itertools.count()), buffersize=buffersize, timeout=LIMIT)
    for n in range(100):
        assert next(values) == -n
    assert next(taken) <= 100 + buffersize
    values.close()  # type: ignore[attr-defined]


def test_map_buffersize_reads_to_the_end(pool: QueuePool) -> None:
    """A finite input is done completely, in order, and a failure is raised in its place."""
    assert list(pool.map(operator.neg, range(37), buffersize=5, timeout=LIMIT)) == [-n for n in range(37)]
    values = pool.map(failing, range(10), buffersize=4, timeout=LIMIT)
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError):
        next(values)


# ------------------------------------------------------------------------------------------------- waiting, counts


def test_flush_stats_and_queue_size(client: Client) -> None:
    """Without a consumer everything waits and is counted; a failed task counts as done."""
    with QueuePool(client, 2) as pool:
        futures = [pool.submit(failing, n) for n in range(10)]
        pool.put_many("abc")
        pool.put("d")
        pool.flush()
        assert len(pool) == 2
        assert sum(pool.get_queue_size().values()) == 14
        assert list(pool.get_queue_size()) == [f"{pool.name}-0", f"{pool.name}-1"]
        assert sum(queue.ready for queue in pool.stats()) == 14
        assert pool[0] == pool.stats()[0]
        with pytest.raises(TimeoutError, match=r"stats.* hosts queue.*, last heard of \d+\.\d s ago"):
            pool.join(timeout=0.1)
        assert not any(future.done() for future in futures)

        class Sink(ConsumerBaseClass):
            def process_item(self, item: Any) -> None:
                """Nothing."""

        with ConsumerPool(client, pool), ConsumerPool(client, pool, Sink):
            pool.join(timeout=LIMIT)
        assert all(future.done() for future in futures)
        stats = pool.stats()
        assert sum(queue.finished for queue in stats) == sum(queue.puts for queue in stats) == 14
        assert sum(queue.failed for queue in stats) == 2
        assert sum(queue.ready + queue.delivered for queue in stats) == 0
        assert set(pool.get_queue_size().values()) == {0}


def test_join_of_nothing(client: Client) -> None:
    """Nothing to wait for."""
    with QueuePool(client, 3) as pool:
        pool.join(timeout=LIMIT)
        pool.flush()
        assert pool.results() == pool.failures() == {}


def test_first_in_first_out(client: Client, oracle: Any) -> None:
    """One producer, one queue, one consumer of one slot: the order of submission, of calls and items alike."""

    class InOrder(ConsumerBaseClass):
        def process_item(self, item: Any) -> None:
            oracle.mark(item)

    with QueuePool(client) as pool:
        pool.put_many(range(300))
        for n in range(300, 600):
            pool.put(n)
        with ConsumerPool(client, pool, InOrder, n_consumers=1, concurrency=1):
            pool.put_many(range(600, 900))
            pool.join(timeout=LIMIT)
        assert oracle.lines() == [str(n) for n in range(900)]
        futures = [pool.submit(oracle.mark, n) for n in range(900, 1500)]
        with ConsumerPool(client, pool, n_consumers=1, concurrency=1):
            futures += [pool.submit(oracle.mark, n) for n in range(1500, 2000)]
            cf.wait(futures, LIMIT)
        assert oracle.lines() == [str(n) for n in range(2000)]


def test_first_in_first_out_of_all_calls(client: Client, oracle: Any) -> None:
    """Single calls, which travel together, are not overtaken by blocks that come after them, nor overtake them."""
    with QueuePool(client) as pool:
        futures: list[cf.Future[Any]] = []
        for start in range(0, 1000, 200):
            futures += [pool.submit(oracle.mark, n) for n in range(start, start + 90)]
            pool.map(oracle.mark, range(start + 90, start + 130))
            futures += [pool.options(expires=1000).submit(oracle.mark, n) for n in range(start + 130, start + 180)]
            futures += pool.submit_many(oracle.mark, range(start + 180, start + 199))[:]
            futures += pool.batch_submit([(oracle.mark, start + 199)])[:]
        with ConsumerPool(client, pool, n_consumers=1, concurrency=1):
            assert not cf.wait(futures, LIMIT).not_done
        assert oracle.lines() == [str(n) for n in range(1000)]


# --------------------------------------------------------------------------------------------------------- futures


def test_standard_library_waits_on_futures(pool: QueuePool, new_gate: Callable[[], Any]) -> None:
    """cf.wait, cf.as_completed and asyncio.wrap_future, on futures of submit and of batches."""
    batch = pool.batch_submit([(slow, 0.01, n) for n in range(5)])
    futures = [pool.submit(failing, n) for n in range(5)] + list(batch[:])
    done, pending = cf.wait(futures, LIMIT)
    assert len(done) == 10
    assert not pending
    gate = new_gate()
    first = [pool.submit(gate, "slow"), pool.submit(slow, 0.0, "quick")]
    done, _ = cf.wait(first, LIMIT, return_when=cf.FIRST_COMPLETED)
    assert [future.result() for future in done] == ["quick"]
    order = cf.as_completed(first, LIMIT)
    assert next(order).result() == "quick"
    gate.open()
    assert [future.result() for future in order] == ["slow"]
    gate = new_gate()
    done, _ = cf.wait([pool.submit(failing, 3), pool.submit(gate)], LIMIT, return_when=cf.FIRST_EXCEPTION)
    assert [type(future.exception()) for future in done] == [LookupError]
    gate.open()

    async def gather() -> list[Any]:
        work = [asyncio.wrap_future(pool.submit(slow, 0.01, n)) for n in range(5)]
        work.append(asyncio.wrap_future(pool.submit(failing, 3)))
        return await asyncio.wait_for(asyncio.gather(*work, return_exceptions=True), LIMIT)

    *values, error = asyncio.run(gather())
    assert values == [0, 1, 2, 3, 4]
    assert isinstance(error, LookupError)


def test_future_timeouts_and_states(pool: QueuePool, gate: Any) -> None:
    """result and exception give up at their timeout; done, running and cancelled say what is."""
    future = pool.submit(gate, 1)
    pool.flush()
    host = pool._connection.route.places[0].address
    with pytest.raises(TimeoutError, match=rf"{future.key}.*{host} hosts queue 0, last heard of \d+\.\d s ago"):
        future.result(0.05)
    with pytest.raises(TimeoutError):
        future.exception(0)
    assert not future.done()
    assert "pending" in repr(future)
    gate.open()
    assert future.result(LIMIT) == 1
    assert future.exception(0) is None
    assert future.done()
    assert not future.cancelled()
    assert not future.cancel()
    assert future.traceback is None
    assert "finished" in repr(future)


def test_callbacks_run_in_one_thread_and_may_submit(pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """Never on the event loop; a callback may submit, wait for a result, or fail."""
    threads: set[threading.Thread] = set()
    values: list[int] = []

    def follow(future: cf.Future[int]) -> None:
        threads.add(threading.current_thread())
        value = future.result()
        if value < 5:
            pool.submit(operator.add, value, 1).add_done_callback(follow)
        values.append(pool.submit(operator.neg, value).result(LIMIT))
        raise ValueError("a callback that fails harms nobody")

    for _ in range(3):
        pool.submit(abs, 0).add_done_callback(follow)
    eventually(lambda: len(values) == 18, LIMIT)
    assert sorted(values) == sorted([-n for n in range(6)] * 3)
    assert len(threads) == 1
    assert threads.pop() is not threading.main_thread()
    late: list[Any] = []
    future = pool.submit(abs, 1)
    future.result(LIMIT)
    future.add_done_callback(late.append)
    eventually(lambda: late == [future])


def test_batch_iterates_as_completed(pool: QueuePool, gate: Any) -> None:
    """The quick ones come before the slow one."""
    batch = iter(pool.batch_submit([(gate, "slow")] + [(slow, 0.0, "quick")] * 5, batch_size=1))
    assert [next(batch).result() for _ in range(5)] == ["quick"] * 5
    gate.open()
    assert [future.result() for future in batch] == ["slow"]


# ------------------------------------------------------------------------------------------------- several clients


def test_attach_from_a_second_client(client: Client, cluster: Any, new_client: Callable[..., Client]) -> None:
    """A named pool is one for all; each client has its own futures; results are for everybody."""
    other = new_client(cluster)
    with QueuePool(client, 2, name="shared") as pool, ConsumerPool(client, pool):
        theirs = QueuePool.attach(other, "shared")
        assert len(theirs) == 2
        ours = [pool.submit(operator.neg, n) for n in range(50)]
        others = [theirs.submit(operator.neg, n) for n in range(50, 100)]
        ended = threading.Thread(target=theirs.join)
        ended.start()
        pool.join(timeout=LIMIT)
        ended.join(LIMIT)
        assert not ended.is_alive()
        assert [future.result(0) for future in ours] == [-n for n in range(50)]
        assert [future.result(0) for future in others] == [-n for n in range(50, 100)]
        values = {future.key: future.result() for future in [*ours, *others]}
        assert pool.results() == theirs.results() == values
        assert [key for key in theirs.results() if key in pool.results([f.key for f in ours])] == [f.key for f in ours]
        assert list(QueuePool(other, 2, name="shared").map(abs, [-1], timeout=LIMIT)) == [1]


def test_shutdown_reaches_the_other_client(client: Client, cluster: Any, new_client: Callable[..., Client]) -> None:
    """Its futures end, and its calls say so, within seconds."""
    other = new_client(cluster)
    pool = QueuePool(client, name="ended")
    theirs = QueuePool.attach(other, "ended")
    future = theirs.submit(abs, 1)
    theirs.flush()
    pool.shutdown(cancel_futures=True)
    assert future.exception(LIMIT) is not None
    with pytest.raises(RuntimeError, match="shut down"):
        theirs.submit(abs, 1)
    with pytest.raises(KeyError):
        QueuePool.attach(other, "ended")


def test_join_from_two_clients_waits_for_both(
    client: Client, cluster: Any, new_client: Callable[..., Client], gate: Any, eventually: Callable[..., Any]
) -> None:
    """A client that submitted nothing waits for what the other submitted."""
    other = new_client(cluster)
    with QueuePool(client, name="joined") as pool, ConsumerPool(client, pool):
        future = pool.submit(gate, 1)
        theirs = QueuePool.attach(other, "joined")
        eventually(lambda: gate.count("came") == 1)
        with pytest.raises(TimeoutError):
            theirs.join(timeout=0.1)  # it runs: neither ready nor done
        gate.open()
        theirs.join(timeout=LIMIT)
        assert future.result(LIMIT) == 1


def test_a_task_submits_through_its_pool(pool: QueuePool) -> None:
    """A pool pickled into a task attaches there; join waits for what tasks submitted."""

    def parent(n: int, inner: QueuePool) -> str:
        return inner.submit(operator.neg, n).key

    keys = [pool.submit(parent, n, pool).result(LIMIT) for n in range(10)]
    pool.join(timeout=LIMIT)
    results = pool.results(keys)
    assert [results[key] for key in keys] == [-n for n in range(10)]


# ------------------------------------------------------------------------------------------------------- shutdown


def test_shutdown_waits(client: Client) -> None:
    """Twice is fine."""
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    futures = [pool.submit(slow, 0.05, n) for n in range(10)]
    pool.shutdown()
    assert [future.result(0) for future in futures] == list(range(10))
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)


def test_shutdown_without_waiting(client: Client, gate: Any) -> None:
    """It returns while tasks run, and what was submitted is done."""
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    futures = [pool.submit(gate, n) for n in range(10)]
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError):
        pool.submit(abs, 1)
    assert not any(future.done() for future in futures)
    gate.open()
    assert [future.result(LIMIT) for future in futures] == list(range(10))


def test_shutdown_cancels(client: Client) -> None:
    """What is unfinished ends with CancelledError, with and without consumers."""
    pool = QueuePool(client)
    futures = [pool.submit(abs, n) for n in range(5)]
    batch = pool.submit_many(abs, range(5))
    pool.shutdown(cancel_futures=True)
    for future in [*futures, *batch[:]]:
        with pytest.raises(cf.CancelledError):
            future.result(LIMIT)
    assert not cf.wait(futures, LIMIT).not_done


def test_shutdown_without_consumers_does_not_hang(client: Client) -> None:
    """Nobody would ever do the work: its futures end."""
    pool = QueuePool(client)
    future = pool.submit(abs, 1)
    pool.shutdown()
    with pytest.raises(cf.CancelledError):
        future.result(LIMIT)


def test_context_manager(client: Client) -> None:
    """Leaving it waits; leaving it by an exception cancels."""
    with QueuePool(client) as pool:
        ConsumerPool(client, pool).start()
        future = pool.submit(slow, 0.1, 1)
    assert future.result(0) == 1
    with pytest.raises(ZeroDivisionError), QueuePool(client) as pool:
        future = pool.submit(slow, 0.1, 1)
        raise ZeroDivisionError
    with pytest.raises(cf.CancelledError):
        future.result(LIMIT)


def known(dask_scheduler: Any) -> list[str]:
    """The pools that the directory knows."""
    return list(dask_scheduler.plugins["daskqueue"].directory.pools)


def test_left_by_an_exception_with_its_client(
    client: Client, cluster: Any, gate: Any, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool ends before the client does, which could not end it any more; what runs is not waited for for ever."""
    monkeypatch.setattr("daskqueue.client.queue_pool.LEAVE_S", 0.2)
    with (
        pytest.raises(ZeroDivisionError),
        Client(cluster, set_as_default=False) as theirs,
        QueuePool(theirs, name="left") as pool,
    ):
        ConsumerPool(theirs, pool).start()
        futures = [pool.submit(gate, n) for n in range(5)]
        eventually(lambda: gate.count("came") == 2)
        raise ZeroDivisionError
    assert "left" not in client.run_on_scheduler(known)
    assert all(future.cancelled() for future in futures)
    gate.open()


def test_left_by_an_exception_while_tasks_run(client: Client, gate: Any, eventually: Callable[..., Any]) -> None:
    """What ends soon is heard of."""
    with pytest.raises(ZeroDivisionError), QueuePool(client) as pool:
        ConsumerPool(client, pool).start()
        future = pool.submit(gate, 1)
        eventually(lambda: gate.count("came") == 1)
        gate.open()
        raise ZeroDivisionError
    assert future.result(0) == 1
    assert pool.name not in client.run_on_scheduler(known)


def test_join_without_time(pool: QueuePool, gate: Any) -> None:
    """timeout=0 asks once: it returns if all is done, and raises if not."""
    pool.join(timeout=0)
    future = pool.submit(gate, 1)
    with pytest.raises(TimeoutError):
        pool.join(timeout=0)
    gate.open()
    assert future.result(LIMIT) == 1
