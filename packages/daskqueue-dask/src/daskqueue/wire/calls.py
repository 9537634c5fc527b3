"""Arguments and results on the wire.

The body of a batch is a block (one pickle of the list of its elements: 37 ns a task, 48 to read) or singles (a pickle
each, put at `submit`, and a lengths column: only what is leased is read, and a damaged one spoils only itself).
Results of a run are one pickle of the list of its values, with None where the element failed.

Not here: the function that is called (`functions`), and how an error travels (`errors`).

Invariants:
- Arguments are pickled where the caller stands: what cannot travel is refused there, by name, and what the caller
  changes afterwards is not seen by the task.
- Elements of one block share what they share, as in `multiprocessing.Pool.map`; singles share nothing.
- A value that cannot travel is its own element's failure and no other's.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from daskqueue.wire.buffers import pack, spread, unpack
from daskqueue.wire.errors import (
    ArgumentLoadError,
    ResultLoadError,
    TaskFailure,
    UnpicklableArgument,
    UnpicklableResult,
    encode_error,
    message_of,
)
from daskqueue.wire.functions import Buffer, Style, function_name
from daskqueue.wire.pickles import UNREADABLE, has_globals

__all__ = [
    "Unloadable",
    "decode_values",
    "encode_args",
    "encode_block",
    "encode_item",
    "encode_items",
    "encode_lengths",
    "encode_values",
    "load_column",
    "load_elements",
]

# A result that holds instances is read back once on the worker: one that does not unpickle must not take the run's
# other values along. Above this size a run has few values, and reading them back costs memory.
VERIFY_BYTES_MAX = 8 << 20

# ---------------------------------------------------------------------------------------------------------- encode


def encode_args(args: tuple[Any, ...], kwargs: dict[str, Any] | None, fn: Callable[..., Any]) -> bytes:
    """One call's element: style KWARGS if there are keywords, else ARGS. Raises UnpicklableArgument."""
    element: Any = (args, kwargs) if kwargs else args
    try:
        return pack(element)
    except Exception as error:
        raise _unpicklable(args, kwargs or {}, function_name(fn), error, None) from error


def encode_block(elements: Sequence[Any], fn: Callable[..., Any], style: Style = Style.ARGS) -> bytes | memoryview:
    """All elements of a batch as one pickle. Raises UnpicklableArgument, naming element and argument.

    Where that saves a copy it is a `Spread`, which is a buffer once it has been sent.
    """
    try:
        return cast("bytes | memoryview", spread(elements))
    except Exception as error:
        for index, element in enumerate(elements):
            args, kwargs = element if style is Style.KWARGS else ((element,) if style is Style.COLUMN else element, {})
            if not _travels(element):
                raise _unpicklable(args, kwargs, function_name(fn), error, index) from error
        raise UnpicklableArgument(
            f"the arguments of {len(elements)} calls of {function_name(fn)!r} can be pickled one by one, but not"
            f" together: {error}."
        ) from error


def encode_item(item: object) -> bytes:
    """One item for a custom consumer: the 1-tuple it is called with. Raises UnpicklableArgument."""
    try:
        return pack((item,))
    except Exception as error:
        raise _unpicklable_item(item, error, None) from error


def encode_items(items: Iterable[object]) -> bytes:
    """A block of items. Raises UnpicklableArgument, naming the item."""
    elements = list(zip(items))
    try:
        return pack(elements)
    except Exception as error:
        for index, (item,) in enumerate(elements):
            if not _travels(item):
                raise _unpicklable_item(item, error, index) from error
        raise


def encode_lengths(bodies: Iterable[bytes]) -> bytes:
    """The column that cuts concatenated singles apart: u32, little endian."""
    return _little_endian(array("I", map(len, bodies))).tobytes()


def encode_values(values: list[Any], *, mend: Callable[[], None] | None = None) -> tuple[bytes, list[TaskFailure]]:
    """Results of a run as one pickle, and a failure for each that cannot travel. Raises only what `mend` raises.

    `mend` is called once if they do not travel as they are, and may change `values` in place (await coroutines).
    """
    data = _dump_verified(values)
    if isinstance(data, BaseException) and mend is not None:
        mend()
        data = _dump_verified(values)
    if isinstance(data, bytes):
        return data, []
    failures: list[TaskFailure] = []
    kept: list[Any] = []
    for index, value in enumerate(values):
        data = _dump_verified([value])
        if isinstance(data, BaseException):
            failures.append(_unpicklable_result(index, value, data))
        kept.append(value if isinstance(data, bytes) else None)
    data = _dump_verified(kept)
    if isinstance(data, bytes):
        return data, failures
    # each travels alone, but not all together
    failures = [_unpicklable_result(index, value, data) for index, value in enumerate(values)]
    return pack([None] * len(values)), failures


