"""What a job runs, read from the wire: a function and its elements.

Reading is user code (imports, `__setstate__`), so here are functions that read, for the thread where the tasks run. One
may be called twice: elements that a task has changed are read once more for a dead letter.

Not here: running them (`runners`); the formats (`wire.calls`, `wire.functions`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from daskqueue.wire.buffers import whole
from daskqueue.wire.calls import load_column, load_elements
from daskqueue.wire.functions import Buffer, Call, Style, load_call

__all__ = ["Load", "Loaded", "load_calls", "load_items"]


class Loaded(NamedTuple):
    """What a job runs: `fn` of each element, spread over its arguments or as the one argument.

    Elements that are views are not `whole`: `fn` makes them so, one at a time.
    """

    fn: Callable[..., Any]
    elements: Sequence[Any]
    spread: bool


Load = Callable[[], Loaded]


def load_calls(shared: Buffer, body: Buffer, lengths: Buffer | None, lo: int, hi: int) -> Load:
    """Calls lo..hi as the client encoded them; reading raises if the function, or a whole column, cannot be read."""

    def load() -> Loaded:
        call = load_call(shared)
        if call.style is Style.COLUMN and lengths is None:
            column = load_column(body, lo, hi)
            is_whole = type(column) is not list or type(column[0]) is not memoryview
            return Loaded(call.fn if is_whole else partial(_of_whole, call.fn), column, False)
        return Loaded(_applied(call), load_elements(body, lengths, lo, hi), True)

    return load


def load_items(process: Callable[[Any], Any], body: Buffer, lengths: Buffer | None, lo: int, hi: int) -> Load:
    """Items lo..hi for a consumer's bound method."""

    def load() -> Loaded:
        return Loaded(process, load_elements(body, lengths, lo, hi), True)

    return load


def _applied(call: Call) -> Callable[..., Any]:
    return partial(_apply, call.fn) if call.style is Style.KWARGS else call.fn


def _apply(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return fn(*args, **kwargs)


def _of_whole(fn: Callable[[Any], Any], element: Any) -> Any:
    return fn(whole(element))
