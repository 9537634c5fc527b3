"""Finding the records of a segment: hop from header to header, and find the way again behind damage.

Not here: what damage means. A `Hole` at the end of the newest segment is what a crash leaves, anywhere else it is
damage; `recovery` knows which. Reads through a callable, so that a string serves as well as a file.

Invariants:
- Only records whose header verifies at their own position are returned, with `bodies` only those that verify wholly.
- Records and holes cover `start` to `stop` without overlap, in order; two holes never touch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from zlib import crc32

from daskqueue_storage.format import RECORD_HEADER_SIZE, RECORD_MAGIC, RecordHeader, decode_header

__all__ = ["Hole", "Read", "Window", "scan"]

Read = Callable[[int, int], bytes]
"""`read(size, offset)`: that many bytes of a file, fewer only at its end."""

_FAR: Final = 1 << 18
_NEAR: Final = 1 << 12
_PIECE: Final = 1 << 20


class Hole(NamedTuple):
    """Bytes of a segment in which no record verifies."""

    start: int
    stop: int


def scan(
    read: Read, start: int, stop: int, salt: int, *, bodies: bool = False, window: Window | None = None
) -> Iterator[RecordHeader | Hole]:
    """The records of a file between `start` and `stop`, and the holes between them.

    `bodies`: a record whose body does not verify is a hole as well. Whoever reads the bodies brings the `window`.
    """
    if window is None:
        window = Window(read, stop)
    pos = hole = start
    while pos + RECORD_HEADER_SIZE <= stop:
        header = window.header(pos, salt)
        end = stop + 1 if header is None else header.end
        if header is None or end > stop:
            pos = window.find(pos + 8, salt)
            continue
        if bodies and window.body_crc(header) != header.bcrc:
            pos = end  # the header is sound, so is its length
            continue
        if hole < pos:
            yield Hole(hole, pos)
        yield header
        pos = hole = end
    if hole < stop:
        yield Hole(hole, stop)


class Window:
    """The part of the file in memory. Large records are hopped over with small reads, small ones read many at once."""

    def __init__(self, read: Read, stop: int) -> None:
        self._read = read
        self._stop = stop
        self._at = 0
        self._data = b""
        self._found = 0

    def header(self, pos: int, salt: int) -> RecordHeader | None:
        """The record header at `pos`."""
        at = pos - self._at
        if not 0 <= at <= len(self._data) - RECORD_HEADER_SIZE:
            # Many records in the last window: they are small, read far ahead. One or two: hop from header to header.
            self._fill(pos, _FAR if self._found > 2 else _NEAR)
            at = 0
        self._found += 1
        return decode_header(self._data, at, pos, salt)

    def body(self, header: RecordHeader) -> bytes:
        """A record's body as it is on disk, shorter if the file ends in it."""
        at = header.pos + RECORD_HEADER_SIZE - self._at
        if at >= 0 and at + header.blen <= len(self._data):
            return self._data[at : at + header.blen]
        return self._read(header.blen, header.pos + RECORD_HEADER_SIZE)

    def body_crc(self, header: RecordHeader) -> int:
        """The checksum of a record's body as it is on disk. Large ones in pieces: a record may have 2 GiB."""
        pos = header.pos + RECORD_HEADER_SIZE
        stop = pos + header.blen
        at = pos - self._at
        if at >= 0 and stop - self._at <= len(self._data):
            return crc32(memoryview(self._data)[at : at + header.blen])
        crc = 0
        while pos < stop:
            piece = self._read(min(_PIECE, stop - pos), pos)
            if not piece:
                return ~header.bcrc  # the file ends here: no checksum equals that
            crc = crc32(piece, crc)
            pos += len(piece)
        return crc

    def find(self, pos: int, salt: int) -> int:
        """The next record header at `pos` or behind it; the end of the file if there is none."""
        while pos + RECORD_HEADER_SIZE <= self._stop:
            self._fill(pos, _PIECE)
            at = self._data.find(RECORD_MAGIC)
            while at >= 0:
                here = self._at + at
                if here % 8 == 0 and at + RECORD_HEADER_SIZE <= len(self._data):
                    header = decode_header(self._data, at, here, salt)
                    if header is not None and header.end <= self._stop:
                        return here
                at = self._data.find(RECORD_MAGIC, at + 1)
            # The last bytes may be the beginning of a header: the next piece starts with them.
            pos = (self._at + len(self._data) - RECORD_HEADER_SIZE + 8) & ~7
            if len(self._data) < min(_PIECE, self._stop - self._at):
                break  # shorter than it was
        return self._stop

    def _fill(self, pos: int, size: int) -> None:
        self._at = pos
        self._found = 0
        self._data = self._read(min(size, self._stop - pos), pos)
