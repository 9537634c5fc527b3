"""Outcomes: how messages ended, and who must still hear of it.

An `Outcome` covers messages of one batch that ended together. It is addressed as the client counts (the batch's
`first` and an index in it), never by queue number, so that it means the same before and after a queue was lost.
An `Outbox` holds what one client has not acknowledged yet; `KeptResults` what any client may still read by key.
Payloads are opaque: values are one pickle per run, errors one blob per failed message, made by the consumer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from daskqueue_core.batch import Buffer, Run
from daskqueue_core.runs import difference

__all__ = ["Cursor", "End", "ErrorBlob", "KeptResults", "Outbox", "Outcome", "Outcomes", "Report"]

ErrorBlob = tuple[int, bytes, str]
"""Index in its outcome or report, pickled exception, short text for tools that never unpickle."""

Cursor = tuple[str, int]
"""A queue's uuid and epoch in one word, and the number of the last outcome a client has."""


class End(IntEnum):
    """How the messages of an outcome ended."""

    RUN = 0  # they ran: a value each, or an error
    CANCELLED = 1
    CRASHED = 2  # early ack, and the owner was lost: not run again


class Report(NamedTuple):
    """What a consumer says of the messages `start` to `stop` of a lease: all have run."""

    start: int
    stop: int
    values: Buffer = b""  # one pickle of stop - start values, None where there is an error
    errors: tuple[ErrorBlob, ...] = ()


class Outcome(NamedTuple):
    """How messages `index` to `index + count` of the batch that begins with the client's number `first` ended."""

    first: int
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    count: int  # type: ignore[assignment]
    accepted: tuple[Run, ...] = ()  # relative to `index`; empty: all of them
    values: Buffer = b""
    errors: tuple[ErrorBlob, ...] = ()
    end: int = End.RUN

    @property
    def nbytes(self) -> int:
        """Bytes it holds on to."""
        return 64 + len(self.values) + sum(len(blob) + len(text) for _, blob, text in self.errors)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The messages it speaks of, relative to `index`."""
        return self.accepted or ((0, self.count),)


class Outcomes(NamedTuple):
    """The answer to a poll."""

    cursor: Cursor  # hand it to the next poll: acknowledges these
    outcomes: tuple[Outcome, ...]


class Outbox:
    """Outcomes for one client, in order, until its next poll acknowledges them.

    Under another epoch than `epoch` a cursor acknowledges nothing: the outcomes are sent again from the start, and
    the client drops what is not pending.
    """

    def __init__(self, epoch: str, now: int) -> None:
        self.nbytes = 0
        self.read_at = now
        """When its client polled last, or when it began."""
        self._epoch = epoch
        self._items: deque[tuple[Outcome, int | None]] = deque()  # with the kept number, to be marked collected
        self._number = 0  # of the last outcome acknowledged

    def __len__(self) -> int:
        return len(self._items)

    def add(self, outcome: Outcome, kept: int | None = None) -> None:
        """Append an outcome; `kept` names its place in `KeptResults`."""
        self._items.append((outcome, kept))
        self.nbytes += outcome.nbytes

    def acknowledge(self, cursor: Cursor | None) -> list[int]:
        """Drop what `cursor` covers. Returns the kept outcomes that were collected by this."""
        collected: list[int] = []
        if cursor is None or cursor[0] != self._epoch:
            return collected
        while self._number < cursor[1] and self._items:
            self._number += 1
            outcome, kept = self._items.popleft()
            self.nbytes -= outcome.nbytes
            if kept is not None:
                collected.append(kept)
        return collected

    def kept(self) -> list[int]:
        """The kept outcomes that were not acknowledged."""
        return [kept for _, kept in self._items if kept is not None]

    def read(self, limit_bytes: int) -> Outcomes:
        """Outcomes of about `limit_bytes`, one at least if there is one."""
        out: list[Outcome] = []
        for outcome, _ in self._items:
            out.append(outcome)
            limit_bytes -= outcome.nbytes
            if limit_bytes <= 0:
                break
        return Outcomes((self._epoch, self._number + len(out)), tuple(out))


class _Kept(NamedTuple):
    client: int
    outcome: Outcome
    runs: tuple[Run, ...]  # queue numbers that succeeded, to be forgotten in the ledger
    nbytes: int


class KeptResults:
    """Outcomes of *keep* messages, until collected and `ttl` (nanoseconds) is over, or `max_bytes` are exceeded.

    Beyond `max_bytes` the oldest collected go first, then what a client that is gone left behind. What a client that is
    there has not collected is never dropped.
    """

    def __init__(self, *, ttl: int | None, max_bytes: int | None) -> None:
        self.ttl = ttl
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._next = 0
        self._kept: dict[int, _Kept] = {}
        self._collected: OrderedDict[int, int] = OrderedDict()  # number -> time
        self._abandoned: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, client: int, outcome: Outcome, runs: tuple[Run, ...]) -> int:
        """Keep `outcome`; returns the number it is known by."""
        number = self._next
        self._next += 1
        nbytes = outcome.nbytes
        self._kept[number] = _Kept(client, outcome, runs, nbytes)
        self.nbytes += nbytes
        return number

    def collected(self, numbers: list[int], now: int) -> None:
        """Their client has them now: their time to live begins."""
        for number in numbers:
            if number in self._kept:
                self._collected.setdefault(number, now)

    def abandon(self, numbers: list[int]) -> None:
        """Their client is gone: others may read them, as long as there is room."""
        self._abandoned.update(dict.fromkeys(numbers))

    def forget(self, runs: Sequence[Run]) -> None:
        """Nobody asks for these messages any more; ascending. What covers others too, or an error, stays.

        Looks at all that is kept: people forget, hot paths do not.
        """
        for number, kept in list(self._kept.items()):
            left = tuple(difference(kept.runs, runs))
            if left == kept.runs:
                continue
            if left or kept.outcome.errors:
                self._kept[number] = kept._replace(runs=left)
            else:
                self._drop(number)

    def expire(self, now: int) -> list[Run]:
        """Drop what is over its time or too much. Returns the queue numbers to forget."""
        gone: list[Run] = []
        while self._collected:
            number, since = next(iter(self._collected.items()))
            over = self.ttl is not None and since + self.ttl <= now
            if not over and (self.max_bytes is None or self.nbytes <= self.max_bytes):
                break
            gone.extend(self._drop(number).runs)
        while self._abandoned and self.max_bytes is not None and self.nbytes > self.max_bytes:
            gone.extend(self._drop(next(iter(self._abandoned))).runs)
        return gone

    def _drop(self, number: int) -> _Kept:
        kept = self._kept.pop(number)
        self._collected.pop(number, None)
        self._abandoned.pop(number, None)
        self.nbytes -= kept.nbytes
        return kept

    def next_at(self) -> int | None:
        """When the next one is over its time."""
        if self.ttl is None or not self._collected:
            return None
        return next(iter(self._collected.values())) + self.ttl

    def read(self, after: int, limit_bytes: int) -> tuple[int, list[tuple[int, Outcome]]]:
        """`(client, outcome)` pairs of about `limit_bytes` from number `after` on, and the number to go on with.

        The number is -1 when there are no more.
        """
        out: list[tuple[int, Outcome]] = []
        for number, kept in self._kept.items():
            if number < after:
                continue
            if limit_bytes <= 0:
                return number, out
            out.append((kept.client, kept.outcome))
            limit_bytes -= kept.nbytes
        return -1, out
