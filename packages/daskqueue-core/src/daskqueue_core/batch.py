"""Batches: what a producer puts in one go, and the parts of them that a lease ships.

A batch is `count` consecutive messages with the same options. Its payload is either *singles* (the bodies one after
the other, with a column of their lengths, so that each can be read by itself) or one opaque *block* for all of them.
`shared` is what every message of the batch needs besides (for a batch of calls: the function). Nothing here looks
into a payload, and nothing copies one: parts are views.
"""

from __future__ import annotations

from array import array
from enum import IntEnum
from itertools import accumulate
from typing import NamedTuple

__all__ = ["Batch", "Buffer", "Keep", "Kind", "Part", "Run", "lengths_column", "merge_runs"]

Buffer = bytes | memoryview

Run = tuple[int, int]
"""Consecutive messages of one queue: `(start, stop)`."""


class Kind(IntEnum):
    """Which consumers a batch is for."""

    ITEM = 0  # a ConsumerBaseClass with process_item
    CALL = 1  # GeneralConsumer


class Keep(IntEnum):
    """Who keeps the outcome of a message, and until when (semantics.md section 4)."""

    NONE = 0  # nobody: items of `put`
    STREAM = 1  # the queue, until the submitting client's next poll acknowledges it
    KEEP = 2  # the queue, until collected and its time to live is over, or forgotten


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

    @property
    def nbytes(self) -> int:
        """Bytes of the payload."""
        return len(self.body) + len(self.lengths) + len(self.shared)

    def ends(self) -> array[int]:
        """Where each single ends in the body."""
        return _ends(self.lengths)

    def cut(self, lo: int, hi: int) -> Batch:
        """The messages `lo` to `hi` of the batch, as a batch of their own."""
        if (lo, hi) == (0, self.count):
            return self
        if not self.lengths:
            return self._replace(count=hi - lo, first=self.first + lo, offset=self.offset + lo)
        ends = self.ends()
        body = memoryview(self.body)[ends[lo - 1] if lo else 0 : ends[hi - 1]]
        return self._replace(count=hi - lo, body=body, lengths=self.lengths[4 * lo : 4 * hi], first=self.first + lo)


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
        first, rest = self._replace(stop=middle), self._replace(start=middle)
        if not self.lengths:
            return first, rest._replace(offset=self.offset + count)
        view = memoryview(self.body if self.body is not None else b"")
        split = _ends(self.lengths)[count - 1] if count else 0
        return (
            first._replace(body=view[:split], lengths=self.lengths[: 4 * count]),
            rest._replace(body=view[split:], lengths=self.lengths[4 * count :]),
        )


def lengths_column(bodies: list[bytes]) -> bytes:
    """The lengths column of `bodies`."""
    return array("I", map(len, bodies)).tobytes()


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
