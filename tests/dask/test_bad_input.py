"""Bad input: a clear error each, within seconds, and nothing else is harmed."""

from __future__ import annotations

import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import (
    ConsumerBaseClass,
    ConsumerPool,
    DaskQueueError,
    NotInstalled,
    PoolClosed,
    PoolExists,
    QueueExecutor,
    QueueLost,
    QueuePool,
)
from daskqueue.client import opening
from daskqueue.wire.errors import FunctionLoadError, UnpicklableArgument, UnpicklableFunction, UnpicklableResult
from daskqueue.wire.operations import PROTOCOL

LIMIT = 60


@pytest.fixture
def pool(client: Client) -> Iterator[QueuePool]:
    """A pool with consumers; all that a test left there must have ended."""
    with QueuePool(client) as pool, ConsumerPool(client, pool):
        yield pool
        assert pool.submit(abs, -1).result(LIMIT) == 1, "the pool was harmed"


def unpicklable() -> Any:
    """Nobody can pickle a lock."""
    return threading.Lock()


# ---------------------------------------------------------------------------------------------------- what travels


def test_unpicklable_argument_raises_at_submit(pool: QueuePool) -> None:
    """It names the argument, by position or keyword; nothing was submitted."""
    with pytest.raises(UnpicklableArgument, match="argument 1 ") as caught:
        pool.submit(max, 1, unpicklable())
    assert caught.value.argument == 1
    with pytest.raises(UnpicklableArgument, match="argument 'key' "):
        pool.submit(max, 1, key=unpicklable())
    with pytest.raises(UnpicklableArgument, match=r"argument 0 .*call 1 "):
        pool.map(abs, [1, unpicklable()])
    with pytest.raises(UnpicklableArgument, match="argument 0 "):
        pool.batch_submit([(abs, unpicklable())])
    with pytest.raises(TypeError, match="cannot be pickled"):
        pool.put(unpicklable())
    assert sum(queue.puts for queue in pool.stats()) == 0


def test_a_future_does_not_travel(pool: QueuePool) -> None:
    """Its error says what does."""
    future = pool.submit(abs, -1)
    with pytest.raises(UnpicklableArgument, match=r"argument 0 .* send its key, and ask pool.get_future\(key\) there"):
        pool.submit(abs, future)


@pytest.mark.parametrize("wait", ["result", "batch", "iterate", "map"])
def test_waiting_on_the_event_loop_is_refused(client: Client, wait: str) -> None:
    """There it would be for ever, since outcomes arrive on that loop; what has ended, or is only looked at, is read."""
    with QueuePool(client) as pool:
        future, batch, values = pool.submit(abs, -1), pool.submit_many(abs, [-2]), pool.map(abs, [-3])
        calls = {
            "result": future.result,
            "batch": batch.results,
            "iterate": lambda: [done.result() for done in batch],
            "map": lambda: list(values),
        }

        async def on_the_loop() -> Any:
            return calls[wait]()

        with pytest.raises(RuntimeError, match="block the client's event loop"):
            client.sync(on_the_loop)

        async def look() -> Any:
            with pytest.raises(TimeoutError):
                future.result(timeout=0)
            return batch.wait(timeout=0)

        assert client.sync(look) is False
        with ConsumerPool(client, pool):
            assert future.result(LIMIT) == 1
            assert batch.results(LIMIT) == [2]
        if wait != "map":
            assert client.sync(on_the_loop)


def test_unpicklable_function_raises_at_submit(pool: QueuePool) -> None:
    """A closure over a lock says which function it is."""
    lock = unpicklable()
    with pytest.raises(UnpicklableFunction, match="guarded"):

        def guarded() -> bool:
            return bool(lock.locked())

        pool.submit(guarded)


def test_what_is_not_a_function(pool: QueuePool) -> None:
    """submit, map and batch_submit say so."""
    with pytest.raises(TypeError, match="function to call, not 3"):
        pool.submit(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="function to call, not 3"):
        pool.map(3, [1])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tuples, not"):
        pool.batch_submit([abs])  # type: ignore[list-item]


def test_function_that_cannot_be_loaded_on_the_worker(pool: QueuePool) -> None:
    """It is the task's error, names the module, and the tasks beside it run."""
    module = types.ModuleType("only_at_the_client")
    exec("def lost(x): return x", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        bad = [pool.submit(module.lost, n) for n in range(3)]
        good = pool.submit(abs, -3)
        for future in bad:
            with pytest.raises(FunctionLoadError, match="only_at_the_client"):
                future.result(LIMIT)
        assert good.result(LIMIT) == 3
    finally:
        del sys.modules[module.__name__]


def test_result_that_cannot_be_pickled(pool: QueuePool) -> None:
    """It is that task's error; the values beside it in the same batch come back."""

    def task(n: int) -> Any:
        return threading.Lock() if n == 5 else n

    batch = pool.batch_submit([(task, n) for n in range(10)])
    failures = batch.failures(LIMIT)
    assert list(failures) == [5]
    assert isinstance(failures[5], UnpicklableResult)
    assert "cannot pickle '_thread.lock' object" in str(failures[5]), "the reason, too"
    assert [batch[n].result(0) for n in range(10) if n != 5] == [n for n in range(10) if n != 5]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("stop")], ids=["exit", "interrupt"])
