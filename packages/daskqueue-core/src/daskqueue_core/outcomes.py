"""Outcomes: how messages ended, and who must still hear of it.

An `Outcome` covers messages of one batch that ended together. It is addressed as the client counts (the batch's
`first` and an index in it), never by queue number, so that it means the same before and after a queue was lost.
An `Outbox` holds what one client has not acknowledged yet; `KeptResults` what any client may still read by key.
Payloads are opaque: values are one pickle per run, errors one blob per failed message, made by the consumer.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from enum import IntEnum
from typing import NamedTuple

from daskqueue_core.batch import Buffer, Run
from daskqueue_core.runs import difference

__all__ = [
    "Cursor",
    "End",
    "ErrorBlob",
    "Failure",
    "FailureReason",
    "KeptResults",
    "KeptRows",
    "Outbox",
    "Outcome",
    "Outcomes",
    "Report",
]

ErrorBlob = tuple[int, bytes, str]
"""Index in its outcome, pickled exception, short text for tools that never unpickle."""

Cursor = tuple[str, int]
"""A queue's uuid and epoch in one word, and the number of the last outcome a client has."""


class End(IntEnum):
    """How the messages of an outcome ended."""

    RUN = 0  # they ran: a value each, or an error
    CANCELLED = 1
    CRASHED = 2  # it killed its workers; or early ack, and the owner was lost: not run again
    EXPIRED = 3  # not started in time
    DUPLICATE = 4  # not put: its key is in use, and on_duplicate says RAISE


class FailureReason(IntEnum):
    """Why a message that failed is not tried again."""

    FAILED = 0  # out of attempts
    REJECTED = 1  # it must not be tried again: the policy or the task itself says so
    CANCELLED = 2  # it stopped because it was asked to: an agreed cancel, and no failure at all
    TIMEOUT = 3  # over its time, and out of attempts


class Failure(NamedTuple):
    """What a consumer says of one message that did not succeed."""

    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    blob: bytes  # pickled exception and traceback
    text: str  # short, for tools that never unpickle
    retry_in: int = -1  # nanoseconds after which it is tried again; negative: it is not
    body: bytes = b""  # its own payload as a single, so that a dead letter pins no block
    reason: int = FailureReason.FAILED


class Report(NamedTuple):
    """What a consumer says of the messages `start` to `stop` of a lease: all have run."""

    start: int
    stop: int
    values: Buffer = b""  # one pickle of stop - start values, None where there is an error
    errors: tuple[Failure, ...] = ()


class Outcome(NamedTuple):
    """How messages `index` to `index + count` of the batch that begins with the client's number `first` ended."""

    first: int
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    count: int  # type: ignore[assignment]
    accepted: tuple[Run, ...] = ()  # relative to `index`; empty: all of them
    values: Buffer = b""
    errors: tuple[ErrorBlob, ...] = ()
    end: int = End.RUN
    attempts: bytes = b""  # a byte for each message from `index` on: attempts made; empty: 1 each
    life: int = 0  # how often it was requeued as a dead letter
    keys: tuple[str, ...] = ()  # explicit ones from `index` on, "" for none; only for readers of what is kept

    @property
    def nbytes(self) -> int:
        """Bytes it holds on to."""
        nbytes = 64 + len(self.values) + len(self.attempts)
        return nbytes + sum(len(blob) + len(text) for _, blob, text in self.errors) if self.errors else nbytes

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

    def items(self) -> list[tuple[Outcome, int | None]]:
        """What was not acknowledged, each as it was added."""
        return list(self._items)

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
    shift: int | None  # from positions in the outcome to queue numbers, to be forgotten in the ledger
    nbytes: int


