"""The order in which ready messages are offered: lowest number first, so what came back goes to the front.

This is no record of what is ready: the bytes in `pages` are. It holds *hints* that may be too large, never too
small, so a mistake here costs time, and nothing of it is stored. A rebuilt ledger offers the same messages.

- `cursor`: everything at or above it may be ready. It passes what was leased or skipped, so below it lie only
- `returned`: a heap of runs below the cursor: given back by an owner, or skipped by a choosy consumer.

Invariant: each READY message is at or above the cursor or in a run of the heap, and no message at or above the
cursor was ever leased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.pages import Pages
from daskqueue_core.runs import clean
from daskqueue_core.states import ByteClass, MessageState

__all__ = ["Ready"]

_READY: Final = ByteClass([MessageState.READY])
_SLACK: Final = 64


class Ready:
    """Hints of what can be leased next from `pages`."""

    __slots__ = ("_pages", "_room", "cursor", "returned")

    def __init__(self, pages: Pages) -> None:
        self.cursor = 0
        self.returned: list[Run] = []
        self._pages = pages
        self._room = _SLACK  # the heap may grow to this length before it is cleaned

    def first(self, limit: int, committed: int) -> list[Run]:
        """The first `limit` ready messages below `committed`."""
        start, stop = self.cursor, self.cursor + limit
        if not self.returned and stop <= committed and self._pages.ready_until(start, stop) == stop:
            return [(start, stop)]  # the common case
        taken: list[Run] = []
        for start, stop in self.runs(limit, committed):
            stop = min(stop, start + limit)
            if taken and taken[-1][1] == start:
                taken[-1] = (taken[-1][0], stop)
            else:
                taken.append((start, stop))
            limit -= stop - start
            if limit == 0:
                break
        return taken

    def runs(self, most: int, committed: int) -> Iterator[Run]:
        """All ready runs below `committed`, ascending, found as they are asked for.

        A run longer than `most` comes in pieces, so that a few messages of a long queue cost little.
        """
        if self.returned:
            self._trim()
            yield from self._below(most, committed)
        fresh = self._fresh(committed, most)
        while fresh is not None:
            yield fresh
            fresh = self._pages.next_ready(fresh[1], committed, most)

    def _fresh(self, committed: int, most: int) -> Run | None:
        """The first run at or above the cursor; the cursor moves up to it."""
        run = self._pages.next_ready(self.cursor, committed, most)
        if run is not None:
            self.cursor = run[0]
        elif self.cursor < committed:
            self.cursor = committed
        return run

    def _below(self, most: int, committed: int) -> Iterator[Run]:
        """The ready runs below the cursor. Hints overlap; each message is offered once."""
        position = 0
        for start, stop in self._in_order():
            start, stop = max(start, position), min(stop, committed)
            while start < stop and (run := self._pages.next_ready(start, stop, most)) is not None:
                yield run
                start = run[1]
            position = max(position, stop)

    def _trim(self) -> None:
        """Drop from the top of the heap what is not ready any more."""
        heap = self.returned
        while heap:
            start, stop = heap[0]
            run = self._pages.next_ready(start, stop, 1)
            if run is None:
                heappop(heap)
            elif run[0] > start:
                heapreplace(heap, (run[0], stop))
            else:
                break

    def _in_order(self) -> Iterator[Run]:
        """The runs of the heap, ascending, without changing it: a decision may come to nothing."""
        heap = self.returned
        frontier = [(heap[0], 0)] if heap else []
        while frontier:
            run, at = heappop(frontier)
            yield run
            for child in (2 * at + 1, 2 * at + 2):
                if child < len(heap):
                    heappush(frontier, (heap[child], child))

    def leased(self, runs: Sequence[Run]) -> None:
        """These have been leased. What they skipped becomes a hint below the cursor."""
        for start, stop in sorted(runs) if len(runs) > 1 else runs:
            if stop > self.cursor:
                if start > self.cursor:
                    self.give(self._pages.select([(self.cursor, start)], _READY))
                self.cursor = stop

    def give(self, runs: Sequence[Run]) -> None:
        """These are ready and may lie below the cursor."""
        for run in runs:
            heappush(self.returned, run)
        if len(self.returned) > self._room:
            self._rebuild()

    def _rebuild(self) -> None:
        """Give and take in the middle of the heap leaves overlaps and leftovers: keep what is ready, once."""
        self.returned = self._pages.select(clean(self.returned), _READY)
        heapify(self.returned)
        self._room = 2 * len(self.returned) + _SLACK

    def validate(self) -> None:
        """AssertionError if a ready message is in no hint."""
        for at in range(1, len(self.returned)):
            assert self.returned[(at - 1) // 2] <= self.returned[at], "the heap of returned runs is out of order"
        hints = clean([*self.returned, (self.cursor, self._pages.next_seq)])
        for run in self._pages.select([(0, self._pages.next_seq)], _READY):
            assert any(start <= run[0] and run[1] <= stop for start, stop in hints), f"ready {run} is in no hint"
