"""What a queue says of itself: counts, never contents."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["QueueDepth", "QueueStats"]

Waiting = tuple[tuple[int, tuple[str, ...], int], ...]
"""Kind, tags and how many are ready or scheduled."""


class QueueStats(NamedTuple):
    """A snapshot of one queue."""

    uuid: str
    puts: int = 0  # messages ever admitted
    ready: int = 0
    delivered: int = 0
    acked: int = 0  # succeeded and their result still kept
    failed: int = 0
    cancelled: int = 0
    finished: int = 0  # puts - unfinished
    stale: int = 0  # late reports that changed nothing
    owners: int = 0  # who holds leases
    calls: int = 0  # unfinished ones, for GeneralConsumer
    items: int = 0  # unfinished ones, for a consumer with process_item
    nbytes: int = 0  # of payloads
    kept_bytes: int = 0  # of kept outcomes
    undelivered_outcomes: int = 0  # records that clients have not acknowledged
    scheduled: int = 0  # for later
    expired: int = 0
    retries: int = 0  # failures after which a message was to be tried again
    dead_bytes: int = 0  # of the exceptions in dead letters
    waiting: Waiting = ()
    oldest_ready_at: int = 0  # nanoseconds: when the oldest ready message was put; 0 if none is ready
    lost: int = 0  # of a durable queue: records that were damaged or missing when it was opened
    bytes: int = 0  # that its files take
    segments: int = 0  # how many files

    @property
    def unfinished(self) -> int:
        """Messages without an outcome."""
        return self.scheduled + self.ready + self.delivered


class QueueDepth(NamedTuple):
    """What there is to do, for who decides how many workers there are."""

    ready: int = 0
    delivered: int = 0
    scheduled: int = 0
    undelivered_outcomes: int = 0
    waiting: Waiting = ()
