"""`LogTrial`: does things to a log and knows what it must hold afterwards, whatever happened in between.

The oracle of the crash tests, the state machine and the tests with killed processes. Every payload is unique, so what
is read can be traced to the call that wrote it.

It checks: what was acknowledged under the sync policy is there (I1); every payload stands under the offset it was
given, and once (I3); nothing that was not put is there; offsets rise and none is given twice; losses are reported, and
only where there were some (I6).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from daskqueue_storage.log import SegmentedLog

__all__ = ["LogTrial"]


class LogTrial:
    """What was done to one directory so far. `sync` is the policy of all its writers."""

    def __init__(self, sync: str | float = "batch") -> None:
        self.sync = sync
        self.acknowledged: dict[int, bytes] = {}
        self.durable: dict[int, bytes] = {}  # survives power loss
        self.attempted: dict[bytes, int] = {}  # payload: which batch
        self.batches: list[Sequence[bytes]] = []
        self.truncated = 0
        self.highest = -1  # offset that anybody ever saw

    # -------------------------------------------------------------------------------------------------------- the deeds

    def append_many(self, log: SegmentedLog, sizes: Sequence[int]) -> range:
        """Append unique payloads of these sizes (at least 8)."""
        batch = [b"%08d" % (len(self.attempted) + at) + bytes(max(0, size - 8)) for at, size in enumerate(sizes)]
        for payload in batch:
            self.attempted[payload] = len(self.batches)
        self.batches.append(batch)
        offsets = log.append_many(batch)
        if batch:
            assert offsets.start > self.highest, f"{offsets} was given before: {self.highest} was seen"
            self.highest = offsets.stop - 1
        for offset, payload in zip(offsets, batch):
            self.acknowledged[offset] = payload
            if self.sync == "batch":
                self.durable[offset] = payload
        return offsets

    def synced(self) -> None:
        """A `sync` or `close` returned."""
        self.durable.update(self.acknowledged)

    def truncate_before(self, log: SegmentedLog, offset: int) -> None:
        """Let messages go."""
        self.truncated = max(self.truncated, offset)  # before the call: it may be cut short
        first = log.truncate_before(offset)
        assert first <= max(offset, log.stats().first)

    # -------------------------------------------------------------------------------------------------------- the check

    def check(self, log: SegmentedLog, *, power_lost: bool = False, damaged: bool = False) -> list[tuple[int, bytes]]:
        """Compare with what the log holds; what it holds. `damaged`: bytes were changed behind its back."""
        found = list(log.scan())
        offsets = [offset for offset, _ in found]
        assert offsets == sorted(set(offsets)), f"offsets do not rise: {offsets}"
        payloads = [payload for _, payload in found]
        assert len(set(payloads)) == len(payloads), "a message is there twice"
        for offset, payload in found:
            assert payload in self.attempted, f"{payload[:20]!r} at {offset} was never put"
            expected = self.acknowledged.get(offset, payload)
            assert payload == expected, f"offset {offset} holds {payload[:20]!r} instead of {expected[:20]!r}"
        for before, after in pairwise(payloads):
            assert self.attempted[before] <= self.attempted[after], "the order of batches changed"
        must = self.durable if power_lost else self.acknowledged
        have = dict(found)
        lost = [offset for offset in must if offset >= self.truncated and offset not in have]
        if damaged:
            assert not lost or log.stats().damaged or not log.report.whole, f"{lost} are lost and nobody says so"
        else:
            assert not lost, f"acknowledged and lost: {lost}"
        if not damaged and not (power_lost and self.sync != "batch"):
            assert log.report.whole, f"no byte was changed, and yet: {log.report}"
        counts: dict[int, int] = {}
        for payload in payloads:
            counts[self.attempted[payload]] = counts.get(self.attempted[payload], 0) + 1
        for batch, count in counts.items():
            assert count == len(self.batches[batch]), f"batch {batch} is there in part"
        self.highest = max([self.highest, *offsets])
        self.acknowledged = have
        if power_lost or self.sync == "batch":
            self.durable = dict(self.acknowledged)
        return found