def test_system_exit_and_keyboard_interrupt(pool: QueuePool, client: Client, error: BaseException) -> None:
    """They become the task's error, of plain and of `async def` tasks, and end no worker."""
    before = set(client.scheduler_info()["workers"])

    def raises(n: int) -> int:
        if n == 3:
            raise error
        return n

    async def raises_async(n: int) -> int:
        return raises(n)

    for task in (raises, raises_async):
        batch = pool.batch_submit([(task, n) for n in range(6)])
        failures = batch.failures(LIMIT)
        assert {n: (type(failure), failure.args) for n, failure in failures.items()} == {3: (type(error), error.args)}
        assert [batch[n].result(0) for n in (0, 1, 2, 4, 5)] == [0, 1, 2, 4, 5]
    assert set(client.scheduler_info()["workers"]) == before


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("n_queues", "error", "says"),
    [
        (0, ValueError, "n_queues must be at least 1, not 0"),
        (-1, ValueError, "at least 1"),
        (True, TypeError, "whole number, not True"),
        ("2", TypeError, "whole number, not '2'"),
        (1.0, TypeError, "whole number"),
        (None, TypeError, "whole number"),
    ],
)
def test_n_queues(client: Client, n_queues: Any, error: type[Exception], says: str) -> None:
    """A number of at least one."""
    with pytest.raises(error, match=says):
        QueuePool(client, n_queues)


def test_durability_and_unknown_options(client: Client) -> None:
    """With the name that may be meant."""
    with pytest.raises(ValueError, match=r"durability must be one of .*'transeint'; did you mean 'transient'\?"):
        QueuePool(client, durability="transeint")
    with pytest.raises(TypeError, match="a durable pool needs dirpath="):
        QueuePool(client, durability="durable")
    with pytest.raises(TypeError, match=r"no option 'result_tll'; did you mean 'result_ttl'\?"):
        QueuePool(client, result_tll=3)
    with pytest.raises(TypeError, match=r"no option 'nqueues'; did you mean 'n_queues'\?"):
        QueuePool(client, nqueues=3)
    with pytest.raises(ValueError, match="on_queue_lost must be one of 'resubmit', 'fail', not 'retry'"):
        QueuePool(client, on_queue_lost="retry")
    with pytest.raises(ValueError, match=r"result_ttl must be seconds, .* not 'soon'"):
        QueuePool(client, result_ttl="soon")
    with pytest.raises(ValueError, match=r"sync must be seconds, .* not 'always'"):
        QueuePool(client, sync="always")
    with pytest.raises(ValueError, match="lease_timeout must be at least 3 s"):
        QueuePool(client, lease_timeout="500ms")
    with pytest.raises(ValueError, match=r"result_max_bytes must be a number of bytes, .* not '3 miles'"):
        QueuePool(client, result_max_bytes="3 miles")
    with pytest.raises(TypeError, match="name must be a string"):
        QueuePool(client, name="")


