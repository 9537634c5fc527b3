"""`QueueExecutor` as a `concurrent.futures.Executor`: what the standard library's executors promise, point by point."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import itertools
import operator
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from distributed import Client, default_client

from daskqueue import DaskQueueError, QueueExecutor, QueuePool

LIMIT = 60
SOON_S = 30.0


@pytest.fixture
def executor(client: Client) -> Iterator[QueueExecutor]:
    """One call at a time on each of the two workers."""
    executor = QueueExecutor(client)
    yield executor
    executor.shutdown(wait=True, cancel_futures=True)


def failing(n: int) -> int:
    """Fails for odd numbers."""
    if n % 2:
        raise LookupError(n)
    return n


def nap(seconds: float, value: Any = None) -> Any:
    """A task that takes its time."""
    threading.Event().wait(seconds)
    return value


class Thing:
    """Something that can be watched being let go."""


def make_thing(n: int) -> Thing:
    """A new one."""
    return Thing()


def gone(ref: weakref.ref[Any]) -> bool:
    """Whether nobody holds it."""
    gc.collect()
    return ref() is None


# ---------------------------------------------------------------------------------------------------------- submit


def test_is_an_executor(executor: QueueExecutor) -> None:
    """It passes where one is asked for, and its futures too."""
    assert isinstance(executor, cf.Executor)
    assert repr(executor).startswith("<QueueExecutor of <QueuePool ")
    future = executor.submit(operator.add, 1, 2)
    assert isinstance(future, cf.Future)
    assert future.result(LIMIT) == 3


def test_keyword_arguments_named_self_and_fn(executor: QueueExecutor) -> None:
    """They belong to the function."""

    def task(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    future = executor.submit(task, 1, self=2, fn=3, timeout=4)
    assert future.result(LIMIT) == ((1,), {"self": 2, "fn": 3, "timeout": 4})
    with pytest.raises(TypeError):
        executor.submit()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(fn=abs, arg=1)  # type: ignore[call-arg]


def test_an_exception_is_the_original_one(executor: QueueExecutor) -> None:
    """Its type, its arguments, and the remote traceback as text."""
    future = executor.submit(failing, 3)
    with pytest.raises(LookupError) as caught:
        future.result(LIMIT)
    assert caught.value.args == (3,)
    assert "failing" in (future.traceback or "")


def test_an_exception_that_cannot_be_rebuilt(executor: QueueExecutor) -> None:
    """Its constructor wants more than it pickles: an error all the same, and the executor goes on."""

    class Odd(Exception):
        def __init__(self, a: int, b: int) -> None:
            super().__init__(a)

    def task() -> None:
        raise Odd(1, 2)

    assert executor.submit(task).exception(LIMIT) is not None
    assert executor.submit(abs, -1).result(LIMIT) == 1


# ------------------------------------------------------------------------------------------------------------- map


def test_map(executor: QueueExecutor) -> None:
    """In order, to the end of the shortest input, and lazily read."""
    assert list(executor.map(pow, range(10), range(10))) == [n**n for n in range(10)]
    assert list(executor.map(operator.add, range(3), itertools.count(10))) == [10, 12, 14]
    assert list(executor.map(abs, [])) == []
    assert next(iter(executor.map(abs, [-5, -6]))) == 5


@pytest.mark.parametrize("chunksize", [1, 7, 1000])
def test_map_chunksize(executor: QueueExecutor, chunksize: int) -> None:
    """A hint that changes nothing of the values."""
    assert list(executor.map(abs, range(-50, 0), chunksize=chunksize, timeout=LIMIT)) == list(range(50, 0, -1))


def test_map_of_wrong_sizes(executor: QueueExecutor) -> None:
    """Refused at the call."""
    for options in ({"chunksize": 0}, {"chunksize": -1}, {"buffersize": 0}, {"buffersize": -1}):
        with pytest.raises(ValueError):
            executor.map(abs, [1], **options)
    with pytest.raises(TypeError):
        executor.map(abs, [1], buffersize="3")  # type: ignore[arg-type]


def test_map_timeout(executor: QueueExecutor, gate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """TimeoutError at the value that is late, counted from the call; those before it are read."""
    values = executor.map(lambda name: gate(name) if name == "c" else name, "abc", timeout=LIMIT)
    assert [next(values), next(values)] == ["a", "b"]
    later = time.monotonic() + LIMIT
    monkeypatch.setattr("daskqueue.client.value_stream.time", SimpleNamespace(monotonic=lambda: later))
    with pytest.raises(TimeoutError):
        next(values)
    assert next(values, "over") == "over"


def test_map_timeout_of_zero(executor: QueueExecutor, gate: Any) -> None:
    """Nothing is there yet."""
    with pytest.raises(TimeoutError):
        list(executor.map(gate, [1], timeout=0))


@pytest.mark.parametrize("buffersize", [None, 1, 4, 100])
def test_map_exceptions_in_order(executor: QueueExecutor, buffersize: int | None) -> None:
    """It is raised in its place and ends the iterator, whatever else has ended by then."""

    def late_failure(n: int) -> int:
        nap(0.05 if n == 3 else 0)
        if n in (3, 5):
            raise LookupError(n)
        return n

    values = executor.map(late_failure, range(30), timeout=LIMIT, buffersize=buffersize)
    assert [next(values), next(values), next(values)] == [0, 1, 2]
    with pytest.raises(LookupError) as caught:
        next(values)
    assert caught.value.args == (3,)
    assert list(values) == []
    assert list(executor.map(abs, [-1], timeout=LIMIT)) == [1]


def test_map_of_an_input_that_raises(executor: QueueExecutor, gate: Any, eventually: Callable[..., Any]) -> None:
    """At the call; with a buffersize when it is pulled. What was sent is cancelled."""

    def inputs(count: int) -> Iterator[int]:
        yield from range(count)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        executor.map(gate, inputs(20_000))
    gate.open()
    values = executor.map(abs, inputs(10), buffersize=4, timeout=LIMIT)
    with pytest.raises(OSError, match="no more"):
        list(values)
    pool = executor.queue_pool
    eventually(lambda: all(queue.puts == queue.finished for queue in pool.stats()))
    assert gate.count("came") < 20_000


# --------------------------------------------------------------------------------------------------------- the end


def test_context_manager_waits(client: Client) -> None:
    """Everything submitted has ended when the block is left."""
    with QueueExecutor(client) as executor:
        futures = [executor.submit(nap, 0.02, n) for n in range(10)]
        values = executor.map(nap, [0.01] * 5, range(5))
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(10))
    assert list(values) == list(range(5)), "a map is read after the end as well"


def test_context_manager_waits_after_an_exception(client: Client) -> None:
    """As the standard library's: only an interrupt cancels."""
    with pytest.raises(ZeroDivisionError), QueueExecutor(client) as executor:
        futures = [executor.submit(nap, 0.02, n) for n in range(6)]
        raise ZeroDivisionError
    assert [future.result(0) for future in futures] == list(range(6))


