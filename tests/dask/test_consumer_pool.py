"""`ConsumerPool` on a cluster: who consumes, how much at once, and how it ends."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import logging
import operator
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from distributed import Client, Worker
from distributed.core import Status

from daskqueue import ConsumerBaseClass, ConsumerPool, DaskQueueError, DummyConsumer, PoolClosed, QueuePool
from daskqueue.scheduler import orders
from daskqueue.worker.chunk import Chunk
from daskqueue_core.batch import Batch, Keep, Kind, lengths_column

LIMIT = 60


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """A pool without consumers; what a test left there ends with it."""
    pool = QueuePool(client)
    yield pool
    pool.shutdown(cancel_futures=True)


def nap(seconds: float, value: Any = None) -> Any:
    """Waits, as I/O does."""
    threading.Event().wait(seconds)
    return value


def where() -> tuple[int, str]:
    """Process and thread."""
    return os.getpid(), threading.current_thread().name


def slots(dask_worker: Any) -> list[int]:
    """Of the consumers on a worker."""
    return [actor._slots.size for actor in dask_worker.plugins["daskqueue"].consumers.values()]


def stops(id: str, dask_worker: Any) -> bool:
    """Whether the consumers of that pool on a worker have been told to stop, or are gone."""
    actor = dask_worker.plugins["daskqueue"].consumers.get(id)
    return actor is None or actor.is_stopping


def parked(dask_worker: Any) -> int:
    """How many requests wait at the queues of a worker."""
    return sum(len(actor._parked) for actor in dask_worker.plugins["daskqueue"].host.actors.values())


def marking(oracle: Any) -> type[ConsumerBaseClass]:
    """A consumer class that writes down its life and its items."""

    class Marking(ConsumerBaseClass):
        def setup(self) -> None:
            oracle.mark(f"setup {os.getpid()}")

        def teardown(self) -> None:
            oracle.mark(f"teardown {os.getpid()}")

        def process_item(self, item: Any) -> None:
            oracle.mark(f"item {item}")

    return Marking


# ------------------------------------------------------------------------------------------------ how many, where


def test_one_on_each_worker_by_default(client: Client, pool: QueuePool, meeting: Callable[[int], Any]) -> None:
    """Both workers work, one task at a time each: two tasks that run at once are on both."""
    with ConsumerPool(client, pool) as consumers:
        assert len(consumers) == 2
        pids = pool.batch_submit([(meeting(2),)] * 2, batch_size=1).results(LIMIT)
        assert set(pids) == set(client.run(os.getpid).values())


def test_a_number_of_consumers(client: Client, pool: QueuePool, meeting: Callable[[int], Any]) -> None:
    """n_consumers=1 is on one worker; 5 are on both, and run five tasks at once."""
    with ConsumerPool(client, pool, n_consumers=1) as consumers:
        assert len(consumers) == 1
        assert len({pid for pid, _ in pool.batch_submit([(where,)] * 10, batch_size=1).results(LIMIT)}) == 1
    with ConsumerPool(client, pool, n_consumers=5) as consumers:
        assert len(consumers) == 5
        pids = pool.batch_submit([(meeting(5),)] * 5, batch_size=1).results(LIMIT)
        assert set(pids) == set(client.run(os.getpid).values())


def test_where_each_consumer_is(client: Client, pool: QueuePool) -> None:
    """By index, the address of its worker; there is none before they start, after the last, and at the end."""
    workers = set(client.scheduler_info(n_workers=-1)["workers"])
    consumers = ConsumerPool(client, pool, n_consumers=3)
    with pytest.raises(IndexError, match="0 consumer"):
        consumers[0]
    with consumers:
        assert {consumers[0], consumers[1], consumers[2]} == workers
        assert list(consumers) == [consumers[0], consumers[1], consumers[-1]]
        with pytest.raises(IndexError, match="no 3"):
            consumers[3]
    with pytest.raises(PoolClosed):
        consumers[0]


def test_consumers_move_to_a_worker_that_joins(
    new_workers: Callable[..., Any], oracle: Any, eventually: Callable[..., Any]
) -> None:
    """Also while they are being set up, which may take long: they run as many as they are told last, and not before."""

    class SlowToStart(ConsumerBaseClass):
        def setup(self) -> None:
            oracle.mark("setup")
            while "go" not in oracle.lines():
                threading.Event().wait(0.01)

        def process_item(self, item: Any) -> None:
            oracle.mark(f"item {item}")

    workers = new_workers(1)
    client = workers.client
    pool = QueuePool(client)
    pool.put_many(range(50))
    consumers = ConsumerPool(client, pool, SlowToStart, n_consumers=4, concurrency=1)
    starting = threading.Thread(target=consumers.start)
    starting.start()
    eventually(lambda: oracle.lines() == ["setup"], LIMIT)
    workers.add(1)
    eventually(lambda: oracle.lines() == ["setup"] * 2, LIMIT)
    assert list(client.run(slots).values()) == [[0], [0]]
    oracle.mark("go")
    starting.join(LIMIT)
    eventually(lambda: list(client.run(slots).values()) == [[2], [2]], LIMIT)
    consumers.join(timeout=LIMIT)
    assert oracle.counts() == {"setup": 2, "go": 1, **{f"item {n}": 1 for n in range(50)}}
    pool.shutdown()


def test_consumers_that_fail_on_a_worker_that_joins(
    new_workers: Callable[..., Any], oracle: Any, eventually: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The others take their place, nothing stays there, and the log says whose class failed where."""

    class NeedsLuck(ConsumerBaseClass):
        def setup(self) -> None:
            if oracle.lines():
                raise ValueError("no licence")

        def process_item(self, item: Any) -> None:
            """Done."""

    workers = new_workers(1)
    client = workers.client
    pool = QueuePool(client)
    consumers = ConsumerPool(client, pool, NeedsLuck, n_consumers=4, concurrency=1)
    consumers.start()
    oracle.mark("no more")
    with caplog.at_level(logging.ERROR, "daskqueue"):
        workers.add(1)
        eventually(lambda: "no licence" in caplog.text, LIMIT)
    assert pool.name in caplog.text
    assert "NeedsLuck" in caplog.text
    eventually(lambda: sorted(client.run(slots).values()) == [[], [4]], LIMIT)
    pool.put_many(range(10))
    consumers.join(timeout=LIMIT)
    pool.shutdown()


