"""Plain values as bytes: None, truth, integers, bytes, text and tuples of them. No pickle: reading runs nobody's code.

What the store has to write down and no table of fixed columns fits: attributes of a batch, what a consumer said of a
failure, the rows of a snapshot. A list comes back as a tuple, a view as bytes.

Invariant: `decode(encode(x)) == x`; bytes that are no encoding are a `ValueError`.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Any, Final

__all__ = ["decode", "encode"]

_SIGNED = Struct("<cq")
_UNSIGNED = Struct("<cQ")
_SIZED = Struct("<cI")
_I64 = Struct("<q")
_U64 = Struct("<Q")
_U32 = Struct("<I")
_DEPTH: Final = 32


def encode(value: Any) -> bytes:
    """The bytes of a value; `TypeError` for what is not plain."""
    parts: list[bytes] = []
    _encode(value, parts)
    return b"".join(parts)


def decode(data: bytes | memoryview) -> Any:
    """The value."""
    try:
        value, at = _decode(memoryview(data), 0, _DEPTH)
    except (error, IndexError, UnicodeDecodeError) as problem:
        raise ValueError(f"no plain value: {problem}") from problem
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes behind a plain value")
    return value


def _encode(value: Any, parts: list[bytes]) -> None:
    if value is None:
        parts.append(b"N")
    elif value is True or value is False:
        parts.append(b"T" if value else b"F")
    elif isinstance(value, int):
        parts.append(_SIGNED.pack(b"i", value) if value < 1 << 63 else _UNSIGNED.pack(b"u", value))
    elif isinstance(value, str):
        text = value.encode("utf-8", "surrogatepass")
        parts += (_SIZED.pack(b"s", len(text)), text)
    elif isinstance(value, (bytes, bytearray, memoryview)):
        data = value if isinstance(value, bytes) else bytes(value)
        parts += (_SIZED.pack(b"b", len(data)), data)
    elif isinstance(value, (tuple, list)):
        parts.append(_SIZED.pack(b"t", len(value)))
        for item in value:
            _encode(item, parts)
    else:
        raise TypeError(f"{type(value).__name__} is not a plain value")


def _decode(view: memoryview, at: int, depth: int) -> tuple[Any, int]:
    tag = view[at]
    at += 1
    if tag == 0x4E:  # N
        return None, at
    if tag in (0x54, 0x46):  # T, F
        return tag == 0x54, at
    if tag in (0x69, 0x75):  # i, u
        return (_I64 if tag == 0x69 else _U64).unpack_from(view, at)[0], at + 8
    size = _U32.unpack_from(view, at)[0]
    at += 4
    if tag in (0x73, 0x62):  # s, b
        if at + size > len(view):
            raise ValueError(f"{size} bytes where {len(view) - at} are left")
        data = view[at : at + size]
        return (str(data, "utf-8", "surrogatepass") if tag == 0x73 else bytes(data)), at + size
    if tag != 0x74 or depth == 0:
        raise ValueError(f"no plain value has the tag {tag:#04x}, or {_DEPTH} levels")
    items = []
    for _ in range(size):
        item, at = _decode(view, at, depth - 1)
        items.append(item)
    return tuple(items), at
