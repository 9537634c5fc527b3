"""One way to turn an object into bytes that another process can read.

Plain pickle first (6 to 50 times faster), cloudpickle where pickle fails or would be wrong. It would be wrong for what
`__main__` defines: pickle writes such a class or function by name, and the worker's `__main__` is another module.

Not here: what the bytes mean (`calls`, `functions`, `errors`), and where large buffers go (`buffers`).

Invariants:
- What `dumps` returns is read with plain `pickle.loads`, given cloudpickle is installed, and the buffers it put apart.
- Classes and functions of `__main__`, and of modules given to `cloudpickle.register_pickle_by_value`, travel by value.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import cloudpickle

__all__ = ["APART_BYTES", "UNREADABLE", "dumps", "has_globals", "is_by_value_module"]

PROTOCOL = 5

UNREADABLE = (Exception, SystemExit, GeneratorExit)
"""What unpickling in the client may raise, since it runs what the classes say; KeyboardInterrupt is the user's."""

APART_BYTES = 16_384  # below, a second copy costs less than the bookkeeping

# Every class or function in a pickle ends with this opcode, so bytes without it hold plain data only. Data may contain
# the byte by chance; that costs a second look, nothing else. As a number: `bytes in bytes` tries one first, 220 ns.
_STACK_GLOBAL = 0x93
# The opcode right after a name written for the first time: enough to tell apart most chance hits.
_NAMED_GLOBAL = b"\x94\x93"
# `__main__` as protocol 5 writes a module name: SHORT_BINUNICODE, length, text.
_MAIN = b"\x8c\x08__main__"


def dumps(obj: object, apart: list[memoryview] | None = None) -> bytes:
    """Pickle `obj`; raises what cloudpickle raises if neither pickle nor cloudpickle can.

    With `apart`, the contents of buffers from `APART_BYTES` on are not written into the pickle but added there.
    """
    try:
        data: bytes = pickle.dumps(obj, PROTOCOL, buffer_callback=_collect(apart))
    except Exception:  # pickle raises anything a __reduce__ raises, and three kinds of error of its own
        return _by_value(obj, apart)
    if _STACK_GLOBAL in data and _names_by_value_module(data):
        return _by_value(obj, apart)
    return data


def _collect(apart: list[memoryview] | None) -> Callable[[pickle.PickleBuffer], bool] | None:
    """Adds large buffers to `apart`, which is emptied first; pickle writes those for which this is True."""
    if apart is None:
        return None
    apart.clear()

    def stays(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous: pickle copies it
            return True
        if view.nbytes < APART_BYTES:
            return True
        apart.append(view)
        return False

    return stays


def has_globals(data: bytes) -> bool:
    """Whether a pickle (very likely) rebuilds instances of classes, which may fail at the reader; plain data cannot."""
    return _STACK_GLOBAL in data and _NAMED_GLOBAL in data


def is_by_value_module(name: str) -> bool:
    """Whether classes and functions of this module travel by value."""
    if name == "__main__":
        return True
    registry: set[str] = cloudpickle.list_registry_pickle_by_value()
    return any(name == module or name.startswith(module + ".") for module in registry)


def _names_by_value_module(data: bytes) -> bool:
    if _MAIN in data:
        return True
    registry: set[str] = cloudpickle.list_registry_pickle_by_value()
    return any(module.encode() in data for module in registry)


def _by_value(obj: object, apart: list[memoryview] | None) -> bytes:
    data: Any = cloudpickle.dumps(obj, PROTOCOL, buffer_callback=_collect(apart))
    assert isinstance(data, bytes)
    return data
