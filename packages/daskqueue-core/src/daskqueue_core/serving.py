"""What the directory says of who serves a pool."""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import NamedTuple

from daskqueue_core.time_requests import split_request

__all__ = ["ConsumersOf"]


class ConsumersOf(NamedTuple):
    """What a consumer pool takes, and how many consumers there are; `failed` workers could not run any."""

    kinds: tuple[int, ...]
    tags: tuple[str, ...]
    running: int
    failed: int
    time_left: float = inf
    """Seconds until the last of their workers ends."""
    left: tuple[str, ...] = ()
    """Workers on which they have stopped, since its end is near."""
    longest: float = inf
    """The most seconds that a worker had when they began there: what may be expected of others."""

    def serve(self, kind: int, tags: Collection[str], *, soon: bool = False) -> bool:
        """Whether such work is for them. `soon`: if not for those that run, then for others like them."""
        if kind not in self.kinds or not (self.running or soon):
            return False
        plain, seconds = split_request(tags)
        time = self.longest if soon else self.time_left
        return set(plain) <= set(self.tags) and (not seconds or seconds <= time)
