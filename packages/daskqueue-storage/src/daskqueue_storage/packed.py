"""What comes with every message, packed in one go: DELIVERED, ACKED, and the attributes of a PUT.

Byte for byte what `body.draft` makes of the attributes one by one, in a fifth of the time; `records` knows when these
will do. Each attribute is its tag, its length, its value (`body`); together they begin with their size.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from struct import Struct, calcsize
from typing import Final
from zlib import crc32

from daskqueue_core.batch import Batch
from daskqueue_core.events import Acked, Delivered, Put
from daskqueue_storage import plain
from daskqueue_storage.body import Draft
from daskqueue_storage.format import MAX_COUNT, Flag, RecordType, padded

__all__ = ["PLACE", "SHORT", "acked", "delivered", "put_attributes", "single"]

SHORT: Final = 256
"""Bytes that do not fit one attribute."""

PLACE = Struct("<QIIIIIB")
"""How the policy of a PUT begins: see `records`."""

_DEFAULTS: Final = Batch(1, b"")
_PLAIN: Final = plain.encode(
    (
        int(_DEFAULTS.kind),
        _DEFAULTS.tags,
        int(_DEFAULTS.keep),
        _DEFAULTS.function,
        _DEFAULTS.shared,
        _DEFAULTS.control,
        _DEFAULTS.resent,
        _DEFAULTS.max_crashes,
    )
)
"""What stands behind `PLACE` in the policy of a batch that asks for nothing special."""

_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_DELIVERED: Final = int(RecordType.DELIVERED)
_ACKED: Final = int(RecordType.ACKED)
_PUT: Final = int(RecordType.PUT)
_EXT: Final = int(Flag.EXT)
_SINGLE_FLAGS: Final = int(Flag.EXT | Flag.PAYLOADS | Flag.FIXED)
_ACKED_BODY: Final = Struct("<HBBQBBQBBQ")  # 32 bytes: nothing to pad
_DEADLINE: Final = 8 << 8 | 5  # tag and length as one number
_POLICY: Final = 16 << 8 | 13
_pack_acked: Final = _ACKED_BODY.pack
_ACKED_SIZE: Final = _ACKED_BODY.size


def delivered(event: Delivered, puts: int) -> Draft | None:
    """Of one run, to an owner whose name is ASCII and short; None of others. `puts`: how many were put before."""
    time, runs, lease, owner, once, deadline, request = event
    packing = _delivered_packing(owner)
    if len(runs) != 1 or packing is None:
        return None
    pack, blen, head, name = packing
    body = pack(head, lease, _DEADLINE, deadline, name, time, _POLICY, puts, request)
    start, stop = runs[0]
    return _new(Draft, (_DELIVERED, _EXT, once, stop - start, start, 0, (body,), blen, crc32(body)))


def acked(event: Acked, puts: int) -> Draft | None:
    """Of one run, without values; None of others."""
    time, runs, lease, keep = event
    if len(runs) != 1:
        return None
    start, stop = runs[0]
    count = stop - start
    if count > MAX_COUNT:
        return None
    body = _pack_acked(_ACKED_SIZE, 4, 8, lease, 8, 8, time, 13, 8, puts)
    return _new(Draft, (_ACKED, _EXT, keep, count, start, 0, (body,), _ACKED_SIZE, crc32(body)))


def single(event: Put, body: bytes) -> Draft:
    """PUT of one message that asks for nothing special, of no producer."""
    size = len(body)
    attributes = _pack_single(
        _SINGLE, 8, 8, event.time, 12, 16, 0, 0, 13, _SINGLE_POLICY, 0, 0, 0, 0, 4, size, 0, _PLAIN
    )
    crc = crc32(body, crc32(attributes))
    return _new(Draft, (_PUT, _SINGLE_FLAGS, 0, 1, 0, size, (attributes, body), _SINGLE + size, crc))


def put_attributes(event: Put, batch: Batch, place: tuple[int, ...], rest: bytes) -> bytes:
    """Of a put without times and keys, whose policy (`place`, then `rest`) is short."""
    pack, size = _put_packing(len(rest), event.producer is not None)
    policy = PLACE.size + len(rest)
    named = () if event.producer is None else (3, 16, event.producer, event.number)
    return pack(size, *named, 8, 8, event.time, 12, 16, batch.client, batch.first, 13, policy, *place, rest)


@lru_cache(maxsize=256)
def _delivered_packing(owner: str) -> tuple[Callable[..., bytes], int, bytes, bytes] | None:
    """How to pack it, the size, and what is the same each time: the beginning, and all of the owner."""
    size = len(owner)
    if size >= SHORT or not owner.isascii():
        return None
    pack, blen = _padded(f"<4sQHQ{size + 4}sQHQQ")
    return pack, blen, blen.to_bytes(2, "little") + b"\x04\x08", bytes((6, size)) + owner.encode() + b"\x08\x08"


@lru_cache(maxsize=256)
def _put_packing(rest: int, has_producer: bool) -> tuple[Callable[..., bytes], int]:
    return _padded(f"<H{'BBQQ' if has_producer else ''}BBQBBQQBB{PLACE.format[1:]}{rest}s")


def _padded(layout: str) -> tuple[Callable[..., bytes], int]:
    """How to pack it, padded, and the size."""
    size = padded(calcsize(layout))
    return Struct(f"{layout}{size - calcsize(layout)}x").pack, size


_pack_single, _SINGLE = _put_packing(len(_PLAIN), False)
_SINGLE_POLICY: Final = PLACE.size + len(_PLAIN)
