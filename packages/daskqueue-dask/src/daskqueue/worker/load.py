"""What a worker says at each of Dask's heartbeats, for whoever decides how many workers there are.

    {"queues": {uuid: (ready, delivered, scheduled, undelivered outcomes, waiting)},   # those that it hosts
     "consumers": [(pool, slots, how many run, seconds a message or None), ...]}       # those that it runs

It travels free with what Dask sends anyway. A heartbeat must not wait for a disk: of a queue that does not answer at
once, the last answer is said again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from distributed import Worker

from daskqueue_core.stats import QueueDepth

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["Load", "Tempo"]

ANSWER_S: Final = 0.1
HALF_LIFE_S: Final = 15.0


class Load:
    """Of one worker. `measure` is the metric."""

    def __init__(self, node: DaskQueueWorker) -> None:
        self._node = node
        self._asking: dict[str, asyncio.Future[QueueDepth]] = {}
        self._last: dict[str, QueueDepth] = {}

    async def measure(self, worker: Worker) -> dict[str, Any]:
        """See above."""
        actors = self._node.host.actors
        for uuid, actor in actors.items():
            if uuid not in self._asking:
                self._asking[uuid] = asyncio.ensure_future(actor.depth())
        if self._asking:
            await asyncio.wait(self._asking.values(), timeout=ANSWER_S)
        for uuid, asked in list(self._asking.items()):
            if asked.done():
                del self._asking[uuid]
                if not asked.cancelled() and asked.exception() is None:
                    self._last[uuid] = asked.result()
        self._last = {uuid: depth for uuid, depth in self._last.items() if uuid in actors}
        return {
            "queues": {uuid: tuple(depth) for uuid, depth in self._last.items()},
            "consumers": [consumers.load() for consumers in self._node.consumers.values()],
        }


class Tempo:
    """How long a message took lately. Times are seconds; what was seen `HALF_LIFE_S` ago counts half."""

    def __init__(self) -> None:
        self._count = self._seconds = self._at = 0.0

    def observe(self, count: int, seconds: float, now: float) -> None:
        """So many messages took so long."""
        weight = self._weight(now)
        self._count, self._seconds, self._at = weight * self._count + count, weight * self._seconds + seconds, now

    def per_message(self, running: Iterable[tuple[int, float]], now: float) -> float | None:
        """Seconds a message; None: nothing is known. What runs, and for how long, counts as if it ended now."""
        weight = self._weight(now)
        count, seconds = weight * self._count, weight * self._seconds
        for of_run, elapsed in running:
            count, seconds = count + of_run, seconds + elapsed
        return seconds / count if count else None

    def _weight(self, now: float) -> float:
        return float(0.5 ** ((now - self._at) / HALF_LIFE_S))
