"""What a client remembers of its own tasks: the keys it gave, and outcomes that their queue has lost.

The queues keep the results of *keep* tasks; a transient one loses them with its host. So what was collected is kept
here as well, as bytes, by the life of the queue that it came from, and read only when that life is over: while it
lives, the queue knows better (a task may have been requeued or forgotten there).

Everything here runs on the client's event loop, but for `name`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection

from daskqueue_core.outcomes import End, KeptResults, Outcome

__all__ = ["Memory"]


class Memory:
    """Of one pool. `ttl` in nanoseconds counts from the end of a task."""

    def __init__(self, *, ttl: int | None, max_bytes: int | None) -> None:
        self._ttl = ttl
        self._kept = KeptResults(ttl=ttl, max_bytes=max_bytes)
        self._lives: list[str] = []
        self._keys: dict[int, str] = {}
        self._numbers: dict[str, list[int]] = {}
        self._ended: OrderedDict[int, int] = OrderedDict()  # of those with keys, when

    # -- keys

    def name(self, number: int, key: str) -> None:
        """The client's task `number` has this explicit key. Called by any thread."""
        self._keys[number] = key
        self._numbers.setdefault(key, []).append(number)

    def key_of(self, number: int) -> str | None:
        """The explicit key of a task, if it has one."""
        return self._keys.get(number)

    def number_of(self, key: str) -> int | None:
        """The last task that this client submitted under `key`."""
        numbers = self._numbers.get(key)
        return numbers[-1] if numbers else None

    def _drop_key(self, number: int) -> None:
        key = self._keys.pop(number, None)
        if key is not None:
            numbers = self._numbers[key]
            numbers.remove(number)
            if not numbers:
                del self._numbers[key]

    # -- outcomes

    def ended(self, life: str, outcome: Outcome, *, keeps: bool) -> None:
        """These tasks ended; `keeps`: so that they can be read again, by key. What was not put has no key to go by."""
        now = time.monotonic_ns()
        keeps = keeps and outcome.end != End.DUPLICATE
        if keeps:
            if life not in self._lives:
                self._lives.append(life)
            number = self._kept.add(self._lives.index(life), outcome, outcome.runs)
            self._kept.collected([number], now)
            self._kept.expire(now)
        if self._keys:
            self._age_keys(outcome, now, keeps=keeps)

    def _age_keys(self, outcome: Outcome, now: int, *, keeps: bool) -> None:
        base = outcome.first + outcome.index
        for lo, hi in outcome.runs:
            span = range(base + lo, base + hi)
            for number in span if len(span) < len(self._keys) else list(self._keys):
                if number not in span or number not in self._keys:
                    continue
                if keeps:
                    self._ended.setdefault(number, now)
                else:
                    self._drop_key(number)
        while self._ended and self._ttl is not None:
            number, since = next(iter(self._ended.items()))
            if since + self._ttl > now:
                break
            del self._ended[number]
            self._drop_key(number)

    def lost(self, living: Collection[str]) -> list[Outcome]:
        """Outcomes of lives that are over."""
        self._kept.expire(time.monotonic_ns())
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
