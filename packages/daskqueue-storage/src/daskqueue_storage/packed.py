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
from daskqueue_storage.body import Draft
from daskqueue_storage.format import Flag, RecordType, padded

__all__ = ["PLACE", "SHORT", "acked", "delivered", "put_attributes"]

SHORT: Final = 256
"""Bytes that do not fit one attribute."""

PLACE = Struct("<QIIIIIB")
"""How the policy of a PUT begins: see `records`."""

_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor
_DELIVERED: Final = int(RecordType.DELIVERED)
_ACKED: Final = int(RecordType.ACKED)
_EXT: Final = int(Flag.EXT)
_ACKED_BODY: Final = Struct("<HBBQBBQBBQ")  # 32 bytes: nothing to pad


def delivered(event: Delivered, puts: int) -> Draft:
    """Of one run, to an owner whose name is ASCII and short. `puts`: how many messages were put before."""
    time, runs, lease, owner, once, deadline, request = event
    size = len(owner)
    pack, blen = _delivered_packing(size)
    body = pack(blen, 4, 8, lease, 5, 8, deadline, 6, size, owner.encode(), 8, 8, time, 13, 16, puts, request)
    start, stop = runs[0]
    return _new(Draft, (_DELIVERED, _EXT, once, stop - start, start, 0, (body,), blen, crc32(body)))


def acked(event: Acked, puts: int) -> Draft:
    """Of one run, without values."""
    time, runs, lease, keep = event
    blen = _ACKED_BODY.size
    body = _ACKED_BODY.pack(blen, 4, 8, lease, 8, 8, time, 13, 8, puts)
    start, stop = runs[0]
    return _new(Draft, (_ACKED, _EXT, keep, stop - start, start, 0, (body,), blen, crc32(body)))


def put_attributes(event: Put, batch: Batch, place: tuple[int, ...], rest: bytes) -> bytes:
    """Of a put without times and keys, whose policy (`place`, then `rest`) is short."""
    pack, size = _put_packing(len(rest), event.producer is not None)
    policy = PLACE.size + len(rest)
    named = () if event.producer is None else (3, 16, event.producer, event.number)
    return pack(size, *named, 8, 8, event.time, 12, 16, batch.client, batch.first, 13, policy, *place, rest)


@lru_cache(maxsize=256)
def _delivered_packing(owner: int) -> tuple[Callable[..., bytes], int]:
    return _padded(f"<HBBQBBQBB{owner}sBBQBBQQ")


@lru_cache(maxsize=256)
def _put_packing(rest: int, has_producer: bool) -> tuple[Callable[..., bytes], int]:
    return _padded(f"<H{'BBQQ' if has_producer else ''}BBQBBQQBB{PLACE.format[1:]}{rest}s")


def _padded(layout: str) -> tuple[Callable[..., bytes], int]:
    """How to pack it, padded, and the size."""
    size = padded(calcsize(layout))
    return Struct(f"{layout}{size - calcsize(layout)}x").pack, size
