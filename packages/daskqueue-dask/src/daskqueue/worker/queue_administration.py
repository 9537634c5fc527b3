"""The operator's side of a hosted queue: what answers at once, and wakes whoever it concerns."""

from __future__ import annotations

from collections.abc import Sequence

from daskqueue.worker.queue_access import QueueAccess
from daskqueue_core.batch import Run
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Outcome
from daskqueue_core.protocols import REPLY_BYTES
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueDepth, QueueStats

__all__ = ["QueueAdministration"]


class QueueAdministration(QueueAccess):
    """Base of `QueueActor`; its methods do as those of `daskqueue_core.protocols.Admin`."""

    async def cancel(self, runs: Sequence[Run]) -> int:
        """End what is not delivered; ask the owners of what is."""
        return await self._do(self.queue.cancel, runs)

    async def cancel_tasks(self, client: int, tasks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Cancel a client's tasks by its own names; returns those that have ended by it."""
        return await self._do(self.queue.cancel_tasks, client, tasks)

    async def cancel_named(self, names: Sequence[TaskName]) -> list[TaskName]:
        """Cancel tasks by name; returns those that have ended by it."""
        return await self._do(self.queue.cancel_named, names)

    async def forget(self, runs: Sequence[Run]) -> int:
        """Drop kept successes, and what was cancelled or expired."""
        return await self._do(self.queue.forget, runs)

    async def forget_tasks(self, names: Sequence[TaskName]) -> int:
        """The same, by name."""
        return await self._do(self.queue.forget_tasks, names)

    async def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]:
        """Messages that failed for good, from number `after` on."""
        return await self._call(self.queue.dead_letters, after, limit)

    async def requeue(self, names: Sequence[TaskName] | None = None) -> int:
        """Give dead letters (default: all) a new life."""
        return await self._do(self.queue.requeue, names)

    async def purge(self, state: MessageState, names: Sequence[TaskName] | None = None) -> int:
        """Remove messages in `state`, those `names` or all."""
        return await self._do(self.queue.purge, state, names)

    async def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]:
        """`(client, outcome)` of kept results; the number to go on with, -1 at the end."""
        return await self._call(self.queue.read_kept, after, limit_bytes)

    async def stats(self) -> QueueStats:
        """Counts."""
        return await self._call(self.queue.stats)

    async def depth(self) -> QueueDepth:
        """What there is to do."""
        return await self._call(self.queue.depth)
