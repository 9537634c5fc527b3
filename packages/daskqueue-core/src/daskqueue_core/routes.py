"""Routes: which consumers a message may go to, as a small number for the ledger.

A route is a kind and a set of tags. A consumer serves it if it runs that kind, has all of the tags, and has as much
time left as a request among them asks for (`time_requests`). Routes are never dropped: there are as many as users write
combinations of tags into their code, and requests of three digits.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from daskqueue_core.time_requests import split_request

__all__ = ["Route", "Routes"]

REMEMBERED_CONSUMERS: Final = 1000


class Route(NamedTuple):
    """What a consumer must be for a message."""

    kind: int
    tags: tuple[str, ...]


class Routes:
    """Every route that was ever put to, by its number."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, tuple[str, ...]], int] = {}
        self._routes: list[Route] = []
        self._plain: list[tuple[str, ...]] = []  # tags without requests, by number
        self._seconds: dict[int, int] = {}  # what is requested, by number
        self._served: dict[tuple[Collection[int], Collection[str]], tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._routes)

    def __getitem__(self, number: int) -> Route:
        return self._routes[number]

    def number(self, kind: int, tags: Collection[str] = ()) -> int:
        """The number of a route, new or not. The order of tags, and whether one is said twice, means nothing."""
        number = self._numbers.get((kind, tags)) if isinstance(tags, tuple) else None
        if number is not None:
            return number
        route = Route(int(kind), tuple(sorted(set(tags))))
        number = self._numbers.get(route)
        if number is None:
            number = self._numbers[route] = len(self._routes)
            self._routes.append(route)
            plain, seconds = split_request(route.tags)
            self._plain.append(plain)
            if seconds:
                self._seconds[number] = seconds
            self._served.clear()
        return number

    def rows(self) -> list[tuple[int, tuple[str, ...]]]:
        """All, in the order of their numbers: to be numbered again in that order elsewhere."""
        return [(kind, tags) for kind, tags in self._routes]

    def of_kinds(self, kinds: Collection[int]) -> list[int]:
        """All routes of these kinds, whatever their tags."""
        return [number for number, route in enumerate(self._routes) if route.kind in kinds]

    def served(self, kinds: Collection[int], tags: Collection[str], time_left: float | None = None) -> tuple[int, ...]:
        """The routes that a consumer of these kinds with these tags serves.

        `time_left`: seconds until it ends; None: it does not.
        """
        served = self._of(kinds, tags)
        if time_left is None or not self._seconds:
            return served
        late = {number for number, seconds in self._seconds.items() if seconds > time_left}
        return tuple([number for number in served if number not in late]) if late else served

    def _of(self, kinds: Collection[int], tags: Collection[str]) -> tuple[int, ...]:
        consumer = (
            kinds if isinstance(kinds, tuple) else frozenset(kinds),
            tags if isinstance(tags, tuple) else frozenset(tags),
        )
        served = self._served.get(consumer)
        if served is None:
            has = set(tags)
            served = tuple(
                number
                for number, route in enumerate(self._routes)
                if route.kind in consumer[0] and has.issuperset(self._plain[number])
            )
            if len(self._served) >= REMEMBERED_CONSUMERS:
                self._served.clear()
            self._served[consumer] = served
        return served
