"""The byte layout of files and records: pure functions from values to bytes and back.

Not here: what a record's body says (`body`), how records are found in a file (`scan`), anything that touches a disk.
`docs/design/storage.md` is the prose; the tests hold its worked example against this module.

Invariants:
- Every multi-byte number is little-endian. Records start at multiples of 8 and are padded with zeros.
- Zeros are never a record, and neither are the bytes of a record at any other place, in any other file or log: the
  header's checksum is salted with the log's uuid, the segment's number and its epoch, and covers the record's position.
- The header's checksum covers the body's, so a record that verifies is the one that was written, all of it.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

__all__ = [
    "FILE_HEADER_SIZE",
    "FILE_MAGIC",
    "MAJOR",
    "MAX_BODY",
    "MAX_COUNT",
    "MINOR",
    "RECORD_HEADER_SIZE",
    "RECORD_MAGIC",
    "SEAL_SIZE",
    "FileHeader",
    "FileKind",
    "Flag",
    "IdShape",
    "RecordHeader",
    "RecordType",
    "Seal",
    "SealedSegment",
    "body_of",
    "decode_epoch",
    "decode_file_header",
    "decode_header",
    "decode_seal",
    "encode_epoch",
    "encode_file_header",
    "encode_header",
    "encode_seal",
    "unsupported",
    "pack_header",
    "padded",
    "record_salt",
    "record_size",
]

FILE_MAGIC: Final = b"\x89DKQ\r\n\x1a\n"
"""As PNG's: a transfer that strips the eighth bit or translates line ends is noticed."""
RECORD_MAGIC: Final = b"DQR1"
MAJOR: Final = 1
MINOR: Final = 0

_FILE_HEADER = Struct("<8sHHI16sQQIII")
_RECORD_HEADER = Struct("<4sIBBhIQQQQIIII")
_COVERED = Struct("<BBhIQQQQIIII")
_PREFIX = Struct("<4sI")
_pack_covered: Final = _COVERED.pack
_pack_prefix: Final = _PREFIX.pack
_GIST = Struct("<4sI8xQ28xII4x")
_U32 = Struct("<I")
_SALTED = Struct("<QI")
_SEAL = Struct("<QQQ")
_START = Struct("<Q")
_SEALED = Struct("<QIIQQQQQ")

FILE_HEADER_SIZE: Final = 64
RECORD_HEADER_SIZE: Final = 64
SEAL_SIZE: Final = RECORD_HEADER_SIZE + _SEAL.size
MAX_BODY: Final = 2**31 - 1
MAX_COUNT: Final = 2**20
"""Messages in one record, and message numbers that may be lost with what was not synced (see `writer`)."""


class FileKind(IntEnum):
    """What a file is. The numbers are on disk."""

    FORMAT = 1
    LOG_SEGMENT = 2
    INDEX_SEGMENT = 3


class RecordType(IntEnum):
    """What a record says. The numbers are on disk and never change; new ones come from 19 on (18 was never written)."""

    PUT = 1  # log: new messages
    COPY = 2  # log: live messages moved here; the newer place counts
    SNAPSHOT = 3  # index: the whole of it, first record of every IndexSegment
    DELIVERED = 4
    ACKED = 5
    RETURNED = 6
    FAILED = 7
    CANCEL_ASKED = 8
    CANCELLED = 9
    EPOCH = 10  # both: first record of an epoch; what of its predecessors counts
    ROLL = 11  # both: last record of a full segment
    CLOSE = 12  # both: last record of a clean shutdown
    RETIRED = 13  # segments about to be deleted, by number
    EXPIRED = 14
    REQUEUED = 15
    PURGED = 16
    FORGOTTEN = 17


class Flag(IntEnum):
    """Bits of a record header's `flags`; bits 4 and 5 are the `IdShape`."""

    FIXED = 0x01  # every payload has `aux` bytes: no lengths column; only with IdShape.RANGE
    EXT = 0x02  # the body starts with attributes
    BLOCK = 0x04  # one payload for all messages of the record: no lengths column
    RESERVED = 0x08  # compression, not in version 1
    PAYLOADS = 0x40  # the body ends with payloads
    IGNORABLE = 0x80  # whoever does not know the type may skip the record


class IdShape(IntEnum):
    """How a record names its messages (bits 4 and 5 of `flags`)."""

    RANGE = 0  # base .. base + count
    RANGES = 1  # `aux` pairs, relative to base, in their order
    BITMAP = 2  # `aux` bytes, bit i is base + i


class FileHeader(NamedTuple):
    """The first 64 bytes of a file."""

    kind: int
    uuid: bytes
    number: int  # the segment's
    base: int  # the first record number that may stand here
    epoch: int  # of the only writer of this file
    major: int = MAJOR
    minor: int = MINOR
    features: int = 0  # bits 0-15: who does not know one may not open; 16-31: may ignore


class RecordHeader(NamedTuple):
    """The first 64 bytes of a record."""

    type: int
    flags: int
    small: int
    count: int  # type: ignore[assignment]  # nobody needs tuple.count here
    pos: int
    rno: int
    base: int
    time: int
    epoch: int
    blen: int
    bcrc: int
    aux: int

    @property
    def end(self) -> int:
        """Where the next record starts."""
        return self.pos + RECORD_HEADER_SIZE + ((self.blen + 7) & ~7)  # in place: a scan asks every record


