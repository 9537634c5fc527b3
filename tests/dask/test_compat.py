"""daskqueue.wire.compat: every private Dask name we lean on, against the distributed that is installed."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client, LocalCluster, Scheduler, Worker, get_client, get_worker, secede, worker_client
from distributed.comm import connect, listen
from distributed.core import Server
from distributed.protocol import dumps, loads
from distributed.protocol.utils import pack_frames, unpack_frames
from distributed.threadpoolexecutor import rejoin
from distributed.worker import thread_state

from daskqueue.wire.calls import decode_values, encode_block
from daskqueue.wire.compat import (
    add_metric,
    coroutine_context,
    end_heartbeats,
    end_of,
    frames_of_one,
    metric_of,
    process_of,
    raise_adaptive_target,
    task_context,
)
from daskqueue.wire.functions import encode_function
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.runners import Job, Loaded

LIMIT = 60


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """One worker of one thread, in this process."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, worker_dashboard_address=None
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster: LocalCluster) -> Iterator[Client]:
    """A client outside the tasks."""
    with Client(cluster) as client:
        yield client


@pytest.fixture
def worker(cluster: LocalCluster, client: Client) -> Worker:
    """The worker object itself."""
    worker: Worker = cluster.workers[0]
    return worker


def in_task(worker: Worker, fn: Callable[[], Any], key: str = "fn-1") -> Any:
    """Run on a thread of the worker's own executor, as a consumer does."""

    def run() -> Any:
        with task_context(worker, key):
            return fn()

    return worker.executors["default"].submit(run).result(LIMIT)


def inc(x: int) -> int:
    """A Dask task."""
    return x + 1


def test_worker_cvar_get_worker(worker: Worker) -> None:
    """get_worker() works inside, and only inside."""
    assert in_task(worker, get_worker) is worker
    with pytest.raises(ValueError, match=r"[Nn]o worker"):
        worker.executors["default"].submit(get_worker).result(LIMIT)


def test_worker_cvar_get_client(worker: Worker, client: Client) -> None:
    """get_client() works inside, and its tasks run while ours holds no thread that they need."""
    assert in_task(worker, lambda: get_client().scheduler.address) == client.scheduler.address


def test_thread_state_worker_client_secedes(worker: Worker) -> None:
    """worker_client() leaves the only thread to the tasks that it submits, and the thread comes back."""

    def fn() -> int:
        with worker_client() as inner:
            return int(inner.submit(inc, 1, pure=False).result(LIMIT))

    assert in_task(worker, fn) == 2
    assert in_task(worker, fn) == 2
    assert in_task(worker, lambda: 3) == 3


def test_thread_state_secede(worker: Worker) -> None:
    """secede() and rejoin() find start_time and key."""

    def fn() -> int:
        secede()
        result = int(get_client().submit(inc, 2, pure=False).result(LIMIT))
        rejoin()
        return result

    assert in_task(worker, fn) == 3


def test_thread_state_fields(worker: Worker) -> None:
    """What Dask's own tasks see in thread_state is there inside, and gone outside."""

    def fn() -> tuple[Any, ...]:
        return thread_state.key, thread_state.execution_state is worker.execution_state, thread_state.start_time

    before = time.time()
    key, same, start_time = in_task(worker, fn, "fn-2")
    assert (key, same) == ("fn-2", True)
    assert before <= start_time <= time.time()
    assert not worker.executors["default"].submit(lambda: hasattr(thread_state, "key")).result(LIMIT)


def test_start_time_is_taken(worker: Worker) -> None:
    """A lease that began earlier says so."""
    with task_context(worker, "fn-3", start_time=5.0):
        assert thread_state.start_time == 5.0


def test_active_threads(worker: Worker) -> None:
    """The thread shows under our key in call stacks and the profile, and is gone afterwards, after an error too."""
    assert in_task(worker, lambda: worker.active_threads[threading.get_ident()], "hash-4") == "hash-4"
    assert in_task(worker, lambda: "hash-5" in worker.get_call_stack(), "hash-5")
    assert in_task(worker, lambda: worker.get_current_task(), "hash-6") == "hash-6"
    with pytest.raises(ZeroDivisionError):
        in_task(worker, lambda: 1 / 0)
    assert not worker.active_threads


def test_coroutine_context(worker: Worker, client: Client) -> None:
    """Coroutines on the private loop find their worker, in tasks that they start too, and nothing stays behind."""
    loop = PrivateLoop()

    async def find() -> Any:
        assert not hasattr(thread_state, "start_time")
        return get_worker(), get_client().scheduler.address

    async def run() -> Any:
        with coroutine_context(worker):
            return await asyncio.create_task(find())

    try:
        assert loop.submit(run()).result(LIMIT) == (worker, client.scheduler.address)
        with pytest.raises(ValueError, match=r"[Nn]o worker"):
            loop.submit(find()).result(LIMIT)
    finally:
        assert loop.close(LIMIT)


def test_process(worker: Worker) -> None:
    """A worker knows its process: when it began, who began it, and in which environment."""
    process = process_of(worker)
    assert process.create_time() < time.time()
    assert all(parent.create_time() <= process.create_time() + 1 for parent in process.parents())
    assert process.environ()["PATH"]