def test_interrupt(client: Client, gate: Any, eventually: Callable[..., Any]) -> None:
    """Ctrl-C inside the block: what is pending is cancelled, and nobody waits for what runs."""
    with pytest.raises(KeyboardInterrupt):
        with QueueExecutor(client) as executor:
            futures = [executor.submit(gate, n) for n in range(50)]
            eventually(lambda: gate.count("came") == 2)
            began = time.monotonic()
            raise KeyboardInterrupt
    assert time.monotonic() - began < SOON_S
    assert not cf.wait(futures[2:], LIMIT).not_done
    assert all(future.cancelled() for future in futures[2:])
    gate.open()
    eventually(lambda: gate.count("left") == 2)
    assert gate.count("came") == 2, "nothing else has begun"
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)


def pools(dask_scheduler: Any) -> list[str]:
    """Those that the directory knows."""
    return list(dask_scheduler.plugins["daskqueue"].directory.pools)


def test_consumers_that_do_not_start(client: Client) -> None:
    """Nothing is left of it; but of a pool that has a name, and may be others'."""
    before = set(client.run_on_scheduler(pools))
    with pytest.raises(DaskQueueError):
        QueueExecutor(client, executor="nobody made it")
    assert set(client.run_on_scheduler(pools)) == before
    with QueuePool(client, name="theirs") as theirs:
        with pytest.raises(DaskQueueError):
            QueueExecutor(client, name="theirs", executor="nobody made it")
        assert theirs.stats()