class Seal(NamedTuple):
    """The body of ROLL and CLOSE: what is in the segment they end, so that opening need not scan it."""

    first_seq: int  # of the segment's messages; the header's `base` is the number behind the last
    messages: int
    start: int  # the number of the first record that is not retired


class SealedSegment(NamedTuple):
    """A row of EPOCH: a segment of a predecessor that did not end it. Bytes from `valid` on count for nothing."""

    segno: int
    epoch: int
    valid: int
    next_rno: int  # one more than that of its last record
    first_seq: int
    next_seq: int
    messages: int


def padded(size: int) -> int:
    """`size`, rounded up to a multiple of 8."""
    return (size + 7) & ~7


def record_size(blen: int) -> int:
    """The bytes of a record with a body of `blen`, header and padding included."""
    return RECORD_HEADER_SIZE + padded(blen)


def record_salt(uuid: bytes, segno: int, epoch: int) -> int:
    """What the header checksums of one segment start from."""
    return crc32(uuid + _SALTED.pack(segno, epoch))


# ------------------------------------------------------------------------------------------------------- file header


def encode_file_header(header: FileHeader) -> bytes:
    """The 64 bytes."""
    packed = _FILE_HEADER.pack(
        FILE_MAGIC,
        header.major,
        header.minor,
        header.features,
        header.uuid,
        header.number,
        header.base,
        header.epoch,
        header.kind,
        0,
    )
    return packed + _U32.pack(crc32(packed))


def decode_file_header(data: bytes) -> FileHeader | None:
    """The header, or None if these are not 64 bytes that somebody wrote as one."""
    if len(data) < FILE_HEADER_SIZE or data[:8] != FILE_MAGIC:
        return None
    if _U32.unpack_from(data, 60)[0] != crc32(data[:60]):
        return None
    _, major, minor, features, uuid, number, base, epoch, kind, _ = _FILE_HEADER.unpack_from(data)
    return FileHeader(kind, uuid, number, base, epoch, major, minor, features)


def unsupported(header: FileHeader) -> str:
    """Empty, or what this version lacks to read such a file."""
    if header.major > MAJOR:
        return f"format {header.major}.{header.minor}, this version reads {MAJOR}.{MINOR}"
    if unknown := header.features & 0xFFFF:
        return f"uses features {unknown:#06x} that this version does not have"
    return ""


# ----------------------------------------------------------------------------------------------------- record header


def encode_header(header: RecordHeader, salt: int) -> bytes:
    """The 64 bytes of a record header."""
    return pack_header(header, salt)


def pack_header(fields: tuple[int, ...], salt: int) -> bytes:
    """As `encode_header`, of the fields of a `RecordHeader`: at every put, lease and ack."""
    covered = _pack_covered(*fields)
    return _pack_prefix(RECORD_MAGIC, crc32(covered, salt)) + covered


def body_of(data: bytes, pos: int, blen: int, salt: int) -> bytes | None:
    """The body of the one record that `data` is, with `blen` bytes in it, at `pos`; None if these are not its bytes.

    As `decode_header` and a look at the body's checksum, without what else the header says.
    """
    if len(data) != RECORD_HEADER_SIZE + blen:
        return None
    magic, hcrc, own_pos, own_blen, bcrc = _GIST.unpack_from(data)
    body = data[RECORD_HEADER_SIZE:]
    if magic != RECORD_MAGIC or own_pos != pos or own_blen != blen or crc32(body) != bcrc:
        return None
    return body if crc32(data[8:RECORD_HEADER_SIZE], salt) == hcrc else None


def decode_header(data: bytes | memoryview, at: int, pos: int, salt: int) -> RecordHeader | None:
    """The record header at `data[at:]`, which stands at `pos` of its file; None if there is none."""
    if data[at : at + 4] != RECORD_MAGIC or len(data) < at + RECORD_HEADER_SIZE:
        return None
    if _U32.unpack_from(data, at + 4)[0] != crc32(data[at + 8 : at + RECORD_HEADER_SIZE], salt):
        return None
    header = tuple.__new__(RecordHeader, _COVERED.unpack_from(data, at + 8))  # half the time of `_make`
    return header if header.pos == pos else None


# ------------------------------------------------------------------------------------- bodies that hold a log together


def encode_seal(seal: Seal) -> bytes:
    """The body of ROLL and CLOSE."""
    return _SEAL.pack(*seal)


def decode_seal(body: bytes) -> Seal:
    """The body of ROLL and CLOSE; `ValueError` if it is too short."""
    if len(body) < _SEAL.size:
        raise ValueError(f"a seal has {_SEAL.size} bytes, this one {len(body)}")
    return Seal._make(_SEAL.unpack_from(body))


def encode_epoch(start: int, rows: list[SealedSegment]) -> bytes:
    """The body of EPOCH: the first record number that is not retired, and what of the predecessors counts."""
    packed = (_SEALED.pack(row.segno, row.epoch, 0, *row[2:]) for row in rows)
    return _START.pack(start) + b"".join(packed)


def decode_epoch(body: bytes) -> tuple[int, list[SealedSegment]]:
    """The body of EPOCH; `ValueError` if it is no table."""
    if len(body) < _START.size or (len(body) - _START.size) % _SEALED.size:
        raise ValueError(f"a table of sealed segments cannot have {len(body)} bytes")
    rows = [SealedSegment(row[0], row[1], *row[3:]) for row in _SEALED.iter_unpack(body[_START.size :])]
    return _START.unpack_from(body)[0], rows
