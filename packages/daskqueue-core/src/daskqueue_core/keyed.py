"""What a put under explicit keys becomes: one key, one message.

`sift` compares the keys of a put with those in use and with each other, and says what is left to be put and what
becomes of the rest. It decides and changes nothing; the queue does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from daskqueue_core.batch import Batch, Keep, OnDuplicate
from daskqueue_core.mail import Address

__all__ = ["Sifted", "sift"]


class Sifted(NamedTuple):
    """A put, after its keys were looked at."""

    batches: tuple[Batch, ...]  # to be put
    replaced: tuple[int, ...]  # messages that must make way for them first
    follow: tuple[tuple[str, Address], ...]  # who waits for the message of a key, old or new
    duplicates: tuple[Address, ...]  # not put: their key is in use
    overtaken: tuple[Address, ...]  # not put: a later one of the same put replaces them

    @property
    def total(self) -> int:
        """Messages to be put."""
        return sum(batch.count for batch in self.batches)


def sift(batches: Sequence[Batch], taken: Callable[[str], int | None]) -> Sifted:
    """`taken` says which message blocks a key: unfinished, or its success is kept."""
    last: dict[str, tuple[int, int]] = {}  # the message of this put that has a key: batch, index
    dropped: set[tuple[int, int]] = set()
    replaced: list[int] = []
    follow: list[tuple[str, Address]] = []
    duplicates: list[Address] = []
    overtaken: list[Address] = []
    for at, batch in enumerate(batches):
        for index, key in enumerate(batch.keys):
            here = Address(batch.client, batch.first, index)
            mine = last.get(key)
            other = taken(key) if mine is None else None
            if mine is None and other is None:
                last[key] = at, index
            elif batch.on_duplicate == OnDuplicate.REPLACE:
                if mine is not None:
                    dropped.add(mine)
                    before = batches[mine[0]]
                    if before.keep != Keep.NONE:
                        overtaken.append(Address(before.client, before.first, mine[1]))
                elif other is not None:
                    replaced.append(other)
                last[key] = at, index
            else:
                dropped.add((at, index))
                if batch.keep != Keep.NONE:
                    if batch.on_duplicate == OnDuplicate.RAISE:
                        duplicates.append(here)
                    else:
                        follow.append((key, here))
    left = tuple(_left(batches, dropped)) if dropped else tuple(batches)
    return Sifted(left, tuple(replaced), tuple(follow), tuple(duplicates), tuple(overtaken))


def _left(batches: Sequence[Batch], dropped: set[tuple[int, int]]) -> list[Batch]:
    out: list[Batch] = []
    for at, batch in enumerate(batches):
        start = 0
        for index in range(batch.count + 1):
            if index == batch.count or (at, index) in dropped:
                if start < index:
                    out.append(batch.cut(start, index))
                start = index + 1
    return out
