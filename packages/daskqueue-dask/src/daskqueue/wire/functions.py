"""A function on the wire: pickled once, known by its hash, loaded once.

The shared part of a batch of calls says what runs and how its elements look:

    u8 format | u8 style and flags | u8 Python | 16 bytes blake2b of the function's bytes | u16 length of name | name |
    function

Style ARGS: each element is the tuple of arguments. KWARGS: each is (args, kwargs). ITEM: each is a 1-tuple for a
consumer's `process_item`, and there is no function. The flag says that the function is `async def`, so a worker picks
the right runner from the header, on its event loop, without unpickling anything there. Python: the minor version that
compiled the code which travels along, 0 if none does; another one cannot run it, and may crash when it tries.

Not here: arguments and results (`calls`); running (`worker.runners`).

Invariants:
- Bytes are reused only where pickling again would give the same: functions found by name in an importable module, and
  functions whose captured variables, defaults and globals are unchanged and immutable. All else (bound methods,
  partials, objects, closures over a list) is pickled at each call, so what the caller changes in between is seen.
- One hash, one loaded object per worker process: state that a function keeps in itself is shared by its calls there.
"""

from __future__ import annotations

import dis
import enum
import hashlib
import inspect
import pickle
import struct
import sys
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from daskqueue.wire.errors import FunctionLoadError, UnpicklableFunction
from daskqueue.wire.pickles import dumps, is_by_value_module

__all__ = [
    "ITEM",
    "Buffer",
    "Call",
    "EncodedFunction",
    "Header",
    "Style",
    "encode_function",
    "function_name",
    "is_async_callable",
    "load_call",
    "read_header",
]

FORMAT = 2
WARN_BYTES = 1 << 20
CACHED_MAX = 512
_WATCHED_MAX = 32

_HEADER = struct.Struct("<BBB16sH")
_CODE_MARK = b"CodeType"  # how cloudpickle names what it builds from code
_STYLE_MASK = 0x0F
_ASYNC_FLAG = 0x10

Buffer = bytes | bytearray | memoryview


class Style(enum.IntEnum):
    """What an element of the body is."""

    ARGS = 0
    KWARGS = 1
    ITEM = 2
    COLUMN = 3


class EncodedFunction(NamedTuple):
    """The shared part of a batch, and the hash by which measured times are known."""

    shared: bytes
    hash: bytes


class Header(NamedTuple):
    """What the shared part says without unpickling."""

    style: Style
    is_async: bool
    python: int
    hash: bytes
    name: str
    offset: int


class Call(NamedTuple):
    """A loaded function and how to apply it."""

    fn: Callable[..., Any]
    style: Style
    hash: bytes
    is_async: bool
    name: str


# ---------------------------------------------------------------------------------------------------------- encode


class _Cached(NamedTuple):
    #: kept alive, so that the ids in the key stay theirs
    fn: Any
    code: CodeType | None
    #: globals that are pickled with the function: (module's dictionary, name, value then)
    watched: tuple[tuple[dict[str, Any], str, Any], ...]
    encoded: Mapping[Style, EncodedFunction]


_MISSING = object()
_IMMUTABLE = frozenset({int, str, bytes, float, bool, complex, type(None)})

_by_name: dict[int, _Cached] = {}
_by_state: dict[Any, _Cached] = {}
_cache_lock = threading.Lock()
_warned: set[str] = set()


def encode_function(fn: Callable[..., Any], style: Style = Style.ARGS) -> EncodedFunction:
    """The shared part for calls of `fn`; raises UnpicklableFunction. Under a microsecond for a function seen before."""
    cached = _by_name.get(id(fn))
    if cached is not None and cached.fn is fn:
        return cached.encoded[style]
    key = _state_key(fn) if type(fn) is FunctionType else None
    if key is not None:
        cached = _by_state.get(key)
        if cached is not None and _unchanged(cached):
            return cached.encoded[style]
    return _encode_anew(fn, key).encoded[style]