def test_interrupted_with_its_client(client: Client, cluster: Any) -> None:
    """Its pool ends before the client does."""
    with (
        pytest.raises(KeyboardInterrupt),
        Client(cluster, set_as_default=False) as theirs,
        QueueExecutor(theirs, name="interrupted") as executor,
    ):
        executor.submit(abs, -1)
        raise KeyboardInterrupt
    assert "interrupted" not in client.run_on_scheduler(pools)


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("cancel_futures", [True, False])
def test_shutdown(client: Client, gate: Any, eventually: Callable[..., Any], wait: bool, cancel_futures: bool) -> None:
    """`wait` says whether it returns before the work is done, `cancel_futures` whether what waits is done at all."""
    executor = QueueExecutor(client)
    futures = [executor.submit(gate, n) for n in range(10)]
    eventually(lambda: gate.count("came") == 2)
    ending = threading.Thread(target=executor.shutdown, kwargs={"wait": wait, "cancel_futures": cancel_futures})
    ending.start()
    if cancel_futures:
        assert not cf.wait(futures[2:], LIMIT).not_done
    if wait:
        assert ending.is_alive(), "two calls run"
        gate.open()
    ending.join(SOON_S)
    assert not ending.is_alive()
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    gate.open()
    assert not cf.wait(futures, LIMIT).not_done
    if cancel_futures:
        assert all(future.cancelled() for future in futures[2:])
        assert gate.count("came") == 2
        assert [future.result(0) for future in futures[:2]] == [0, 1]
    else:
        assert [future.result(0) for future in futures] == list(range(10))


