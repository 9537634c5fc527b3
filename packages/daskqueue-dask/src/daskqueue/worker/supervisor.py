"""One coroutine after the other, each in an asyncio task of its own, any of which can be cancelled by its number.

Not here: what the coroutines are and what becomes of them (`runners`).

Invariants:
- What a coroutine does to its asyncio task (cancels it, sets a context variable) stays with it.
- `cancel` never reaches another coroutine than the one it names, however late it arrives on the loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, TypeVar

__all__ = ["Supervisor"]

T = TypeVar("T")


class Supervisor:
    """Made and used on the loop where the coroutines run; `cancel` may be called from any thread."""

    __slots__ = ("_loop", "_running")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._running: tuple[int, asyncio.Task[Any]] | None = None

    async def run(self, index: int, coroutine: Coroutine[Any, Any, T], if_cancelled: Callable[[], T]) -> T:
        """What `coroutine` returns; `if_cancelled()` if it was cancelled before its first step. It must not raise.

        Raises only when the task that awaits this is itself cancelled, after the inner one has ended.
        """
        ended: asyncio.Future[None] = self._loop.create_future()
        task = self._loop.create_task(coroutine)
        task.add_done_callback(partial(_wake, ended))
        self._running = index, task
        try:
            await ended
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait((task,))
            raise
        finally:
            self._running = None
        return if_cancelled() if task.cancelled() else task.result()

    def cancel(self, indexes: Collection[int]) -> None:
        """Cancel the coroutine that runs, if its number is one of these."""
        try:
            self._loop.call_soon_threadsafe(self._cancel, indexes)
        except RuntimeError:  # the loop is closed, and nothing runs there
            pass

    def _cancel(self, indexes: Collection[int]) -> None:
        if self._running is not None and self._running[0] in indexes:
            self._running[1].cancel()


def _wake(waiter: asyncio.Future[None], _: asyncio.Task[Any]) -> None:
    if not waiter.done():
        waiter.set_result(None)
