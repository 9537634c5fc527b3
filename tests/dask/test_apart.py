"""daskqueue.wire.apart: beside the event loop, while that is possible."""

import asyncio
import threading

import pytest

from daskqueue.wire.apart import apart, threads_take_work


def divide(a: int, *, by: int) -> tuple[float, threading.Thread]:
    """Something that may fail, and where it was done."""
    return a / by, threading.current_thread()


def test_in_a_thread() -> None:
    """What it returns or raises is the caller's."""

    async def main() -> None:
        value, thread = await apart(divide, 3, by=2)
        assert value == 1.5
        assert thread is not threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            await apart(divide, 1, by=0)

    asyncio.run(main())


def test_here_when_threads_take_no_more_work() -> None:
    """As when the interpreter is about to end."""

    async def main() -> None:
        assert threads_take_work()
        await asyncio.get_running_loop().shutdown_default_executor()
        assert not threads_take_work()
        value, thread = await apart(divide, 3, by=2)
        assert value == 1.5
        assert thread is threading.current_thread()
        with pytest.raises(ZeroDivisionError):
            await apart(divide, 1, by=0)

    asyncio.run(main())
