"""Messages that were put one by one, a few thousand of a LogSegment as one entry: eight bytes each, not an object.

Consecutive puts of one message whose batches are equal but for the payload differ in two numbers: where the record
stands, and how long the body is. Two columns have them. To the queue such an entry is a batch; on disk every message
is a record of its own, which is moved, damaged and let go by itself.

Not here: which messages live (the ledger). Only what nobody waits for (`Keep.NONE`) is gathered so: outcomes are
addressed by batch, and those of others would be addressed wrongly.

Invariants: a message with a position is one that somebody needs and whose record is not known to be damaged; its record
counts in the `live_bytes` of its segment. `held` is what the payloads of those not let go take.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from daskqueue_core.batch import Batch, Keep, Part, lengths_column
from daskqueue_core.payloads import Entry
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.format import RECORD_HEADER_SIZE, RecordHeader, body_of, record_size
from daskqueue_storage.records import put_of
from daskqueue_storage.segment import SegmentInfo
from daskqueue_storage.shelf import Place, Shelf, slim, verified

__all__ = ["MOST", "Singles", "SinglesRow", "may_join"]

MOST: Final = 4096
"""Messages in one entry: what the last of them keeps in memory is at most eight bytes for each."""

_PIECE: Final = 1 << 20
_SHARED: Final = Batch._fields.index("shared")
_CLIENT: Final = Batch._fields.index("client")
_KEEP: Final = Batch._fields.index("keep")
_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_LENGTH_BYTES: Final = 4  # that a single takes beside its body, in the room of a queue


class SinglesRow(NamedTuple):
    """An entry in a snapshot."""

    base: int
    batch: Batch  # the template, of one message
    put_at: int
    route: int
    live: int
    known: int
    held: int
    extra: int
    positions: array[int]
    sizes: array[int]
    segments: list[SegmentInfo | None]  # one for all, or one each; None: it is not there


_LOW_BYTE: Final = 0 if sys.byteorder == "little" else 3
_PADDING: Final = [bytes([-(extra + low) & 7 for low in range(256)]) for extra in range(8)]


def _stored(extra: int, sizes: array[int]) -> int:
    """What records of such bodies take, all together; without a loop, since ten million are opened at once."""
    padding = sizes.tobytes()[_LOW_BYTE::4].translate(_PADDING[extra & 7])
    return len(sizes) * (RECORD_HEADER_SIZE + extra) + sum(sizes) + sum(padding)


def may_join(batch: Batch) -> bool:
    """Whether a batch is one that `Singles` can hold."""
    return batch.count == 1 and batch.keep == Keep.NONE and bool(batch.lengths) and not batch.keys


def _overhead(batch: Batch) -> int:
    return _LENGTH_BYTES + len(batch.shared) + len(batch.control)


class Singles(Entry):
    """Consecutive messages, each of which is a record."""

    __slots__ = ("_extra", "_held", "_overhead", "_owners", "_positions", "_segment", "_shelf", "_sizes")

    def __init__(self, shelf: Shelf, base: int, batch: Batch, put_at: int, route: int) -> None:
        """Of a template, without any message yet."""
        super().__init__(base, batch, put_at, route)
        self.stop = base
        self.live = self.known = 0
        self._shelf = shelf
        self._segment: SegmentInfo | None = None  # of all, unless there are `_owners`
        self._owners: dict[int, SegmentInfo] | None = None  # of those that were moved elsewhere, by index
        self._positions = array("I")  # 0: no record any more
        self._sizes = array("I")  # of bodies
        self._extra = 0  # what a record's body has beside the message's
        self._held = 0
        self._overhead = _overhead(batch)  # what each message takes beside its body

    # ------------------------------------------------------------------------------------------------------- growing

    def takes(self, base: int, batch: Batch, route: int, place: Place, extra: int) -> bool:
        """Whether the next message can be one of these. `batch` is its template, `extra` as in `add`."""
        mine = self.batch
        return (
            base == self.stop
            and place.segment is self._segment
            and self._owners is None
            and len(self._positions) < MOST
            and extra == self._extra
            and route == self.route
            and batch.client == mine.client
            and (not mine.client or batch.first == mine.first + base - self.base)
            and batch[_SHARED:_CLIENT] == mine[_SHARED:_CLIENT]
            and batch[_KEEP:] == mine[_KEEP:]
        )

    def add(self, place: Place, size: int, extra: int) -> int:
        """One more message: its body has `size` bytes, and its record's `extra` more. Returns what is held by it."""
        segment, pos, blen = place
        if not self._positions:
            self._segment, self._extra = segment, extra
        self._positions.append(pos)
        self._sizes.append(size)
        self.stop += 1
        self.live += 1
        self.known += 1
        held = size + self._overhead
        self._held += held
        self._shelf.hold_bytes(segment, RECORD_HEADER_SIZE + ((blen + 7) & ~7))
        return held

    def add_many(self, segment: SegmentInfo, positions: array[int], sizes: array[int], extra: int) -> None:
        """As `add`, of some in one segment."""
        if not self._positions:
            self._segment, self._extra = segment, extra
        count = len(positions)
        self._positions += positions
        self._sizes += sizes
        self.stop += count
        self.live += count
        self.known += count
        self._held += sum(sizes) + count * self._overhead
        self._shelf.hold_bytes(segment, _stored(extra, sizes))

    @classmethod
    def of_row(cls, shelf: Shelf, row: SinglesRow) -> Singles:
        """The entry that a snapshot knows."""
        made = cls(shelf, row.base, row.batch, row.put_at, row.route)
        made.stop = row.base + len(row.positions)
        made.live, made.known, made._held, made._extra = row.live, row.known, row.held, row.extra
        made._positions, made._sizes = row.positions, row.sizes
        if len(row.segments) == 1:
            made._segment = row.segments[0]
        else:
            made._owners = {at: info for at, info in enumerate(row.segments) if info is not None}
        if made._segment is not None and 0 not in row.positions:
            shelf.hold_bytes(made._segment, _stored(row.extra, row.sizes))
        else:
            for _, place in made.places():
                shelf.hold(place)
        return made

    def row(self) -> SinglesRow:
        """What it takes to make it again."""
        segments: list[SegmentInfo | None] = [self._segment]
        if self._owners is not None:
            segments = [self._owners.get(at, self._segment) for at in range(len(self._positions))]
        return SinglesRow(
            self.base,
            self.batch,
            self.put_at,
            self.route,
            self.live,
            self.known,
            self._held,
            self._extra,
            self._positions,
            self._sizes,
            segments,
        )

    # -------------------------------------------------------------------------------------------------------- reading

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """As `Entry.part`, read from the disk. `DamagedRecord` names the one message that cannot be read."""
        lo = start - self.base
        if stop - start == 1:
            body = self._read_one(lo)
            lengths = len(body).to_bytes(4, sys.byteorder)
        else:
            bodies = [bytes(own) for _, _, own in self._read(lo, stop - self.base)]
            body, lengths = b"".join(bodies), array("I", map(len, bodies)).tobytes()
        batch = self.batch
        row: tuple[Any, ...] = batch[_SHARED:_KEEP]
        shared, kind, function, client, first = row
        control = batch.control
        return _new(
            Part,
            (
                start,
                stop,
                self.base,
                lo,
                body,
                lengths,
                shared,
                kind,
                function,
                control,
                attempts,
                client,
                first + lo,
                (),
            ),
        )

    def single(self, seq: int) -> bytes | None:
        """Not copied into a dead letter: it stays where it is."""
        return None

    def one(self, seq: int) -> Batch:
        """A message as a batch without payload."""
        at = seq - self.base
        return slim(self.batch._replace(first=self.batch.first + at), self._sizes[at], _LENGTH_BYTES)

    def loaded_one(self, seq: int) -> Batch:
        """A message as a batch."""
        at = seq - self.base
        [(_, _, content)] = self._read(at, at + 1)
        return self.one(seq)._replace(body=bytes(content), lengths=lengths_column([bytes(content)]))

    def put_time(self, seq: int) -> int:
        """When a message of it was put, which is in its record."""
        at = seq - self.base
        try:
            [(header, body, _)] = self._read(at, at + 1)
        except DamagedRecord:
            return self.put_at
        return put_of(header, bytes(body)).put_at

    def nbytes_of(self, start: int, stop: int) -> int:
        """What these messages take in a lease."""
        lo, hi = start - self.base, stop - self.base
        return sum(self._sizes[lo:hi]) + (hi - lo) * self._overhead

    @property
    def held(self) -> int:
        """What it counts in the room of the queue."""
        return self._held

    def template(self) -> Batch:
        """What one of its messages needs beside its own body to be run again."""
        return self.batch._replace(body=b"", lengths=b"", offset=0)

    def release(self) -> None:
        """Nobody runs any of it."""
        self.batch = Batch(1, b"", client=self.batch.client, first=self.batch.first, keep=self.batch.keep)
        self._overhead = _overhead(self.batch)

    def places(self) -> Iterator[tuple[int, Place]]:
        """Where each message is that somebody needs and whose record is not known to be damaged."""
        for at in range(len(self._positions)):
            place = self._place(at)
            if place is not None:
                yield self.base + at, place

    # --------------------------------------------------------------------------------------------------------- ending

    def let_go(self, start: int, stop: int) -> int:
        """Nobody needs the payloads of these any more; how much less is held."""
        lo, hi = start - self.base, stop - self.base
        if hi - lo == 1 and self._owners is None and self._segment is not None:  # the common case
            size = self._sizes[lo]
            if self._positions[lo]:
                self._shelf.release_bytes(self._segment, RECORD_HEADER_SIZE + ((self._extra + size + 7) & ~7))
                self._positions[lo] = 0
            self._held -= size + self._overhead
            return size + self._overhead
        self.lose(start, stop)
        freed = sum(self._sizes[lo:hi]) + (hi - lo) * self._overhead
        self._held -= freed
        return freed

    def lose(self, start: int, stop: int) -> None:
        """The records of these are of no use."""
        positions, owners = self._positions, self._owners
        lo, hi = start - self.base, stop - self.base
        if owners is None and self._segment is not None:
            extra, sizes = self._extra, self._sizes
            size = sum([record_size(extra + sizes[at]) for at in range(lo, hi) if positions[at]])
            self._shelf.release_bytes(self._segment, size)
        else:
            for at in range(lo, hi):
                place = self._place(at)
                if place is not None:
                    self._shelf.release(place)
        positions[lo:hi] = array("I", bytes(4 * (hi - lo)))

    def move(self, seq: int, place: Place) -> None:
        """The record of a message stands elsewhere now; what nobody needs stays forgotten."""
        at = seq - self.base
        if not self._positions[at]:
            return
        before = self._place(at)
        if before is not None:
            self._shelf.release(before)
        if self._owners is None:
            self._owners = {}
        self._owners[at] = place.segment
        self._positions[at] = place.pos
        self._shelf.hold(place)
        if len(self._owners) >= self.live:
            self._settle(place.segment)

    def _settle(self, segment: SegmentInfo) -> None:
        """If all are in that segment now, that need not be said of each."""
        assert self._owners is not None
        if all(self._owners.get(at) is segment for at, position in enumerate(self._positions) if position):
            self._segment, self._owners = segment, None

    # -------------------------------------------------------------------------------------------------- the machinery

    def _place(self, at: int) -> Place | None:
        """Where a record is; None if nobody needs it, or its segment went and it was not found elsewhere yet."""
        position = self._positions[at]
        segment = self._segment if self._owners is None else self._owners.get(at, self._segment)
        if not position or segment is None:
            return None
        return _new(Place, (segment, position, self._extra + self._sizes[at]))

    def _read_one(self, at: int) -> bytes:
        """The own bytes of one message, verified."""
        position, segment = self._positions[at], self._segment
        place: Place | None
        if position and segment is not None and self._owners is None:  # the common case
            place = _new(Place, (segment, position, self._extra + self._sizes[at]))
        else:
            place = self._place(at)
            if place is None:
                raise DamagedRecord(f"message {self.base + at}", 0, self.base + at, self.base + at + 1)
        segment, pos, blen = place
        body = body_of(self._shelf.bytes_at(segment, pos, RECORD_HEADER_SIZE + blen), pos, blen, segment.salt)
        if body is None:
            raise self._shelf.damage(place, self.base + at, 1)
        return body[self._extra :]

    def _read(self, lo: int, hi: int) -> list[tuple[RecordHeader, memoryview, memoryview]]:
        """Header, body, and the message's own bytes; verified."""
        found: list[tuple[RecordHeader, memoryview, memoryview]] = []
        while lo < hi:
            first = self._place(lo)
            if first is None:
                raise DamagedRecord(f"message {self.base + lo}", 0, self.base + lo, self.base + lo + 1)
            until, stop = first.pos + _PIECE, first.pos + first.size
            up_to = lo + 1
            while up_to < hi and stop < until and self._owners is None and self._positions[up_to] == stop:
                stop += record_size(self._extra + self._sizes[up_to])
                up_to += 1
            data = self._shelf.bytes_at(first.segment, first.pos, stop - first.pos)
            at = 0
            for index in range(lo, up_to):
                size = self._extra + self._sizes[index]
                place = _new(Place, (first.segment, first.pos + at, size))
                record = verified(data, at, place)
                if record is None or len(record[1]) != size:
                    raise self._shelf.damage(place, self.base + index, 1)
                header, body = record
                found.append((header, body, body[self._extra :]))
                at += RECORD_HEADER_SIZE + ((size + 7) & ~7)
            lo = up_to
        return found