def test_concurrency_above_the_threads(client: Client, pool: QueuePool, meeting: Callable[[int], Any]) -> None:
    """50 tasks at once on a worker of one thread."""
    with ConsumerPool(client, pool, n_consumers=1, concurrency=50):
        assert len(set(pool.map(meeting(50), range(100), timeout=LIMIT))) == 1


def test_async_tasks_at_once(client: Client, pool: QueuePool) -> None:
    """Coroutines wait side by side, as many as the concurrency says and no more."""

    async def crowd(n: int) -> int:
        come.append(n)
        running.add(n)
        while len(come) < 10:  # noqa: ASYNC110  # an Event would not travel
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.005)  # whoever would be too many comes now
        most = len(running)
        running.remove(n)
        return most

    come: list[int] = []
    running: set[int] = set()
    with ConsumerPool(client, pool, n_consumers=1, concurrency=10):
        assert max(pool.map(crowd, range(50), timeout=LIMIT)) == 10


# ---------------------------------------------------------------------------------------------------------- executor


def test_executor_by_name(client: Client, pool: QueuePool) -> None:
    """Tasks run on the worker's executor of that name; by default on Dask's own threads."""
    with ConsumerPool(client, pool):
        assert "Dask-Default-Threads" in pool.submit(where).result(LIMIT)[1]
    with ConsumerPool(client, pool, executor="offload"):
        assert "Dask-Offload" in pool.submit(where).result(LIMIT)[1]


def test_executor_by_factory(client: Client, pool: QueuePool) -> None:
    """A function makes it on the worker."""
    with ConsumerPool(client, pool, executor=lambda: cf.ThreadPoolExecutor(1, thread_name_prefix="mine")):
        assert pool.submit(where).result(LIMIT)[1].startswith("mine")


@pytest.mark.parametrize("make", [lambda: 5, lambda: cf.ProcessPoolExecutor(1)])
def test_executor_that_is_none(client: Client, pool: QueuePool, make: Callable[[], Any]) -> None:
    """What a factory makes is looked at when the consumers start, not when the first task finds nobody to run it."""
    with pytest.raises(DaskQueueError, match=r"executor must make an Executor of threads, .* and it made "):
        ConsumerPool(client, pool, executor=make).start()


