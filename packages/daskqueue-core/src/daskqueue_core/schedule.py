"""When messages fall due: runs by time, for messages that wait for theirs and for those that expire.

Twenty bytes a run, so that a million delayed messages with distinct times cost 20 MB: runs are gathered unsorted in
three small arrays; full, these are sorted and become a *chunk*, and the chunks are kept in a heap by their earliest
time. What falls due together comes out sorted by number and joined. Runs are hints: whether a message still waits is
in `pages`, and `prune` drops those that do not.

Invariant: `first` is not later than any run's time.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.runs import clean

__all__ = ["NEVER", "Schedule", "ScheduleColumns"]

NEVER: Final = 1 << 63
"""Later than any time."""

_CHUNK: Final = 4096
_SLACK: Final = 4 * _CHUNK
_LONGEST: Final = (1 << 32) - 1

ScheduleColumns = tuple[bytes, bytes, bytes, bytes]
"""Times (u64), first numbers (u64), counts (u32) of the runs, and how many of them are in each chunk (u32)."""


class _Chunk:
    """Runs in order of time; those before `head` have fallen due."""

    __slots__ = ("counts", "head", "starts", "times")

    def __init__(self, times: array[int], starts: array[int], counts: array[int]) -> None:
        self.times = times
        self.starts = starts
        self.counts = counts
        self.head = 0

    def runs(self) -> Iterator[tuple[int, int, int]]:
        """`(time, start, stop)` of what has not fallen due."""
        for time, start, count in zip(self.times[self.head :], self.starts[self.head :], self.counts[self.head :]):
            yield time, start, start + count


def _empty() -> _Chunk:
    return _Chunk(array("Q"), array("Q"), array("I"))


class Schedule:
    """Runs of messages, each with a time."""

    __slots__ = ("_ascending", "_chunks", "_next_id", "_room", "_size", "_young", "_young_first", "first")

    def __init__(self) -> None:
        self.first = NEVER
        """The earliest time; `NEVER` if there is none."""
        self._young = _empty()
        self._young_first = NEVER
        self._ascending = True  # whether the young ones happen to be in order
        self._chunks: list[tuple[int, int, _Chunk]] = []  # heap of (earliest time, id, chunk)
        self._next_id = 0
        self._size = 0
        self._room = _SLACK  # the runs may grow to this number before they are pruned

    def __len__(self) -> int:
        """Runs, those among them that wait no more."""
        return self._size

    @property
    def is_crowded(self) -> bool:
        """Whether it is time to `prune`."""
        return self._size > self._room

    # -- adding

    def add(self, time: int, start: int, stop: int) -> None:
        """A run."""
        if time < 0:
            time = 0
        young = self._young
        if time < self._young_first:
            self._young_first = time
            if time < self.first:
                self.first = time
        if young.times:
            last = young.times[-1]
            if last == time and young.starts[-1] + young.counts[-1] == start:
                count = young.counts[-1] + stop - start
                if count <= _LONGEST:
                    young.counts[-1] = count
                    return
            if time < last:
                self._ascending = False
        while stop - start > _LONGEST:
            self._append(time, start, _LONGEST)
            start += _LONGEST
        self._append(time, start, stop - start)

    def _append(self, time: int, start: int, count: int) -> None:
        young = self._young
        young.times.append(time)
        young.starts.append(start)
        young.counts.append(count)
        self._size += 1
        if len(young.times) >= _CHUNK:
            self._freeze()

    def add_each(self, times: array[int], start: int) -> None:
        """Consecutive messages, each with a time of its own."""
        count = len(times)
        if times.count(times[0]) == count:
            self.add(times[0], start, start + count)
            return
        young = self._young
        young.times.extend(times)
        young.starts.extend(array("Q", range(start, start + count)))
        young.counts.extend(array("I", [1]) * count)
        self._young_first = min(self._young_first, min(times))
        self.first = min(self.first, self._young_first)
        self._ascending = False
        self._size += count
        if len(young.times) >= _CHUNK:
            self._freeze()

    def _freeze(self) -> None:
        """The young ones become a chunk."""
        young = self._young
        if not self._ascending:
            order = sorted(range(len(young.times)), key=young.times.__getitem__)
            young.times = array("Q", [young.times[at] for at in order])
            young.starts = array("Q", [young.starts[at] for at in order])
            young.counts = array("I", [young.counts[at] for at in order])
        self._push(young)
        self._young, self._young_first, self._ascending = _empty(), NEVER, True

    def _push(self, chunk: _Chunk) -> None:
        heappush(self._chunks, (chunk.times[chunk.head], self._next_id, chunk))
        self._next_id += 1

    # -- taking

    def due(self, now: int, limit: int | None = None) -> list[Run]:
        """Take the runs whose time has come (with a limit: about so many of them, the earliest first); joined."""
        if now < self.first:
            return []
        if self._young_first <= now:
            self._freeze()
        chunks = self._chunks
        starts, counts = array("Q"), array("I")
        while chunks and chunks[0][0] <= now and (limit is None or len(starts) < limit):
            _, id_, chunk = chunks[0]
            lo = chunk.head
            hi = bisect_right(chunk.times, now, lo)
            if limit is not None:
                hi = min(hi, lo + limit - len(starts))
            starts += chunk.starts[lo:hi]
            counts += chunk.counts[lo:hi]
            chunk.head = hi
            if hi == len(chunk.times):
                heappop(chunks)
            else:
                heapreplace(chunks, (chunk.times[hi], id_, chunk))
        self._size -= len(starts)
        self.first = min(self._young_first, chunks[0][0]) if chunks else self._young_first
        return _joined(starts, counts)

    def remove(self, runs: Sequence[Run]) -> None:
        """These do not wait any more, and may wait again for another time. Rare: looks at everything."""
        self._rebuild(lambda start, stop: _without(start, stop, runs))

    def prune(self, find: Callable[[Run], Sequence[Run]]) -> None:
        """Drop the runs of which `find` finds nothing."""
        self._rebuild(lambda start, stop: [(start, stop)] if find((start, stop)) else [])
        self._room = 2 * self._size + _SLACK

    def _rebuild(self, rest: Callable[[int, int], Sequence[Run]]) -> None:
        old = [*self._chunks, (0, 0, self._young)]
        self._young, self._young_first, self._ascending = _empty(), NEVER, True
        self._chunks, self._size, self.first = [], 0, NEVER
        for _, _, chunk in old:
            for time, start, stop in chunk.runs():
                for run in rest(start, stop):
                    self.add(time, *run)

    # -- snapshots

    def columns(self) -> ScheduleColumns:
        """Everything, as columns."""
        if self._young.times:
            self._freeze()
        chunks = [chunk for _, _, chunk in sorted(self._chunks, key=lambda entry: entry[:2])]
        sizes = array("I", [len(chunk.times) - chunk.head for chunk in chunks])
        return (
            b"".join([chunk.times[chunk.head :].tobytes() for chunk in chunks]),
            b"".join([chunk.starts[chunk.head :].tobytes() for chunk in chunks]),
            b"".join([chunk.counts[chunk.head :].tobytes() for chunk in chunks]),
            sizes.tobytes(),
        )

    def load(self, columns: Sequence[bytes]) -> None:
        """What `columns` returned."""
        times, starts, counts, sizes = array("Q"), array("Q"), array("I"), array("I")
        for column, data in zip((times, starts, counts, sizes), columns):
            column.frombytes(data)
        at = 0
        for size in sizes:
            self._push(_Chunk(times[at : at + size], starts[at : at + size], counts[at : at + size]))
            at += size
        self._size = len(times)
        self._room = max(self._room, 2 * self._size)
        heapify(self._chunks)
        self.first = self._chunks[0][0] if self._chunks else NEVER

    def runs(self) -> list[tuple[int, int, int]]:
        """`(time, start, stop)` of everything, in no order. For checks."""
        return [run for _, _, chunk in [*self._chunks, (0, 0, self._young)] for run in chunk.runs()]

    def validate(self) -> None:
        """AssertionError if it contradicts itself."""
        runs = self.runs()
        assert len(runs) == self._size, f"{len(runs)} runs, counted {self._size}"
        assert self.first <= min([time for time, _, _ in runs], default=NEVER), "a run is earlier than the first"
        for time, _, chunk in self._chunks:
            times = list(chunk.times)
            assert times == sorted(times), "a chunk is out of order"
            assert time == times[chunk.head], "a chunk is filed under a wrong time"


def _joined(starts: array[int], counts: array[int]) -> list[Run]:
    """Runs by number, neighbours joined."""
    if len(starts) > 1 and counts.count(1) == len(counts):
        return clean_singles(sorted(starts))
    return clean([(start, start + count) for start, count in zip(starts, counts)])


def clean_singles(seqs: Sequence[int]) -> list[Run]:
    """Ascending numbers as runs."""
    out: list[Run] = []
    start = stop = seqs[0]
    for seq in seqs:
        if seq > stop:
            out.append((start, stop))
            start = seq
        stop = seq + 1
    out.append((start, stop))
    return out


def _without(start: int, stop: int, runs: Sequence[Run]) -> list[Run]:
    out: list[Run] = []
    for lo, hi in runs:
        if hi <= start or lo >= stop:
            continue
        if start < lo:
            out.append((start, lo))
        start = hi
    if start < stop:
        out.append((start, stop))
    return out
