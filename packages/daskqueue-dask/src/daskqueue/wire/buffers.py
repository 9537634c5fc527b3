"""Pickles whose large buffers lie beside them, as protocol 5 allows: one copy out of an array, one copy into it.

In band, pickle copies a NumPy array three times while its output grows, and every search for names reads all of it
(1.3 ms a MB, 0.15 with buffers apart). `bytes` offer no buffer by themselves: those that are arguments, elements or
values go apart too, not what is deeper inside. What has no large buffer is a plain pickle, which begins with 0x80.

    u8 MAGIC, 3 bytes 0, u32 n | n + 1 times u64 length, top bit: read-only | pickle | n buffers
    u8 LIST,  3 bytes 0, u32 n | n times u64 length | n times bytes: a list of `bytes`, without a pickle

An array comes back as it was, read-only or writable, in memory of its own: it does not hold on to its batch.

Fresh memory is most of what large buffers cost (a page fault for each 4 KiB of it), so who sends them does not join
them (`Spread`), and who runs a list of `bytes` makes them one at a time, where the one before was (`whole`).
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Sequence
from typing import Any, Final

from daskqueue.wire.pickles import APART_BYTES, dumps

__all__ = ["Spread", "pack", "spread", "unpack", "whole"]

_MAGIC: Final = 0xDB
_LIST: Final = 0xDC
_HEAD: Final = struct.Struct("<B3xI")
_READ_ONLY: Final = 1 << 63
_FEW: Final = 64  # elements of a block of large ones; to look at all of many small ones would cost more than it saves
_SPREAD_BYTES: Final = 65_536  # a buffer, on average: Dask joins what it sends in smaller pieces


class Spread:
    """What `pack` makes, in pieces that are `bytes`: nobody changes them, so they need not be copied to be sent."""

    __slots__ = ("_nbytes", "pieces")

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self._nbytes = sum(map(len, pieces))

    def __len__(self) -> int:
        return self._nbytes

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces)


def pack(obj: object) -> bytes:
    """`obj` in bytes, for `unpack`; raises what `dumps` raises."""
    apart: list[memoryview] = []
    head = _packed(obj, apart)
    return b"".join((head, *apart)) if apart else head


def spread(obj: object) -> bytes | Spread:
    """As `pack`, but nothing is copied if all that is large in it are `bytes`: anything else may be changed."""
    apart: list[memoryview] = []
    head = _packed(obj, apart)
    if not apart:
        return head
    pieces = [each.obj for each in apart if type(each.obj) is bytes and len(each.obj) == each.nbytes]
    if len(pieces) == len(apart) and sum(map(len, pieces)) >= _SPREAD_BYTES * len(pieces):
        return Spread([head, *pieces])
    return b"".join((head, *apart))


def _packed(obj: object, apart: list[memoryview]) -> bytes:
    """The beginning; the large buffers that follow are added to `apart`."""
    data = dumps(_offered(obj), apart)
    if not apart:
        return data
    lengths = [view.nbytes | (_READ_ONLY if view.readonly else 0) for view in apart]
    if type(obj) is list and len(apart) == len(obj) and all(type(each) is bytes for each in obj):
        lengths, kind, data = list(map(len, obj)), _LIST, b""
    else:
        lengths.insert(0, len(data))
        kind = _MAGIC
    return b"".join((_HEAD.pack(kind, len(apart)), struct.pack(f"<{len(lengths)}Q", *lengths), data))


def _offered(obj: object) -> object:
    """`obj`, with a buffer for each of its large `bytes`, which come back as `bytes`.

    Not if something is in it twice, which pickle writes once.
    """
    if (type(obj) is tuple or type(obj) is list) and len(obj) <= _FEW:
        for each in obj:
            if type(each) is bytes and len(each) >= APART_BYTES:
                return obj if len(set(map(id, obj))) < len(obj) else type(obj)(map(_offer, obj))
    return obj


def _offer(each: object) -> object:
    return pickle.PickleBuffer(each) if type(each) is bytes and len(each) >= APART_BYTES else each


def unpack(data: bytes | bytearray | memoryview, *, views: bool = False) -> Any:
    """The object; raises what unpickling raises, and ValueError for damaged lengths.

    With `views`, what was a list of large `bytes` is one of views into `data`, each to be made `whole`.
    """
    view = memoryview(data)
    if not view.nbytes or not _MAGIC <= view[0] <= _LIST:
        return pickle.loads(view)
    kind, count = _HEAD.unpack_from(view)
    table = struct.Struct(f"<{count + (kind == _MAGIC)}Q")
    lengths = table.unpack_from(view, _HEAD.size)
    at = _HEAD.size + table.size
    if at + sum(length & ~_READ_ONLY for length in lengths) != view.nbytes:
        raise ValueError(f"{count} buffers have {view.nbytes} bytes, which do not match their lengths")
    parts: list[memoryview] = []
    for length in lengths:
        size = length & ~_READ_ONLY
        parts.append(view[at : at + size])
        at += size
    if kind == _LIST:
        return parts if views else list(map(bytes, parts))
    buffers = [bytes(p) if n & _READ_ONLY else bytearray(p) for p, n in zip(parts[1:], lengths[1:], strict=True)]
    return pickle.loads(parts[0], buffers=buffers)


def whole(element: Any) -> Any:
    """An element as it was given, of a list that was read as views."""
    return bytes(element) if type(element) is memoryview else element
