"""Pickles whose large buffers lie beside them, as protocol 5 allows: one copy out of an array, one copy into it.

In band, pickle copies a NumPy array three times while its output grows, and every search for names reads all of it
(1.3 ms a MB, 0.15 with buffers apart). `bytes` offer no buffer by themselves: those that are arguments, elements or
values go apart too, not what is deeper inside. What has no large buffer is a plain pickle, which begins with 0x80.

    u8 MAGIC, 3 bytes 0, u32 n | n + 1 times u64 length, top bit: read-only | pickle | n buffers

An array comes back as it was, read-only or writable, in memory of its own: it does not hold on to its batch.
"""

from __future__ import annotations

import pickle
import struct
from typing import Any, Final

from daskqueue.wire.pickles import APART_BYTES, dumps

__all__ = ["pack", "unpack"]

_MAGIC: Final = 0xDB
_HEAD: Final = struct.Struct("<B3xI")
_READ_ONLY: Final = 1 << 63
_FEW: Final = 64  # elements of a block of large ones; to look at all of many small ones would cost more than it saves


def pack(obj: object) -> bytes:
    """`obj` in bytes, for `unpack`; raises what `dumps` raises."""
    apart: list[memoryview] = []
    data = dumps(_offered(obj), apart)
    if not apart:
        return data
    lengths = [len(data), *(view.nbytes | (_READ_ONLY if view.readonly else 0) for view in apart)]
    return b"".join([_HEAD.pack(_MAGIC, len(apart)), struct.pack(f"<{len(lengths)}Q", *lengths), data, *apart])


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


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """The object; raises what unpickling raises, and ValueError for damaged lengths."""
    view = memoryview(data)
    if not view.nbytes or view[0] != _MAGIC:
        return pickle.loads(view)
    _, count = _HEAD.unpack_from(view)
    table = struct.Struct(f"<{count + 1}Q")
    lengths = table.unpack_from(view, _HEAD.size)
    at = _HEAD.size + table.size
    if at + sum(length & ~_READ_ONLY for length in lengths) != view.nbytes:
        raise ValueError(f"a pickle with {count} buffers has {view.nbytes} bytes, which do not match its lengths")
    parts: list[memoryview] = []
    for length in lengths:
        size = length & ~_READ_ONLY
        parts.append(view[at : at + size])
        at += size
    buffers = [bytes(p) if n & _READ_ONLY else bytearray(p) for p, n in zip(parts[1:], lengths[1:], strict=True)]
    return pickle.loads(parts[0], buffers=buffers)
