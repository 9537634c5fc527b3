"""Which put of a producer may come next: puts are admitted in number order, each once.

A repeated number gets the answer of the first time, as long as it is among the last 64; an early one is told to wait
for its predecessors. Only applied puts count, so a refused or unrecorded one leaves its number free, and a ledger
rebuilt from its events answers as this one would.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["Admission", "Duplicate", "Early", "Refused", "UnknownProducer"]

REMEMBERED_PUTS: Final = 64
REMEMBERED_PRODUCERS: Final = 10_000


class Duplicate(NamedTuple):
    """This put was admitted before: its messages are `base` to `base + count`."""

    base: int
    count: int  # type: ignore[assignment]  # nobody needs tuple.count here


class Early(NamedTuple):
    """Puts with lower numbers are still missing: ask again when they were admitted."""


class UnknownProducer(NamedTuple):
    """Nothing is known of what this producer put: evicted, or its number is older than what is remembered.

    It takes a fresh id and puts again only what it never saw accepted.
    """


Refused = Duplicate | Early | UnknownProducer


class _Producer:
    __slots__ = ("last", "next")

    def __init__(self) -> None:
        self.next = 0
        self.last: deque[tuple[int, int]] = deque(maxlen=REMEMBERED_PUTS)


class Admission:
    """The producers that were heard of last, and their last puts."""

    __slots__ = ("_producers",)

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}  # in order of use, latest last

    def refusal(self, producer: int, number: int) -> Refused | None:
        """Why put `number` of `producer` must not be admitted now; None if it may."""
        if number < 0:
            raise ValueError(f"producer {producer:#x}: number={number} is negative")
        known = self._producers.get(producer)
        if known is None:
            return UnknownProducer() if number else None
        if number == known.next:
            return None
        if number > known.next:
            return Early()
        at = number - known.next  # -1: the last one
        return Duplicate(*known.last[at]) if -at <= len(known.last) else UnknownProducer()

    def is_known(self, producer: int, number: int) -> bool:
        """Whether put `number` or a later one was admitted."""
        known = self._producers.get(producer)
        return known is not None and number < known.next

    def rows(self) -> list[tuple[int, int, list[tuple[int, int]]]]:
        """Every producer, longest ago first: its id, its next number, and `(base, count)` of its last puts."""
        return [(producer, known.next, list(known.last)) for producer, known in self._producers.items()]

    def load(self, producer: int, number: int, last: Sequence[tuple[int, int]]) -> None:
        """A row of `rows`."""
        known = self._producers[producer] = _Producer()
        known.next = number
        known.last.extend(last)

    def admit(self, producer: int, number: int, base: int, count: int) -> None:
        """Put `number` was applied."""
        known = self._producers.pop(producer, None)
        if known is None:
            known = _Producer()
        if number != known.next:  # replay: the records in between are lost, or gone with what they put
            known.last.clear()
        known.next = number + 1
        known.last.append((base, count))
        self._producers[producer] = known
        if len(self._producers) > REMEMBERED_PRODUCERS:
            del self._producers[next(iter(self._producers))]
