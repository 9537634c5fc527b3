"""Blocks a consumer has seen lately, so that a queue need not send the same block with each of its messages.

A block is one payload for many messages; slow tasks lease it a few at a time. Bounded by count and bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from daskqueue_core.batch import Buffer, Part

__all__ = ["BlockCache"]

BLOCKS: Final = 32
BYTES: Final = 64 << 20


class BlockCache:
    """Least recently used blocks, by queue and base."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[str, int], Buffer] = OrderedDict()
        self._nbytes = 0

    def bases(self, uuid: str) -> tuple[int, ...]:
        """The blocks of queue `uuid` that need not be sent."""
        return tuple(base for of, base in self._blocks if of == uuid)

    def restore(self, uuid: str, part: Part) -> Part | None:
        """`part` with its body; None if it came without one and the block is not here any more."""
        if part.lengths:
            return part
        key = uuid, part.base
        if part.body is None:
            block = self._blocks.get(key)
            if block is None:
                return None
            self._blocks.move_to_end(key)
            return part._replace(body=block)
        if key not in self._blocks:
            self._blocks[key] = part.body
            self._nbytes += len(part.body)
            while len(self._blocks) > BLOCKS or self._nbytes > BYTES:
                self._nbytes -= len(self._blocks.popitem(last=False)[1])
        return part

    def forget(self, uuid: str) -> None:
        """That queue is gone."""
        for key in [key for key in self._blocks if key[0] == uuid]:
            self._nbytes -= len(self._blocks.pop(key))
