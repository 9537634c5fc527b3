"""daskqueue.worker.runners: whatever a task does is its own affair."""

import asyncio
import contextvars
import functools
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from daskqueue.current import current_task
from daskqueue.wire.calls import decode_values, encode_args, encode_block, encode_item, encode_items, encode_lengths
from daskqueue.wire.control import Control, encode_control
from daskqueue.wire.errors import ArgumentLoadError, FunctionLoadError, RemoteTraceback, UnpicklableResult, decode_error
from daskqueue.wire.functions import Style, encode_function
from daskqueue.worker import deadlines
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.runners import Job, JobReport, Loaded
from daskqueue_core.errors import TaskTimeout
from daskqueue_core.outcomes import FailureReason
from daskqueue_core.retry import RetryPolicy

LIMIT = 30
SHORT_S = 0.2
"""A timeout that is waited for, and in which neighbours end that do next to nothing."""


@pytest.fixture(scope="module")
def private_loop() -> Iterator[PrivateLoop]:
    """One loop for all: no task may end it."""
    loop = PrivateLoop()
    yield loop
    assert loop.close(LIMIT)


def job_of(fn: Callable[..., Any], elements: list[Any], *, style: Style = Style.ARGS, **options: Any) -> Job:
    """A job as the wire makes it."""
    body = encode_block(elements, fn, style)
    return Job.of_calls(encode_function(fn, style).shared, body, None, 0, len(elements), **options)


def outcomes(report: JobReport) -> list[Any]:
    """Values and exceptions by element."""
    values = decode_values(report.values)
    assert len(values) == report.executed
    for failure in report.failures:
        assert values[failure.position] is None
        values[failure.position] = decode_error(failure.blob, failure.text)
    return values


def shown(values: list[Any]) -> list[Any]:
    """Outcomes with exceptions as their types."""
    return [type(value) if isinstance(value, BaseException) else value for value in values]


class ExitsOnLoad:
    """An argument whose unpickling ends the process."""

    def __reduce__(self) -> tuple[object, ...]:
        return _exits, (1,)


def _exits(_: object) -> None:
    raise SystemExit(3)


ERRORS = [
    ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, asyncio.CancelledError,
]  # fmt: skip


