"""The thread in which done-callbacks run: one of ours, never the client's event loop.

A callback may submit more work, wait, or block: the loop that brings outcomes goes on meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue

from daskqueue.utils import logger

__all__ = ["CallbackThread"]


class CallbackThread:
    """Runs callables one after the other; the thread starts with the first and ends by `close`."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def call(self, callback: Callable[[], None]) -> None:
        """Run `callback` soon."""
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="daskqueue-callbacks", daemon=True)
                    self._thread.start()
        self._queue.put(callback)

    def close(self) -> None:
        """End after what is queued."""
        if self._thread is not None:
            self._queue.put(None)

    def _run(self) -> None:
        while (callback := self._queue.get()) is not None:
            try:
                callback()
            except BaseException:
                logger.exception("a done-callback failed")
            del callback
