"""Pages to be looked at: which messages are what, and in which lane. `pages` has what changes them, and the invariants.

Everything here answers with runs, and its cost follows pages and runs, never messages.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.states import ALL_BYTES, ByteClass, MessageState

__all__ = ["GONE", "READY", "Page", "PageTable"]

GONE: Final = int(MessageState.GONE)
READY: Final = int(MessageState.READY)

_RUN_OF: Final = {byte: ByteClass([byte]).runs.match for byte in ALL_BYTES}


class Page:
    """Consecutive messages: `states` has a byte for each, or is None and all are in `state`."""

    __slots__ = ("attempts", "count", "lane", "lanes", "live", "state", "states")

    def __init__(self, state: int = READY, lane: int = 0) -> None:
        self.state = state
        self.states: bytearray | None = None
        self.count = 0
        self.live = 0
        self.lane = lane
        self.lanes: array[int] | None = None  # one for each message, if they differ
        self.attempts: bytearray | None = None  # as long as a full page, however short this one is


class PageTable:
    """The bytes of all messages. `size` is the length of a page, a power of two."""

    __slots__ = ("_fill", "_mask", "_pages", "_shift", "counts", "next_seq", "size", "skipped")

    def __init__(self, size: int) -> None:
        if size < 2 or size & (size - 1):
            raise ValueError(f"page_size={size}: must be a power of two and at least 2")
        self.size = size
        self.next_seq = 0
        self.skipped = 0  # numbers that no message has
        self.counts = [0] * 256
        self._mask = size - 1
        self._shift = size.bit_length() - 1
        self._pages: dict[int, Page] = {}
        self._fill = {byte: bytes([byte]) * size for byte in ALL_BYTES}  # slices of these are compared with and copied

    # -- looking

    def byte(self, seq: int) -> int:
        """The byte of one message that was put."""
        page = self._pages.get(seq >> self._shift)
        if page is None:
            return GONE
        return page.state if page.states is None else page.states[seq & self._mask]

    @property
    def gone(self) -> int:
        """How many messages are GONE."""
        return self.next_seq - sum(self.counts)

    def select(self, runs: Sequence[Run], wanted: ByteClass) -> list[Run]:
        """Those of `runs` whose byte is one of `wanted` (not GONE), in order; neighbours joined."""
        members, find = wanted.members, wanted.runs.finditer
        size, shift, fill, pages = self.size, self._shift, self._fill, self._pages
        found: list[Run] = []
        for start, stop in runs:
            while start < stop:
                base = start & ~self._mask
                edge = min(base + size, stop)
                page = pages.get(start >> shift)
                if page is not None:
                    edge = min(edge, base + page.count)
                    lo, hi = start - base, edge - base
                    states = page.states
                    if states is None:
                        if page.state in members and lo < hi:
                            add_run(found, start, edge)
                    elif lo < hi:
                        first = states[lo]
                        if first in members and states.startswith(fill[first][: hi - lo], lo):
                            add_run(found, start, edge)
                        else:
                            for match in find(states, lo, hi):
                                add_run(found, base + match.start(), base + match.end())
                start = base + size
        return found

    def select_gone(self) -> list[Run]:
        """All messages that are GONE."""
        gone = ByteClass([GONE])
        found: list[Run] = []
        for index in range((self.next_seq + self._mask) >> self._shift):
            start, stop = index << self._shift, min((index + 1) << self._shift, self.next_seq)
            present = [(start, stop)] if index not in self._pages else self.select([(start, stop)], gone)
            for run in present:
                add_run(found, *run)
        return found

    def uniform(self, start: int, stop: int) -> int:
        """The byte of a run that lies in one page and one state; -1 of any other."""
        page = self._pages.get(start >> self._shift)
        lo = start & self._mask
        n = stop - start
        if page is None or n <= 0 or lo + n > page.count:
            return -1
        states = page.states
        if states is None:
            return page.state
        byte = states[lo]
        return byte if n == 1 or states.startswith(self._fill[byte][:n], lo) else -1

    def is_ready(self, seq: int, lane: int) -> bool:
        """Whether a message that was put is READY, in a page of `lane` alone; False says nothing."""
        page = self._pages.get(seq >> self._shift)
        if page is None or page.lane != lane or page.lanes is not None:
            return False
        states = page.states
        return (page.state if states is None else states[seq & self._mask]) == READY

    def next_ready(self, start: int, stop: int, most: int, lane: int = 0, byte: int = READY) -> Run | None:
        """The first run of messages of `lane` that are `byte` in `start` to `stop`, at most `most` long."""
        shift, pages = self._shift, self._pages
        while start < stop:
            page = pages.get(start >> shift)
            base = start & ~self._mask
            if page is not None and (page.lanes is not None or page.lane == lane):
                states = page.states
                if states is not None:
                    at = states.find(byte, start - base, stop - base)
                elif page.state == byte and start - base < page.count:
                    at = start - base
                else:
                    at = -1
                if at >= 0 and page.lanes is not None:
                    at = _find_in_lane(page, at, min(stop - base, page.count), lane, byte)
                if at >= 0:
                    start = base + at
                    break
            start = base + self.size
        else:
            return None
        stop = min(stop, start + most)
        end = start
        while end < stop:
            until = self.ready_until(end, stop, lane, byte)
            if until == end:
                break
            end = until
        return start, end

    def ready_until(self, start: int, stop: int, lane: int = 0, byte: int = READY) -> int:
        """Where the messages of `lane` that are `byte` and begin at `start` end: `stop` or the page at the latest."""
        page = self._pages.get(start >> self._shift)
        if page is None:
            return start
        lo = start & self._mask
        base = start - lo
        hi = stop - base
        if hi > page.count:
            hi = page.count
        if page.lanes is not None:
            hi = _lane_until(page.lanes, lo, hi, lane)
        elif page.lane != lane:
            return start
        states = page.states
        if states is None:
            return base + max(hi, lo) if page.state == byte else start
        if lo >= hi or states[lo] != byte:
            return start
        if hi - lo == 1 or states.startswith(self._fill[byte][: hi - lo], lo):
            return base + hi
        return base + _RUN_OF[byte](states, lo, hi).end()  # type: ignore[union-attr]

    def by_lane(self, runs: Sequence[Run]) -> dict[int, list[Run]]:
        """`runs` by the lane they are in, in order; neighbours joined."""
        lanes: dict[int, list[Run]] = {}
        for start, stop in runs:
            while start < stop:
                base = start & ~self._mask
                page = self._pages.get(start >> self._shift)
                edge = min(base + self.size, stop)
                if page is not None and page.lanes is None:
                    add_run(lanes.setdefault(page.lane, []), start, edge)
                elif page is not None:
                    lo, column = start - base, page.lanes
                    while lo < edge - base:
                        assert column is not None
                        hi = _lane_until(column, lo, edge - base, column[lo])
                        add_run(lanes.setdefault(column[lo], []), base + lo, base + hi)
                        lo = hi
                start = edge
        return lanes

    def lanes_in_use(self) -> set[int]:
        """The lanes of all messages that are not GONE, perhaps others."""
        used: set[int] = set()
        for page in self._pages.values():
            if page.lanes is None:
                used.add(page.lane)
            else:
                used.update(page.lanes)
        return used

    def __iter__(self) -> Iterator[tuple[int, Page]]:
        return iter(self._pages.items())


def add_run(found: list[Run], start: int, stop: int) -> None:
    """Append a run, joined to the one before if they touch."""
    if found and found[-1][1] == start:
        found[-1] = (found[-1][0], stop)
    else:
        found.append((start, stop))


def _find_in_lane(page: Page, at: int, stop: int, lane: int, byte: int) -> int:
    """The first message of `lane` that is `byte`, from `at` on; -1 if there is none. `page` mixes lanes."""
    lanes, states = page.lanes, page.states
    assert lanes is not None
    while True:
        try:
            at = lanes.index(lane, at, stop)
        except ValueError:
            return -1
        if states is None or states[at] == byte:
            return at
        at = states.find(byte, at + 1, stop)
        if at < 0:
            return -1


def _lane_until(lanes: array[int], lo: int, hi: int, lane: int) -> int:
    """Where the messages of `lane` that begin at `lo` end."""
    while lo < hi and lanes[lo] == lane:
        lo += 1
    return lo