class KeptRows(NamedTuple):
    """What `KeptResults` holds, as rows."""

    next: int
    kept: list[tuple[int, int, Outcome, int | None]]  # number, client, outcome, shift
    collected: list[tuple[int, int]]  # number, time; in the order of times
    abandoned: list[int]


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
        self._of: dict[tuple[int, int], list[int]] = {}  # numbers by client and batch, of those with queue numbers
        self._collected: OrderedDict[int, int] = OrderedDict()  # number -> time
        self._abandoned: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, client: int, outcome: Outcome, runs: tuple[Run, ...]) -> int:
        """Keep `outcome`; returns the number it is known by. `runs`: its queue numbers, if it has some."""
        number = self._next
        self._next += 1
        self._put(number, client, outcome, runs[0][0] - outcome.runs[0][0] if runs else None)
        return number

    def _put(self, number: int, client: int, outcome: Outcome, shift: int | None) -> None:
        nbytes = outcome.nbytes
        if shift is not None:
            self._of.setdefault((client, outcome.first), []).append(number)
        self._kept[number] = _Kept(client, outcome, shift, nbytes)
        self.nbytes += nbytes

    def rows(self) -> KeptRows:
        """Everything."""
        kept = [(number, each.client, each.outcome, each.shift) for number, each in self._kept.items()]
        return KeptRows(self._next, kept, list(self._collected.items()), list(self._abandoned))

    def load(self, rows: KeptRows) -> None:
        """The rows of `rows`, into what has none."""
        self._next = rows.next
        for row in rows.kept:
            self._put(*row)
        self._collected.update(rows.collected)
        self._abandoned.update((number, None) for number in rows.abandoned)

    def collected(self, numbers: list[int], now: int) -> None:
        """Their client has them now: their time to live begins."""
        for number in numbers:
            if number in self._kept:
                self._collected.setdefault(number, now)

    def abandon(self, numbers: list[int]) -> None:
        """Their client is gone: others may read them, as long as there is room."""
        self._abandoned.update((number, None) for number in numbers if number in self._kept)

    def find(self, client: int, first: int, index: int) -> Outcome | None:
        """The last outcome of message `index` of the client's batch `first`, if it is kept."""
        for number in reversed(self._of.get((client, first), ())):
            outcome = self._kept[number].outcome
            at = index - outcome.index
            if any(lo <= at < hi for lo, hi in outcome.runs):
                return outcome
        return None

    def forget(self, client: int, first: int, lo: int, hi: int) -> None:
        """Nobody asks for the messages `lo` to `hi` of a batch any more. A blob that covers others too stays."""
        for number in list(self._of.get((client, first), ())):
            kept = self._kept[number]
            outcome = kept.outcome
            left = tuple(difference(outcome.runs, [(lo - outcome.index, hi - outcome.index)]))
            if not left:
                self._drop(number)
            elif left != outcome.runs:
                errors = tuple(error for error in outcome.errors if any(lo <= error[0] < hi for lo, hi in left))
                smaller = outcome._replace(accepted=left, errors=errors)
                self._kept[number] = kept._replace(outcome=smaller, nbytes=smaller.nbytes)
                self.nbytes += smaller.nbytes - kept.nbytes

    def expire(self, now: int) -> list[Run]:
        """Drop what is over its time or too much. Returns the queue numbers to forget."""
        gone: list[Run] = []
        while self._collected:
            number, since = next(iter(self._collected.items()))
            over = self.ttl is not None and since + self.ttl <= now
            if not over and not self._is_too_much():
                break
            gone.extend(self._drop(number))
        while self._abandoned and self._is_too_much():
            gone.extend(self._drop(next(iter(self._abandoned))))
        return gone

    def _is_too_much(self) -> bool:
        return self.max_bytes is not None and self.nbytes > self.max_bytes

    def _drop(self, number: int) -> list[Run]:
        kept = self._kept.pop(number)
        self._collected.pop(number, None)
        self._abandoned.pop(number, None)
        self.nbytes -= kept.nbytes
        if kept.shift is None:
            return []
        batch = kept.client, kept.outcome.first
        numbers = self._of[batch]
        numbers.remove(number)
        if not numbers:
            del self._of[batch]
        return [(lo + kept.shift, hi + kept.shift) for lo, hi in kept.outcome.runs]

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
