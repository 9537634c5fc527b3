"""What a queue says of itself: counts, never contents."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["QueueStats"]


class QueueStats(NamedTuple):
    """A snapshot of one queue."""

    uuid: str
    puts: int = 0  # messages ever admitted
    ready: int = 0
    delivered: int = 0
    acked: int = 0  # succeeded and their result still kept
    failed: int = 0
    cancelled: int = 0
    finished: int = 0  # puts - ready - delivered
    stale: int = 0  # late reports that changed nothing
    owners: int = 0  # who holds leases
    calls: int = 0  # unfinished ones, for GeneralConsumer
    items: int = 0  # unfinished ones, for a consumer with process_item
    nbytes: int = 0  # of payloads
    kept_bytes: int = 0  # of kept outcomes
    undelivered_outcomes: int = 0  # records that clients have not acknowledged

    @property
    def unfinished(self) -> int:
        """Messages without an outcome."""
        return self.ready + self.delivered
