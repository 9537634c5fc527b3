"""Asks what `health` compares, and logs what is wrong: once for each cause, by the client that waits in vain.

Nothing is asked while outcomes come, or while none is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from daskqueue.client.health import PoolHealth, diagnose
from daskqueue.utils import logger
from daskqueue.wire.link import PoolGone, SchedulerGone
from daskqueue_core.errors import DaskQueueError, QueueUnavailable
from daskqueue_core.stats import QueueStats

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["Checkup"]

ANSWER_S: Final = 5.0  # what a queue may take to say how it is


class Checkup:
    """Looks after one pool, on the client's event loop."""

    def __init__(self, connection: PoolConnection) -> None:
        self._connection = connection
        self._logged: set[tuple[object, ...]] = set()
        self._looking = False

    async def health(self) -> PoolHealth:
        """How the pool is."""
        connection = self._connection
        connection.check()
        indices = range(len(connection.route))
        said = dict(zip(indices, await asyncio.gather(*map(self._stats_or_why, indices))))
        served = await connection.served()  # afterwards: it says why there is no answer
        problems = diagnose(connection.name, said, served, time.time_ns())
        for problem in problems:
            if problem.cause not in self._logged:
                self._logged.add(problem.cause)
                logger.warning("%s", problem.text)
        queues = tuple(stats for stats in said.values() if isinstance(stats, QueueStats))
        return PoolHealth(
            ok=not problems,
            problems=tuple(problem.text for problem in problems),
            queues=queues,
            workers=served.workers,
            consumers=sum(consumers.running for consumers in served.consumers),
            ready=sum(queue.ready for queue in queues),
            scheduled=sum(queue.scheduled for queue in queues),
            delivered=sum(queue.delivered for queue in queues),
            dead_letters=sum(queue.failed for queue in queues),
            leaving=tuple(sorted({address for consumers in served.consumers for address in consumers.left})),
        )

    async def _stats_or_why(self, index: int) -> QueueStats | str:
        connection = self._connection
        asked = connection.session.link.call(connection.route, index, "stats", patience=ANSWER_S)
        try:
            stats: QueueStats = await asyncio.wait_for(asked, 2 * ANSWER_S)
        except QueueUnavailable as error:
            return error.why
        except asyncio.TimeoutError:
            return f"no answer from {connection.route.places[index].address} within {2 * ANSWER_S:g} s"
        except (PoolGone, SchedulerGone) as error:
            connection.over(error)
            connection.check()
            raise
        return stats

    def waited_in_vain(self) -> None:
        """Outcomes are awaited, and none came for as long as a poll waits: say what is wrong, if something is."""
        if not self._looking and self._connection.error is None:
            self._looking = True
            self._connection.session.spawn(self._look())

    async def _look(self) -> None:
        try:
            with contextlib.suppress(OSError, DaskQueueError):  # whoever meets these on the streams deals with them
                await self.health()
        finally:
            self._looking = False
