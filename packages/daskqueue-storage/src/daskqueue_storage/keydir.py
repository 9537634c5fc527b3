"""Where the payloads are: core's `Payloads` with bodies that stay on disk, and what of each LogSegment is needed.

An entry knows the record of its batch, and reads it when a lease ships messages of it: header, checksum, then views. In
memory is what core needs to choose and to answer: counts, names, sizes (`Absent` stands for bytes by their number).

Not here: which messages live (the ledger), and when segments go (`retire`).

Invariants: an entry that somebody needs (`live`) has a spot, unless its record is damaged; `live_bytes` of a segment is
the sum of the records of such entries in it. What is read was verified at this very reading.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple, cast
from zlib import crc32

from daskqueue_core.batch import Batch, Part
from daskqueue_core.payloads import Again, AgainRow, Entry, EntryRow, Payloads
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import RECORD_HEADER_SIZE, RecordHeader, decode_header
from daskqueue_storage.records import payload_of, put_of
from daskqueue_storage.report import Damage
from daskqueue_storage.segment import SegmentInfo

__all__ = ["Absent", "DiskEntry", "DiskPayloads", "Place", "Shelf", "slim"]

_HANDLES: Final = 32
_INTERNED: Final = 256


class Absent:
    """Bytes that are not here, by their number."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


class Place(NamedTuple):
    """Where a record is."""

    segment: SegmentInfo
    pos: int
    size: int  # of the whole record


def slim(batch: Batch, body: int, lengths: int) -> Batch:
    """The batch without its payload, of which only the sizes are known."""
    absent = cast(Any, Absent)
    return batch._replace(body=absent(body), lengths=absent(lengths) if lengths else b"", ready_ats=b"")


class Shelf:
    """The LogSegments of a queue: reads records, counts what is needed of each segment. The queue's turn guards it."""

    def __init__(self, files: Files, root: str, on_damage: list[Damage]) -> None:
        self._files = files
        self._root = root
        self._handles: OrderedDict[str, int] = OrderedDict()
        self._last: tuple[Place, RecordHeader, bytes] | None = None
        self._interned: dict[object, object] = {}
        self.damaged = on_damage
        self.segments: list[SegmentInfo] = []  # ascending
        self.live_bytes: dict[int, int] = {}  # by segment number

    def add(self, info: SegmentInfo) -> None:
        """One more, behind all others. Where its messages are is known to the entries."""
        if self.segments:
            self.segments[-1].index = None
        self.segments.append(info)
        self.live_bytes.setdefault(info.segno, 0)

    def drop(self, count: int) -> None:
        """The first `count` are gone."""
        for info in self.segments[:count]:
            self.live_bytes.pop(info.segno, None)
            handle = self._handles.pop(info.path, None)
            if handle is not None:
                self._files.close(handle)
        del self.segments[:count]
        self._last = None

    def hold(self, place: Place) -> None:
        """Somebody needs that record."""
        self.live_bytes[place.segment.segno] = self.live_bytes.get(place.segment.segno, 0) + place.size

    def release(self, place: Place) -> None:
        """Nobody needs it any more."""
        if place.segment.segno in self.live_bytes:
            self.live_bytes[place.segment.segno] -= place.size

    def read(self, place: Place, base: int, count: int) -> tuple[RecordHeader, bytes]:
        """A record, verified; `DamagedRecord` if it does not."""
        last = self._last
        if last is not None and last[0] == place:
            return last[1:]
        info = place.segment
        try:
            data = read_or_zeros(self._files, self._handle(info.path), place.size, place.pos)
        except FileNotFoundError:
            data = b""
        header = decode_header(data, 0, place.pos, info.salt)
        if header is not None:
            body = data[RECORD_HEADER_SIZE : RECORD_HEADER_SIZE + header.blen]
            if len(body) == header.blen and crc32(body) == header.bcrc:
                self._last = place, header, body
                return header, body
        damage = Damage(info.path, place.pos, place.pos + place.size, 1)
        if damage not in self.damaged:
            self.damaged.append(damage)
        raise DamagedRecord(info.path, place.pos, base, base + count)

    def intern(self, batch: Batch) -> Batch:
        """The batch with what it has in common with others as the same objects."""
        if len(self._interned) > _INTERNED:
            self._interned.clear()
        once = self._interned.setdefault
        return batch._replace(
            shared=once(batch.shared, batch.shared),  # type: ignore[arg-type]  # what went in comes out
            function=once(batch.function, batch.function),  # type: ignore[arg-type]
            control=once(batch.control, batch.control),  # type: ignore[arg-type]
            tags=once(batch.tags, batch.tags),  # type: ignore[arg-type]
        )

    def close(self) -> None:
        """Let go of all files."""
        for handle in self._handles.values():
            self._files.close(handle)
        self._handles.clear()
        self._last = None

    def _handle(self, path: str) -> int:
        handle = self._handles.get(path)
        if handle is None:
            handle = self._handles[path] = self._files.open(path)
            if len(self._handles) > _HANDLES:
                self._files.close(self._handles.popitem(last=False)[1])
        else:
            self._handles.move_to_end(path)
        return handle