def function_name(fn: Callable[..., Any]) -> str:
    """A name for people: of the function inside a partial, of the class of a callable object."""
    inner = getattr(fn, "func", fn)
    name = getattr(inner, "__qualname__", None)
    return name if isinstance(name, str) else type(inner).__qualname__


def _encode_anew(fn: Any, key: Any) -> _Cached:
    by_name = _found_by_name(fn)
    watched = () if by_name or key is None else _watched_globals(fn)  # before pickling: a change meanwhile is seen
    name = function_name(fn)
    try:
        data = dumps(fn)
    except Exception as error:
        raise UnpicklableFunction(
            f"the function {name!r} cannot be pickled: {error}. It, or a variable it captures, holds something that"
            " belongs to this process; pass data instead and open such things inside the function."
        ) from error
    _warn_if_large(name, len(data))
    digest = hashlib.blake2b(data, digest_size=16).digest()
    is_async = is_async_callable(fn)
    encoded = {
        style: EncodedFunction(_pack(style, is_async, digest, name, data), digest)
        for style in (Style.ARGS, Style.KWARGS, Style.COLUMN)
    }
    cached = _Cached(fn, getattr(fn, "__code__", None), watched or (), encoded)
    if by_name:
        _remember(_by_name, id(fn), cached)
    elif key is not None and watched is not None:
        _remember(_by_state, key, cached)
    return cached


def _pack(style: Style, is_async: bool, digest: bytes, name: str, data: bytes) -> bytes:
    label = name.encode("utf-8", "replace")[:255]
    python = sys.version_info.minor if _CODE_MARK in data else 0
    return _HEADER.pack(FORMAT, style | (_ASYNC_FLAG if is_async else 0), python, digest, len(label)) + label + data


def _remember(cache: dict[Any, _Cached], key: Any, cached: _Cached) -> None:
    with _cache_lock:
        if key not in cache and len(cache) >= CACHED_MAX:
            del cache[next(iter(cache))]  # the oldest: a hit must not pay for keeping an order of use
        cache[key] = cached


def is_async_callable(fn: Any) -> bool:
    """Whether calling `fn` gives a coroutine, as far as can be told without calling it."""
    # of the type: a class whose instances are async callables is itself not one
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(type(fn), "__call__", None))  # noqa: B004


def _warn_if_large(name: str, size: int) -> None:
    if size > WARN_BYTES and name not in _warned:
        _warned.add(name)
        warnings.warn(
            f"the function {name!r} is {size / 2**20:.1f} MiB when pickled and travels with every batch of its calls."
            " Pass large data as an argument, or load it inside the function.",
            stacklevel=4,
        )


def _found_by_name(fn: Any) -> bool:
    """Whether pickle writes only a name: an importable module holds this very object under it."""
    if not isinstance(fn, (FunctionType, BuiltinFunctionType, type)):
        return False
    module, name = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or is_by_value_module(module):
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is fn


def _state_key(fn: FunctionType) -> Any:
    """What a function that travels by value is made of, None if it holds anything that could change in place."""
    if fn.__dict__ or fn.__kwdefaults__:
        return None
    captured: Any = ()
    try:
        if fn.__closure__:
            captured = tuple([_immutable_key(cell.cell_contents) for cell in fn.__closure__])
        if fn.__defaults__:
            captured += (None, *[_immutable_key(value) for value in fn.__defaults__])
    except (TypeError, ValueError):  # mutable, or a cell that is still empty
        return None
    return id(fn.__code__), id(fn.__globals__), captured


def _immutable_key(value: Any) -> Any:
    kind = type(value)
    if kind not in _IMMUTABLE:
        raise TypeError
    # 1 == 1.0 == True and 0.0 == -0.0 must not meet in one entry
    return (kind, value.hex()) if kind is float else (kind, repr(value)) if kind is complex else (kind, value)


