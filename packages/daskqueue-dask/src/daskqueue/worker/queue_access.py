"""How a hosted queue is reached: here it is in memory, and an operation is one step of the event loop.

`QueueAccess` is the base of the queue actor. A subclass whose operations take time overrides all of it: `_call` and
`_do` return later then, and what the queue says at once is what was seen of it last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import ParamSpec, TypeVar

from daskqueue_core.queue import TransientQueue

__all__ = ["QueueAccess"]

P = ParamSpec("P")
T = TypeVar("T")


class QueueAccess:
    """A queue, and the ways to it."""

    queue: TransientQueue

    def _wake(self, room: bool = True) -> None:
        """Answer those who wait and can be answered. `room`: there may be some, which there was not."""
        raise NotImplementedError

    async def _call(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """An operation that makes no room. Who waits for anything else is woken by the caller, if need be."""
        return operation(*args, **kwargs)

    async def _do(self, operation: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """An operation, and what follows for those who wait."""
        value = operation(*args, **kwargs)
        self._wake()
        return value

    # -- what the queue says, at once

    def _ready(self) -> int:
        return self.queue.ready

    def _has_news(self, client: int) -> bool:
        return self.queue.has_outcomes(client)

    def _unfinished_of(self, kinds: Collection[int]) -> int:
        return self.queue.unfinished_of(kinds)

    def _counts(self) -> tuple[int, int]:
        """Messages ever put, and unfinished ones."""
        return self.queue.puts, self.queue.unfinished

    def _owners(self) -> Collection[str]:
        return self.queue.owners()
