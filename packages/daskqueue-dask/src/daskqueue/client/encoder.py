"""Many calls or items into batches: blocks of up to 1,000, and of about 1 MiB.

How many elements make a block is learnt from the one before, so that arguments of 100 KB travel ten at a time and
integers a thousand; a block that came out much too large is cut once more.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from daskqueue.wire.calls import encode_block, encode_item, encode_lengths
from daskqueue.wire.functions import Style, encode_function
from daskqueue_core.batch import Batch, Keep, Kind

__all__ = ["encode_calls", "item_batch"]

BLOCK_CALLS: Final = 1000
BLOCK_BYTES: Final = 1 << 20
FIRST_CALLS: Final = 16


def encode_calls(
    fn: Callable[..., Any], elements: Iterator[tuple[Any, ...]], *, client: int, keep: Keep, most: int = BLOCK_CALLS
) -> Iterator[Batch]:
    """Batches of calls `fn(*element)`; the caller numbers them."""
    function = encode_function(fn, Style.ARGS)
    size = min(FIRST_CALLS, most)
    while some := list(itertools.islice(elements, size)):
        for part, body in _blocks(fn, some):
            yield Batch(len(part), body, b"", function.shared, Kind.CALL, function.hash, client, 0, keep)
        per_call = max(1, len(body) // len(part))
        size = max(1, min(most, BLOCK_CALLS, BLOCK_BYTES // per_call))


def _blocks(fn: Callable[..., Any], elements: list[tuple[Any, ...]]) -> Iterator[tuple[list[tuple[Any, ...]], bytes]]:
    body = encode_block(elements, fn)
    if len(body) <= 4 * BLOCK_BYTES or len(elements) == 1:
        yield elements, body
        return
    del body
    middle = len(elements) // 2
    yield from _blocks(fn, elements[:middle])
    yield from _blocks(fn, elements[middle:])


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