def _unchanged(cached: _Cached) -> bool:
    for namespace, name, value in cached.watched:  # noqa: SIM110 - a generator triples the time of every submit
        if namespace.get(name, _MISSING) is not value:
            return False
    return True


def _watched_globals(fn: FunctionType) -> tuple[tuple[dict[str, Any], str, Any], ...] | None:
    """The globals that cloudpickle copies along, through helper functions too; None if one may change in place."""
    watched: list[tuple[dict[str, Any], str, Any]] = []
    todo, seen = [fn], {id(fn)}
    while todo:
        helper = todo.pop()
        for name in _global_names(helper.__code__):
            value = helper.__globals__.get(name, _MISSING)
            watched.append((helper.__globals__, name, value))
            if id(value) in seen or value is _MISSING or type(value) in _IMMUTABLE or _found_by_name(value):
                continue
            if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
                if is_by_value_module(value.__name__):
                    return None
            elif type(value) is FunctionType and not value.__closure__ and _state_key(value) is not None:
                seen.add(id(value))
                todo.append(value)
            else:
                return None
        if len(watched) > _WATCHED_MAX:
            return None
    return tuple(watched)


def _global_names(code: CodeType) -> set[str]:
    names = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    for const in code.co_consts:
        if isinstance(const, CodeType):
            names |= _global_names(const)
    return names


#: The shared part of a batch of items.
ITEM = EncodedFunction(_pack(Style.ITEM, False, bytes(16), "item", b""), bytes(16))

# ------------------------------------------------------------------------------------------------------------ load

_loaded: OrderedDict[tuple[bytes, Style], Call] = OrderedDict()
_loaded_lock = threading.Lock()


def read_header(shared: Buffer) -> Header:
    """What a batch is, without unpickling; raises FunctionLoadError for another format."""
    try:
        version, flags, python, digest, length = _HEADER.unpack_from(shared)
        if version != FORMAT:
            raise FunctionLoadError(
                f"a call came in format {version}, this worker reads format {FORMAT}:"
                " install the same version of daskqueue-dask on client and workers."
            )
        style = Style(flags & _STYLE_MASK)
    except (struct.error, ValueError) as error:
        raise FunctionLoadError(f"the head of a batch of calls is damaged: {error}.") from error
    offset = _HEADER.size + length
    name = bytes(shared[_HEADER.size : offset]).decode("utf-8", "replace")
    return Header(style, bool(flags & _ASYNC_FLAG), python, digest, name, offset)


def load_call(shared: Buffer) -> Call:
    """The function of a batch, from the cache if this process has loaded it; raises FunctionLoadError.

    May import modules, that is, run code and take its time: call it where the tasks run. A failure is not remembered,
    so a module that is installed later is found.
    """
    header = read_header(shared)
    key = header.hash, header.style
    with _loaded_lock:
        call = _loaded.get(key)
        if call is not None:
            _loaded.move_to_end(key)
            return call
    if header.python not in (0, sys.version_info.minor):
        raise FunctionLoadError(
            f"the function {header.name!r} came with its code, compiled by Python 3.{header.python}, and this worker is"
            f" Python 3.{sys.version_info.minor}: run the workers with Python 3.{header.python}, or import the function"
            " from a module. Its task is a dead letter meanwhile: requeue it there."
        )
    try:
        fn = pickle.loads(memoryview(shared)[header.offset :])
    except BaseException as error:  # importing runs anything, sys.exit too
        raise FunctionLoadError(
            f"the function {header.name!r} could not be loaded on the worker: {type(error).__name__}: {error}."
            " If its module is missing there, install it on every worker, or send it along with"
            " cloudpickle.register_pickle_by_value(module)."
        ) from error
    call = Call(fn, header.style, header.hash, header.is_async, header.name)
    with _loaded_lock:
        call = _loaded.setdefault(key, call)  # two threads that loaded it at once share one
        while len(_loaded) > CACHED_MAX:
            _loaded.popitem(last=False)
    return call