def test_shutdown_twice(client: Client) -> None:
    """In any form, from several threads, and before anything was submitted."""
    executor = QueueExecutor(client)
    threads = [threading.Thread(target=executor.shutdown) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
        assert not thread.is_alive()
    executor.shutdown()
    executor.shutdown(wait=False)
    executor.shutdown(wait=False, cancel_futures=True)
    executor.shutdown(cancel_futures=True)


def test_shutdown_with_wait_after_one_without(client: Client) -> None:
    """The second returns when the work has ended."""
    executor = QueueExecutor(client)
    futures = [executor.submit(nap, 0.1, n) for n in range(4)]
    executor.shutdown(wait=False)
    executor.shutdown(wait=True)
    assert [future.result(0) for future in futures] == list(range(4))


def test_after_shutdown(client: Client) -> None:
    """submit and map raise RuntimeError at the call."""
    executor = QueueExecutor(client)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(abs, 1)
    with pytest.raises(RuntimeError, match="shut down"):
        executor.map(abs, [1])


# --------------------------------------------------------------------------------------------------- number of calls


@pytest.mark.parametrize("count", [0, -1])
@pytest.mark.parametrize("option", ["max_workers", "n_consumers"])
def test_no_workers(client: Client, count: int, option: str) -> None:
    """Refused, in the standard library's words."""
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        QueueExecutor(client, **{option: count})


def test_wrong_arguments(client: Client) -> None:
    """Said at once, with the option that may be meant."""
    with pytest.raises(TypeError, match="whole number"):
        QueueExecutor(client, max_workers=1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="whole number"):
        QueueExecutor(client, max_workers=True)
    with pytest.raises(TypeError, match="did you mean 'maxsize'"):
        QueueExecutor(client, max_size=3)


@pytest.mark.parametrize("option", ["max_workers", "n_consumers"])
@pytest.mark.parametrize("count", [1, 3])
def test_max_workers_limits_the_whole_cluster(
    client: Client, oracle: Any, meeting: Callable[[int], Any], option: str, count: int
) -> None:
    """So many calls run at once on two workers, and no more."""
    meet = meeting(count)

    def task(n: int) -> int:
        oracle.mark("+")
        meet()
        nap(0.005)
        oracle.mark("-")
        return n

    with QueueExecutor(client, **{option: count}) as executor:
        assert list(executor.map(task, range(30), timeout=LIMIT)) == list(range(30))
    running = list(itertools.accumulate(1 if line == "+" else -1 for line in oracle.lines()))
    assert max(running) == count


# ------------------------------------------------------------------------------------------------------ references


def test_arguments_are_let_go(executor: QueueExecutor, gate: Any, eventually: Callable[..., Any]) -> None:
    """After submit only their bytes are held."""
    thing = Thing()
    ref = weakref.ref(thing)
    future = executor.submit(lambda path, _: path("argument"), gate, thing)
    del thing
    assert gone(ref)
    eventually(lambda: gate.count("came") == 1)
    gate.open()
    assert future.result(LIMIT) == "argument"


def test_arguments_of_map_are_let_go(executor: QueueExecutor) -> None:
    """So are the elements of an input."""
    refs: list[weakref.ref[Any]] = []

    def inputs() -> Iterator[Thing]:
        for _ in range(50):
            thing = Thing()
            refs.append(weakref.ref(thing))
            yield thing
            del thing

    values = executor.map(lambda thing: None, inputs())
    gc.collect()
    assert not any(ref() for ref in refs)
    assert list(values) == [None] * 50


def test_a_value_that_was_read_is_let_go(executor: QueueExecutor) -> None:
    """The iterator of a map holds none that it has yielded."""
    for thing in executor.map(make_thing, range(2000), timeout=LIMIT):
        ref = weakref.ref(thing)
        del thing
        assert ref() is None


def test_a_dropped_future_lets_its_value_go(executor: QueueExecutor) -> None:
    """Although the futures that travelled with it live on."""
    list(executor.map(make_thing, range(1000), timeout=LIMIT))  # timed from now on: many travel together
    futures = [executor.submit(make_thing, n) for n in range(1000)]
    refs = [weakref.ref(future.result(LIMIT)) for future in futures]
    assert len({id(ref()) for ref in refs}) == 1000
    assert all(ref() is future.result() for ref, future in zip(refs, futures)), "a future keeps its value"
    for index in range(999, 0, -7):
        del futures[index]
        assert gone(refs[index]) if index > 990 else refs[index]() is None
    assert futures[0].result() is refs[0]()


def test_a_dropped_executor_is_let_go(client: Client, eventually: Callable[..., Any]) -> None:
    """Nothing of the client holds it."""
    executor = QueueExecutor(client)
    assert executor.submit(abs, -1).result(LIMIT) == 1
    executor.shutdown()
    ref = weakref.ref(executor)
    del executor
    eventually(lambda: gone(ref))


# ------------------------------------------------------------------------------------------------ its own cluster


def alive(pid: int) -> bool:
    """Whether the process lives."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("wait", [True, False])
def test_a_cluster_of_its_own(client: Client, eventually: Callable[..., Any], wait: bool) -> None:
    """Without a client; its processes end with it, after the work."""
    default = default_client()
    executor = QueueExecutor()
    pids = set(executor.map(lambda n: nap(0.05, os.getpid()), range(8), timeout=LIMIT))
    assert os.getpid() not in pids
    futures = [executor.submit(nap, 0.05, n) for n in range(4)]
    executor.shutdown(wait=wait)
    with pytest.raises(RuntimeError):
        executor.submit(abs, 1)
    assert [future.result(LIMIT) for future in futures] == [0, 1, 2, 3]
    eventually(lambda: not any(map(alive, pids)), LIMIT)
    assert default_client() is default, "its client is nobody else's"
