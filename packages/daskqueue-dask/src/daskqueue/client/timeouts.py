"""The timeout error of a wait, and what it says of those who were waited for.

On Python 3.10 the standard library has two such errors, and people catch either.
"""

from __future__ import annotations

import concurrent.futures
import sys
from collections.abc import Callable
from math import inf
from typing import Final

from daskqueue.wire.link import Route

__all__ = ["WaitTimeout", "whereabouts"]

_NAMED: Final = 3


if sys.version_info >= (3, 11):
    WaitTimeout = TimeoutError
else:

    class WaitTimeout(concurrent.futures.TimeoutError, TimeoutError):
        """A wait was over before what it waited for."""


def whereabouts(route: Route, silent_for: Callable[[str], float | None]) -> str:
    """Who hosts the queues of a pool, and when they were last heard of; of many, the most silent."""
    queues: dict[str, list[int]] = {}
    for index, place in enumerate(route.places):
        queues.setdefault(place.address if place.up else "", []).append(index)
    said: list[tuple[float, str]] = []
    for address, indices in queues.items():
        which = f"queue{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
        if not address:
            said.append((inf, f"no worker hosts {which}"))
            continue
        silent = silent_for(address)
        when = "never heard of" if silent is None else f"last heard of {silent:.1f} s ago"
        said.append((inf if silent is None else silent, f"{address} hosts {which}, {when}"))
    said.sort(key=lambda each: -each[0])
    return "; ".join(text for _, text in said[:_NAMED])
