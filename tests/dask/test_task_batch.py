"""`TaskFuture` and `TaskBatch`: as the standard library's futures, one at a time and a million in one object."""

from __future__ import annotations

import concurrent.futures as cf
import logging
import operator
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool

LIMIT = 60


@pytest.fixture
def idle(client: Client) -> Iterator[QueuePool]:
    """A pool that nobody serves yet."""
    pool = QueuePool(client)
    yield pool
    pool.shutdown(cancel_futures=True)


@pytest.fixture
def pool(client: Client, idle: QueuePool) -> QueuePool:
    """A pool with one consumer on each worker."""
    ConsumerPool(client, idle).start()
    return idle


def failing(n: int) -> int:
    """Fails for numbers that end in 777."""
    if n % 1000 == 777:
        raise LookupError(n)
    return n


def nap(seconds: float, value: Any = None) -> Any:
    """A task that takes its time."""
    threading.Event().wait(seconds)
    return value


def fail(seconds: float) -> None:
    """A task that fails in the end."""
    threading.Event().wait(seconds)
    raise LookupError(seconds)


def fail_behind(gate: Any) -> None:
    """A task that fails when it may."""
    gate()
    raise LookupError


@pytest.fixture(params=["submit", "batch"])
def make(request: pytest.FixtureRequest, pool: QueuePool) -> Callable[..., list[cf.Future[Any]]]:
    """`make((fn, arg, ...), ...)`: futures of calls, of either make."""
    if request.param == "submit":
        return lambda *calls: [pool.submit(*call) for call in calls]
    return lambda *calls: pool.batch_submit(calls, batch_size=1)[:]


# ------------------------------------------------------------------------------------------- the standard library's


def test_wait(make: Callable[..., list[cf.Future[Any]]], new_gate: Callable[[], Any]) -> None:
    """ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, and a timeout."""
    gate = new_gate()
    futures = make((gate, "slow"), (nap, 0.0, "quick"))
    done, pending = cf.wait(futures, 0.05)
    assert futures[0] in pending
    done, _ = cf.wait(futures, LIMIT, return_when=cf.FIRST_COMPLETED)
    assert [future.result(0) for future in done] == ["quick"]
    gate.open()
    done, pending = cf.wait(futures, LIMIT)
    assert (done, pending) == (set(futures), set())
    gate = new_gate()
    futures = make((gate, "slow"), (fail, 0.05))
    done, pending = cf.wait(futures, LIMIT, return_when=cf.FIRST_EXCEPTION)
    assert (done, pending) == ({futures[1]}, {futures[0]})
    gate.open()
    futures = make((nap, 0.02), (nap, 0.02))
    done, pending = cf.wait(futures, LIMIT, return_when=cf.FIRST_EXCEPTION)
    assert done == set(futures), "none raised: all of them"


def test_as_completed(make: Callable[..., list[cf.Future[Any]]], new_gate: Callable[[], Any]) -> None:
    """The quick before the slow, the same future once, those that have ended first; a timeout."""
    gate = new_gate()
    futures = make((gate, "slow"), (nap, 0.0, "quick"), (fail, 0.0))
    ended = cf.as_completed([*futures, futures[0]], LIMIT)
    assert {next(ended), next(ended)} == set(futures[1:])
    gate.open()
    assert list(ended) == futures[:1]
    assert set(cf.as_completed(futures, 0)) == set(futures)
    with pytest.raises(cf.TimeoutError):  # on Python 3.10 not the built-in one
        list(cf.as_completed(make((new_gate(), 1)), 0.02))


