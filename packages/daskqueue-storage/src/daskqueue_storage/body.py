"""What a record's body says: `[EXT] [IDS] [KEYS] [LENGTHS] [PAYLOADS]`, one layout for every type.

A `Draft` is a record that has no place yet: everything but its position, number and time, which the writer gives it
under its lock. Encoding a batch is one join and one checksum, no loop of ours per message.

Not here: the 64 bytes in front (`format`), and what the ids and attributes mean (core's events).

Invariants: `parse(encode(x)) == x`. A body that verifies and yet makes no sense is a `ValueError` with what is wrong,
never a wrong answer.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, pairwise
from struct import Struct
from typing import Any, Final, NamedTuple
from zlib import crc32

from daskqueue_storage.format import Flag, IdShape, RecordHeader, RecordType

__all__ = ["MAX_KEY_BYTES", "Contents", "Draft", "Ext", "Run", "draft", "draft_messages", "parse", "payloads_of"]

Run = tuple[int, int]
"""Consecutive message numbers: start, and the one behind the last."""

MAX_KEY_BYTES: Final = 1024

_U16 = Struct("<H")
_U32 = Struct("<I")
_U64 = Struct("<Q")
_TWO_U16 = Struct("<HH")
_TWO_U64 = Struct("<QQ")
_BLOCK = Struct("<QI")
_U32_MAX = 2**32 - 1
_SWAP = sys.byteorder == "big"
_ID_SHAPE = 0x30
_FIXED_PUT = int(Flag.FIXED | Flag.PAYLOADS)
_EXT: Final = int(Flag.EXT)
_IGNORABLE: Final = int(Flag.IGNORABLE)


class Ext(NamedTuple):
    """The attributes of a record. None (or empty) means: not there."""

    ready_at: int | None = None  # 1
    expires_at: int | None = None  # 2
    producer: tuple[int, int] | None = None  # 3: id, number of the first message's put
    lease: int | None = None  # 4
    deadline: int | None = None  # 5
    owner: str | None = None  # 6
    attempts: tuple[int, int] | None = None  # 7: attempts, crashes
    put_at: int | None = None  # 8: of messages that were moved since
    block: tuple[int, int] | None = None  # 11: the id its block starts at, and how many it spans
    client: tuple[int, int] | None = None  # 12: id, the client's number of the first message
    policy: bytes | None = None  # 13: what runs the messages, opaque here


# One place for the tags: (tag, field of Ext, how its value is packed).
_KEYS_TAG = 10
_TAGS: Final[tuple[tuple[int, str, Struct | None], ...]] = (
    (1, "ready_at", _U64),
    (2, "expires_at", _U64),
    (3, "producer", _TWO_U64),
    (4, "lease", _U64),
    (5, "deadline", _U64),
    (6, "owner", None),
    (7, "attempts", _TWO_U16),
    (8, "put_at", _U64),
    (11, "block", _BLOCK),
    (12, "client", _TWO_U64),
    (13, "policy", None),
)
_FIELD_OF = {tag: (field, packing) for tag, field, packing in _TAGS}
_PACKS: Final = [  # in the order of the fields of Ext: tag, size, how tag, size and value are packed
    (tag, 0, None) if packing is None else (tag, packing.size, Struct("<BB" + packing.format[1:]).pack)
    for tag, _, packing in _TAGS
]
_HEADS: Final = {tag: [bytes((tag, size)) for size in range(256)] for tag, _, packing in _TAGS if packing is None}


class Draft(NamedTuple):
    """A record without its place. `parts` are the bytes of its body, in order, unpadded."""

    type: int
    flags: int
    small: int
    count: int  # type: ignore[assignment]  # nobody needs tuple.count here
    base: int
    aux: int
    parts: tuple[bytes | memoryview, ...]
    blen: int
    bcrc: int


class Contents(NamedTuple):
    """A parsed body. Payloads are views into the body: one per message, or the one block of all."""

    ext: Ext
    runs: tuple[Run, ...]
    keys: tuple[str, ...]
    payloads: list[memoryview]


# ------------------------------------------------------------------------------------------------------------ encode


def draft_messages(batch: Sequence[bytes]) -> Draft:
    """PUT of `batch`, without attributes: the path that must be fast (1,000 messages of 100 bytes: 65 us)."""
    lengths, payload, is_fixed = _joined(batch)
    count = len(lengths)
    if is_fixed:
        size = lengths[0] if count else 0
        return Draft(RecordType.PUT, _FIXED_PUT, 0, count, 0, size, (payload,), len(payload), crc32(payload))
    column = _column(array("I", lengths))
    crc = crc32(payload, crc32(column))
    return Draft(RecordType.PUT, Flag.PAYLOADS, 0, count, 0, 0, (column, payload), len(column) + len(payload), crc)


def draft(
    record_type: RecordType,
    *,
    runs: Sequence[Run] = (),
    ordered: bool = False,
    ext: Ext | None = None,
    keys: Sequence[str] = (),
    payloads: Sequence[bytes] | None = None,
    block: bytes | None = None,
    small: int = 0,
    ignorable: bool = False,
) -> Draft:
    """A record about `runs`. `ordered`: their order says something, so no bitmap. One block, or a payload per id."""
    attributes = _encode_ext(ext, keys) if ext is not None or keys else b""
    if len(runs) == 1 and payloads is None and block is None and not keys:  # the common case
        (start, stop), flags = runs[0], (_IGNORABLE if ignorable else 0) | (_EXT if attributes else 0)
        body = (attributes,) if attributes else ()
        return Draft(record_type, flags, small, stop - start, start, 0, body, len(attributes), crc32(attributes))
    base, count, shape, aux, ids = _encode_ids(runs, ordered)
    flags = shape << 4 | (_IGNORABLE if ignorable else 0) | (_EXT if attributes else 0)
    parts = [attributes, ids, *_encode_keys(keys, count)]
    if block is not None:
        flags |= Flag.BLOCK | Flag.PAYLOADS
        parts.append(block)
    elif payloads is not None:
        lengths, payload, is_fixed = _joined(payloads)
        if len(lengths) != count:
            raise ValueError(f"{len(lengths)} payloads for {count} messages")
        flags |= Flag.PAYLOADS
        if shape == IdShape.RANGE and is_fixed:
            flags |= Flag.FIXED
            aux = lengths[0] if count else 0
        else:
            parts.append(_column(array("I", lengths)))
        parts.append(payload)
    kept = tuple(part for part in parts if part)
    crc = 0
    for part in kept:
        crc = crc32(part, crc)
    return Draft(record_type, flags, small, count, base, aux, kept, sum(map(len, kept)), crc)


def _joined(batch: Sequence[bytes]) -> tuple[list[int], bytes, bool]:
    """The lengths and the concatenation of a batch, and whether all lengths are one."""
    lengths = list(map(len, batch))  # a list, not an array: half the time, and `count` takes next to none
    payload = b"".join(batch)
    first = lengths[0] if lengths else 0
    if lengths.count(first) == len(lengths) and first * len(lengths) == len(payload):
        return lengths, payload, True
    if sum(lengths) != len(payload):  # a memoryview's len counts items, not bytes
        return _joined([bytes(item) for item in batch])
    return lengths, payload, False


def _column(values: array[int]) -> bytes:
    if _SWAP:  # pragma: no cover  # big-endian machines
        values = values[:]
        values.byteswap()
    return values.tobytes()


def _values(data: bytes | memoryview, typecode: str = "I") -> array[int]:
    values = array(typecode)
    values.frombytes(data)
    if _SWAP:  # pragma: no cover  # big-endian machines
        values.byteswap()
    return values


def _encode_ext(ext: Ext | None, keys: Sequence[str]) -> bytes:
    items = []
    values: Sequence[Any] = ext or ()
    for value, (tag, size, pack) in zip(values, _PACKS):
        if value is None:
            continue
        if pack is not None:
            items.append(pack(tag, size, *value) if isinstance(value, tuple) else pack(tag, size, value))
            continue
        data = value.encode() if isinstance(value, str) else value
        if len(data) < 256:
            items += (_HEADS[tag][len(data)], data)
            continue
        for at in range(0, len(data), 255):  # one length byte: the rest follows in further items of the same tag
            chunk = data[at : at + 255]
            items += (_HEADS[tag][len(chunk)], chunk)
    if keys:
        items.append(bytes((_KEYS_TAG, 4)) + _U32.pack(2 * len(keys) + sum(len(key.encode()) for key in keys)))
    if not items:
        return b""
    packed = b"".join(items)
    size = (2 + len(packed) + 7) & ~7
    if size > 0xFFF8:
        raise ValueError(f"the attributes of one record take {size} bytes, at most {0xFFF8} fit")
    return _U16.pack(size) + packed.ljust(size - 2, b"\0")


def _encode_keys(keys: Sequence[str], count: int) -> tuple[bytes, ...]:
    if not keys:
        return ()
    if len(keys) != count:
        raise ValueError(f"{len(keys)} keys for {count} messages")
    encoded = [key.encode() for key in keys]
    for key, data in zip(keys, encoded):
        if len(data) > MAX_KEY_BYTES:
            raise ValueError(f"key {key[:40]!r}... has {len(data)} bytes, at most {MAX_KEY_BYTES} are allowed")
    return _column(array("H", map(len, encoded))), b"".join(encoded)


def _encode_ids(runs: Sequence[Run], ordered: bool) -> tuple[int, int, int, int, bytes]:
    """base, count, shape, aux, column: the smallest there is."""
    if not runs:
        return 0, 0, IdShape.RANGE, 0, b""
    count = sum(stop - start for start, stop in runs)
    base = min(start for start, _ in runs)
    if len(runs) == 1:
        return base, count, IdShape.RANGE, 0, b""
    span = max(stop for _, stop in runs) - base
    bitmap_bytes = (span + 7) // 8
    if bitmap_bytes < 8 * len(runs) and not ordered:
        bits = 0
        for start, stop in runs:
            bits |= ((1 << (stop - start)) - 1) << (start - base)
        return base, count, IdShape.BITMAP, bitmap_bytes, bits.to_bytes(bitmap_bytes, "little")
    if span > _U32_MAX:
        raise ValueError(f"ids {span} apart do not fit one record: split it")
    starts = array("I", [start - base for start, _ in runs])
    sizes = array("I", [stop - start for start, stop in runs])
    return base, count, IdShape.RANGES, len(runs), _column(starts) + _column(sizes)


# ------------------------------------------------------------------------------------------------------------- parse


def payloads_of(header: RecordHeader, body: bytes) -> list[bytes]:
    """The payloads of a record as bytes, by the short way where the record is a plain one."""
    if header.flags == _FIXED_PUT:
        size = header.aux
        if size * header.count != len(body):
            raise ValueError(f"{header.count} payloads of {size} bytes cannot be in {len(body)} bytes")
        if not size:
            return [b""] * header.count
        return [body[at : at + size] for at in range(0, len(body), size)]
    return [bytes(view) for view in parse(header, body).payloads]


def parse(header: RecordHeader, body: bytes | memoryview) -> Contents:
    """The parts of a verified body."""
    view = memoryview(body)
    ext, key_bytes, at = _parse_ext(view) if header.flags & Flag.EXT else (Ext(), 0, 0)
    runs, at = _parse_ids(header, view, at)
    keys = _parse_keys(view[at : at + key_bytes], header.count) if key_bytes else ()
    at += key_bytes
    if not header.flags & Flag.PAYLOADS:
        return Contents(ext, runs, keys, [])
    if header.flags & Flag.BLOCK:
        return Contents(ext, runs, keys, [view[at:]])
    if header.flags & Flag.FIXED:
        lengths = array("I", [header.aux]) * header.count
    else:
        lengths = _values(view[at : at + 4 * header.count])
        at += 4 * header.count
    bounds = list(accumulate(lengths, initial=at))
    if len(lengths) != header.count or bounds[-1] != len(view):
        raise ValueError(f"the lengths of {header.count} payloads do not add up to {len(view) - at} bytes")
    return Contents(ext, runs, keys, [view[start:stop] for start, stop in pairwise(bounds)])


def _parse_ext(view: memoryview) -> tuple[Ext, int, int]:
    """The attributes, the size of the key column, and where the attributes end. Unknown tags are skipped."""
    size = _U16.unpack_from(view)[0] if len(view) >= 2 else 0
    if not 2 <= size <= len(view):
        raise ValueError(f"attributes of {size} bytes in a body of {len(view)}")
    raw: dict[int, bytes] = {}
    at = 2
    while at + 2 <= size and view[at]:
        tag, length = view[at], view[at + 1]
        if at + 2 + length > size:
            raise ValueError(f"attribute {tag} runs over the end of the attributes")
        raw[tag] = raw.get(tag, b"") + bytes(view[at + 2 : at + 2 + length])
        at += 2 + length
    fields: dict[str, object] = {}
    for tag, data in raw.items():
        field, packing = _FIELD_OF.get(tag, ("", None))
        if packing is not None:
            if len(data) != packing.size:
                raise ValueError(f"attribute {tag} has {len(data)} bytes instead of {packing.size}")
            values = packing.unpack(data)
            fields[field] = values if len(values) > 1 else values[0]
        elif field:
            fields[field] = data.decode() if field == "owner" else data
    key_bytes = _U32.unpack(raw[_KEYS_TAG])[0] if len(raw.get(_KEYS_TAG, b"")) == 4 else 0
    return Ext(**fields), key_bytes, size  # type: ignore[arg-type]  # the table above pairs fields and packings


def _parse_ids(header: RecordHeader, view: memoryview, at: int) -> tuple[tuple[Run, ...], int]:
    shape = (header.flags & _ID_SHAPE) >> 4
    base = header.base
    if shape == IdShape.RANGE:
        return (((base, base + header.count),) if header.count else ()), at
    size = 8 * header.aux if shape == IdShape.RANGES else header.aux
    if at + size > len(view) or shape > IdShape.BITMAP:
        raise ValueError(f"{size} bytes of ids (shape {shape}) in a body of {len(view)}")
    column = view[at : at + size]
    if shape == IdShape.RANGES:
        half = size // 2
        pairs = zip(_values(column[:half]), _values(column[half:]))
        runs = tuple((base + start, base + start + length) for start, length in pairs)
    else:
        runs = _bitmap_runs(column, base)
    if sum(stop - start for start, stop in runs) != header.count:
        raise ValueError(f"the ids are not the {header.count} of the header")
    return runs, at + size


def _bitmap_runs(column: memoryview, base: int) -> tuple[Run, ...]:
    # Through the binary digits: re-reading them as text finds runs without a loop per bit.
    digits = bin(int.from_bytes(column, "little"))[:1:-1]
    runs = []
    at = digits.find("1")
    while at >= 0:
        stop = digits.find("0", at)
        stop = len(digits) if stop < 0 else stop
        runs.append((base + at, base + stop))
        at = digits.find("1", stop)
    return tuple(runs)


def _parse_keys(column: memoryview, count: int) -> tuple[str, ...]:
    lengths = _values(column[: 2 * count], "H") if len(column) >= 2 * count else array("H")
    bounds = list(accumulate(lengths, initial=2 * count))
    if len(lengths) != count or bounds[-1] != len(column):
        raise ValueError(f"the key column of {len(column)} bytes does not hold {count} keys")
    return tuple(str(column[start:stop], "utf-8") for start, stop in pairwise(bounds))
