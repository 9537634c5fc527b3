"""When a join over several queues is done: two rounds that agree. Pure.

One round is not enough. Queues are asked one by one, and while the last one answers, a task that it runs may submit
into the first, which has answered already. So a round in which all are idle counts only if the next one finds the
same: the same lives of the queues, as many puts, as many ends. What a task submits is covered if its put was admitted
before the task ended.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["JoinRounds", "JoinState"]


class JoinState(NamedTuple):
    """What a queue says to a join."""

    uuid: str
    puts: int
    finished: int
    idle: bool


class JoinRounds:
    """Compares the rounds of one join."""

    def __init__(self) -> None:
        self._before: tuple[JoinState, ...] | None = None

    @property
    def patient(self) -> bool:
        """Whether a queue may take its time to answer, until it is idle: not in a round that only confirms."""
        return self._before is None

    def done(self, states: Sequence[JoinState]) -> bool:
        """A round is over: whether the join is."""
        now = tuple(states) if all(state.idle for state in states) else None
        agree = now is not None and now == self._before
        self._before = now
        return agree