def raise_odd(i: int) -> int:
    """Even ones return, odd ones raise whatever there is to raise."""
    if i % 2:
        raise ERRORS[i // 2 % len(ERRORS)](f"element {i}")
    return i


async def raise_odd_async(i: int) -> int:
    """The same as a coroutine that suspends."""
    await asyncio.sleep(0)
    return raise_odd(i)


EXPECTED = [ERRORS[i // 2 % len(ERRORS)] if i % 2 else i for i in range(40)]

# ---------------------------------------------------------------------------------------------------------- threads


def test_values_in_order() -> None:
    """All values come back as one pickle."""
    report = job_of(lambda x: x * 2, [(i,) for i in range(1000)]).run()
    assert outcomes(report) == [i * 2 for i in range(1000)]
    assert (report.executed, report.failures) == (1000, ())
    assert report.seconds > 0


def test_part_of_a_batch() -> None:
    """A job runs its range; positions count from its start."""
    body = encode_block([(i,) for i in range(10)], raise_odd)
    report = Job.of_calls(encode_function(raise_odd).shared, body, None, 3, 6).run()
    assert shown(outcomes(report)) == [EXPECTED[3], 4, EXPECTED[5]]


def test_keywords() -> None:
    """Style KWARGS applies both."""

    def fn(a: int, *, b: int = 0) -> int:
        if b > 2:
            raise ValueError
        return a + b

    report = job_of(fn, [((1,), {"b": 2}), ((1,), {"b": 3}), ((), {"a": 4})], style=Style.KWARGS).run()
    assert shown(outcomes(report)) == [3, ValueError, 4]


def test_nothing_that_a_task_raises_harms_another() -> None:
    """SystemExit, KeyboardInterrupt and the rest are that task's error, with type, message and remote traceback."""
    results = outcomes(job_of(raise_odd, [(i,) for i in range(40)]).run())
    assert shown(results) == EXPECTED
    for i, error in enumerate(results):
        if i % 2:
            assert str(error) == f"element {i}"
            assert isinstance(error.__cause__, RemoteTraceback)
            assert "in raise_odd" in error.__cause__.text
            assert "worker/runners.py" not in error.__cause__.text
            assert error.__cause__.text.count("Traceback") == 1, "an earlier task's error is not its context"


def test_stop_iteration_does_not_end_the_run() -> None:
    """`extend` would take it for the end of the input and lose the rest silently."""

    def fn(i: int) -> int:
        if i % 3 == 2:
            raise StopIteration(i)
        return i

    assert shown(outcomes(job_of(fn, [(i,) for i in range(7)]).run())) == [0, 1, RuntimeError, 3, 4, RuntimeError, 6]
    assert shown(outcomes(job_of(fn, [(2,)]).run())) == [RuntimeError]


def test_damaged_arguments_fail_alone() -> None:
    """An element that does not unpickle is not run, its neighbours are."""
    bodies = [encode_args((i,), None, raise_odd) for i in (0, 2, 4)]
    bodies[1] = encode_args((ExitsOnLoad(),), None, raise_odd)
    shared = encode_function(raise_odd).shared
    results = outcomes(Job.of_calls(shared, b"".join(bodies), encode_lengths(bodies), 0, 3).run())
    assert shown(results) == [0, ArgumentLoadError, 4]
    assert "SystemExit" in str(results[1])


def test_function_that_does_not_load() -> None:
    """Every element fails with it; nothing else happens."""
    shared = encode_function(functools.partial(raise_odd, 1)).shared[:-5]
    results = outcomes(Job.of_calls(shared, encode_block([(), ()], raise_odd), None, 0, 2).run())
    assert shown(results) == [FunctionLoadError, FunctionLoadError]
    with pytest.raises(FunctionLoadError):
        Job.of_calls(b"garbage", b"", None, 0, 2)


def test_result_that_cannot_travel_fails_alone() -> None:
    """An unpicklable result is its own element's error, beside others."""

    def fn(i: int) -> object:
        if i == 1:
            return threading.Lock()
        return raise_odd(i)

    assert shown(outcomes(job_of(fn, [(i,) for i in range(5)]).run())) == [0, UnpicklableResult, 2, EXPECTED[3], 4]


def test_values_not_kept() -> None:
    """Without values there are still counts and errors."""
    report = job_of(raise_odd, [(i,) for i in range(4)], keep_values=False).run()
    assert (report.values, report.executed, [f.position for f in report.failures]) == (b"", 4, [1, 3])


def test_context_surrounds_the_run() -> None:
    """The context gets the name, and holds while arguments are loaded, run and results written."""
    seen: list[str] = []

    @contextmanager
    def context(name: str) -> Iterator[None]:
        seen.append(name)
        yield
        seen.append("left")

    job_of(raise_odd, [(1,)], context=context).run()
    assert seen == ["raise_odd", "left"]


def test_arguments_do_not_outlive_the_job() -> None:
    """Nothing of ours keeps what a task was given or returned."""

    class Big:
        pass

    kept: list[weakref.ref[Big]] = []

    def process(item: Big) -> Big:
        kept.append(weakref.ref(item))
        raise ValueError

    job = Job.of_items(process, encode_items([Big(), Big()]), None, 0, 2)
    job.run()
    del job
    assert [ref() for ref in kept] == [None, None]


@pytest.mark.parametrize("timeout", [b"", encode_control(Control(LIMIT))])
def test_large_bytes_are_bytes(private_loop: PrivateLoop, timeout: bytes) -> None:
    """A job holds views of them and makes each when it runs, which a function does not see."""
    elements = [bytes([n]) * 50_000 for n in range(5)]

    def check(data: bytes) -> int:
        assert type(data) is bytes
        if data[0] == 2:
            raise ValueError
        return data[0]

    async def check_async(data: bytes) -> int:
        return check(data)

    for fn in (check, check_async):
        job = job_of(fn, elements, style=Style.COLUMN, private_loop=private_loop, control=timeout)
        assert shown(outcomes(job.run())) == [0, 1, ValueError, 3, 4]


# ---------------------------------------------------------------------------------------------------------- take_rest


class Gate:
    """A task that waits in the middle of a run, so that something can happen meanwhile."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.reached, self.go = threading.Event(), threading.Event()

    def process_item(self, i: int) -> int:
        """Wait at one element."""
        if i == self.at:
            self.reached.set()
            assert self.go.wait(LIMIT)
        return raise_odd(i)

    async def process_async(self, i: int) -> int:
        """Wait at one element, suspended."""
        if i == self.at:
            self.reached.set()
            assert await asyncio.get_running_loop().run_in_executor(None, self.go.wait, LIMIT)
        return raise_odd(i)


@pytest.mark.parametrize("method", ["process_item", "process_async"])
@pytest.mark.parametrize("at", [0, 4, 5, 9])
def test_take_rest_cuts_what_has_not_begun(private_loop: PrivateLoop, method: str, at: int) -> None:
    """What runs ends, what follows is taken, positions stay right; a second take finds nothing."""
    gate = Gate(at)
    job = Job.of_items(
        getattr(gate, method), encode_items(range(10)), None, 0, 10, private_loop=private_loop, keep_values=True
    )
    assert job.started_at is None
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert gate.reached.wait(LIMIT)
        assert job.started_at is not None
        assert job.finished == at
        assert job.take_rest() == 9 - at
        assert job.take_rest() == 0
        gate.go.set()
        report = future.result(LIMIT)
    assert report.executed == at + 1
    assert shown(outcomes(report)) == EXPECTED[: at + 1]
    assert job.take_rest() == 0


def test_take_rest_while_a_stop_iteration_is_raised() -> None:
    """The count that tells a swallowed StopIteration from the end knows of the cut."""
    reached, go = threading.Event(), threading.Event()

    def process(i: int) -> int:
        if i == 3:
            reached.set()
            assert go.wait(LIMIT)
            raise StopIteration
        return i

    job = Job.of_items(process, encode_items(range(10)), None, 0, 10, keep_values=True)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert reached.wait(LIMIT)
        assert job.take_rest() == 6
        go.set()
        assert shown(outcomes(future.result(LIMIT))) == [0, 1, 2, RuntimeError]


def test_take_rest_before_the_run_takes_all(private_loop: PrivateLoop) -> None:
    """A job withdrawn before its thread begins runs nothing."""
    for fn in (raise_odd, raise_odd_async):
        job = job_of(fn, [(1,), (2,)], private_loop=private_loop)
        assert job.take_rest() == 2
        assert job.take_rest() == 0
        assert job.run()[:3] == (encode_block([], fn), (), 0)


@pytest.mark.parametrize("is_async", [False, True])
def test_take_rest_while_it_reads_leaves_the_first(private_loop: PrivateLoop, is_async: bool) -> None:
    """Else arguments that take longer to read than a lease should would go from worker to worker for ever."""
    reading, go = threading.Event(), threading.Event()

    def load() -> Loaded:
        reading.set()
        assert go.wait(LIMIT)
        return Loaded(raise_odd_async if is_async else raise_odd, [(0,), (2,), (4,)], True)

    job = Job(load, 3, name="fn", is_async=is_async, private_loop=private_loop)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert reading.wait(LIMIT)
        assert job.take_rest() == 2
        assert job.take_rest() == 0
        go.set()
        report = future.result(LIMIT)
    assert report.executed == 1
    assert shown(outcomes(report)) == [0]


def test_a_withdrawn_job_loads_nothing() -> None:
    """What was taken away before the run is not even unpickled."""

    def load() -> Any:
        raise AssertionError("loaded")

    job = Job(load, 2, name="fn", is_async=False)
    job.take_rest()
    assert job.run().failures == ()


def test_take_rest_at_any_moment() -> None:
    """However it falls: executed and taken add up, and what was executed is a prefix."""

    def fn(i: int) -> int:
        if i % 7 == 3:
            raise StopIteration
        if i % 7 == 5:
            raise ValueError
        return i

    expected = [RuntimeError if i % 7 == 3 else ValueError if i % 7 == 5 else i for i in range(300)]
    with ThreadPoolExecutor(1) as executor:
        for round_ in range(60):
            job = job_of(fn, [(i,) for i in range(300)])
            future = executor.submit(job.run)
            while job.finished < round_ * 5 and not future.done():
                time.sleep(0)  # let the other thread run
            taken = job.take_rest()
            report = future.result(LIMIT)
            assert report.executed + taken == 300
            assert shown(outcomes(report)) == expected[: report.executed]


# -------------------------------------------------------------------------------------------------------------- async


def test_async_functions_are_awaited(private_loop: PrivateLoop) -> None:
    """Values and errors of coroutines, by the same rules; SystemExit does not end the loop."""
    job = job_of(raise_odd_async, [(i,) for i in range(40)], private_loop=private_loop)
    assert job.is_async
    results = outcomes(job.run())
    assert shown(results) == EXPECTED
    assert "in raise_odd_async" in results[1].__cause__.text
    assert "worker/runners.py" not in results[1].__cause__.text


def test_run_async_needs_no_thread(private_loop: PrivateLoop) -> None:
    """The adapter awaits it on the private loop, keywords and all."""

    async def fn(a: int, *, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    job = job_of(fn, [((1,), {"b": 2})], style=Style.KWARGS)
    assert outcomes(private_loop.submit(job.run_async()).result(LIMIT)) == [3]


def test_plain_functions_that_return_coroutines(private_loop: PrivateLoop) -> None:
    """A lambda around a coroutine is awaited too, kept or not, beside plain values and errors."""

    def fn(i: int) -> Any:
        return raise_odd_async(i) if i % 4 < 2 else raise_odd(i)

    elements = [(i,) for i in range(40)]
    job = job_of(fn, elements, private_loop=private_loop)
    assert not job.is_async
    report = job.run()
    assert shown(outcomes(report)) == EXPECTED
    assert [f.position for f in report.failures] == list(range(1, 40, 2))
    report = job_of(fn, elements, private_loop=private_loop, keep_values=False).run()
    assert [f.position for f in report.failures] == list(range(1, 40, 2))


def test_each_coroutine_has_its_own_task(private_loop: PrivateLoop) -> None:
    """A coroutine that cancels its task or sets a context variable meets only itself."""
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)

    async def process(i: int) -> int:
        before = var.get()
        var.set(1)
        if i == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)
        return before

    job = Job.of_items(process, encode_items(range(3)), None, 0, 3, private_loop=private_loop, keep_values=True)
    assert shown(outcomes(job.run())) == [0, asyncio.CancelledError, 0]


def test_our_cancellation_ends_the_job_and_its_task(private_loop: PrivateLoop) -> None:
    """Cancelled from outside, the running coroutine gets to clean up, then the job ends cancelled."""
    gate, cleaned = Gate(1), threading.Event()

    async def process(i: int) -> int:
        try:
            return await gate.process_async(i)
        finally:
            if i == 1:
                cleaned.set()

    job = Job.of_items(process, encode_items(range(3)), None, 0, 3, private_loop=private_loop)
    ended = threading.Event()

    async def outer() -> None:
        try:
            await job.run_async()
        except asyncio.CancelledError:
            assert cleaned.is_set()
            ended.set()
            raise

    future = private_loop.submit(outer())
    assert gate.reached.wait(LIMIT)
    future.cancel()
    assert ended.wait(LIMIT)
    gate.go.set()
    assert job.finished == 1


# ------------------------------------------------------------------------------------------------------------ timeouts


def control(timeout: float) -> bytes:
    """As a batch brings it."""
    return encode_control(Control(timeout))


def spin(_: Any) -> None:
    """Run for ever, in Python."""
    while True:
        pass


async def sleep_for_ever(_: Any) -> None:
    """Run for ever, on the loop."""
    await asyncio.Event().wait()


def spin_then(i: int) -> Any:
    """Element 1 runs for ever."""
    return spin(i) if i == 1 else i


async def sleep_then(i: int) -> Any:
    """The same on the loop."""
    return await sleep_for_ever(i) if i == 1 else i


def plain_then(i: int) -> Any:
    """The same as a plain function around coroutines."""
    return sleep_then(i)


@pytest.mark.parametrize("fn", [spin_then, sleep_then, plain_then])
def test_an_element_over_its_timeout(private_loop: PrivateLoop, fn: Any) -> None:
    """It fails with TaskTimeout, which shows where it was; its neighbours have values."""
    report = job_of(fn, [(i,) for i in range(4)], private_loop=private_loop, control=control(SHORT_S)).run()
    results = outcomes(report)
    assert shown(results) == [0, TaskTimeout, 2, 3]
    assert f"{SHORT_S} s" in str(results[1])
    assert ("in spin" if fn is spin_then else "in sleep_for_ever") in results[1].__cause__.text
    assert report.failures[0].reason == FailureReason.TIMEOUT
    assert report.failures[0].body == encode_item(1)


def test_a_timeout_may_be_tried_again() -> None:
    """It is a failure as any to the policy."""
    retry = RetryPolicy(max_attempts=2, backoff=3.0, jitter=False)
    report = job_of(spin_then, [(1,), (1,)], control=control(0.02), retry=retry, attempts=b"\x00\x01").run()
    assert [failure.retry_in for failure in report.failures] == [3 * 10**9, -1]


def catches(i: int) -> int:
    """Goes on in spite of it."""
    try:
        spin_then(i)
    except TimeoutError:
        pass
    return i


async def catches_async(i: int) -> int:
    """The same on the loop."""
    try:
        await sleep_then(i)
    except asyncio.CancelledError:
        pass
    return i


def turns(i: int) -> int:
    """Makes another error of it."""
    try:
        return catches(i) if i != 1 else spin_then(i)
    except TimeoutError:
        raise KeyError("mine") from None


@pytest.mark.parametrize("fn", [catches, catches_async, turns])
def test_catching_a_timeout_does_not_undo_it(private_loop: PrivateLoop, fn: Any) -> None:
    """At the deadline it was over."""
    report = job_of(fn, [(i,) for i in range(3)], private_loop=private_loop, control=control(SHORT_S)).run()
    results = outcomes(report)
    assert shown(results) == [0, TaskTimeout, 2]
    assert ("KeyError: 'mine'" in results[1].__cause__.text) is (fn is turns)


def test_one_timeout_for_a_function_and_its_coroutine(private_loop: PrivateLoop) -> None:
    """A plain function that returns a coroutine has not won a second one."""
    deadlines_: list[float | None] = []

    async def inner() -> None:
        deadlines_.append(current_task().deadline)

    def process(_: int) -> Any:
        deadlines_.append(current_task().deadline)
        time.sleep(0.3)  # a part of its time
        return inner()

    Job.of_items(process, encode_items([0]), None, 0, 1, private_loop=private_loop, control=control(60.0)).run()
    first, second = deadlines_
    assert first == pytest.approx(second, abs=0.15)


def test_a_task_s_own_timeout_is_its_own(private_loop: PrivateLoop) -> None:
    """A TaskTimeout or TimeoutError that it raises in time is a failure, not the job's timeout."""

    def own(i: int) -> None:
        raise (TaskTimeout("of another task"), TimeoutError("socket"))[i]

    report = job_of(own, [(0,), (1,)], control=control(60.0)).run()
    assert [str(error) for error in outcomes(report)] == ["of another task", "socket"]
    assert {failure.reason for failure in report.failures} == {FailureReason.FAILED}


def test_all_else_is_the_same_under_a_timeout(private_loop: PrivateLoop) -> None:
    """Errors of every kind, StopIteration, damaged arguments, unpicklable results, coroutines of plain functions."""
    options: dict[str, Any] = {"control": control(60.0), "private_loop": private_loop}
    for fn in (raise_odd, raise_odd_async, lambda i: raise_odd_async(i) if i % 4 < 2 else raise_odd(i)):
        assert shown(outcomes(job_of(fn, [(i,) for i in range(40)], **options).run())) == EXPECTED

    def stops(i: int) -> Any:
        if i == 1:
            raise StopIteration
        return threading.Lock() if i == 2 else i

    results = shown(outcomes(job_of(stops, [(i,) for i in range(4)], **options).run()))
    assert results == [0, RuntimeError, UnpicklableResult, 3]
    bodies = [encode_args((i,), None, raise_odd) for i in (0, 2)] + [encode_args((ExitsOnLoad(),), None, raise_odd)]
    shared = encode_function(raise_odd).shared
    job = Job.of_calls(shared, b"".join(bodies), encode_lengths(bodies), 0, 3, **options)
    assert shown(outcomes(job.run())) == [0, 2, ArgumentLoadError]


@pytest.mark.parametrize("method", ["process_item", "process_async"])
def test_what_cannot_be_interrupted_is_told_and_harvested(
    private_loop: PrivateLoop, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Its failure is reported while it goes on, once; what comes of it later is dropped, the next ones are run."""
    monkeypatch.setattr(deadlines, "GRACE_S", 0.05)
    gate, told = Gate(2), threading.Event()

    async def blocks(i: int) -> int:  # on the loop, as no coroutine should
        return gate.process_item(i)

    process = gate.process_item if method == "process_item" else blocks
    job = Job.of_items(
        process, encode_items(range(0, 10, 2)), None, 0, 5, keep_values=True,
        private_loop=private_loop, control=control(SHORT_S), on_overdue=told.set,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert told.wait(LIMIT)
        early = job.harvest()
        assert job.harvest() is None
        gate.go.set()
        late = future.result(LIMIT)
    assert early is not None
    assert (early.start, early.executed, shown(outcomes(early))) == (0, 2, [0, TaskTimeout])
    assert early.failures[0].reason == FailureReason.TIMEOUT
    assert (late.start, late.executed, shown(outcomes(late))) == (2, 3, [4, 6, 8])


def test_an_overdue_element_is_told_apart_from_its_successors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs after it, and is harvested meanwhile, has not ended."""
    monkeypatch.setattr(deadlines, "GRACE_S", 0.05)
    told, harvested = threading.Event(), []

    def process(i: int) -> int:
        if i == 0:
            assert told.wait(LIMIT)
        else:
            harvested.append(job.harvest())
        return i

    job = Job.of_items(
        process, encode_items(range(2)), None, 0, 2, keep_values=True, control=control(0.3), on_overdue=told.set
    )  # fmt: skip
    report = job.run()
    assert [(early.start, shown(outcomes(early))) for early in harvested] == [(0, [TaskTimeout])]
    assert (report.start, outcomes(report)) == (1, [1])


def test_what_only_ends_late_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told, but over before anybody harvested: its own report has it, as timed out."""
    monkeypatch.setattr(deadlines, "GRACE_S", 0.05)
    gate, told = Gate(0), threading.Event()
    job = Job.of_items(
        gate.process_item, encode_items([0, 2]), None, 0, 2, keep_values=True, control=control(SHORT_S),
        on_overdue=told.set,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert told.wait(LIMIT)
        gate.go.set()
        report = future.result(LIMIT)
    assert shown(outcomes(report)) == [TaskTimeout, 2]
    assert job.harvest() is None


def test_take_rest_under_a_timeout() -> None:
    """As without."""
    gate = Gate(4)
    job = Job.of_items(
        gate.process_item, encode_items(range(10)), None, 0, 10, keep_values=True, control=control(60.0)
    )  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert gate.reached.wait(LIMIT)
        assert job.take_rest() == 5
        gate.go.set()
        assert shown(outcomes(future.result(LIMIT))) == EXPECTED[:5]


# ------------------------------------------------------------------------------------------------------------- cancel


def reasons(report: JobReport) -> dict[int, int]:
    """Of the failures, by position."""
    return {failure.position: failure.reason for failure in report.failures}


CANCELLED = FailureReason.CANCELLED


@pytest.mark.parametrize("timeout", [b"", control(60.0)], ids=["unlimited", "limited"])
@pytest.mark.parametrize("method", ["process_item", "process_async"])
def test_cancel_while_it_runs(private_loop: PrivateLoop, method: str, timeout: bytes) -> None:
    """What has not begun is not run and is reported as cancelled; the others are run, what ended stays."""
    gate = Gate(4)
    job = Job.of_items(
        getattr(gate, method), encode_items(range(0, 20, 2)), None, 0, 10, private_loop=private_loop,
        keep_values=True, control=timeout,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert gate.reached.wait(LIMIT)
        job.cancel([(0, 1), (4, 6)])
        job.cancel([(9, 10), (4, 5)])
        gate.go.set()
        report = future.result(LIMIT)
    expected = [0, 2, 4, 6, asyncio.CancelledError, asyncio.CancelledError, 12, 14, 16, asyncio.CancelledError]
    assert shown(outcomes(report)) == expected
    assert reasons(report) == {4: CANCELLED, 5: CANCELLED, 9: CANCELLED}
    assert report.executed == 10


@pytest.mark.parametrize("fn", [raise_odd, raise_odd_async, lambda i: raise_odd_async(i)])
def test_cancel_before_it_runs(private_loop: PrivateLoop, fn: Any) -> None:
    """The same; and without a coroutine that nobody awaits."""
    job = job_of(fn, [(i,) for i in (0, 2, 4)], private_loop=private_loop)
    job.cancel([(1, 3)])
    report = job.run()
    assert shown(outcomes(report)) == [0, asyncio.CancelledError, asyncio.CancelledError]
    assert reasons(report) == {1: CANCELLED, 2: CANCELLED}


@pytest.mark.parametrize("timeout", [b"", control(60.0)], ids=["unlimited", "limited"])
@pytest.mark.parametrize("is_plain", [False, True])
def test_cancel_ends_a_running_coroutine(private_loop: PrivateLoop, timeout: bytes, is_plain: bool) -> None:
    """Where it waits, once: a second request does not meet its clean-up. Those behind it run."""
    reached, cleaning, go, cleaned = threading.Event(), threading.Event(), threading.Event(), []

    async def process(i: int) -> int:
        if i == 1:
            try:
                reached.set()
                await sleep_for_ever(i)
            finally:
                cleaning.set()
                await asyncio.get_running_loop().run_in_executor(None, go.wait, LIMIT)
                cleaned.append(i)
        return i

    job = Job.of_items(
        (lambda i: process(i)) if is_plain else process, encode_items(range(3)), None, 0, 3, keep_values=True,
        private_loop=private_loop, control=timeout,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert reached.wait(LIMIT)
        job.cancel([(1, 2)])
        assert cleaning.wait(LIMIT)
        job.cancel([(0, 1), (1, 2)])
        private_loop.submit(asyncio.sleep(0)).result(LIMIT)  # whatever was to arrive has
        go.set()
        report = future.result(LIMIT)
    assert shown(outcomes(report)) == [0, asyncio.CancelledError, 2]
    assert reasons(report) == {1: CANCELLED}
    assert cleaned == [1]


@pytest.mark.parametrize("timeout", [b"", control(60.0)], ids=["unlimited", "limited"])
def test_a_coroutine_that_nobody_awaits_is_closed(private_loop: PrivateLoop, timeout: bytes) -> None:
    """Cancelled between the call of a plain function and its coroutine's first step."""
    made: list[Any] = []

    def process(i: int) -> Any:
        job.cancel([(0, 1)])
        made.append(sleep_for_ever(i))
        return made[0]

    job = Job.of_items(process, encode_items([0]), None, 0, 1, private_loop=private_loop, control=timeout)
    assert reasons(job.run()) == {0: CANCELLED}
    assert inspect.getcoroutinestate(made[0]) == inspect.CORO_CLOSED


def test_a_cancelled_task_that_succeeds_has_its_value() -> None:
    """A thread need not look."""

    def process(i: int) -> int:
        job.cancel([(0, 1)])
        return 5

    job = Job.of_items(process, encode_items([0]), None, 0, 1, keep_values=True)
    assert outcomes(job.run()) == [5]


def test_cancel_and_take_rest() -> None:
    """What is taken away is given back, cancelled or not; positions stay right."""

    def process(i: int) -> int:
        if i == 2:
            job.cancel([(3, 5), (8, 9)])
        if i == 6:
            taken.append(job.take_rest())
        return i

    taken: list[int] = []
    job = Job.of_items(process, encode_items(range(10)), None, 0, 10, keep_values=True)
    report = job.run()
    assert taken == [3]
    assert shown(outcomes(report)) == [0, 1, 2, asyncio.CancelledError, asyncio.CancelledError, 5, 6]


def test_cancel_while_a_stop_iteration_is_raised() -> None:
    """The count that tells it from the end knows of the other iterator."""

    def process(i: int) -> int:
        if i == 2:
            job.cancel([(4, 5)])
            raise StopIteration
        return i

    job = Job.of_items(process, encode_items(range(6)), None, 0, 6, keep_values=True)
    assert shown(outcomes(job.run())) == [0, 1, RuntimeError, 3, asyncio.CancelledError, 5]


def test_cancel_at_any_moment() -> None:
    """However it falls: each element is run or cancelled, and only those that were asked for are cancelled."""
    with ThreadPoolExecutor(1) as executor:
        for round_ in range(60):
            job = job_of(raise_odd, [(2 * i,) for i in range(300)])
            future = executor.submit(job.run)
            while job.finished < round_ * 4 and not future.done():
                time.sleep(0)  # let the other thread run
            job.cancel([(50, 60), (200, 300)])
            report = future.result(LIMIT)
            results = shown(outcomes(report))
            assert len(results) == 300
            for i, result in enumerate(results):
                assert result == 2 * i or (result is asyncio.CancelledError and (50 <= i < 60 or i >= 200))
            assert set(reasons(report).values()) <= {CANCELLED}


# -------------------------------------------------------------------------------------------------------------- items


@pytest.mark.parametrize("as_singles", [True, False])
def test_d08_falsy_items_and_tuples(as_singles: bool) -> None:
    """process_item is called once for each item, whatever it is, and its values are dropped."""
    items: list[Any] = [0, "", None, False, (), (1, 2), [], {}]
    seen: list[Any] = []
    if as_singles:
        bodies = [encode_args((item,), None, seen.append) for item in items]
        job = Job.of_items(seen.append, b"".join(bodies), encode_lengths(bodies), 0, len(items))
    else:
        job = Job.of_items(seen.append, encode_items(items), None, 0, len(items))
    report = job.run()
    assert repr(seen) == repr(items)
    assert report[:3] == (b"", (), len(items))


def test_items_that_fail() -> None:
    """A consumer's error is its item's."""
    report = Job.of_items(raise_odd, encode_items(range(4)), None, 0, 4).run()
    assert [f.position for f in report.failures] == [1, 3]
    assert report.executed == 4