def test_consumer_pool_options(client: Client, pool: QueuePool) -> None:
    """Numbers, classes and executors that are none."""
    for name in ("n_consumers", "concurrency", "max_concurrency", "batch_size"):
        with pytest.raises(ValueError, match="at least 1, not 0"):
            ConsumerPool(client, pool, **{name: 0})
        with pytest.raises(TypeError, match="whole number, not True"):
            ConsumerPool(client, pool, **{name: True})
    with pytest.raises(TypeError, match="subclass of ConsumerBaseClass"):
        ConsumerPool(client, pool, int)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a QueuePool"):
        ConsumerPool(client, "pool")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="give one of them"):
        ConsumerPool(client, pool, concurrency=1, max_concurrency=1)
    with pytest.raises(TypeError, match="early_ack must be True or False, not 'no'"):
        ConsumerPool(client, pool, early_ack="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="executor must be"):
        ConsumerPool(client, pool, executor=3)  # type: ignore[arg-type]
    with pytest.raises(DaskQueueError, match=r"executor 'defualt' is not one of this worker's: .*'default'"):
        ConsumerPool(client, pool, executor="defualt").start()


def test_consumer_class_that_cannot_start(client: Client, pool: QueuePool) -> None:
    """start() raises what setup raised, and leaves nothing behind."""

    class Broken(ConsumerBaseClass):
        def setup(self) -> None:
            raise ValueError("no licence")

        def process_item(self, item: Any) -> None:
            """Never called."""

    with pytest.raises(DaskQueueError, match="no licence"):
        ConsumerPool(client, pool, Broken).start()


# ---------------------------------------------------------------------------------------------------- what is over


def test_no_client_and_closed_client(cluster: Any, new_client: Callable[..., Client]) -> None:
    """A pool of a closed client says so, and a pool made of one."""
    client = new_client(cluster)
    pool = QueuePool(client)
    future = pool.submit(abs, -1)  # nobody runs it
    client.close()
    with pytest.raises(QueueLost):
        future.result(LIMIT)
    for call in (lambda: pool.submit(abs, 1), lambda: pool.put(1), pool.flush, pool.join, pool.stats, pool.results):
        with pytest.raises(PoolClosed, match="client"):
            call()
    with pytest.raises(PoolClosed, match="client"):
        QueuePool(client)
    with pytest.raises(TypeError, match="not 'tcp"):
        QueuePool("tcp://127.0.0.1:8786")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not 'tcp"):
        QueueExecutor("tcp://127.0.0.1:8786")  # type: ignore[arg-type]
    pool.shutdown()


def test_pool_after_shutdown(client: Client) -> None:
    """Every call says that it was shut down."""
    pool = QueuePool(client)
    consumers = ConsumerPool(client, pool)
    consumers.start()
    pool.shutdown()
    pool.shutdown()
    for call in (
        lambda: pool.submit(abs, 1),
        lambda: pool.map(abs, [1]),
        lambda: pool.batch_submit([(abs, 1)]),
        lambda: pool.put(1),
        lambda: pool.put_many([1]),
        pool.flush,
        pool.join,
        pool.stats,
        pool.get_queue_size,
        pool.results,
        pool.failures,
        consumers.join,
        ConsumerPool(client, pool).start,
    ):
        with pytest.raises(PoolClosed, match="shut down"):
            call()
    assert "closed" in repr(pool)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_pool_in_a_forked_child(client: Client, pool: QueuePool) -> None:
    """The event loop has no thread there: every call says so at once, instead of waiting for ever."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        said = []
        pool._connection.submitter._lock.acquire()  # as if another thread had held it: nobody is here to release it
        submit = partial(pool.submit, abs, 1)
        for call in (
            submit,
            submit,
            partial(pool.map, abs, [1]),
            partial(pool.put, 1),
            pool.flush,
            pool.join,
            pool.stats,
        ):
            try:
                call()
            except PoolClosed as error:
                said.append(str(error))
        os.write(writing, "\n".join(said).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(child, 0) == (child, 0)
    with os.fdopen(reading) as heard:
        lines = heard.read().splitlines()
    assert len(lines) == 7
    assert all("was forked" in line for line in lines)


def test_same_name_with_other_options(client: Client) -> None:
    """PoolExists lists what differs; equal options attach."""
    with QueuePool(client, 2, name="taken", result_ttl="1m") as pool:
        assert len(QueuePool(client, 2, name="taken", result_ttl=60)) == 2
        with pytest.raises(PoolExists) as caught:
            QueuePool(client, 3, name="taken", on_queue_lost="fail", result_ttl=60)
        assert caught.value.name == pool.name
        assert caught.value.differences == {"n_queues": (2, 3), "on_queue_lost": ("resubmit", "fail")}
        assert "n_queues is 2, not 3" in str(caught.value)
    with pytest.raises(KeyError, match="no pool 'taken'"):
        QueuePool.attach(client, "taken")


# ------------------------------------------------------------------------------------------------- other processes

BLOCK = """
import os
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("daskqueue", "daskqueue_core", "daskqueue_storage"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def without_daskqueue(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that cannot import daskqueue."""
    (tmp_path / "sitecustomize.py").write_text(BLOCK)
    return {"PYTHONPATH": str(tmp_path)}


def test_worker_without_daskqueue(new_workers: Callable[..., Any], without_daskqueue: dict[str, str]) -> None:
    """The pool says what to install where."""
    workers = new_workers(1, env=without_daskqueue)
    with pytest.raises(NotInstalled, match=r"worker .*No module named 'daskqueue.*install daskqueue-dask"):
        QueuePool(workers.client)


def test_scheduler_without_daskqueue(
    processes: Callable[..., Any],
    new_client: Callable[..., Client],
    without_daskqueue: dict[str, str],
    tmp_path: Path,
    eventually: Callable[..., Any],
) -> None:
    """The same for the scheduler."""
    file = tmp_path / "scheduler.json"
    processes("dask_scheduler", "--port", "0", "--scheduler-file", str(file), env=without_daskqueue)
    eventually(file.exists)
    with pytest.raises(NotInstalled, match=r"scheduler .*No module named 'daskqueue.*install daskqueue-dask"):
        QueuePool(new_client(None, scheduler_file=str(file)))


def test_another_protocol(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of another version is refused, naming both."""
    with QueuePool(client, name="here"):
        monkeypatch.setattr(opening, "PROTOCOL", 99)
        for make in (lambda: QueuePool(client), lambda: QueuePool.attach(client, "here")):
            with pytest.raises(NotInstalled, match=f"protocol 99, the scheduler {PROTOCOL}: install the same version"):
                make()


def test_worker_with_another_protocol(new_workers: Callable[..., Any], tmp_path: Path) -> None:
    """A worker of another version is refused too."""
    (tmp_path / "sitecustomize.py").write_text("import daskqueue.wire.operations as it\nit.PROTOCOL = 99\n")
    workers = new_workers(1, env={"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])})
    with pytest.raises(NotInstalled, match=rf"worker .* protocol 99, the scheduler {PROTOCOL}: install"):
        QueuePool(workers.client)