def test_executor_that_was_shut_down(client: Client, pool: QueuePool) -> None:
    """Tasks fail with what it says, instead of being leased for ever; the pool ends."""

    def closed() -> cf.Executor:
        executor = cf.ThreadPoolExecutor(1)
        executor.shutdown()
        return executor

    with ConsumerPool(client, pool, executor=closed) as consumers:
        batch = pool.submit_many(abs, range(20))
        assert batch.wait(LIMIT)
        assert batch.counts().failed == 20
        assert "after shutdown" in str(batch[0].exception())
        assert consumers.drain(LIMIT)


def test_executor_that_ends_with_its_worker(new_workers: Callable[..., Any]) -> None:
    """Dask shuts executors down when a worker closes: what was to run there is no failure, others run it."""
    client = new_workers(2).client
    leaving = min(client.scheduler_info(n_workers=-1)["workers"])

    class Ended:
        def __init__(self, worker: Worker) -> None:
            self.worker = worker

        def submit(self, *_: Any) -> None:
            self.worker.status = Status.closing_gracefully
            raise RuntimeError("cannot schedule new futures after shutdown")

        def shutdown(self, wait: bool = True) -> None:
            """It is."""

    def make() -> Any:
        (worker,) = Worker._instances
        return Ended(worker) if worker.address == leaving else cf.ThreadPoolExecutor(1)

    with QueuePool(client) as pool:
        batch = pool.submit_many(abs, range(200))
        with ConsumerPool(client, pool, executor=make):
            assert batch.results(LIMIT) == list(range(200))


def test_no_more_threads_for_the_moment(client: Client, pool: QueuePool) -> None:
    """What waits in the executor's queue is run by the threads that it has: nothing fails."""

    class Short(cf.ThreadPoolExecutor):
        def _adjust_thread_count(self) -> None:
            if self._threads:
                raise RuntimeError("can't start new thread")
            super()._adjust_thread_count()  # type: ignore[misc]

    with ConsumerPool(client, pool, executor=partial(Short, 4), concurrency=4):
        assert [future.result(LIMIT) for future in [pool.submit(abs, -n) for n in range(50)]] == list(range(50))
        assert [future.result(LIMIT) for future in [pool.submit(pow, n, 2) for n in range(9)]][-1] == 64
    assert pool.stats()[0].failed == 0


def broken_executor() -> cf.Executor:
    """Its threads cannot begin."""
    return cf.ThreadPoolExecutor(1, initializer=operator.truediv, initargs=(1, 0))


def test_a_broken_executor_fails_its_tasks(client: Client, pool: QueuePool) -> None:
    """Those that it has when it breaks, and those that it refuses from then on."""
    with ConsumerPool(client, pool, executor=broken_executor):
        for _ in range(2):
            futures = [pool.submit(abs, n) for n in range(5)]
            assert all(isinstance(future.exception(LIMIT), cf.BrokenExecutor) for future in futures)


# ------------------------------------------------------------------------------------------------------ batch, acks


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_batch_size(client: Client, pool: QueuePool, batch_size: int) -> None:
    """Whatever it is, all is done."""
    with ConsumerPool(client, pool, batch_size=batch_size):
        assert list(pool.map(abs, range(-500, 0), timeout=LIMIT)) == list(range(500, 0, -1))


def test_batch_size_caps_a_lease(client: Client, pool: QueuePool, gate: Any, eventually: Callable[..., Any]) -> None:
    """batch_size=1: with fast tasks known, no more than one of each slot's is delivered at a time."""
    with ConsumerPool(client, pool, n_consumers=1, batch_size=1, concurrency=1):
        list(pool.map(abs, range(100), timeout=LIMIT))
        hold = [pool.submit(gate)] + [pool.submit(abs, n) for n in range(50)]
        pool.flush()
        eventually(lambda: gate.count("came") == 1)
        assert 1 <= sum(queue.delivered for queue in pool.stats()) <= 2
        gate.open()
        assert not cf.wait(hold, LIMIT).not_done


def test_early_ack(client: Client, pool: QueuePool) -> None:
    """Without a loss nothing differs."""
    with ConsumerPool(client, pool, early_ack=True) as consumers:
        futures = [pool.submit(abs, -n) for n in range(100)]
        consumers.join(timeout=LIMIT)
        assert list(consumers.results().values()) == [future.result(0) for future in futures] == list(range(100))
        assert consumers.failures() == {}


