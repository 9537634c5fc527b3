"""Batches: what a producer puts in one go, and the parts of them that a lease ships.

A batch is `count` consecutive messages with the same options. Its payload is either *singles* (the bodies one after
the other, with a column of their lengths, so that each can be read by itself) or one opaque *block* for all of them.
`shared` is what every message of the batch needs besides (for a batch of calls: the function), `control` how a
consumer treats them (timeout, retry policy). Only `ready_ats` and `keys` differ inside a batch: a column each, empty
where unused. Nothing here looks into a payload, and nothing copies one: parts are views.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from enum import IntEnum
from itertools import accumulate
from typing import Final, NamedTuple

__all__ = [
    "Batch",
    "Buffer",
    "Keep",
    "Kind",
    "OnDuplicate",
    "PLAIN_OPTIONS",
    "Part",
    "PutOptions",
    "Run",
    "SUSPECT_RESENT",
    "lengths_column",
    "merge_runs",
    "single",
    "times_column",
    "times_of",
]

SUSPECT_RESENT: Final = 2
"""What was put again so often may be what kills its queue's host."""

Buffer = bytes | memoryview

Run = tuple[int, int]
"""Consecutive messages of one queue: `(start, stop)`."""


class Kind(IntEnum):
    """Which consumers a batch is for."""

    ITEM = 0  # a ConsumerBaseClass with process_item
    CALL = 1  # GeneralConsumer


_KINDS: Final = frozenset(map(int, Kind))


class Keep(IntEnum):
    """Who keeps the outcome of a message, and until when (semantics.md section 4)."""

    NONE = 0  # nobody: items of `put`
    STREAM = 1  # the queue, until the submitting client's next poll acknowledges it
    KEEP = 2  # the queue, until collected and its time to live is over, or forgotten


class OnDuplicate(IntEnum):
    """What a message becomes whose key is that of one which is unfinished or whose success is kept."""

    RETURN = 0  # nothing: its submitter hears how the other one ends
    RAISE = 1  # nothing: it ends as DUPLICATE
    REPLACE = 2  # the message of that key: the other one is cancelled or forgotten