class DiskEntry(Entry):
    """A batch whose payload is on disk."""

    __slots__ = ("place", "shelf")

    def __init__(self, shelf: Shelf, place: Place | None, base: int, batch: Batch, put_at: int, route: int) -> None:
        super().__init__(base, batch, put_at, route)
        self.shelf = shelf
        self.place = place

    def loaded(self) -> Batch:
        """The batch with its payload; `DamagedRecord` if it cannot be read."""
        if self.place is None:
            raise DamagedRecord(f"batch {self.base}", 0, self.base, self.stop)
        header, body = self.shelf.read(self.place, self.base, self.stop - self.base)
        try:
            content, lengths = payload_of(header, body, put_of(header, body).sizes)
        except ValueError:  # written so by somebody's mistake: as good as damaged
            raise DamagedRecord(self.place.segment.path, self.place.pos, self.base, self.stop) from None
        return self.batch._replace(body=content, lengths=lengths if self.batch.lengths else b"")

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """As `Entry.part`, read from the disk."""
        if not self.batch.lengths and self.base in have:
            return super().part(start, stop, have, attempts)
        here, self.batch = self.batch, self.loaded()
        try:
            return super().part(start, stop, have, attempts)
        finally:
            self.batch, self.ends = here, None

    def single(self, seq: int) -> bytes | None:
        """Not copied into a dead letter: it stays where it is."""
        return None


class DiskAgain(Again):
    """A requeued message that runs out of the payload it had."""

    __slots__ = ()

    def __init__(self, seq: int, origin: DiskEntry, template: Batch, key: str | None, life: int) -> None:
        batch, at = origin.batch, seq - origin.base
        keys = () if key is None else (key,)
        one = batch._replace(count=1, first=batch.first + at, keys=keys)
        if batch.lengths:
            one = slim(one, len(batch.body) // batch.count, 4)
        else:
            one = one._replace(offset=batch.offset + at)
        Entry.__init__(self, seq, one, origin.put_at, origin.route)
        self._origin = origin
        self._template = template
        self.own_bytes = None
        self.life = life

    def loaded(self) -> Batch:
        """The one message, with the payload."""
        origin = cast(DiskEntry, self._origin)
        at = self.base - origin.base
        return origin.loaded()._replace(keys=()).cut(at, at + 1)

    def part(self, start: int, stop: int, have: Collection[int], attempts: bytes = b"") -> Part:
        """Its share of the batch it came from."""
        here, cut = self.batch, self.loaded()
        self.batch = here._replace(body=cut.body, lengths=cut.lengths, offset=cut.offset)
        try:
            return super().part(start, stop, have, attempts)
        finally:
            self.batch, self.ends = here, None

    def single(self, seq: int) -> bytes | None:
        """It stays where it is."""
        return None


class DiskPayloads(Payloads):
    """The entries of a durable queue."""

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self.shelf = shelf
        self.places: dict[int, Place] = {}
        """Of batches that are about to be added, by base."""

    def add(self, base: int, batch: Batch, put_at: int, route: int) -> Entry:
        """A batch was put and written."""
        place = self.places.pop(base)
        thin = self.shelf.intern(slim(batch, len(batch.body), len(batch.lengths)))
        entry = self._entries[base] = DiskEntry(self.shelf, place, base, thin, put_at, route)
        self._bases.append(base)
        self.unfinished[route] = self.unfinished.get(route, 0) + batch.count
        self.nbytes += thin.nbytes
        self.shelf.hold(place)
        return entry

    def requeue(self, seq: int, template: Batch, body: bytes | None, key: str | None, life: int) -> None:
        """A dead letter lives again."""
        if body is not None:
            super().requeue(seq, template, body, key, life)
            return
        origin = self.entry(seq).origin
        self._again[seq] = DiskAgain(seq, cast(DiskEntry, origin), template, key, life)
        self.unfinished[origin.route] += 1
        at = bisect_left(self._seqs_again, seq)
        if at == len(self._seqs_again) or self._seqs_again[at] != seq:
            self._seqs_again.insert(at, seq)

    def load(self, entries: Sequence[EntryRow], again: Sequence[AgainRow]) -> None:
        """The rows of a snapshot; `places` has where those that are needed stand."""
        for base, batch, put_at, route, live, known in entries:
            place = self.places.pop(base, None)
            entry = self._entries[base] = DiskEntry(self.shelf, place, base, batch, put_at, route)
            entry.live, entry.known = live, known
            self._bases.append(base)
            if place is not None:
                self.shelf.hold(place)
        for seq, template, body, key, life in again:
            origin = self.entry(seq).origin
            if body is None:
                self._again[seq] = DiskAgain(seq, cast(DiskEntry, origin), template, key, life)
            else:
                self._again[seq] = Again(seq, origin, template, bytes(body), key, life)
        self._seqs_again = sorted(self._again)

    def disk_entries(self) -> list[DiskEntry]:
        """All, in the order of their numbers."""
        return [cast(DiskEntry, entry) for entry in self._entries.values()]

    def own_body(self, entry: Entry, seq: int) -> bytes:
        """A copy of a message's own bytes; nothing if it has none, or if they cannot be read."""
        if not isinstance(entry, (DiskEntry, DiskAgain)):
            return entry.single(seq) or b""
        if not entry.batch.lengths:
            return b""
        try:
            at = seq - entry.base
            return bytes(entry.loaded()._replace(keys=()).cut(at, at + 1).body)
        except DamagedRecord:
            return b""

    def move(self, base: int, place: Place) -> None:
        """The record of a batch stands elsewhere now; what nobody needs stays forgotten."""
        entry = cast("DiskEntry | None", self._entries.get(base))
        if entry is None or not entry.live:
            return
        if entry.place is not None:
            self.shelf.release(entry.place)
        entry.place = place
        self.shelf.hold(place)

    def lose(self, entry: DiskEntry) -> None:
        """Its record cannot be read: it holds no segment."""
        if entry.place is not None:
            self.shelf.release(entry.place)
            entry.place = None

    def _let_go(self, entry: Entry, count: int) -> None:
        super()._let_go(entry, count)
        if entry.live == 0 and isinstance(entry, DiskEntry) and entry.place is not None:
            self.shelf.release(entry.place)
            entry.place = None
