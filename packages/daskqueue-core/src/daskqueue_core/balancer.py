"""Which queue a batch goes to, and which queue a consumer asks next.

Batches go round robin: a queue carries millions of messages a second, so an even spread is all there is to win.
Consumers ask the queues in turn, the one that gave work last comes last, so that none starves.
"""

from __future__ import annotations

__all__ = ["ConsumerBalancer", "RoundRobin"]


class RoundRobin:
    """Numbers 0 to `n` - 1 in turn."""

    def __init__(self, n: int, start: int = 0) -> None:
        self._n = n
        self._next = start % n

    def pick(self) -> int:
        """The next queue's index."""
        index = self._next
        self._next = (index + 1) % self._n
        return index


class ConsumerBalancer:
    """The order in which a consumer asks `n` queues for work.

    A queue that gave work goes to the end, so a consumer with several busy queues serves all of them.
    """

    def __init__(self, n: int, start: int = 0) -> None:
        self._order = [(start + i) % n for i in range(n)]

    def order(self) -> tuple[int, ...]:
        """Queue indexes, the one to ask first in front."""
        return tuple(self._order)

    def granted(self, index: int) -> None:
        """Queue `index` gave work: the others come first next time."""
        self._order.remove(index)
        self._order.append(index)
