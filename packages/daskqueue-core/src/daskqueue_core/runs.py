"""Arithmetic of runs: sets of numbers as `(start, stop)` pairs.

*Clean* means ascending, disjoint, not adjacent, none empty. What comes from outside is cleaned once; what is
clean stays so. Costs follow the number of runs, never of messages.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

from daskqueue_core.batch import Run

__all__ = ["clean", "difference", "disjoint", "intersection", "positions", "total"]


def total(runs: Iterable[Run]) -> int:
    """How many numbers, of disjoint runs."""
    return sum([stop - start for start, stop in runs])


def clean(runs: Iterable[Run]) -> list[Run]:
    """`runs` in any order, overlapping, empty: ascending and merged."""
    out: list[Run] = []
    last = None
    for start, stop in sorted(runs):
        if start >= stop:
            continue
        if last is not None and start <= last:
            if stop > last:
                out[-1] = (out[-1][0], stop)
                last = stop
        else:
            out.append((start, stop))
            last = stop
    return out


def disjoint(runs: Sequence[Run]) -> bool:
    """Whether no number occurs twice and no run is empty."""
    last = None
    for start, stop in sorted(runs):
        if start >= stop or (last is not None and start < last):
            return False
        last = stop
    return True


def intersection(left: Sequence[Run], right: Sequence[Run]) -> list[Run]:
    """What is in both; both clean."""
    out: list[Run] = []
    if len(left) > len(right):
        left, right = right, left
    for start, stop in left:  # the shorter one: a lease of thousands of runs is often asked about a single message
        at = bisect_right(right, (start, stop)) - 1
        if at < 0 or right[at][1] <= start:
            at += 1
        while at < len(right) and right[at][0] < stop:
            out.append((max(start, right[at][0]), min(stop, right[at][1])))
            at += 1
    return out


def difference(left: Sequence[Run], right: Sequence[Run]) -> list[Run]:
    """What is in `left` and not in `right`; both clean."""
    out: list[Run] = []
    at = 0
    for start, stop in left:
        while at < len(right) and right[at][1] <= start:
            at += 1
        scan = at
        while scan < len(right) and right[scan][0] < stop:
            if start < right[scan][0]:
                out.append((start, right[scan][0]))
            start = right[scan][1]
            scan += 1
        if start < stop:
            out.append((start, stop))
    return out


def positions(runs: Iterable[Run], first: int, end: int) -> list[Run]:
    """The numbers at the positions `first` to `end` of disjoint `runs`, in their order."""
    out: list[Run] = []
    at = 0
    for start, stop in runs:
        if at >= end:
            break
        lo, hi = max(first - at, 0), min(end - at, stop - start)
        if lo < hi:
            out.append((start + lo, start + hi))
        at += stop - start
    return out
