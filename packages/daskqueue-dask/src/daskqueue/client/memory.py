"""What a client remembers of its own tasks: the keys it gave, and outcomes that their queue has lost.

The queues keep the results of *keep* tasks; a transient one loses them with its host. So what was collected is kept
here as well, as bytes, by the life of the queue that it came from, and read only when that life is over: while it
lives, the queue knows better (a task may have been requeued or forgotten there). A durable queue has no other life, and
nothing of it is kept here.

An explicit key is remembered while its task may come back, or is remembered: what has a queue is found by that.

Everything here runs on the client's event loop, but for `name` and `unname`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable

from daskqueue_core.batch import Run
from daskqueue_core.outcomes import End, KeptResults, Outcome

__all__ = ["Memory"]


class Memory:
    """Of one pool. `ttl` in nanoseconds counts from the end of a task; `keeps` False: outcomes are not kept here."""

    def __init__(self, *, ttl: int | None, max_bytes: int | None, keeps: bool = True) -> None:
        self._keeps = keeps
        self._kept = KeptResults(ttl=ttl, max_bytes=max_bytes)  # by life; its numbers are the client's of the tasks
        self._lives: list[str] = []
        self._naming = threading.Lock()
        self._keys: dict[int, str] = {}
        self._numbers: dict[str, list[int]] = {}

    # -- keys

    def name(self, number: int, key: str) -> None:
        """The client's task `number` has this explicit key. Called by any thread."""
        with self._naming:
            self._keys[number] = key
            self._numbers.setdefault(key, []).append(number)

    def key_of(self, number: int) -> str | None:
        """The explicit key of a task, if it has one."""
        return self._keys.get(number)

    def number_of(self, key: str) -> int | None:
        """The last task that this client submitted under `key`."""
        numbers = self._numbers.get(key)
        return numbers[-1] if numbers else None

    def unname(self, number: int) -> None:
        """Nobody asks here for the client's task `number` by an explicit key. Called by any thread."""
        with self._naming:
            key = self._keys.pop(number, None)
            if key is not None:
                numbers = self._numbers[key]
                numbers.remove(number)
                if not numbers:
                    del self._numbers[key]

    def _unname_all(self, tasks: Iterable[Run]) -> None:
        for lo, hi in tasks if self._keys else ():
            span = range(lo, hi)
            for number in span if len(span) < len(self._keys) else list(self._keys):
                if number in span:
                    self.unname(number)

    # -- outcomes

    def ended(self, life: str, outcome: Outcome, *, keeps: bool) -> None:
        """These tasks ended; `keeps`: so that they can be read again, by key. What was not put has no key to go by."""
        base = outcome.first + outcome.index
        tasks = tuple((base + lo, base + hi) for lo, hi in outcome.runs)
        if not (keeps and self._keeps) or outcome.end == End.DUPLICATE:
            self._unname_all(tasks)
            return
        if life not in self._lives:
            self._lives.append(life)
        now = time.monotonic_ns()
        self._kept.collected([self._kept.add(self._lives.index(life), outcome, tasks)], now)
        self._expire(now)

    def _expire(self, now: int) -> None:
        self._unname_all(self._kept.expire(now))

    def lost(self, living: Collection[str]) -> list[Outcome]:
        """Outcomes of lives that are over."""
        self._expire(time.monotonic_ns())
        over = {at for at, life in enumerate(self._lives) if life not in living}
        if not over:
            return []
        return [outcome for life, outcome in self._kept.read(0, 1 << 62)[1] if life in over]

    def find_lost(self, number: int, living: Collection[str]) -> tuple[Outcome, int] | None:
        """The outcome of a task in a life that is over, and the task's position in it."""
        for outcome in self.lost(living):
            at = number - outcome.first - outcome.index
            if any(lo <= at < hi for lo, hi in outcome.runs):
                return outcome, at
        return None

    def forget(self, numbers: Collection[int]) -> None:
        """Nobody asks for these any more."""
        for life, outcome in self._kept.read(0, 1 << 62)[1]:
            base = outcome.first + outcome.index
            for lo, hi in outcome.runs:
                for number in [number for number in numbers if base + lo <= number < base + hi]:
                    self._kept.forget(life, outcome.first, number - outcome.first, number - outcome.first + 1)
                    self.unname(number)