# ------------------------------------------------------------------------------------------------------------- ends


@pytest.mark.usefixtures("unpaced")
def test_drain_loses_nothing(
    client: Client, pool: QueuePool, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """What runs is finished, the tail goes back, and another consumer pool does it; nothing runs twice."""

    def task(n: int) -> int:
        oracle.mark(n)
        return int(gate(n) if n >= 10 else n)

    first = ConsumerPool(client, pool, batch_size=50)
    first.start()
    futures = [pool.submit(task, n) for n in range(300)]
    eventually(lambda: gate.count("came") == 2)
    done = len(oracle.lines())
    with cf.ThreadPoolExecutor(1) as thread:
        draining = thread.submit(first.drain, timeout=LIMIT)
        eventually(lambda: all(client.run(stops, first.id).values()))
        assert not draining.done(), "two tasks run"
        gate.open()
        assert draining.result(LIMIT)
    assert len(oracle.lines()) == done, "nothing began after the order to stop"
    stats = pool.stats()[0]
    assert (stats.finished, stats.delivered, stats.ready) == (done, 0, 300 - done)
    assert done < 300
    with pytest.raises(PoolClosed, match="drained"):
        first.start()
    assert len(oracle.lines()) == done, "it leases nothing after drain"
    second = ConsumerPool(client, pool)
    second.start()
    second.join(timeout=LIMIT)
    assert [future.result(0) for future in futures] == list(range(300))
    assert set(oracle.counts().values()) == {1}


def test_drain_without_time(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """It is asked for all the same."""
    consumers = ConsumerPool(client, pool)
    consumers.start()
    consumers.drain(timeout=0)
    eventually(lambda: not any(client.run(slots).values()))
    assert pool.health().consumers == 0
    with pytest.raises(PoolClosed):
        consumers.start()


def test_drain_gives_up_at_its_timeout(
    client: Client, pool: QueuePool, gate: Any, eventually: Callable[..., Any]
) -> None:
    """False: a task still runs; it is reported when it ends."""
    consumers = ConsumerPool(client, pool)
    consumers.start()
    future = pool.submit(gate, 1)
    eventually(lambda: gate.count("came") == 1)
    assert not consumers.drain(timeout=0.1)
    assert not future.done()
    gate.open()
    assert future.result(LIMIT) == 1


def test_cancel_gives_back(
    client: Client, pool: QueuePool, oracle: Any, gate: Any, eventually: Callable[..., Any]
) -> None:
    """cancel() returns while a task runs; what had not begun is done by others, once."""

    def task(n: int) -> int:
        oracle.mark(n)
        return int(gate(n))

    first = ConsumerPool(client, pool, batch_size=10)
    first.start()
    futures = [pool.submit(task, n) for n in range(20)]
    eventually(lambda: gate.count("came") == 2)
    first.cancel()
    first.cancel()
    assert gate.count("left") == 0
    with ConsumerPool(client, pool):
        gate.open()
        assert [future.result(LIMIT) for future in futures] == list(range(20))
    assert set(oracle.counts().values()) == {1}


def test_setup_and_teardown_once_on_each_worker(
    client: Client, pool: QueuePool, oracle: Any, eventually: Callable[..., Any]
) -> None:
    """However many consumers there are; teardown after the last item."""
    with ConsumerPool(client, pool, marking(oracle), n_consumers=6) as consumers:
        pool.put_many(range(50))
        consumers.join(timeout=LIMIT)
    pids = client.run(os.getpid).values()
    eventually(lambda: sum(line.startswith("teardown") for line in oracle.lines()) == 2)
    lines = oracle.lines()
    assert sorted(lines[:2]) == sorted(f"setup {pid}" for pid in pids)
    assert sorted(lines[-2:]) == sorted(f"teardown {pid}" for pid in pids)
    assert sorted(lines[2:-2]) == sorted(f"item {n}" for n in range(50))


@pytest.mark.slow
@pytest.mark.parametrize("early_ack", [False, True])
def test_cancel_keeps_the_lease_of_what_runs(
    client: Client, pool: QueuePool, oracle: Any, eventually: Callable[..., Any], early_ack: bool
) -> None:
    """While a new ConsumerPool of the same queues says its heartbeats; it is forgotten when it has ended."""

    def task() -> int:
        oracle.mark("run")
        threading.Event().wait(3.5)
        return 1

    first = ConsumerPool(client, pool, concurrency=2, early_ack=early_ack)
    first.start()
    future = pool.submit(task)
    eventually(oracle.lines)
    first.cancel()
    threading.Event().wait(1.2)  # a heartbeat's time, in which nobody else speaks for the queue
    with ConsumerPool(client, pool, concurrency=2, early_ack=early_ack):
        assert future.result(LIMIT) == 1
    assert oracle.lines() == ["run"]
    eventually(lambda: not any(client.run(slots).values()))
    eventually(lambda: not any(client.run(lambda dask_worker: dask_worker.plugins["daskqueue"].routes).values()))


def test_setup_has_a_thread_of_its_own(client: Client, pool: QueuePool, oracle: Any) -> None:
    """Not Dask's "offload" thread, which moves everybody's data; teardown runs on the same one."""

    class Where(ConsumerBaseClass):
        def setup(self) -> None:
            oracle.mark(threading.current_thread().name)

        def teardown(self) -> None:
            oracle.mark(threading.current_thread().name)

    consumers = ConsumerPool(client, pool, Where, n_consumers=1)
    consumers.start()
    consumers.drain(timeout=LIMIT)
    (thread,) = set(oracle.lines())
    assert thread.startswith("daskqueue-user")


def test_a_setup_may_take_long(client: Client, pool: QueuePool, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than any other order."""

    class Slow(ConsumerBaseClass):
        def setup(self) -> None:
            threading.Event().wait(0.3)

        def process_item(self, item: Any) -> None:
            oracle.mark(item)

    monkeypatch.setattr(orders, "ORDER_TIMEOUT_S", 0.05)
    with ConsumerPool(client, pool, Slow):
        pool.put(1)
    assert oracle.lines() == ["1"]


def test_teardown_that_fails(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """Nobody waits for ever, and nothing stays."""

    class Broken(ConsumerBaseClass):
        def teardown(self) -> None:
            raise SystemExit("away")

    consumers = ConsumerPool(client, pool, Broken)
    consumers.start()
    assert consumers.drain(timeout=LIMIT)
    eventually(lambda: not any(client.run(slots).values()))


# ------------------------------------------------------------------------------------- a host or a worker in trouble


def failing_once(pool: QueuePool, op: str) -> Callable[[Any], None]:
    """Makes the pool's queues on a worker fail at their next `op`; other tests' pools may still be there."""
    uuids = [queue.uuid for queue in pool.stats()]

    def sabotage(dask_worker: Any) -> None:
        actors = dask_worker.plugins["daskqueue"].host.actors
        for actor in [actors[uuid] for uuid in uuids if uuid in actors]:

            def fail(*args: Any, queue: Any = actor.queue, **kwargs: Any) -> Any:
                delattr(queue, op)
                raise MemoryError("once")

            setattr(actor.queue, op, fail)

    return sabotage


@pytest.mark.parametrize(("op", "concurrency"), [("settle", 1), ("settle", 4), ("lease", 1)])
def test_a_queue_that_fails_once(
    client: Client, pool: QueuePool, op: str, concurrency: int, gate: Any, eventually: Callable[..., Any]
) -> None:
    """It is asked again: nothing is lost. With a slot free, reports go alone; else they ride on the next request."""
    with ConsumerPool(client, pool, concurrency=concurrency):
        running = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2)
        client.run(failing_once(pool, op))
        gate.open()
        assert [future.result(LIMIT) for future in running] == [0, 1]
        assert list(pool.map(abs, range(100), timeout=LIMIT)) == list(range(100))
        pool.join(timeout=LIMIT)


def test_a_request_that_failed_is_abandoned_when_its_consumers_end(
    client: Client, pool: QueuePool, eventually: Callable[..., Any]
) -> None:
    """Within the second after which it would be repeated: its number is open no more."""

    def awaited(dask_worker: Any) -> int:
        return sum(len(book._open) for book in dask_worker.plugins["daskqueue"].books.values())

    def has_failed(dask_worker: Any) -> bool:
        return not any("lease" in vars(actor.queue) for actor in dask_worker.plugins["daskqueue"].host.actors.values())

    with ConsumerPool(client, pool):
        eventually(lambda: sum(client.run(parked).values()) == 2)
        client.run(failing_once(pool, "lease"))
        other = ConsumerPool(client, pool, n_consumers=1)
        other.start()
        eventually(lambda: all(client.run(has_failed).values()))
        other.cancel()
        eventually(lambda: sum(client.run(awaited).values()) == 2)


@pytest.mark.slow
def test_a_release_that_fails_once(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """What was given back comes back."""
    first = ConsumerPool(client, pool, n_consumers=1, batch_size=10)
    first.start()
    list(pool.map(nap, [0.001] * 50, timeout=LIMIT))  # it leases several at once now
    futures = [pool.submit(nap, 0.5, n) for n in range(20)]
    eventually(lambda: sum(queue.delivered for queue in pool.stats()))
    client.run(failing_once(pool, "release"))
    first.cancel()
    with ConsumerPool(client, pool, concurrency=10):
        assert [future.result(LIMIT) for future in futures] == list(range(20))


def test_a_batch_that_cannot_be_read(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """Its messages fail, and nothing else."""

    async def put(dask_worker: Any) -> None:
        damaged = Batch(3, b"xyz", lengths_column([b"x", b"y", b"z"]), b"?", Kind.CALL, client=1, keep=Keep.STREAM)
        for actor in dask_worker.plugins["daskqueue"].host.actors.values():
            await actor.admit([damaged])

    with ConsumerPool(client, pool):
        client.run(put)
        eventually(lambda: pool.stats()[0].failed == 3)
        assert pool.submit(abs, -1).result(LIMIT) == 1
        pool.join(timeout=LIMIT)


def test_a_paused_worker_gives_back_what_it_had_asked_for(
    client: Client, pool: QueuePool, victims: Any, eventually: Callable[..., Any]
) -> None:
    """Its request was parked before Dask paused it for memory, and is the first in the queue."""

    def become(status: Status, dask_worker: Any) -> None:
        dask_worker.status = status

    host = victims(client).host(pool)
    pid = victims(client).pids()[host]
    with ConsumerPool(client, pool):
        eventually(lambda: client.run(parked)[host] == 2)
        client.run(become, Status.paused, workers=[host])
        try:
            assert pid not in {pool.submit(os.getpid).result(LIMIT) for _ in range(5)}
            eventually(lambda: client.run(parked)[host] == 1)
        finally:
            client.run(become, Status.running, workers=[host])
        eventually(lambda: client.run(parked)[host] == 2)


@pytest.mark.slow
def test_a_long_task_is_looked_at_less_and_less(client: Client, pool: QueuePool) -> None:
    """Hundreds of them on a worker cost nothing."""

    def count(dask_worker: Any) -> None:
        def counted(chunk: Chunk) -> Any:
            looks.append(1)
            return honest(chunk)

        looks: list[int] = []
        honest, Chunk.take_rest = Chunk.take_rest, counted  # type: ignore[method-assign]
        dask_worker.looks, dask_worker.honest = looks, honest

    def looked(dask_worker: Any) -> int:
        Chunk.take_rest = dask_worker.honest  # type: ignore[method-assign]
        return len(dask_worker.looks)

    with ConsumerPool(client, pool, n_consumers=1):
        client.run(count)
        pool.submit(nap, 1.5).result(LIMIT)
        assert 3 <= sum(client.run(looked).values()) <= 5, "after 0.1, 0.2, 0.4, 0.8 s"


def test_no_heartbeats_while_idle(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """A parked request gives no reason for one."""

    def quiet(dask_worker: Any) -> bool:
        books = dask_worker.plugins["daskqueue"].books.values()
        return len(books) == 1 and not any(book.active for book in books)

    with ConsumerPool(client, pool):
        eventually(lambda: sum(client.run(parked).values()) == 2)
        eventually(lambda: all(client.run(quiet).values()))


# ------------------------------------------------------------------------------------------------ calls and items


def test_dummy_consumer(client: Client, pool: QueuePool) -> None:
    """It takes everything and runs nothing."""
    with ConsumerPool(client, pool, DummyConsumer) as consumers:
        futures = [pool.submit(os._exit, 1) for _ in range(10)]
        pool.put_many(range(1000))
        consumers.join(timeout=LIMIT)
        assert [future.result(LIMIT) for future in futures] == [None] * 10
        assert pool.stats()[0].finished == 1010


def test_async_process_item(client: Client, pool: QueuePool, oracle: Any) -> None:
    """An `async def process_item` is awaited."""

    class Awaiting(ConsumerBaseClass):
        async def process_item(self, item: Any) -> None:
            await asyncio.sleep(0.01)
            oracle.mark(item)

    with ConsumerPool(client, pool, Awaiting, concurrency=5) as consumers:
        pool.put_many(range(40))
        consumers.join(timeout=LIMIT)
    assert oracle.counts() == dict.fromkeys(map(str, range(40)), 1)


def test_failing_items_harm_no_other(client: Client, pool: QueuePool, oracle: Any) -> None:
    """An item that fails counts as done."""

    class Picky(ConsumerBaseClass):
        def process_item(self, item: Any) -> None:
            oracle.mark(1 // item)

    with ConsumerPool(client, pool, Picky) as consumers:
        pool.put_many([1, 0, 1, 0, 1])
        consumers.join(timeout=LIMIT)
        assert oracle.counts() == {"1": 3}
        assert pool.stats()[0].failed == 2


def test_calls_and_items_in_one_pool(client: Client, pool: QueuePool, oracle: Any) -> None:
    """Two consumer pools share a pool: each takes what it can do."""
    futures = []
    for n in range(30):
        futures.append(pool.submit(abs, -n))
        pool.put(n)
    items = ConsumerPool(client, pool, marking(oracle))
    items.start()
    with pytest.raises(TimeoutError):
        pool.join(timeout=0.3)
    assert not any(future.done() for future in futures), "nobody takes calls"
    with ConsumerPool(client, pool) as calls:
        calls.join(timeout=LIMIT)
        assert [future.result(0) for future in futures] == list(range(30))
    assert sum(line.startswith("item") for line in oracle.lines()) == 30
    items.cancel()


# ------------------------------------------------------------------------------------------------------------- join


def test_join_before_start(client: Client, pool: QueuePool) -> None:
    """Nothing would ever be done."""
    with pytest.raises(RuntimeError, match="start"):
        ConsumerPool(client, pool).join()


def test_join_with_the_old_arguments(client: Client, pool: QueuePool) -> None:
    """timestep and print_timestep are accepted with a warning."""
    with ConsumerPool(client, pool) as consumers:
        future = pool.submit(nap, 0.1, 1)
        with pytest.warns(DeprecationWarning, match="timestep"):
            consumers.join(timestep=0.1, print_timestep=1.0)
        assert future.result(0) == 1


def test_join_progress_and_timeout(
    client: Client, pool: QueuePool, gate: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bar on stderr; a timeout that says so; and the consumers stay usable after a join."""
    with ConsumerPool(client, pool) as consumers:
        batch = pool.batch_submit([(gate, n) for n in range(20)], batch_size=1)
        with pytest.raises(TimeoutError):
            consumers.join(timeout=0.05)
        gate.open()
        consumers.join(timeout=LIMIT, progress=True)
        assert batch.results(0) == list(range(20))
        assert "20/20" in capsys.readouterr().err
        assert pool.submit(abs, -1).result(LIMIT) == 1
        assert "running" in repr(consumers)
    assert "ended" in repr(consumers)


def test_consumers_started_twice_and_by_two_clients(
    client: Client, cluster: Any, new_client: Callable[..., Client]
) -> None:
    """start() again does nothing; another client may bring its own consumers."""
    other = new_client(cluster)
    with QueuePool(client, name="two-consumers") as pool, ConsumerPool(client, pool) as consumers:
        consumers.start()
        with ConsumerPool(other, QueuePool.attach(other, "two-consumers"), n_consumers=3):
            assert list(pool.map(abs, range(100), timeout=LIMIT)) == list(range(100))
        assert list(pool.map(abs, range(100), timeout=LIMIT)) == list(range(100))


def test_what_has_run_is_freed_at_once(client: Client, pool: QueuePool, eventually: Callable[..., Any]) -> None:
    """Blocks and values do not wait for the garbage collector."""
    ConsumerPool(client, pool).start()
    client.run(gc.disable)
    try:
        assert list(pool.map(abs, range(20_000), timeout=LIMIT)) == list(range(20_000))
        eventually(lambda: sum(client.run(_chunks).values()) <= 4)
    finally:
        client.run(gc.enable)


def _chunks() -> int:
    from daskqueue.worker.chunk import Chunk

    return sum(isinstance(each, Chunk) for each in gc.get_objects())
