"""What a consumer pool still has to tell the queues: outcomes that are due, and messages given back.

A message of a lease ends in one of three ways here: reported, given back, or its queue's life is over. What a queue
did not answer is said again after `AGAIN_S`, for ever: its lease lives as long as this worker. What ends after this
worker has left is not reported: our own closing may have ended it, and its leases go back. Event loop only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from daskqueue.wire.link import PoolGone, QueueReplaced, Route, SchedulerGone
from daskqueue_core.batch import Run
from daskqueue_core.outcomes import Report

if TYPE_CHECKING:
    from daskqueue.worker.plugin import DaskQueueWorker

__all__ = ["AGAIN_S", "GONE", "Reporter"]

logger = logging.getLogger(__name__)

AGAIN_S: Final = 1.0

GONE: Final = (QueueReplaced, PoolGone, SchedulerGone)
"""That life of a queue is over."""

Due = list[tuple[int, list[Report]]]
"""Reports by lease."""


class Reporter:
    """Reports and releases of one consumer pool."""

    def __init__(self, node: DaskQueueWorker, route: Route) -> None:
        self._node = node
        self._route = route
        self._due: dict[int, list[tuple[str, int, list[Report]]]] = {}  # queue index -> (uuid, lease, reports)

    def __bool__(self) -> bool:
        return bool(self._due)

    def queues(self) -> list[int]:
        """The queues that something is to be reported to."""
        return list(self._due)

    def add(self, index: int, uuid: str, lease: int, reports: list[Report]) -> None:
        """These are due."""
        if reports and not self._node.has_left:
            self._due.setdefault(index, []).append((uuid, lease, reports))

    def take(self, index: int, uuid: str) -> Due:
        """What is to be reported to this life of the queue; what belongs to an older one is dropped."""
        return [(lease, reports) for of, lease, reports in self._due.pop(index, ()) if of == uuid]

    def put_back(self, index: int, uuid: str, taken: Due) -> None:
        """These were not answered: they go with the next message. Reporting twice is harmless."""
        for lease, reports in taken:
            self.add(index, uuid, lease, reports)

    def settled(self, uuid: str, taken: Due) -> None:
        """The queue has answered for these."""
        book = self._node.book(uuid)
        for lease, reports in taken:
            book.settled(lease, sum(report.stop - report.start for report in reports))

    async def settle(self, index: int) -> None:
        """Report all that is due to a queue, without waiting for a lease request to ride on."""
        uuid = self._route.places[index].uuid
        taken = self.take(index, uuid)
        if taken and await self._tell(index, "settle", uuid, reports=taken):
            self.settled(uuid, taken)

    async def release(self, index: int, uuid: str, lease: int, runs: Sequence[Run]) -> None:
        """Give messages back that were not started."""
        if await self._tell(index, "release", uuid, lease=lease, runs=tuple(runs)):
            self._node.book(uuid).settled(lease, sum(stop - start for start, stop in runs))

    async def _tell(self, index: int, op: str, uuid: str, **arguments: Any) -> bool:
        """Tell a queue until it answers; False: that life of it is over."""
        while True:
            try:
                await self._node.link.call(self._route, index, op, uuid=uuid, **arguments)
            except GONE as gone:
                now = self._node.route_of(self._route)
                if isinstance(gone, PoolGone) and now is not self._route:
                    self._route = now  # a durable pool was opened again under another name
                    continue
                self._node.queue_lost(uuid, self._route)
                return False
            except Exception as error:  # unsaid, its messages would never end: this worker lives, and so do its leases
                self.warn(op, index, error)
                await asyncio.sleep(AGAIN_S)
            else:
                return True

    def warn(self, op: str, index: int, error: Exception) -> None:
        """A queue answered with an error."""
        logger.warning(
            "worker %s: pool %s: queue %s failed at %s and is asked again in %s s: %s",
            self._node.worker.address, self._route.pool, index, op, AGAIN_S, error,
        )  # fmt: skip

    def queue_lost(self, uuid: str) -> None:
        """That life of a queue is over: reports to it are for nobody."""
        for index, waiting in list(self._due.items()):
            still = [report for report in waiting if report[0] != uuid]
            if still:
                self._due[index] = still
            else:
                del self._due[index]
