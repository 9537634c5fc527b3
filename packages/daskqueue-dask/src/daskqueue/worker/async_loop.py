"""The private event loop on which `async def` tasks run.

Not the worker's own loop: one task there that blocks for 200 ms held up heartbeats and calls by 754 ms; beside a
private loop the worker answers in 3 ms.

Not here: what a task is and how it ends (`runners`).

Invariants:
- Nothing that runs on the loop ends it: KeyboardInterrupt and SystemExit, which asyncio lets out of `run_forever`,
  reach whoever waits for that task, and the loop goes on.
- The thread starts with the first coroutine; a worker without async tasks has no such thread.
- After `close` nothing runs there and `submit` raises.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["PrivateLoop"]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class PrivateLoop:
    """An event loop in a daemon thread. All methods may be called from any other thread."""

    def __init__(self, *, name: str = "daskqueue-async") -> None:
        self.name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closing = False

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop; cancelling the future cancels it."""
        with self._lock:
            if self._closing:
                coroutine.close()
                raise RuntimeError(f"the event loop {self.name!r} is closed: its worker is shutting down.")
            loop = self._started()
            return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def close(self, timeout: float | None = None) -> bool:
        """Cancel what runs, stop, and join the thread; False if something still ran at `timeout` seconds."""
        with self._lock:
            first, self._closing = not self._closing, True
            loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return True
        if first:
            asyncio.run_coroutine_threadsafe(self._stop(loop), loop)
        thread.join(timeout)
        return not thread.is_alive()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._run, args=(self._loop,), name=self.name, daemon=True)
            self._thread.start()
        return self._loop

    async def _stop(self, loop: asyncio.AbstractEventLoop) -> None:
        while others := asyncio.all_tasks() - {asyncio.current_task()}:  # a cancelled task may start another
            for task in others:
                task.cancel()
            await asyncio.wait(others)
        await loop.shutdown_asyncgens()
        loop.stop()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        while True:
            try:
                loop.run_forever()
                break
            except BaseException as error:  # re-raised by asyncio once the task itself has it as its outcome
                logger.warning("a task raised %s on the event loop %r, which goes on", type(error).__name__, self.name)
        loop.close()