def _dump_verified(values: list[Any]) -> bytes | BaseException:
    try:
        data = pack(values)
        if len(data) <= VERIFY_BYTES_MAX and has_globals(data):
            unpack(data)
    except BaseException as error:  # an object's __reduce__ may raise anything, and must harm no other
        return error
    return data


def _travels(value: object) -> bool:
    try:
        pack(value)
    except Exception:
        return False
    return True


def _unpicklable(
    args: Sequence[Any], kwargs: dict[str, Any], name: str, error: Exception, index: int | None
) -> UnpicklableArgument:
    named: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
    which, value = next((pair for pair in named if not _travels(pair[1])), (None, None))
    what = "the arguments" if which is None else f"argument {which!r} (of type {_type_of(value)})"
    where = "" if index is None else f" of call {index}"
    return UnpicklableArgument(
        f"{what}{where} of {name!r} cannot be pickled: {error}. Pass something that can be sent to another process.",
        argument=which,
        index=index,
    )


def _unpicklable_item(item: object, error: Exception, index: int | None) -> UnpicklableArgument:
    which = "an item" if index is None else f"item {index}"
    return UnpicklableArgument(
        f"{which} (of type {_type_of(item)}) cannot be pickled: {error}."
        " Put something that can be sent to another process.",
        index=index,
    )


def _unpicklable_result(index: int, value: object, cause: BaseException) -> TaskFailure:
    error = UnpicklableResult(
        f"the task ran, but its result (of type {_type_of(value)}) cannot be pickled or read back:"
        f" {type(cause).__name__}: {message_of(cause)}. Return something that can be sent to another process."
    )
    error.__cause__ = cause
    return TaskFailure(index, *encode_error(error))


def _type_of(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _little_endian(column: array[int]) -> array[int]:
    assert column.itemsize == 4, "the lengths column is made of 32-bit numbers"
    if sys.byteorder == "big":
        column.byteswap()
    return column


# ------------------------------------------------------------------------------------------------------------ load


class Unloadable:
    """Stands for an element that does not unpickle: using it as arguments raises why, so `starmap` needs no check."""

    __slots__ = ("error",)

    def __init__(self, error: ArgumentLoadError) -> None:
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        raise self.error.with_traceback(None)


def load_elements(body: Buffer, lengths: Buffer | None, lo: int, hi: int) -> list[Any]:
    """Elements lo..hi of a body; never raises: what cannot be read is an `Unloadable`. `lengths` None means a block."""
    if lengths is None:
        return _load_block(body, lo, hi)
    column = array("I")
    try:
        column.frombytes(lengths)
    except ValueError as error:
        return [_unloadable(f"the lengths of its batch are damaged: {error}", error)] * (hi - lo)
    _little_endian(column)
    if hi > len(column) or sum(column) != len(body):
        return [_unloadable(f"the batch has {len(column)} calls and {len(body)} bytes, which do not match")] * (hi - lo)
    view = memoryview(body)
    elements: list[Any] = []
    start = sum(column[:lo])
    for length in column[lo:hi]:
        elements.append(_load_single(view[start : start + length]))
        start += length
    return elements


def _load_block(body: Buffer, lo: int, hi: int) -> list[Any]:
    try:
        elements = unpack(body)
        if not isinstance(elements, list) or len(elements) < hi:
            raise ValueError("the block holds fewer calls than its batch says")
    except BaseException as error:  # unpickling runs what the classes say, sys.exit too
        return [_unloadable(f"{type(error).__name__}: {error}", error)] * (hi - lo)
    return elements if hi - lo == len(elements) else elements[lo:hi]


def load_column(body: Buffer, lo: int, hi: int) -> Sequence[Any]:
    """Arguments lo..hi of a block of style COLUMN: any sequence that slices. Raises ArgumentLoadError.

    Those that are memoryviews are not `whole` yet.
    """
    try:
        column: Sequence[Any] = unpack(body, views=True)
        if len(column) < hi:
            raise ValueError("the block holds fewer calls than its batch says")
        return column if hi - lo == len(column) else column[lo:hi]
    except BaseException as error:
        raise _unloadable(f"{type(error).__name__}: {error}", error).error from error


def _load_single(data: memoryview) -> Any:
    try:
        return unpack(data)
    except BaseException as error:
        return _unloadable(f"{type(error).__name__}: {error}", error)


def _unloadable(why: str, cause: BaseException | None = None) -> Unloadable:
    error = ArgumentLoadError(
        f"the arguments could not be unpickled on the worker: {why}. If a module is missing there, install it on every"
        " worker."
    )
    error.__cause__ = cause
    return Unloadable(error)


def decode_values(blob: Buffer) -> list[Any]:
    """The values of a run; raises ResultLoadError, which is then the error of all its tasks."""
    try:
        values = unpack(blob)
    except UNREADABLE as error:
        raise ResultLoadError(
            f"the results could not be unpickled here: {type(error).__name__}: {message_of(error)}. If a module is"
            " missing, install it in the client's environment."
        ) from error
    assert isinstance(values, list)
    return values
