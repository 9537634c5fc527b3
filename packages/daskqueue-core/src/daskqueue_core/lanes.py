"""The order in which ready messages are offered: by priority, then the lowest number first.

A *lane* is a priority and a route (a small number: which consumers can run it). A message that came back goes to the
front of its lane, since its number is low. This is no record of what is ready: the bytes in `pages` are. A lane holds
*hints* that may be too large, never too small, so a mistake here costs time, and nothing of it is stored. A rebuilt
ledger offers the same messages.

- `cursor` to `end`: its messages there may be ready. The cursor passes what was leased or skipped;
- `returned`: a heap of runs below the cursor: given back, skipped by a choosy consumer, or due;
- `suspects`: pieces of suspects, in order. A lease takes one piece and nothing else (see `suspects`).

Invariant: each READY message is in a hint of its lane, and in one of its kind, plain or suspect.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace, merge
from operator import attrgetter
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.pages import Pages
from daskqueue_core.runs import clean, difference
from daskqueue_core.states import READY_SUSPECT, ByteClass, MessageState

__all__ = ["MAX_LANES", "Lane", "Lanes", "Offer"]

MAX_LANES: Final = 1 << 16
_READY: Final = ByteClass([MessageState.READY])
_SUSPECT: Final = ByteClass([READY_SUSPECT])
_SLACK: Final = 64

Offer = tuple[int, int, bool]
"""A run that can be leased now, and whether it is of suspects."""


class Lane:
    """Hints of what can be leased next of one priority and route."""

    __slots__ = (
        "_pages",
        "_room",
        "active",
        "cursor",
        "end",
        "id",
        "priority",
        "rank",
        "returned",
        "route",
        "suspects",
    )

    def __init__(self, pages: Pages, lane_id: int, priority: int, route: int) -> None:
        self.id = lane_id
        self.priority = priority
        self.route = route
        self.rank = (-priority, lane_id)
        self.active = False  # among those that are looked at
        self.cursor = self.end = 0
        self.returned: list[Run] = []
        self.suspects: list[Run] = []
        self._pages = pages
        self._room = _SLACK  # the heap may grow to this length before it is cleaned

    # -- looking

    def plain(self, most: int, committed: int) -> Iterator[Offer]:
        """All ready runs below `committed` but suspects, ascending, found as they are asked for.

        A run longer than `most` comes in pieces, so that a few messages of a long queue cost little.
        """
        if self.returned:
            self._trim()
            yield from self._below(most, committed)
        stop = min(self.end, committed)
        fresh = self.fresh(most, stop)
        while fresh is not None:
            yield fresh[0], fresh[1], False
            fresh = self._pages.next_ready(fresh[1], stop, most, self.id)

    def apart(self, most: int, committed: int) -> Iterator[Offer]:
        """The pieces of suspects, ascending."""
        pages, pieces = self._pages, self.suspects
        while pieces and pages.next_ready(*pieces[0], 1, self.id, READY_SUSPECT) is None:
            del pieces[0]
        for start, stop in pieces:
            stop = min(stop, committed)
            while start < stop and (run := pages.next_ready(start, stop, most, self.id, READY_SUSPECT)) is not None:
                yield run[0], run[1], True
                start = run[1]

    def fresh(self, most: int, stop: int) -> Run | None:
        """The first ready run from the cursor to `stop`; the cursor moves up to it."""
        run = self._pages.next_ready(self.cursor, stop, most, self.id)
        if run is not None:
            self.cursor = run[0]
        elif self.cursor < stop:
            self.cursor = stop
        return run

    def _below(self, most: int, committed: int) -> Iterator[Offer]:
        """The ready runs below the cursor. Hints overlap; each message is offered once."""
        position = 0
        for start, stop in self._in_order():
            start, stop = max(start, position), min(stop, committed)
            while start < stop and (run := self._pages.next_ready(start, stop, most, self.id)) is not None:
                yield run[0], run[1], False
                start = run[1]
            position = max(position, stop)

    def _trim(self) -> None:
        """Drop from the top of the heap what is not ready any more."""
        heap = self.returned
        while heap:
            start, stop = heap[0]
            run = self._pages.next_ready(start, stop, 1, self.id)
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

    # -- what happens

    def put(self, start: int, stop: int) -> None:
        """New messages, ready, with the highest numbers there are."""
        if self.cursor == self.end:
            self.cursor = start
        self.end = stop

    def leased(self, runs: Sequence[Run]) -> None:
        """These have been leased. What they skipped becomes a hint below the cursor."""
        for start, stop in sorted(runs) if len(runs) > 1 else runs:
            if stop > self.cursor:
                skipped = (self.cursor, start)
                self.cursor = stop
                if stop > self.end:
                    self.end = stop
                if skipped[0] < start:
                    ready = self._pages.select([skipped], _READY)
                    self.give(self._pages.by_lane(ready).get(self.id, ()))

    def give(self, runs: Sequence[Run]) -> None:
        """These are ready again, or at last."""
        for start, stop in runs:
            if start < self.cursor:
                heappush(self.returned, (start, min(stop, self.cursor)))
            if stop > self.end:
                if self.cursor == self.end:
                    self.cursor = max(start, self.cursor)
                self.end = stop
        if len(self.returned) > self._room:
            self._rebuild()

    def _rebuild(self) -> None:
        """Give and take in the middle of the heap leaves overlaps and leftovers: keep what is ready, once."""
        self.returned = self._pages.select(clean(self.returned), _READY)
        heapify(self.returned)
        self._room = 2 * len(self.returned) + _SLACK

    def suspect(self, pieces: Sequence[Run]) -> None:
        """These are ready, and each is to be leased alone. Older pieces they are parts of count no more."""
        self.suspects = sorted([*difference(self.suspects, clean(pieces)), *pieces])

    def tried(self, start: int, stop: int) -> None:
        """A piece, or the beginning of one, has been leased."""
        pieces = self.suspects
        if pieces and pieces[0] == (start, stop):  # the common case
            del pieces[0]
        else:
            self.suspects = difference(pieces, [(start, stop)])

    @property
    def first(self) -> int:
        """No ready message but suspects has a lower number."""
        return min(self.cursor, self.returned[0][0]) if self.returned else self.cursor

    @property
    def idle(self) -> bool:
        """Whether there is no hint."""
        return self.cursor >= self.end and not self.returned and not self.suspects


class Lanes:
    """All lanes of a queue; the ones that may have something, in the order they are served."""

    __slots__ = ("_free", "_ids", "_pages", "active", "by_id", "last")

    def __init__(self, pages: Pages) -> None:
        self.by_id: list[Lane] = []
        self.active: list[Lane] = []
        self._ids: dict[tuple[int, int], Lane] = {}
        self._free: list[int] = []  # numbers of lanes that are used no more
        self._pages = pages
        self.last = self.lane(0, 0)
        """The lane of the last put."""

    def lane(self, priority: int, route: int) -> Lane:
        """The lane of this priority and route."""
        lane = self._ids.get((priority, route))
        if lane is None:
            lane = self._make(priority, route)
        self.last = lane
        return lane

    def _make(self, priority: int, route: int) -> Lane:
        if not (-(1 << 15) <= priority < 1 << 15 and 0 <= route < 1 << 32):
            raise ValueError(f"priority={priority}, route={route}: a priority is from -32768 to 32767")
        if len(self.by_id) == MAX_LANES and not self._free:
            self._recycle()
            if not self._free:
                raise ValueError(
                    f"priority={priority}, route={route}: unfinished messages have {MAX_LANES} different priorities "
                    f"and routes already; use fewer priorities or tags"
                )
        if len(self.by_id) < MAX_LANES:
            lane = Lane(self._pages, len(self.by_id), priority, route)
            self.by_id.append(lane)
        else:
            lane_id = self._free.pop()
            lane = self.by_id[lane_id] = Lane(self._pages, lane_id, priority, route)
        self._ids[priority, route] = lane
        return lane

    def _recycle(self) -> None:
        """Forget the lanes of which no message is left."""
        used = self._pages.lanes_in_use()
        unused = [lane for lane in self.by_id if lane.id not in used]
        for lane in unused:
            del self._ids[lane.priority, lane.route]
        self._free = [lane.id for lane in unused]
        self.active = [lane for lane in self.active if lane.id in used]

    def activate(self, lane: Lane) -> None:
        """`lane` may have something."""
        lane.active = True
        insort(self.active, lane, key=_rank)

    def _rest(self) -> None:
        """Look no more at lanes that have nothing."""
        for lane in [lane for lane in self.active if lane.idle]:
            lane.active = False
            self.active.remove(lane)

    # -- looking

    def first(self, limit: int, committed: int, routes: Collection[int] | None, suspects: bool) -> list[Run]:
        """What a lease of `limit` messages takes: one piece of suspects, or all that comes before the next one."""
        active = self.active
        if len(active) == 1 and (routes is None or active[0].route in routes):
            lane = active[0]
            start = at = lane.cursor
            stop = start + limit
            if stop <= lane.end and stop <= committed and not lane.returned and not lane.suspects:
                while at < stop and (until := self._pages.ready_until(at, stop, lane.id)) > at:
                    at = until
                if at == stop:
                    return [(start, stop)]  # the common case
        taken: list[Run] = []
        for start, stop, suspect in self.offers(limit, committed, routes, suspects):
            if suspect:
                return taken if taken else [(start, min(stop, start + limit))]
            stop = min(stop, start + limit)
            if taken and taken[-1][1] == start:
                taken[-1] = (taken[-1][0], stop)
            else:
                taken.append((start, stop))
            limit -= stop - start
            if limit == 0:
                break
        return taken

    def offers(
        self, most: int, committed: int, routes: Collection[int] | None = None, suspects: bool = True
    ) -> Iterator[Offer]:
        """All that can be leased, in order, found as it is asked for."""
        active = self.active
        if len(active) > 1:
            self._rest()
        served = [lane for lane in active if routes is None or lane.route in routes]
        at = 0
        while at < len(served):
            priority = served[at].priority
            found: list[Iterator[Offer]] = []
            while at < len(served) and served[at].priority == priority:
                lane = served[at]
                found.append(lane.plain(most, committed))
                if suspects and lane.suspects:
                    found.append(lane.apart(most, committed))
                at += 1
            if len(found) == 1:
                yield from found[0]
            else:
                yield from merge(*found)

    # -- what happens

    def leased(self, runs: Sequence[Run]) -> None:
        """These have been leased."""
        by_id = self.by_id
        if len(by_id) == 1:
            by_id[0].leased(runs)
        else:
            for lane, mine in self._pages.by_lane(runs).items():
                by_id[lane].leased(mine)

    def tried(self, start: int, stop: int) -> None:
        """A run of suspects has been leased."""
        for lane, mine in self._pages.by_lane([(start, stop)]).items():
            for run in mine:
                self.by_id[lane].tried(*run)

    def give(self, runs: Sequence[Run]) -> None:
        """These are ready again, or at last."""
        for lane, mine in self._by_lane(runs):
            lane.give(mine)

    def suspect(self, pieces: Sequence[Run]) -> None:
        """Each of these pieces is ready and to be leased alone."""
        found: dict[int, list[Run]] = {}
        for piece in pieces:
            for lane_id, mine in self._pages.by_lane([piece]).items():
                found.setdefault(lane_id, []).extend(mine)
        for lane_id, mine in found.items():
            self._awake(lane_id).suspect(mine)

    def _by_lane(self, runs: Sequence[Run]) -> Iterator[tuple[Lane, Sequence[Run]]]:
        found = {0: runs} if len(self.by_id) == 1 else self._pages.by_lane(runs)
        for lane_id, mine in found.items():
            yield self._awake(lane_id), mine

    def _awake(self, lane_id: int) -> Lane:
        lane = self.by_id[lane_id]
        if not lane.active:
            self.activate(lane)
        return lane

    def validate(self) -> None:
        """AssertionError if a ready message is in no hint."""
        everything = [(0, self._pages.next_seq)]
        for kind in (_READY, _SUSPECT):
            for lane_id, runs in self._pages.by_lane(self._pages.select(everything, kind)).items():
                lane = self.by_id[lane_id]
                assert lane.active, f"lane {lane_id} has {runs} and is not looked at"
                hints = lane.suspects if kind is _SUSPECT else [*lane.returned, (lane.cursor, lane.end)]
                missing = difference(runs, clean(hints))
                assert not missing, f"lane {lane_id}: ready {missing} are in no hint"
        for lane in self.by_id:
            heap = lane.returned
            for at in range(1, len(heap)):
                assert heap[(at - 1) // 2] <= heap[at], "the heap of returned runs is out of order"
            assert lane.suspects == sorted(lane.suspects), "the pieces of suspects are out of order"
            assert all(stop <= lane.cursor for _, stop in heap), f"lane {lane.id}: returned runs past the cursor"
        order = [(-lane.priority, lane.id) for lane in self.active]
        assert order == sorted(order), f"the lanes are served in the order {order}"


_rank: Final = attrgetter("rank")
