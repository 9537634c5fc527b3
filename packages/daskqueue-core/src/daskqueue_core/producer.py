"""A client's side of one queue: numbers, window, what to put again, what it has heard. Pure: no I/O, no clock.

A `ProducerStream` takes batches in order and hands out puts; the caller sends them, as often as it takes, and says
what came back. Every batch stays here until its outcomes are in, so that the unfinished ones can be put again when
the queue is lost with its host. An outcome is given out once: what is not pending is dropped, whichever life of the
queue it comes from.

Invariants: at most `window` puts are unanswered; puts are numbered 0, 1, ... under one producer id, and a new life of
the queue gets a new id; a pending batch is unfinished in at least one message.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

from daskqueue_core.batch import SUSPECT_RESENT, Batch, Keep, Run
from daskqueue_core.outcomes import Cursor, Outcome, Outcomes
from daskqueue_core.runs import clean, difference, intersection

__all__ = ["MAX_RESENT", "Delivery", "LostBatch", "ProducerStream", "PutRequest"]

WINDOW: Final = 16
PUT_BATCHES: Final = 64
PUT_BYTES: Final = 2 << 20
MAX_RESENT: Final = 10
_PENDING_RUN: Final = re.compile(b"\x00+")


class PutRequest(NamedTuple):
    """One put: idempotent, admitted in number order."""

    producer: int
    number: int
    batches: tuple[Batch, ...]


class Delivery(NamedTuple):
    """News for whoever submitted: these messages of an outcome ended, seen for the first time."""

    sink: Any
    shift: int  # the sink's index of the outcome's first message
    runs: tuple[Run, ...]  # relative to the outcome's index
    outcome: Outcome


class LostBatch(NamedTuple):
    """Messages that were lost with their queue and are not put again."""

    sink: Any
    shift: int  # the sink's index of the batch's first message
    runs: tuple[Run, ...]  # relative to the batch
    resent: int  # how often they had been put again
    cancelled: bool = False  # a cancel was asked for: this is how they end


class _Pending:
    """A batch without all its outcomes."""

    __slots__ = ("batch", "cancelled", "done", "left", "shift", "sink")

    def __init__(self, batch: Batch, sink: Any, shift: int) -> None:
        self.batch = batch
        self.sink = sink
        self.shift = shift
        self.left = batch.count
        self.done: bytearray | None = None  # a byte a message, once they do not all end together
        self.cancelled: list[Run] = []  # a cancel of these was asked for: they are not put again

    def finish(self, lo: int, hi: int) -> list[Run]:
        """Messages `lo` to `hi` ended; returns those for which it is news."""
        if self.done is None:
            if (lo, hi) == (0, self.batch.count):
                self.left = 0
                return [(lo, hi)]
            self.done = bytearray(self.batch.count)
        fresh = [match.span() for match in _PENDING_RUN.finditer(self.done, lo, hi)]
        for start, stop in fresh:
            self.done[start:stop] = b"\x01" * (stop - start)
            self.left -= stop - start
        return fresh

    def unfinished(self) -> list[Run]:
        if self.done is None:
            return [(0, self.batch.count)]
        return [match.span() for match in _PENDING_RUN.finditer(self.done)]


class ProducerStream:
    """What one client has in one queue.

    `new_id` returns 64 random bits for each life of the queue. `window` is the number of puts that may be unanswered,
    `maxsize` the number of messages that fit into the queue (0: no limit), so at most in one put.
    """

    def __init__(self, uuid: str, new_id: Callable[[], int], *, window: int = WINDOW, maxsize: int = 0) -> None:
        self.uuid = uuid
        self.cursor: Cursor | None = None
        self._new_id = new_id
        self._window = window
        self._maxsize = maxsize
        self._producer = new_id()
        self._number = 0
        self._offered: deque[Batch] = deque()
        self._unanswered: dict[int, PutRequest] = {}
        self._pending: dict[int, _Pending] = {}  # by the batch's first number, in order of submission
        self._inner: dict[int, int] = {}  # of pending batches with keys: the first number, by each of the others
        self.items_accepted = 0  # items nobody reports back: lost with their queue

    # -- what goes out

    @property
    def unaccepted_bytes(self) -> int:
        """Bytes of bodies offered and not accepted yet."""
        return sum(len(batch.body) for batch in self._unaccepted())

    @property
    def unaccepted(self) -> int:
        """Messages offered and not accepted yet."""
        return sum(batch.count for batch in self._unaccepted())

    def _unaccepted(self) -> Iterator[Batch]:
        for put in self._unanswered.values():
            yield from put.batches
        yield from self._offered

    @property
    def in_flight(self) -> int:
        """Puts without an answer."""
        return len(self._unanswered)

    @property
    def under_way(self) -> set[int]:
        """First numbers of the batches in puts without an answer: whether they are in the queue is not known."""
        return {batch.first for put in self._unanswered.values() for batch in put.batches if batch.keep != Keep.NONE}

    @property
    def idle(self) -> bool:
        """Whether everything offered was accepted."""
        return not self._offered and not self._unanswered

    def is_alone(self, put: PutRequest) -> bool:
        """Whether nothing is awaited but the answer to `put` and the outcomes of its one batch."""
        if len(self._pending) != 1 or len(self._unanswered) != 1 or len(put.batches) != 1:
            return False
        return put.batches[0].keep != Keep.NONE

    @property
    def pending(self) -> int:
        """Batches without all their outcomes."""
        return len(self._pending)

    @property
    def awaited(self) -> int:
        """Messages that the queue has accepted, and whose outcomes have not come."""
        unsure = {batch.first for batch in self._unaccepted()}
        return sum(pending.left for first, pending in self._pending.items() if first not in unsure)

    def offer(self, batch: Batch, sink: Any = None, shift: int = 0) -> None:
        """Take a batch to be put, after those offered before. `sink` comes back with its outcomes.

        `shift` is the sink's index of the batch's first message.
        """
        self._offered.append(batch)
        if batch.keep != Keep.NONE:
            self._expect(_Pending(batch, sink, shift))

    def _expect(self, pending: _Pending) -> None:
        """Where a key is in use, a queue takes the rest of a batch as batches of their own, and says so of them."""
        self._pending[pending.batch.first] = pending
        self._find_inside(pending.batch)

    def _expect_no_more(self, first: int) -> _Pending | None:
        pending = self._pending.pop(first, None)
        if pending is not None:
            self._find_no_more(pending.batch)
        return pending

    def _find_inside(self, batch: Batch) -> None:
        if batch.keys:
            self._inner.update(dict.fromkeys(range(batch.first + 1, batch.first + batch.count), batch.first))

    def _find_no_more(self, batch: Batch) -> None:
        if batch.keys:
            for number in range(batch.first + 1, batch.first + batch.count):
                self._inner.pop(number, None)

    def next_put(self) -> PutRequest | None:
        """The next put to send, if the window has room. Repeat it, as it is, until it is answered.

        The first under an id goes alone: a later one that overtook it would meet a queue that does not know the
        producer, which means evicted, and all would be put again under another id, to the side of the first.
        A put ends where its options change (`PutOptions`).
        """
        if not self._offered or len(self._unanswered) >= self._window or 0 in self._unanswered:
            return None
        batches: list[Batch] = []
        options = self._offered[0].put_options
        nbytes = count = 0
        while self._offered and len(batches) < PUT_BATCHES and nbytes < PUT_BYTES:
            count += self._offered[0].count
            if batches and ((self._maxsize and count > self._maxsize) or self._offered[0].put_options != options):
                break
            batch = self._offered.popleft()
            nbytes += batch.nbytes
            batches.append(batch)
        put = PutRequest(self._producer, self._number, tuple(batches))
        self._unanswered[self._number] = put
        self._number += 1
        return put

    def awaits(self, put: PutRequest) -> bool:
        """Whether `put` is unanswered. False: what it brings was put otherwise, or refused, or lost."""
        return put.producer == self._producer and put.number in self._unanswered

    def is_first(self, put: PutRequest) -> bool:
        """Whether nothing is unanswered that was put before `put`: what the queue says of it is about itself.

        A queue refuses a put also because one before it was, which may still be tried again.
        """
        return self.awaits(put) and put.number == min(self._unanswered)

    def accepted(self, put: PutRequest) -> bool:
        """`put` was admitted. False: it belongs to a life of the queue that is over."""
        if put.producer != self._producer or self._unanswered.pop(put.number, None) is None:
            return False
        self.items_accepted += sum(batch.count for batch in put.batches if batch.keep == Keep.NONE)
        return True

    def unknown(self, put: PutRequest) -> bool:
        """The queue does not know this producer any more (evicted): everything unanswered gets a new id.

        Only what was never seen accepted is put again, in order. False: the put belongs to an older id.
        """
        if not self.awaits(put):
            return False
        again = [batch for number in sorted(self._unanswered) for batch in self._unanswered[number].batches]
        self._fresh_id()
        self._offer_first(again)
        return True

    def refused(self, put: PutRequest) -> list[LostBatch]:
        """The queue is full and `put` is not to wait. Returns what that refuses; what came after it is put again.

        Its number stays free; what is under way after it would wait for that for ever, so all get a new id. What came
        before it may have been admitted under the old one: ValueError if that is not known (`is_first`).
        """
        if not self.awaits(put):
            return []
        if not self.is_first(put):
            before = min(self._unanswered)
            raise ValueError(
                f"put {put.number} into queue {self.uuid} cannot be refused before put {before} is answered"
            )
        del self._unanswered[put.number]
        later = [batch for number in sorted(self._unanswered) for batch in self._unanswered[number].batches]
        lost = [self._drop(batch) for batch in put.batches]
        self._fresh_id()
        self._offer_first(later)
        return lost

    def take_back(self, first: int, lo: int, hi: int) -> LostBatch | None:
        """Messages `lo` to `hi` of the batch `first` are not to be put. None: it was sent, perhaps.

        Their neighbours stay where they are in the order.
        """
        named = (at for at, batch in enumerate(self._offered) if batch.first == first and batch.keep != Keep.NONE)
        at = next(named, None)
        if at is None or first not in self._pending:
            return None
        batch = self._offered[at]
        sink, shift = self._pending[first].sink, self._pending[first].shift
        unfinished = self._pending[first].unfinished()
        parts = {}
        for start, stop in [*_within(unfinished, 0, lo), *_within(unfinished, hi, batch.count)]:
            part = batch.cut(start, stop)
            parts[part.first] = _Pending(part, sink, shift + start)
        pending: dict[int, _Pending] = {}
        for number, other in self._pending.items():
            pending.update(parts if number == first else {number: other})
        self._pending = pending
        self._find_no_more(batch)
        for entry in parts.values():
            self._find_inside(entry.batch)
        del self._offered[at]
        for place, entry in enumerate(parts.values(), at):
            self._offered.insert(place, entry.batch)
        return LostBatch(sink, shift, tuple(_within(unfinished, lo, hi)), batch.resent)

    def take_back_all(self, sink: Any) -> list[LostBatch]:
        """Nothing of a sink (None: of any) is to be put; returns what was not sent yet."""
        lost: list[LostBatch] = []
        kept: deque[Batch] = deque()
        for batch in self._offered:
            pending = self._pending.get(batch.first) if batch.keep != Keep.NONE else None
            if pending is not None and (sink is None or pending.sink is sink):
                lost.append(self._drop(batch))
            else:
                kept.append(batch)
        self._offered = kept
        return lost

    def _drop(self, batch: Batch) -> LostBatch:
        pending = self._expect_no_more(batch.first) if batch.keep != Keep.NONE else None
        if pending is None:
            return LostBatch(None, 0, ((0, batch.count),), batch.resent)
        return LostBatch(pending.sink, pending.shift, tuple(pending.unfinished()), batch.resent)

    # -- what comes back

    def receive(self, answer: Outcomes) -> list[Delivery]:
        """Outcomes arrived. Returns what is news, and moves the cursor, which acknowledges them with the next poll.

        Answers may overtake each other: in one epoch the cursor never goes back.
        """
        if self.cursor is None or self.cursor[0] != answer.cursor[0] or self.cursor[1] < answer.cursor[1]:
            self.cursor = answer.cursor
        return self.absorb(answer.outcomes)

    def absorb(self, outcomes: Iterable[Outcome]) -> list[Delivery]:
        """Outcomes known otherwise than by a poll. Returns what is news."""
        news: list[Delivery] = []
        for outcome in outcomes:
            first = self._inner.get(outcome.first, outcome.first)
            pending = self._pending.get(first)
            if pending is None:
                continue
            index = outcome.first - first + outcome.index
            if not outcome.accepted:
                fresh = pending.finish(index, index + outcome.count)
            else:
                fresh = [run for lo, hi in outcome.accepted for run in pending.finish(index + lo, index + hi)]
            if pending.left == 0:
                self._expect_no_more(first)
            if fresh:
                runs = tuple((lo - index, hi - index) for lo, hi in fresh)
                news.append(Delivery(pending.sink, pending.shift + index, runs, outcome))
        return news

    def ask_cancel(self, first: int, lo: int, hi: int) -> None:
        """A cancel of messages `lo` to `hi` of the batch `first` is asked for: they are not put again after a loss."""
        pending = self._pending.get(first)
        if pending is not None:
            pending.cancelled.append((lo, min(hi, pending.batch.count)))

    def locate(self, number: int) -> tuple[int, int] | None:
        """The pending batch of the client's task `number`, and its index in it; None if it has ended."""
        for first, pending in self._pending.items():
            if first <= number < first + pending.batch.count:
                return first, number - first
        return None

    def pending_of(self, sink: Any) -> list[tuple[int, int]]:
        """The pending batches of a sink (None: of all), as `(first number, how many messages)`."""
        return [
            (first, pending.batch.count)
            for first, pending in self._pending.items()
            if sink is None or pending.sink is sink
        ]

    # -- losses

    def queue_lost(self, uuid: str, *, resubmit: bool) -> list[LostBatch]:
        """The queue is gone; `uuid` is its new life. Offers again what is unfinished, in order.

        What is a suspect by now is tried from the front, so the host died of what comes first: that goes to the end,
        and the others run before it. With `resubmit` false, only what cannot have been admitted is put again. Returns
        what is lost for good, and what a cancel was asked of.
        Items in unanswered puts are put again, accepted ones are gone: `items_accepted` says how many there were.
        """
        self.uuid = uuid
        never_sent = {batch.first for batch in self._offered if batch.keep != Keep.NONE}
        items = [
            batch
            for number in sorted(self._unanswered)
            for batch in self._unanswered[number].batches
            if batch.keep == Keep.NONE
        ]
        later = list(self._offered)
        self._offered.clear()
        self._fresh_id()
        self.cursor = None
        lost: list[LostBatch] = []
        again: list[Batch] = items
        before, self._pending = self._pending, {}  # filled again in the same order: it is that of submission
        self._inner.clear()
        for first, pending in before.items():
            if first in never_sent:
                self._expect(pending)
                continue
            batch, runs = pending.batch, pending.unfinished()
            if not resubmit or batch.resent >= MAX_RESENT:
                lost.append(LostBatch(pending.sink, pending.shift, tuple(runs), batch.resent))
                continue
            cancelled = intersection(runs, clean(pending.cancelled))
            if cancelled:
                lost.append(LostBatch(pending.sink, pending.shift, tuple(cancelled), batch.resent, True))
            for lo, hi in difference(runs, cancelled):
                part = batch.cut(lo, hi)._replace(resent=batch.resent + 1)
                self._expect(_Pending(part, pending.sink, pending.shift + lo))
                again.append(part)
        tried = next((batch for batch in again if batch.resent > SUSPECT_RESENT), None)
        if tried is not None:
            again.remove(tried)
            again.append(tried)
            self._pending[tried.first] = self._pending.pop(tried.first)
        self._offer_first([*again, *later])
        return lost

    def abandon(self) -> list[LostBatch]:
        """The pool is over: nothing more will be put or heard. Returns everything unfinished."""
        lost = [
            LostBatch(pending.sink, pending.shift, tuple(pending.unfinished()), pending.batch.resent)
            for pending in self._pending.values()
        ]
        self._pending.clear()
        self._inner.clear()
        self._offered.clear()
        self._unanswered.clear()
        return lost

    def _fresh_id(self) -> None:
        self._producer = self._new_id()
        self._number = 0
        self._unanswered.clear()

    def _offer_first(self, batches: Sequence[Batch]) -> None:
        self._offered.extendleft(reversed(batches))


def _within(runs: Sequence[Run], lo: int, hi: int) -> list[Run]:
    """What of `runs` lies in `lo` to `hi`."""
    return [(max(start, lo), min(stop, hi)) for start, stop in runs if start < hi and lo < stop]
