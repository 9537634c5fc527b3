"""daskqueue.current: what a task can learn of itself, alone, in copies of its context, and among others."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from daskqueue.client import futures
from daskqueue.current import Task, current_task, running, task_key
from daskqueue.wire.calls import decode_values, encode_block, encode_items
from daskqueue.wire.control import Control, encode_control
from daskqueue.wire.functions import Style, encode_function
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.runners import Job

LIMIT = 30
CLIENT = 0xABC


@pytest.fixture
def private_loop() -> Iterator[PrivateLoop]:
    """For coroutines."""
    loop = PrivateLoop()
    yield loop
    assert loop.close(LIMIT)


def told() -> tuple[str, int]:
    """What the caller's task knows of itself."""
    task = current_task()
    return task.key, task.attempt


def plain(_: int) -> tuple[str, int]:
    """A task in a thread."""
    return told()


async def suspends(_: int) -> tuple[str, int]:
    """A task on the loop, which others interleave with."""
    await asyncio.sleep(0)
    return told()


async def asks_in_a_thread(_: int) -> tuple[str, int]:
    """A task that moves to a thread."""
    return await asyncio.to_thread(told)


async def asks_in_a_subtask(_: int) -> tuple[str, int]:
    """A task that starts others."""
    return (await asyncio.gather(suspends(0), suspends(0)))[1]


def asks_in_a_copy(_: int) -> tuple[str, int]:
    """A task that starts a thread with a copy of its context."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(contextvars.copy_context().run, told).result(LIMIT)


def asks_in_its_own_loop(_: int) -> tuple[str, int]:
    """A plain task that runs a loop itself."""
    return asyncio.run(suspends(0))


def gives_a_coroutine(i: int) -> Any:
    """A plain function around a coroutine."""
    return suspends(i)


ALL = [plain, suspends, asks_in_a_thread, asks_in_a_subtask, asks_in_a_copy, asks_in_its_own_loop, gives_a_coroutine]


def job_of(fn: Any, count: int, **options: Any) -> Job:
    """A job as the wire makes it."""
    shared = encode_function(fn, Style.COLUMN).shared
    return Job.of_calls(shared, encode_block(range(count), fn, Style.COLUMN), None, 0, count, **options)


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("fn", ALL)
def test_each_element_knows_its_own_key_and_attempt(private_loop: PrivateLoop, fn: Any, timeout: float | None) -> None:
    """In a thread, on the loop, in copies of the context, with and without a timeout."""
    job = job_of(
        fn, 4, private_loop=private_loop, client=CLIENT, first=7, attempts=b"\x00\x02\x00\x01",
        control=encode_control(Control(timeout)),
    )  # fmt: skip
    keys = [futures.task_key(CLIENT, number) for number in range(7, 11)]
    assert decode_values(job.run().values) == list(zip(keys, [1, 3, 1, 2]))
    with pytest.raises(RuntimeError, match="outside of a task"):
        current_task()


def test_interleaved_jobs_do_not_mix(private_loop: PrivateLoop) -> None:
    """Two jobs whose coroutines meet on the loop keep their own."""
    meeting: list[asyncio.Event] = []

    async def process(name: str) -> tuple[str, str]:
        before = current_task().key
        if not meeting:
            meeting.append(asyncio.Event())
            await meeting[0].wait()
        else:
            meeting[0].set()
            await asyncio.sleep(0)
        return before, current_task().key

    def items(name: str) -> Job:
        return Job.of_items(process, encode_items([name]), None, 0, 1, keep_values=True, keys=(name,))

    async def both() -> list[Any]:
        reports = await asyncio.gather(items("a").run_async(), items("b").run_async())
        return [decode_values(report.values) for report in reports]

    assert private_loop.submit(both()).result(LIMIT) == [[("a", "a")], [("b", "b")]]


def test_explicit_keys() -> None:
    """They replace the client's; without a client there is none."""
    assert decode_values(job_of(plain, 2, client=CLIENT, keys=("a", "b")).run().values) == [("a", 1), ("b", 1)]
    assert decode_values(job_of(plain, 1).run().values) == [("", 1)]


def deadline(_: int) -> float | None:
    """In a thread."""
    return current_task().deadline


async def deadline_async(_: int) -> float | None:
    """On the loop."""
    return current_task().deadline


@pytest.mark.parametrize("fn", [deadline, deadline_async])
def test_the_deadline_is_of_the_wall_clock(private_loop: PrivateLoop, fn: Any) -> None:
    """`timeout` from the element's start, None without one."""
    before = time.time()
    job = job_of(fn, 2, private_loop=private_loop, control=encode_control(Control(60.0)))
    first, second = decode_values(job.run().values)
    assert before + 59.9 < first <= second < time.time() + 60.1
    assert decode_values(job_of(fn, 1, private_loop=private_loop).run().values) == [None]


def test_cancelled_is_live() -> None:
    """A thread sees it as soon as it is asked for, on a Task it has had all along."""
    reached, asked = threading.Event(), threading.Event()

    def process(i: int) -> list[bool]:
        task = current_task()
        seen = [task.cancelled]
        reached.set()
        assert asked.wait(LIMIT)
        return [*seen, task.cancelled, current_task().cancelled]

    job = Job.of_items(process, encode_items(range(3)), None, 0, 3, keep_values=True)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(job.run)
        assert reached.wait(LIMIT)
        job.cancel([(0, 1)])
        asked.set()
        assert decode_values(future.result(LIMIT).values) == [[False, True, True], [False] * 3, [False] * 3]


def test_a_task_stays_the_same() -> None:
    """One that is kept does not turn into its successor."""
    kept: list[Task] = []

    def process(i: int) -> None:
        kept.append(current_task())

    Job.of_items(process, encode_items(range(2)), None, 0, 2, keys=("a", "b")).run()
    assert [task.key for task in kept] == ["a", "b"]
    assert repr(kept[0]) == "<Task a, attempt 1>"


def test_a_context_that_outlives_its_job() -> None:
    """What a task left behind is not in it any more, and keeps nothing of the job."""
    copies: list[contextvars.Context] = []
    job = Job.of_items(lambda _: copies.append(contextvars.copy_context()), encode_items([1]), None, 0, 1, keys=("a",))
    job.run()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="outside of a task"):
            copies[0].run(current_task)
        job = None  # type: ignore[assignment]


def test_running_ends() -> None:
    """Nested, the inner one counts; afterwards the outer one again."""
    outer, inner = Task("outer", 1, None), Task("inner", 2, 3.0)
    with running(lambda: outer):
        with running(lambda: inner):
            assert current_task() is inner
        assert current_task() is outer


def test_keys_are_the_clients() -> None:
    """Two processes make the same key of the same numbers."""
    assert task_key(CLIENT, 3) == "0000000000000abc-3"


def test_it_imports_no_dask() -> None:
    """A process without Dask may import what its tasks import."""
    code = "import sys, daskqueue.current; assert not {'dask', 'distributed'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
