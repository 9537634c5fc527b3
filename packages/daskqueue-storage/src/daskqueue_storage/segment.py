"""One segment: what is known of it, and the file while it is being appended.

`SegmentInfo` is a segment as readers need it; `RecordIndex` where its messages are; `SegmentFile` the one that grows.
Not here: when to begin another (`writer`), what to believe of an old one (`recovery`).

Invariants:
- A segment is created with its header (and, for a new epoch, the EPOCH record), synced, and its directory synced, in
  that order, before anything in it counts.
- After a failed append the file ends where it did before, or the segment is given up: nothing is written behind bytes
  that are not a record.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from daskqueue_storage.files import Files, remove_quietly, write_rest
from daskqueue_storage.format import FILE_HEADER_SIZE, FileHeader, encode_file_header

__all__ = ["RecordIndex", "SegmentFile", "SegmentInfo", "Spot"]

_PAD: Final = tuple(bytes(size) for size in range(8))


class Spot(NamedTuple):
    """Where a message is: its record, and the messages that one holds."""

    pos: int
    base: int
    count: int  # type: ignore[assignment]  # nobody needs tuple.count here


class RecordIndex:
    """The records with messages of one segment, 16 bytes each. One thread appends while others look."""

    __slots__ = ("bases", "counts", "positions")

    def __init__(self) -> None:
        self.positions = array("I")
        self.counts = array("I")
        self.bases = array("Q")

    def append(self, pos: int, base: int, count: int) -> None:
        """A record behind all others. `bases` last: what is in there is complete."""
        self.positions.append(pos)
        self.counts.append(count)
        self.bases.append(base)

    def row(self, seq: int) -> int:
        """The last record that begins at or before `seq`; -1 if none does."""
        return bisect_right(self.bases, seq) - 1

    def spot(self, row: int) -> Spot | None:
        """The record in that row; None behind the last."""
        if row >= len(self.bases):
            return None
        return Spot(self.positions[row], self.bases[row], self.counts[row])


class SegmentInfo:
    """What is known of a segment. `index` is None until somebody needs it."""

    __slots__ = (
        "base_rno",
        "closed",
        "epoch",
        "first_seq",
        "index",
        "last_rno",
        "last_time",
        "marks",
        "messages",
        "next_seq",
        "path",
        "salt",
        "sealed",
        "segno",
        "valid",
    )

    def __init__(self, segno: int, epoch: int, path: str, salt: int) -> None:
        self.segno = segno
        self.epoch = epoch
        self.path = path
        self.salt = salt
        self.valid = 0  # bytes from here on count for nothing
        self.base_rno = 0
        self.last_rno = -1  # below base_rno: no record
        self.first_seq = 0
        self.next_seq = 0
        self.messages = 0
        self.last_time = 0
        self.sealed = False  # ended by ROLL, CLOSE or a later EPOCH
        self.closed = False  # by CLOSE
        self.index: RecordIndex | None = None
        self.marks: list[tuple[int, int]] = []
        """Number and position of some records, ascending, of a segment that was scanned."""

    def begin_of(self, rno: int) -> int:
        """Where to look for record `rno` and those behind it: not too far."""
        at = bisect_right(self.marks, (rno, self.valid))
        return self.marks[at - 1][1] if at else FILE_HEADER_SIZE

    @property
    def empty(self) -> bool:
        """No record in it counts."""
        return self.valid <= FILE_HEADER_SIZE


class SegmentFile:
    """The file that grows. Not thread-safe: the writer's lock is held around every call."""

    def __init__(self, files: Files, handle: int, info: SegmentInfo) -> None:
        self._files = files
        self.handle = handle
        self.info = info
        self.end = info.valid
        self.reserved = 0
        """Up to here the disk has room for what is to be written, whatever else fills it."""
        self.broken = False
        self.room = 0
        """Up to here its writer puts records without looking closer."""

    @classmethod
    def create(cls, files: Files, directory: str, info: SegmentInfo, header: FileHeader, first: bytes) -> SegmentFile:
        """A new file with its header and `first`, durable with its name when this returns. All or nothing."""
        handle = files.create(info.path)
        info.valid = 0
        made = cls(files, handle, info)
        try:
            made.append((encode_file_header(header), first), FILE_HEADER_SIZE + len(first))
            files.sync(handle)
            files.sync_dir(directory)
        except BaseException:
            files.close(handle)
            remove_quietly(files, info.path)  # if it stays: no record in it was ever acknowledged
            raise
        return made

    def append(self, buffers: Sequence[bytes | memoryview], size: int) -> None:
        """Write `size` bytes at the end, all of it, padded; else raise `OSError` and leave the file as it was."""
        if size & 7:
            pad = -size & 7
            buffers, size = (*buffers, _PAD[pad]), size + pad
        end = self.end
        try:
            written = self._files.append(self.handle, buffers, end)
            if written != size:
                write_rest(self._files, self.handle, buffers, end, written)
        except BaseException:
            self._rewind(end)
            raise
        self.end = self.info.valid = end + size

    def claim(self, size: int) -> bool:
        """Reserve room for the next `size` bytes; `OSError` if there is none. False: this file system cannot."""
        if not self._files.allocate(self.handle, self.end, size):
            return False
        self.reserved = max(self.reserved, self.end + size)
        return True

    def trim(self) -> None:
        """Give back what was reserved and not written."""
        if self.reserved > self.end and not self.broken:
            self._rewind(self.end)

    def _rewind(self, end: int) -> None:
        self.reserved = self.room = 0
        try:
            self._files.truncate(self.handle, end)
        except OSError:
            self.broken = True  # what is behind `end` cannot be told from records later on: no more of this file