def test_as_completed_from_several_threads(make: Callable[..., list[cf.Future[Any]]]) -> None:
    """Futures that share a Condition serve several waiters."""
    futures = make(*[(nap, 0.005, n) for n in range(40)])
    seen: list[set[Any]] = []
    threads = [
        threading.Thread(target=lambda: seen.append({future.result() for future in cf.as_completed(futures, LIMIT)}))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert seen == [set(range(40))] * 4


def test_results_from_several_threads(make: Callable[..., list[cf.Future[Any]]]) -> None:
    """Whoever reads first, all get the same object."""
    futures = make(*[(list, (n,)) for n in range(50)])
    with cf.ThreadPoolExecutor(8) as threads:
        readings = list(threads.map(lambda _: [future.result(LIMIT) for future in futures], range(8)))
    assert readings == [[[n] for n in range(50)]] * 8
    assert all(a is b for reading in readings for a, b in zip(reading, readings[0]))


def test_timeouts(make: Callable[..., list[cf.Future[Any]]], gate: Any) -> None:
    """result and exception raise TimeoutError, which names the task; the future goes on."""
    [future] = make((gate, 1))
    for ask in (future.result, future.exception):
        began = time.monotonic()
        with pytest.raises(TimeoutError, match=future.key):  # type: ignore[attr-defined]
            ask(0.05)
        assert 0.04 < time.monotonic() - began < 10.0
    with pytest.raises(cf.TimeoutError):
        future.result(0)
    gate.open()
    assert future.result(LIMIT) == 1


def test_states(make: Callable[..., list[cf.Future[Any]]], gate: Any) -> None:
    """done, running, cancelled, exception and repr, of a success and of a failure."""
    good, bad = make((gate, 1), (fail_behind, gate))
    assert not good.done()
    assert not good.cancelled()
    assert "pending" in repr(good)
    gate.open()
    cf.wait([good, bad], LIMIT)
    assert good.done()
    assert bad.done()
    assert not good.running()
    assert good.exception(0) is None
    assert isinstance(bad.exception(0), LookupError)
    assert bad.exception() is bad.exception()
    assert not bad.cancel()
    assert not bad.cancelled()
    for future in (good, bad):
        assert repr(future) == f"<TaskFuture {future.key} finished>"  # type: ignore[attr-defined]


def test_callbacks(
    make: Callable[..., list[cf.Future[Any]]], client: Client, gate: Any, eventually: Callable[..., Any]
) -> None:
    """In order, off the event loop, with the future that has ended; a late one at once."""
    called: list[tuple[Any, ...]] = []
    [future] = make((gate, 1))
    for name in "ab":
        future.add_done_callback(lambda future, name=name: called.append((name, future, threading.current_thread())))
    gate.open()
    eventually(lambda: len(called) == 2)
    assert [(name, of) for name, of, _ in called] == [("a", future), ("b", future)]
    assert {thread for *_, thread in called} != {threading.main_thread()}
    loop_thread = client.sync(_current_thread)
    assert loop_thread not in {thread for *_, thread in called}
    future.add_done_callback(lambda _: called.append(("late",)))
    assert called[-1] == ("late",)


async def _current_thread() -> threading.Thread:
    return threading.current_thread()


def test_a_callback_that_fails(
    make: Callable[..., list[cf.Future[Any]]],
    gate: Any,
    eventually: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, and the others are called; a late one too."""
    called: list[Any] = []

    def broken(future: cf.Future[Any]) -> None:
        raise ArithmeticError("a callback's own")

    with caplog.at_level(logging.ERROR):
        futures = make((gate, 1), (gate, 2))
        for future in futures:
            future.add_done_callback(broken)
            future.add_done_callback(called.append)
        gate.open()
        eventually(lambda: len(called) == 2)
        futures[0].add_done_callback(broken)
    assert caplog.text.count("ArithmeticError: a callback's own") == 3


def test_callbacks_of_a_future_that_nobody_holds(pool: QueuePool, gate: Any, eventually: Callable[..., Any]) -> None:
    """A future made by touching a batch lives until its callbacks were called."""
    called: list[Any] = []
    batch = pool.batch_submit([(gate, n) for n in range(4)], batch_size=1)
    for index in range(4):
        batch[index].add_done_callback(lambda future: called.append(future.result()))
    gate.open()
    eventually(lambda: sorted(called) == [0, 1, 2, 3])


def test_exception_of_a_cancelled_future(idle: QueuePool) -> None:
    """CancelledError, from result and from exception; its callbacks are called."""
    futures = [idle.submit(abs, 1), idle.submit_many(abs, [1])[0]]
    for future in futures:
        called = threading.Event()
        future.add_done_callback(lambda _, called=called: called.set())
        assert future.cancel()
        with pytest.raises(cf.CancelledError):
            future.exception(LIMIT)
        with pytest.raises(cf.CancelledError):
            future.result(LIMIT)
        assert future.cancelled()
        assert future.done()
        assert "cancelled" in repr(future)
        assert called.wait(LIMIT)
    assert not cf.wait(futures, LIMIT).not_done
    assert set(cf.as_completed(futures, LIMIT)) == set(futures)


def test_cancel_from_a_callback(client: Client, idle: QueuePool, eventually: Callable[..., Any]) -> None:
    """It may wait there for its answer: nothing of the way in depends on that thread."""
    first = idle.submit(abs, -1)
    others = [idle.submit(nap, 1) for _ in range(5)]
    answers: list[bool] = []
    first.add_done_callback(lambda _: answers.extend(other.cancel() for other in others))
    assert first.cancel()
    eventually(lambda: len(answers) == 5)
    assert answers == [True] * 5


# ---------------------------------------------------------------------------------------------------------- batches


def test_sequence(pool: QueuePool) -> None:
    """len, index, negative index, slices, IndexError, membership; a future that is held stays the same."""
    batch = pool.submit_many(operator.neg, range(2500))
    assert len(batch) == 2500
    assert batch[0].result(LIMIT) == 0
    assert batch[-1].result(LIMIT) == batch[2499].result(LIMIT) == -2499
    assert [future.result(LIMIT) for future in batch[1000:1010:3]] == [-1000, -1003, -1006, -1009]
    assert [future.result(LIMIT) for future in batch[-2:]] == [-2498, -2499]
    assert batch[5:5] == []
    held = batch[7]
    assert batch[7] is held
    for index in (2500, -2501):
        with pytest.raises(IndexError, match=f"{index} of a batch of 2500|-1 of a batch of 2500"):
            batch[index]
    assert len({future.key for future in batch[:]}) == 2500


def test_empty(pool: QueuePool) -> None:
    """Everything of nothing."""
    batch = pool.submit_many(abs, [])
    assert (len(batch), list(batch), batch.results(0), dict(batch.failures(0))) == (0, [], [], {})
    assert batch.wait(0)
    assert batch.cancel() == 0
    assert batch.counts() == (0, 0, 0)
    with pytest.raises(IndexError):
        batch[0]


def test_iterates_as_completed(pool: QueuePool, gate: Any) -> None:
    """Each once, the quick before the slow, while the others run."""
    batch = pool.batch_submit([(gate, "slow"), *[(nap, 0.0, n) for n in range(20)]], batch_size=1)
    ended = iter(batch)
    assert sorted(next(ended).result(0) for _ in range(20)) == list(range(20))
    gate.open()
    assert [future.result(0) for future in ended] == ["slow"]
    assert len(list(batch)) == 21, "again, when all have ended"


def test_wait_of_a_batch(pool: QueuePool, gate: Any) -> None:
    """False at the timeout, True when all have ended; results and failures raise TimeoutError."""
    batch = pool.batch_submit([(gate, n) for n in range(2)])
    assert not batch.wait(0.05)
    assert not batch.wait(0)
    assert batch.counts().pending > 0
    with pytest.raises(TimeoutError):
        batch.results(0.01)
    with pytest.raises(TimeoutError):
        batch.failures(0.01)
    gate.open()
    assert batch.wait(LIMIT)
    assert batch.results() == batch.results() == [0, 1]


def test_many_tasks_with_some_failures(pool: QueuePool) -> None:
    """200,000 tasks: values in order, the failures by index, and futures made when touched."""
    batch = pool.submit_many(failing, range(200_000))
    assert batch.wait(100)
    assert batch.counts() == (0, 199_800, 200)
    failures = batch.failures()
    assert list(failures) == list(range(777, 200_000, 1000))
    assert all(isinstance(error, LookupError) and error.args == (index,) for index, error in failures.items())
    with pytest.raises(LookupError) as caught:
        batch.results()
    assert caught.value.args == (777,)
    assert batch[123_456].result(0) == 123_456
    assert isinstance(batch[123_777].exception(0), LookupError)
    assert sum(future.exception() is None for future in batch[100_000:110_000]) == 9990


def test_futures_touched_before_they_end(idle: QueuePool, client: Client) -> None:
    """Thousands of them: each hears of its end, and waits as any other."""
    batch = idle.submit_many(failing, range(20_000))
    futures = batch[:]
    ConsumerPool(client, idle).start()
    done, pending = cf.wait(futures, LIMIT)
    assert not pending
    assert sum(future.exception(0) is not None for future in done) == 20
    assert [future.result(0) for future in futures[:700]] == list(range(700))


@pytest.mark.parametrize("how", ["submit_many", "batch_submit", "map"])
def test_an_input_that_raises_in_the_middle(
    idle: QueuePool, oracle: Any, eventually: Callable[..., Any], client: Client, how: str
) -> None:
    """Its exception is raised, and what was sent is cancelled: nothing runs."""

    def inputs() -> Iterator[Any]:
        for n in range(5000):
            yield (oracle.mark, n) if how == "batch_submit" else n
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        if how == "batch_submit":
            idle.batch_submit(inputs())
        else:
            getattr(idle, how)(oracle.mark, inputs())
    eventually(lambda: idle.stats()[0].puts == idle.stats()[0].finished)
    ConsumerPool(client, idle).start()
    assert idle.submit(abs, -1).result(LIMIT) == 1
    assert oracle.lines() == []


def test_an_argument_that_does_not_pickle_in_the_middle(idle: QueuePool, eventually: Callable[..., Any]) -> None:
    """As an input that raises."""
    with pytest.raises(TypeError):
        idle.submit_many(abs, [*range(3000), threading.Lock()])
    eventually(lambda: idle.stats()[0].puts == idle.stats()[0].finished)


def test_calls_of_many_functions(pool: QueuePool) -> None:
    """1,500 distinct lambdas in one batch."""
    batch = pool.batch_submit([((lambda x, n=n: x + n), 1) for n in range(1500)])
    assert batch.results(60) == list(range(1, 1501))


def test_calls_that_are_none(pool: QueuePool) -> None:
    """What is not a function and its arguments is refused, and what came before it is cancelled."""
    for wrong in ([abs, 1], [(abs, 1), ()], [(abs, 1), (3, 1)], [(abs, 1), "abs"]):
        with pytest.raises(TypeError, match="batch_submit takes"):
            pool.batch_submit(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch_size"):
        pool.batch_submit([], batch_size=0)
    with pytest.raises(TypeError, match="needs a function"):
        pool.submit_many(3, [1])  # type: ignore[arg-type]


def test_result_inside_a_task(client: Client, idle: QueuePool) -> None:
    """A task may wait for another of the same pool while slots are free."""

    def parent(inner: QueuePool, depth: int) -> int:
        return inner.submit(parent, inner, depth - 1).result(LIMIT) + 1 if depth else 0

    ConsumerPool(client, idle, n_consumers=2, concurrency=8).start()
    assert idle.submit(parent, idle, 3).result(LIMIT) == 3