def test_metrics(cluster: LocalCluster, worker: Worker, client: Client, eventually: Callable[..., Any]) -> None:
    """What a metric says, a coroutine or not, comes to the scheduler with the next heartbeats."""

    async def measure(worker: Worker) -> dict[str, Any]:
        return {"queues": {"u": (1, (2, ("a",)))}}

    add_metric(worker, "ours", measure)
    add_metric(worker, "plain", lambda worker: 3)
    try:
        state = cluster.scheduler.workers[worker.address]
        eventually(lambda: metric_of(state, "plain") == 3, LIMIT)
        assert metric_of(state, "ours")["queues"]["u"] == (1, (2, ("a",)))
        assert metric_of(state, "nobody's") is None
    finally:
        del worker.metrics["ours"], worker.metrics["plain"]


def test_adaptive_target(cluster: LocalCluster, client: Client) -> None:
    """`cluster.adapt` asks the handler that we replace, and hears the larger number."""
    scheduler = cluster.scheduler
    before = scheduler.handlers["adaptive_target"]
    asked: list[Any] = []

    def wanted(target_duration: Any) -> int:
        asked.append(target_duration)
        return 7

    raise_adaptive_target(scheduler, wanted)
    try:
        of_cluster = cluster.adapt(minimum=1, maximum=9, interval="1h", target_duration="3s")
        assert cluster.sync(of_cluster.target) == 7
        of_cluster.stop()
        assert asked == [3.0]
        assert scheduler.handlers["adaptive_target"](target_duration=1.0) == 7
        assert before(target_duration=1.0) <= 1
    finally:
        scheduler.handlers["adaptive_target"] = before


def test_job_in_a_worker_thread(worker: Worker) -> None:
    """A job with our context on Dask's thread: get_worker() in the task, worker_client() from many of a run."""

    def fn(i: int) -> tuple[bool, int]:
        with worker_client() as inner:
            return get_worker() is worker_of[0], int(inner.submit(inc, i, pure=False).result(LIMIT))

    worker_of = [worker]
    job = Job(
        lambda: Loaded(fn, [(i,) for i in range(3)], True), 3, name="fn", is_async=False,
        context=lambda name: task_context(worker, f"{name}-7"),
    )  # fmt: skip
    report = worker.executors["default"].submit(job.run).result(LIMIT)
    assert not report.failures
    assert decode_values(report.values) == [(True, 1), (True, 2), (True, 3)]


async def ask_worker(i: int) -> tuple[str, int]:
    """An async task that wants its worker."""
    await asyncio.sleep(0)
    return get_worker().address, i


def test_async_job(worker: Worker) -> None:
    """An `async def` task finds its worker, and so does a coroutine that a plain function returned."""
    loop = PrivateLoop()
    async_job = Job.of_calls(
        encode_function(ask_worker).shared, encode_block([(1,), (2,)], ask_worker), None, 0, 2,
        context=lambda _: coroutine_context(worker),
    )  # fmt: skip
    returning_job = Job(
        lambda: Loaded(lambda i: ask_worker(i), [(1,), (2,)], True), 2, name="fn", is_async=False, private_loop=loop,
        context=lambda name: task_context(worker, f"{name}-8"),
    )  # fmt: skip
    try:
        reports = [
            loop.submit(async_job.run_async()).result(LIMIT),
            worker.executors["default"].submit(returning_job.run).result(LIMIT),
        ]
    finally:
        assert loop.close(LIMIT)
    for report in reports:
        assert not report.failures
        assert decode_values(report.values) == [(worker.address, 1), (worker.address, 2)]


def test_who_waits_for_an_end() -> None:
    """Is let go."""

    async def test() -> None:
        server: Any = Server({})
        waiting = asyncio.ensure_future(server.finished())
        end_of(server)
        await asyncio.wait_for(waiting, LIMIT)

    asyncio.run(test())


def test_frames_of_one_arrive_as_one() -> None:
    """Dask reads frames over `bytes` into one buffer: what arrives is a view of that."""
    pieces = [b"head", b"a" * 100_000, b"b" * 70_000]
    received = memoryview(bytearray(pack_frames(dumps([1, frames_of_one(pieces)]))))
    one, whole = loads(unpack_frames(received))
    assert one == 1
    assert whole == b"".join(pieces)
    assert whole.obj is received.obj


@pytest.mark.parametrize("address", ["tcp://127.0.0.1", "inproc://"])
def test_frames_of_one_over_a_connection(address: str) -> None:
    """Of any kind: in one process there are no frames."""
    pieces = [b"head", b"a" * 100_000, b"b" * 70_000]

    async def test() -> None:
        arrived: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def hear(comm: Any) -> None:
            arrived.set_result(await comm.read())

        async with listen(address, hear) as listener:
            comm = await connect(listener.contact_address)
            await comm.write({"body": [frames_of_one(pieces)]})
            assert list((await asyncio.wait_for(arrived, LIMIT))["body"]) == [b"".join(pieces)]
            await comm.close()

    asyncio.run(test())


def test_the_end_of_heartbeats() -> None:
    """None is said any more."""

    async def test() -> None:
        async with Scheduler(port=0, dashboard=False) as scheduler, Worker(scheduler.address) as worker:
            heartbeat = worker.periodic_callbacks["heartbeat"]
            assert heartbeat.is_running()
            end_heartbeats(worker)
            assert not heartbeat.is_running()

    asyncio.run(test())
