"""daskqueue.worker.async_loop: a loop that nothing ends but close."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from daskqueue.worker.async_loop import PrivateLoop

LIMIT = 30


@pytest.fixture
def loop() -> Iterator[PrivateLoop]:
    """A loop of the test's own."""
    loop = PrivateLoop(name="test-loop")
    yield loop
    loop.close(LIMIT)


async def where() -> str:
    """The thread a coroutine runs in."""
    return threading.current_thread().name


async def raises(error: BaseException) -> None:
    """A task that ends badly."""
    raise error


def test_starts_with_the_first_coroutine(loop: PrivateLoop) -> None:
    """No thread before there is work; then one daemon."""
    assert loop._thread is None
    assert loop.submit(where()).result(LIMIT) == "test-loop"
    assert loop._thread is not None
    assert loop._thread.daemon
    thread = loop._thread
    assert loop.submit(where()).result(LIMIT) == "test-loop"
    assert loop._thread is thread


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
def test_errors_reach_the_caller_and_the_loop_goes_on(loop: PrivateLoop, error: BaseException) -> None:
    """Also those that asyncio lets out of run_forever."""
    with pytest.raises(type(error)):
        loop.submit(raises(error)).result(LIMIT)
    assert loop.submit(where()).result(LIMIT) == "test-loop"


def test_a_task_nobody_awaits_does_not_end_the_loop(loop: PrivateLoop) -> None:
    """SystemExit in a task that user code started on the side."""

    async def starts() -> None:
        task = asyncio.ensure_future(raises(SystemExit(3)))
        await asyncio.wait([task])
        assert isinstance(task.exception(), SystemExit)

    loop.submit(starts()).result(LIMIT)
    assert loop.submit(where()).result(LIMIT) == "test-loop"


def test_cancel(loop: PrivateLoop) -> None:
    """Cancelling the future cancels the coroutine."""
    started, cancelled = threading.Event(), threading.Event()

    async def sleeper() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    future = loop.submit(sleeper())
    assert started.wait(LIMIT)
    assert future.cancel()
    assert cancelled.wait(LIMIT)


def test_close_cancels_what_runs_and_joins() -> None:
    """Nothing outlives close, not even what a cancelled task starts; a closed loop refuses work."""
    loop = PrivateLoop()
    started = threading.Event()

    left: list[asyncio.Task[None]] = []

    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            left.append(asyncio.create_task(asyncio.sleep(3600)))

    future = loop.submit(stubborn())
    assert started.wait(LIMIT)
    assert loop.close(LIMIT)
    assert loop.close(LIMIT), "closing twice is fine"
    assert loop._thread is not None
    assert not loop._thread.is_alive()
    with pytest.raises(CancelledError):
        future.result(LIMIT)
    assert left[0].cancelled()
    with pytest.raises(RuntimeError, match="closed"):
        loop.submit(where())


def test_close_before_use() -> None:
    """A loop that never ran closes at once."""
    assert PrivateLoop().close()


def test_close_gives_up_at_its_timeout() -> None:
    """A task that blocks the loop is reported, not waited for."""
    loop = PrivateLoop()
    started, go = threading.Event(), threading.Event()

    async def blocks() -> None:
        started.set()
        go.wait(LIMIT)

    loop.submit(blocks())
    assert started.wait(LIMIT)
    assert not loop.close(0.01)
    go.set()
    assert loop.close(LIMIT)
