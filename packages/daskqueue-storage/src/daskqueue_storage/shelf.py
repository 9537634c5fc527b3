"""The LogSegments of a queue as its entries see them: reads records, and counts what is needed of each segment.

`Place` says where a record is; `Absent` stands for bytes by their number. Not here: who needs what (`keydir`).

Invariants: `live_bytes` of a segment is the sum of the records in it that somebody holds. What is read was verified at
this very reading.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Final, NamedTuple
from zlib import crc32

from daskqueue_core.batch import Batch
from daskqueue_core.payloads import Entry
from daskqueue_storage.errors import DamagedRecord
from daskqueue_storage.files import Files, read_or_zeros
from daskqueue_storage.format import RECORD_HEADER_SIZE, RecordHeader, decode_header, record_size
from daskqueue_storage.report import Damage
from daskqueue_storage.segment import SegmentInfo

__all__ = ["Absent", "Place", "Shelf", "slim", "verified"]

_HANDLES: Final = 32
_INTERNED: Final = 256
_BEHIND_LENGTHS: Final = Batch._fields.index("lengths") + 1


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
    blen: int  # bytes of its body

    @property
    def size(self) -> int:
        """Of the whole record."""
        return record_size(self.blen)


def slim(batch: Batch, body: int, lengths: int) -> Batch:
    """The batch without its payload, of which only the sizes are known."""
    if batch.ready_ats:
        batch = batch._replace(ready_ats=b"")
    return Batch._make((batch.count, Absent(body), Absent(lengths) if lengths else b"", *batch[_BEHIND_LENGTHS:]))


def verified(data: bytes, at: int, place: Place) -> tuple[RecordHeader, memoryview] | None:
    """The record that is to be at `place`, from `data[at:]`, and a view of its body; None if there is no whole one."""
    header = decode_header(data, at, place.pos, place.segment.salt)
    if header is None:
        return None
    at += RECORD_HEADER_SIZE
    body = memoryview(data)[at : at + header.blen]
    if len(body) != header.blen or crc32(body) != header.bcrc:
        return None
    return header, body


class Shelf:
    """The LogSegments of a queue: reads records, counts what is needed of each segment. The queue's turn guards it."""

    def __init__(self, files: Files, root: str, on_damage: list[Damage]) -> None:
        self._files = files
        self._root = root
        self._handles: dict[str, int] = {}  # by path, the one that was opened longest ago first
        self._last: tuple[Place, RecordHeader, memoryview] | None = None
        self.whole: Entry | None = None
        """The batch that was read and verified last, with its payload: it is often leased bit by bit."""
        self._interned: dict[object, object] = {}
        self.damaged = on_damage
        self.segments: list[SegmentInfo] = []  # ascending
        self.live_bytes: dict[int, int] = {}  # by segment number
        self.live = 0  # all of it
        self.freed = 0  # since somebody set it to 0
        self.much = sys.maxsize  # bytes that are worth a look, when so many are freed
        self.has_grown = False
        """A put began a segment since somebody looked after them."""
        self.emptied: SegmentInfo | None = None
        """The last segment when nothing was needed any more."""
        self.has_changed = True
        """A segment came or went, much was freed, or nothing is needed any more: somebody may have to look after it."""

    def add(self, info: SegmentInfo) -> None:
        """One more, behind all others. Where its messages are is known to the entries."""
        info.index = None
        self.segments.append(info)
        self.live_bytes.setdefault(info.segno, 0)
        self.has_changed = True

    def drop(self, count: int) -> None:
        """The first `count` are gone."""
        for info in self.segments[:count]:
            self.live -= self.live_bytes.pop(info.segno, 0)
            handle = self._handles.pop(info.path, None)
            # The last handle of a file that was deleted: the system frees all its blocks now, which takes a while.
            if handle is not None and not self._files.soon(partial(self._files.close, handle)):
                self._files.close(handle)
        del self.segments[:count]
        self.has_changed = True
        self.forget()

    def hold(self, place: Place) -> None:
        """Somebody needs that record."""
        self.hold_bytes(place.segment, record_size(place.blen))

    def hold_bytes(self, segment: SegmentInfo, size: int) -> None:
        """Somebody needs records of that size in a segment."""
        self.live_bytes[segment.segno] = self.live_bytes.get(segment.segno, 0) + size
        self.live += size

    def release(self, place: Place) -> None:
        """Nobody needs it any more."""
        self.release_bytes(place.segment, record_size(place.blen))

    def release_bytes(self, segment: SegmentInfo, size: int) -> None:
        """Nobody needs records of that size any more."""
        if segment.segno in self.live_bytes:
            self.live_bytes[segment.segno] -= size
            self.live -= size
            self.freed += size
            if self.freed >= self.much or (not self.live and len(self.segments) > 1):
                self.has_changed = True

    def read(self, place: Place, base: int, count: int) -> tuple[RecordHeader, memoryview]:
        """A record, verified, and a view of its body; `DamagedRecord` if it does not."""
        last = self._last
        if last is not None and last[0] == place:
            return last[1:]
        data = self.bytes_at(place.segment, place.pos, RECORD_HEADER_SIZE + place.blen)
        found = verified(data, 0, place)
        if found is None:
            raise self.damage(place, base, count)
        self._last = place, *found
        return found

    def bytes_at(self, segment: SegmentInfo, pos: int, size: int) -> bytes:
        """Bytes of a segment, not verified; none if it is gone."""
        handle = self._handles.get(segment.path)
        try:
            if handle is None:
                handle = self._open(segment.path)
            data = self._files.read_at(handle, size, pos)
            return data if len(data) == size else read_or_zeros(self._files, handle, size, pos)
        except FileNotFoundError:
            return b""
        except OSError:
            if handle is None:
                raise
            return read_or_zeros(self._files, handle, size, pos)

    def damage(self, place: Place, base: int, count: int) -> DamagedRecord:
        """The record of these messages does not verify: noted, and to be raised."""
        path = place.segment.path
        damage = Damage(path, place.pos, place.pos + place.size, 1)
        if damage not in self.damaged:
            self.damaged.append(damage)
        return DamagedRecord(path, place.pos, base, base + count)

    def intern(self, batch: Batch) -> Batch:
        """The batch with what it has in common with others as the same objects."""
        if not (batch.shared or batch.function or batch.control or batch.tags):
            return batch
        if len(self._interned) > _INTERNED:
            self._interned.clear()
        once = self._interned.setdefault
        return batch._replace(
            shared=once(batch.shared, batch.shared),  # type: ignore[arg-type]  # what went in comes out
            function=once(batch.function, batch.function),  # type: ignore[arg-type]
            control=once(batch.control, batch.control),  # type: ignore[arg-type]
            tags=once(batch.tags, batch.tags),  # type: ignore[arg-type]
        )

    def forget(self) -> None:
        """What was read last is of no use any more."""
        self._last = self.whole = None

    def close(self) -> None:
        """Let go of all files."""
        for handle in self._handles.values():
            self._files.close(handle)
        self._handles.clear()
        self.forget()

    def _open(self, path: str) -> int:
        handle = self._handles[path] = self._files.open(path)
        if len(self._handles) > _HANDLES:
            self._files.close(self._handles.pop(next(iter(self._handles))))
        return handle