class Batch(NamedTuple):
    """`count` consecutive messages with the same options."""

    count: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    body: Buffer
    lengths: bytes = b""  # little-endian u32 each; empty: `body` is one block
    shared: bytes = b""  # what every message of the batch needs to be decoded
    kind: int = Kind.ITEM
    function: bytes = b""  # names the function, for pacing; messages of one batch have one
    client: int = 0  # who hears of the outcomes: 64 random bits per client
    first: int = 0  # the client's number of the first message: its task key is (client, first)
    keep: int = Keep.NONE
    offset: int = 0  # in a block: the element that is the first message
    resent: int = 0  # how often it was put again after its queue was lost
    control: bytes = b""  # the consumer's timeout and retry policy, opaque here
    priority: int = 0  # higher first; 16 bits with a sign
    ready_at: int = 0  # nanoseconds of the queue's clock: not delivered before; 0: at once
    ready_ats: bytes = b""  # instead of `ready_at`: a little-endian u64 each
    expires_at: int = 0  # nanoseconds: what has not started by then ends as EXPIRED; 0: never
    keys: tuple[str, ...] = ()  # explicit task keys, one a message or none at all
    on_duplicate: int = OnDuplicate.RETURN
    tags: tuple[str, ...] = ()  # sorted; a consumer needs all of them
    max_crashes: int = 3  # owners lost with it alone, after which it is a dead letter

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, and of what differs by message."""
        nbytes = len(self.body) + len(self.lengths) + len(self.shared) + len(self.control) + len(self.ready_ats)
        return nbytes + sum(map(len, self.keys)) if self.keys else nbytes

    @property
    def is_plain(self) -> bool:
        """Whether it asks for nothing special and nobody waits for it: a payload, and else the defaults."""
        return self[_SHARED:] == _PLAIN_TAIL

    @property
    def put_options(self) -> PutOptions:
        """What it has in common with the batches it may be put with."""
        if self[_RESENT:] == _PLAIN and self.kind in PLAIN_OPTIONS:
            return PLAIN_OPTIONS[self.kind]
        return PutOptions(
            self.kind,
            self.tags,
            self.priority,
            self.ready_at,
            bool(self.ready_ats),
            self.expires_at,
            bool(self.keys),
            self.resent >= SUSPECT_RESENT,
        )

    def check(self) -> None:
        """ValueError if it cannot be put."""
        count = self.count
        if count <= 0:
            raise ValueError(f"a batch needs at least one message, not {count}")
        if self.kind not in _KINDS:
            raise ValueError(f"kind={self.kind} is none of {', '.join(map(repr, Kind))}")
        if not -0x8000 <= self.priority < 0x8000:
            raise ValueError(f"priority={self.priority} does not fit 16 bits with a sign")
        if self.keys and len(self.keys) != count:
            raise ValueError(f"{len(self.keys)} keys for {count} messages: each has one, or none has")
        if self.ready_ats and len(self.ready_ats) != 8 * count:
            raise ValueError(f"{len(self.ready_ats)} bytes of ready_ats for {count} messages, not 8 each")

    def ends(self) -> array[int]:
        """Where each single ends in the body."""
        return _ends(self.lengths)

    def cut(self, lo: int, hi: int) -> Batch:
        """The messages `lo` to `hi` of the batch, as a batch of their own."""
        if (lo, hi) == (0, self.count):
            return self
        cut = self._replace(
            count=hi - lo, first=self.first + lo, ready_ats=self.ready_ats[8 * lo : 8 * hi], keys=self.keys[lo:hi]
        )
        if not self.lengths:
            return cut._replace(offset=self.offset + lo)
        ends = self.ends()
        body = memoryview(self.body)[ends[lo - 1] if lo else 0 : ends[hi - 1]]
        return cut._replace(body=body, lengths=self.lengths[4 * lo : 4 * hi])


class PutOptions(NamedTuple):
    """What is equal for all batches of one put."""

    kind: int
    tags: tuple[str, ...]
    priority: int
    ready_at: int
    timed: bool  # each message has a time of its own
    expires_at: int
    keyed: bool  # each message has a key
    suspect: bool  # lost with its queue again and again: it may be what kills the host

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> PutOptions:
        """The options of a put; ValueError if it is none."""
        if not batches:
            raise ValueError("a put needs at least one batch")
        first = batches[0]
        if len(batches) == 1 and first.count > 0 and first.kind in PLAIN_OPTIONS and first[_RESENT:] == _PLAIN:
            return PLAIN_OPTIONS[first.kind]
        options = first.put_options
        for batch in batches:
            batch.check()
            if batch is not first and batch.put_options != options:
                pairs = zip(cls._fields, options, batch.put_options, strict=True)
                differing = ", ".join(name for name, mine, other in pairs if mine != other)
                raise ValueError(f"the batches of one put differ in {differing}: put them one after the other")
        return options


_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_SHARED: Final = Batch._fields.index("shared")
_PLAIN_TAIL: Final = Batch(1, b"")[_SHARED:]
_RESENT: Final = Batch._fields.index("resent")
_PLAIN: Final = Batch(1, b"")[_RESENT:]  # most batches ask for nothing special

PLAIN_OPTIONS: Final = {kind: PutOptions(kind, (), 0, 0, False, 0, False, False) for kind in _KINDS}
"""Of a put that asks for nothing special, by kind: these very objects."""


class Part(NamedTuple):
    """Leased messages `start` to `stop` of one batch, with what is needed to run them."""

    start: int
    stop: int
    base: int  # the batch's first message: names the block for a consumer that caches it
    offset: int  # in a block: the element that is message `start`
    body: Buffer | None  # None: a block the consumer said it has
    lengths: bytes
    shared: bytes
    kind: int
    function: bytes
    control: bytes = b""
    attempts: bytes = b""  # a byte a message: how often it failed so far; empty: never
    client: int = 0
    first: int = 0  # the client's number of message `start`
    keys: tuple[str, ...] = ()

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many messages."""
        return self.stop - self.start

    def bodies(self) -> list[memoryview]:
        """One view a message, of singles."""
        view = memoryview(self.body if self.body is not None else b"")
        ends = _ends(self.lengths)
        return [view[start:end] for start, end in zip((0, *ends), ends, strict=False)]

    def cut(self, count: int) -> tuple[Part, Part]:
        """The first `count` messages, and the others."""
        middle = self.start + count
        first = self._replace(stop=middle, attempts=self.attempts[:count], keys=self.keys[:count])
        rest = self._replace(
            start=middle, attempts=self.attempts[count:], first=self.first + count, keys=self.keys[count:]
        )
        if not self.lengths:
            return first, rest._replace(offset=self.offset + count)
        view = memoryview(self.body if self.body is not None else b"")
        split = _ends(self.lengths)[count - 1] if count else 0
        return (
            first._replace(body=view[:split], lengths=self.lengths[: 4 * count]),
            rest._replace(body=view[split:], lengths=self.lengths[4 * count :]),
        )


def single(body: Buffer) -> Batch:
    """One message that asks for nothing special."""
    body = b"".join((body,))
    return _new(Batch, (1, body, len(body).to_bytes(4, sys.byteorder), *_PLAIN_TAIL))


def lengths_column(bodies: Sequence[Buffer]) -> bytes:
    """The lengths column of `bodies`."""
    lengths = list(map(len, bodies))  # a list, since equal lengths, the common case, are then counted in no time
    if lengths and lengths.count(lengths[0]) == len(lengths):
        return lengths[0].to_bytes(4, sys.byteorder) * len(lengths)
    return array("I", lengths).tobytes()


def times_column(times: list[int]) -> bytes:
    """A `ready_ats` column: nanoseconds, a little-endian u64 each."""
    column = array("Q", times)
    if sys.byteorder == "big":
        column.byteswap()
    return column.tobytes()


def times_of(ready_ats: bytes) -> array[int]:
    """The times in a `ready_ats` column."""
    column = array("Q")
    column.frombytes(ready_ats)
    if sys.byteorder == "big":
        column.byteswap()
    return column


def _ends(lengths: bytes) -> array[int]:
    column = array("I")
    column.frombytes(lengths)
    return array("Q", accumulate(column))


def merge_runs(runs: list[Run]) -> tuple[Run, ...]:
    """Adjacent runs joined; the order is kept."""
    out: list[Run] = []
    for start, stop in runs:
        if out and out[-1][1] == start:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return tuple(out)
