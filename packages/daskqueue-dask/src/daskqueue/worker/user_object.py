"""The user's consumer object on one worker: loaded, set up, torn down, and the one thread where that happens.

Its class, its `setup` and `teardown`, and the pickling of values are user code, which may take long or wait for Dask
itself: never on the event loop, and not on Dask's "offload" thread, which moves everybody's data.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable
from typing import TypeVar

from distributed import Worker
from distributed.threadpoolexecutor import ThreadPoolExecutor

from daskqueue.consumers import ConsumerBaseClass
from daskqueue.wire.compat import task_context

__all__ = ["UserObject"]

logger = logging.getLogger(__name__)

T = TypeVar("T")


class UserObject:
    """One object of a consumer class. `consumer` is there after `set_up`."""

    def __init__(self, worker: Worker, pickled_class: bytes, id: str) -> None:
        self.consumer: ConsumerBaseClass | None = None
        self.kinds: tuple[int, ...] = ()
        self.name = "a class that cannot be loaded"
        self._worker = worker
        self._pickled_class = pickled_class
        self._id = id
        self._thread: ThreadPoolExecutor | None = None

    async def set_up(self) -> None:
        """Load the class, make its object and call its `setup`; raises what that raises."""
        self.consumer = await self.run(self._set_up)

    def _set_up(self) -> ConsumerBaseClass:
        consumer_class = pickle.loads(self._pickled_class)
        self.name = consumer_class.__name__
        consumer: ConsumerBaseClass = consumer_class()
        self.kinds = tuple(int(kind) for kind in consumer.kinds)
        consumer.setup()
        return consumer

    async def tear_down(self) -> None:
        """Call its `teardown`, if it was set up, and end the thread. Does not raise: there is nobody to tell."""
        try:
            if self.consumer is not None:
                await self.run(self.consumer.teardown)
        except Exception:
            logger.exception("worker %s: %s.teardown() failed", self._worker.address, self.name)
        finally:
            if self._thread is not None:
                self._thread.shutdown(wait=False)

    async def run(self, call: Callable[[], T]) -> T:
        """`call` in the thread, where `get_worker` and `get_client` work."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"daskqueue-user-{self._id[:8]}")

        def in_context() -> T:
            try:
                with task_context(self._worker, f"daskqueue-{self.name}"):
                    return call()
            except (SystemExit, KeyboardInterrupt) as error:  # asyncio would let these end the worker
                raise RuntimeError(f"it raised {error!r}") from error

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_context)
