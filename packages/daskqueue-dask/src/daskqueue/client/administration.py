"""What is done to tasks of a pool by key or by state, whoever submitted them: at all its queues at once.

An explicit key is looked up in the one queue that it names; an automatic one in all. Keys that no queue knows are left
out, never an error: the task may have ended and been forgotten meanwhile.

Everything here runs on the client's event loop.
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from daskqueue.client.naming import parse_key
from daskqueue.wire.link import QueueReplaced
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.names import TaskName
from daskqueue_core.states import MessageState

if TYPE_CHECKING:
    from daskqueue.client.pool_connection import PoolConnection

__all__ = ["Administration", "check_state"]

LETTERS: Final = 200  # in one answer
NAMES: Final = 10_000  # in one request

_PURGED: Final = (
    MessageState.FAILED,
    MessageState.READY,
    MessageState.SCHEDULED,
    MessageState.ACKED,
    MessageState.CANCELLED,
    MessageState.EXPIRED,
)


def check_state(state: Any) -> MessageState:
    """`state` as one that can be purged: a `MessageState` or its name."""
    names = [each.name.lower() for each in _PURGED]
    if isinstance(state, str) and state.upper() in MessageState.__members__:
        state = MessageState[state.upper()]
    if isinstance(state, MessageState) and state not in _PURGED:
        raise ValueError(f"messages that are {state.name.lower()} cannot be purged: cancel them")
    if not isinstance(state, MessageState):
        near = difflib.get_close_matches(str(state).lower(), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"purge takes one of {', '.join(map(repr, names))}, not {state!r}{hint}")
    return state


class Administration:
    """The operator's side of one pool."""

    def __init__(self, connection: PoolConnection) -> None:
        self._connection = connection

    async def cancel_named(self, keys: Sequence[str]) -> int:
        """Cancel tasks; how many have ended by it. Who waits for them hears of it before this returns."""
        ended = 0
        for index, some in await self._each("cancel_named", keys):
            if some:
                await self._connection.collector.collect(index)
            ended += len(some)
        return ended

    async def forget(self, keys: Sequence[str]) -> int:
        """Drop kept results, cancelled and expired tasks; how many."""
        mine = [self._connection.own_number(key) for key in keys]
        self._connection.memory.forget([number for number in mine if number is not None])
        return sum(count for _, count in await self._each("forget_tasks", keys))

    async def requeue(self, keys: Sequence[str] | None) -> int:
        """Run dead letters again (None: all), in a new life; how many."""
        if keys is None:
            return sum(await self._all("requeue", names=None))
        return sum(count for _, count in await self._each("requeue", keys))

    async def purge(self, state: MessageState) -> int:
        """Drop everything in `state`; how many."""
        return sum(await self._all("purge", state=state, names=None))

    async def dead_letters(self, limit: int | None) -> list[tuple[str, DeadLetter]]:
        """Messages that failed for good, with the life of their queue; `limit` of them at most."""
        out: list[tuple[str, DeadLetter]] = []
        for index in range(len(self._connection.route)):
            after = 0
            while limit is None or len(out) < limit:
                most = LETTERS if limit is None else min(LETTERS, limit - len(out))
                uuid = self._connection.route.places[index].uuid
                try:
                    some = await self._connection.call(index, "dead_letters", uuid=uuid, after=after, limit=most)
                except QueueReplaced:  # what it had is gone, and the next life counts anew
                    out, after = [entry for entry in out if entry[0] != uuid], 0
                    continue
                out += [(uuid, letter) for letter in some]
                if len(some) < most:
                    break
                after = some[-1].seq + 1
        return out

    async def _all(self, op: str, **arguments: Any) -> list[Any]:
        """Call an operation of every queue."""
        indices = range(len(self._connection.route))
        return await asyncio.gather(*(self._connection.call(index, op, **arguments) for index in indices))

    async def _each(self, op: str, keys: Sequence[str]) -> list[tuple[int, Any]]:
        """Call an operation with the names of tasks, where they may be; answers with the index of the queue."""
        calls = [
            (index, self._ask(index, op, names[at : at + NAMES], uuid))
            for (index, uuid), names in self._by_queue(keys).items()
            for at in range(0, len(names), NAMES)
        ]
        answers = await asyncio.gather(*(call for _, call in calls))
        return [(index, answer) for (index, _), answer in zip(calls, answers) if answer is not None]

    async def _ask(self, index: int, op: str, names: list[TaskName], uuid: str) -> Any:
        life = {"uuid": uuid} if uuid else {}
        try:
            return await self._connection.call(index, op, names=names, **life)
        except QueueReplaced:  # with what was named
            return None

    def _by_queue(self, keys: Sequence[str]) -> dict[tuple[int, str], list[TaskName]]:
        """Names by the queue, and by its life for those that mean something only there."""
        found: dict[tuple[int, str], list[TaskName]] = {}
        for key in keys:
            named = parse_key(key)
            if named.everywhere:
                for index in range(len(self._connection.route)):
                    found.setdefault((index, ""), []).append(named.name)
            else:
                at = self._connection.queue_of(key, named)
                if at is not None:
                    found.setdefault((at, named.uuid), []).append(named.name)
        return found
