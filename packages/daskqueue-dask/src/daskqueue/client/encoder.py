"""Many calls or items into batches: blocks of up to 1,000, and of about 1 MiB; of more if they are very small.

How many elements make a block is learnt from the one before, so that arguments of 100 KB travel ten at a time and
integers four thousand: what a block costs beside its elements is the larger part then, and reading all of it to run a
few of them is still cheap. What a slow iterable brings leaves about twenty times a second. A block that came out much
too large is cut once more. The items of one iterable travel as a column, without a tuple around each, and a `range` or
an array as a slice of itself.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, cast

from daskqueue.wire.calls import encode_block, encode_item, encode_lengths
from daskqueue.wire.functions import Style, encode_function
from daskqueue_core.batch import Batch, Buffer, Keep, Kind

__all__ = ["BLOCK_CALLS", "SMALL_CALLS", "Calls", "encode_calls", "item_batch"]

BLOCK_CALLS: Final = 1000
BLOCK_BYTES: Final = 1 << 20
BLOCK_S: Final = 0.05
SMALL_CALLS: Final = 4000
SMALL_BYTES: Final = 1 << 15
FIRST_CALLS: Final = 16


class Calls:
    """Arguments of calls, taken from the front."""

    def __init__(self, *iterables: Iterable[Any]) -> None:
        self.style = Style.COLUMN if len(iterables) == 1 else Style.ARGS
        self._sequence: Sequence[Any] | None = None
        self._at = 0
        if len(iterables) == 1 and _slices(iterables[0]):
            self._sequence = cast("Sequence[Any]", iterables[0])
        elif len(iterables) == 1:
            self._rest: Iterator[Any] = iter(iterables[0])
        else:
            self._rest = zip(*iterables, strict=False)

    @classmethod
    def of_tuples(cls, arguments: Iterable[tuple[Any, ...]]) -> Calls:
        """Calls whose arguments are given as tuples."""
        calls = cls((), ())
        calls._rest = iter(arguments)
        return calls

    def take(self, most: int) -> Sequence[Any]:
        """The next calls, up to `most`; empty at the end."""
        if self._sequence is None:
            return list(itertools.islice(self._rest, most))
        some = self._sequence[self._at : self._at + most]
        self._at += len(some)
        return some


def _slices(iterable: Any) -> bool:
    """Whether slices of it are what iterating gives: lists, tuples, ranges, NumPy arrays."""
    return type(iterable) in (list, tuple, range) or (type(iterable).__module__ == "numpy" and iterable.ndim > 0)


def encode_calls(
    fn: Callable[..., Any], calls: Calls, *, client: int, keep: Keep, most: int = SMALL_CALLS, limit: int | None = None
) -> Iterator[Batch]:
    """Batches of up to `most` calls of `fn`, of `limit` in all; the caller numbers them."""
    function = encode_function(fn, calls.style)
    size = min(FIRST_CALLS, most)
    left = limit
    while True:
        began = time.perf_counter()
        some = calls.take(size if left is None else min(size, left))
        if not len(some):
            return
        took = time.perf_counter() - began
        for count, body in _blocks(fn, some, calls.style):
            yield Batch(count, body, b"", function.shared, Kind.CALL, function.hash, client, 0, keep)
        size = min(most, _block_calls(len(body) / count), int(len(some) * BLOCK_S / max(took, 1e-6))) or 1
        left = None if left is None else left - len(some)


def _block_calls(nbytes: float) -> int:
    """How many calls of so many bytes make a block."""
    return max(min(SMALL_CALLS, int(SMALL_BYTES / nbytes)), min(BLOCK_CALLS, int(BLOCK_BYTES / nbytes)))


def _blocks(fn: Callable[..., Any], elements: Sequence[Any], style: Style) -> Iterator[tuple[int, Buffer]]:
    body = encode_block(elements, fn, style)
    if len(body) <= 4 * BLOCK_BYTES or len(elements) == 1:
        yield len(elements), body
        return
    del body
    middle = len(elements) // 2
    yield from _blocks(fn, elements[:middle], style)
    yield from _blocks(fn, elements[middle:], style)


def item_batch(items: Iterable[Any], *, most: int = BLOCK_CALLS) -> Iterator[Batch]:
    """Batches of items for a custom consumer, each readable by itself."""
    bodies: list[bytes] = []
    nbytes = 0
    for item in items:
        bodies.append(encode_item(item))
        nbytes += len(bodies[-1])
        if len(bodies) >= most or nbytes >= BLOCK_BYTES:
            yield _singles(bodies)
            bodies, nbytes = [], 0
    if bodies:
        yield _singles(bodies)


def _singles(bodies: list[bytes]) -> Batch:
    return Batch(len(bodies), b"".join(bodies), encode_lengths(bodies), kind=Kind.ITEM, keep=Keep.NONE)
