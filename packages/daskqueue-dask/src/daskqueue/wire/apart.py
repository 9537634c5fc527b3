"""Work apart from the event loop, also when the interpreter is about to end.

A cluster of threads (`processes=False`) that nobody closed is closed by Dask at the end of the interpreter, when no
thread takes work any more: what has to be done then is done at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["apart", "is_short_of_threads", "threads_take_work"]

P = ParamSpec("P")
T = TypeVar("T")


async def apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`work(*args, **kwargs)` in a thread of the event loop's executor, or here if that has ended."""
    call = partial(work, *args, **kwargs)
    try:
        running = asyncio.get_running_loop().run_in_executor(None, call)
    except RuntimeError:  # it, or the interpreter, takes no more work
        return call()
    return await running


def threads_take_work() -> bool:
    """Whether they do, which says that the interpreter is not about to end."""
    try:
        asyncio.get_running_loop().run_in_executor(None, bool)
    except RuntimeError as error:
        return is_short_of_threads(error)
    return True


def is_short_of_threads(error: Exception) -> bool:
    """Whether the system gave an executor no more threads, for the moment. What it was given waits in its queue."""
    return isinstance(error, RuntimeError) and "start new thread" in str(error)
