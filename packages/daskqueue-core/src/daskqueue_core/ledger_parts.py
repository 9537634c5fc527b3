"""`LedgerParts`: what a ledger is made of, and what happens in it without an event.

Time makes SCHEDULED messages READY and finds those that expired. Neither is recorded: a replay finds out by itself,
from the times in events. What events do is `ledger_state`'s business, what is decided `ledger`'s.

Invariants, beside those of the parts: `committed` is at most `puts`; a crash count belongs to a message that is
unfinished or FAILED; a key to one that is not GONE; every SCHEDULED message is in `waiting` at its time, every one
that can still expire in `expiring`, or in `overdue_runs` when its time has come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from daskqueue_core.admission import Admission
from daskqueue_core.batch import Run
from daskqueue_core.keys import Keys
from daskqueue_core.lanes import Lanes
from daskqueue_core.leases import Leases
from daskqueue_core.pages import Pages
from daskqueue_core.runs import clean, difference
from daskqueue_core.schedule import Schedule
from daskqueue_core.states import (
    HELD,
    READY_SUSPECT,
    SUSPECT,
    UNFINISHED,
    ByteClass,
    MessageState,
    Move,
    accepted,
    bytes_of,
    compiled,
    state_of,
)
from daskqueue_core.suspects import pieces

__all__ = ["HOLDS_PAYLOAD", "IS_SCHEDULED", "IS_SUSPECT", "READY", "SCHEDULED", "LedgerParts", "Runs"]

Runs = tuple[Run, ...]

READY: Final = int(MessageState.READY)
SCHEDULED: Final = int(MessageState.SCHEDULED)

_IS_READY: Final = ByteClass([READY])
IS_SUSPECT: Final = ByteClass([READY_SUSPECT])
IS_SCHEDULED: Final = bytes_of(MessageState.SCHEDULED)
HOLDS_PAYLOAD: Final = ByteClass([*UNFINISHED.members, MessageState.FAILED])
_MAY_EXPIRE: Final = accepted(Move.EXPIRED)
_TO_DUE: Final = compiled(Move.DUE)
_LEASE_BITS: Final = 40


class LedgerParts:
    """Who is where, as long as nothing but time happens."""

    def __init__(self, *, epoch: int = 0, page_size: int = 4096) -> None:
        self.epoch = epoch
        self.committed = 0
        """Messages below may be leased: their put is as durable as was asked for."""
        self.stale = 0
        """Reports about messages that had ended, or that another lease holds."""
        self.dropped = 0
        """Messages in replayed events that did not fit: records before them are lost."""
        self.pages = Pages(page_size)
        self._counts = self.pages.counts
        self.lanes = Lanes(self.pages)
        self.leases = Leases()
        self.admission = Admission()
        self.keys = Keys()
        self.crash_counts: dict[int, int] = {}  # sure culprits only
        self.waiting = Schedule()  # SCHEDULED ones
        self.expiring = Schedule()
        self.overdue_runs: list[Run] = []  # taken from `expiring`; the event that says so is not applied yet
        self.overdue_at = 0
        self._replaying = False
        self.next_lease = (epoch << _LEASE_BITS) + 1

    @property
    def puts(self) -> int:
        """Messages ever put: also the number the next one gets."""
        return self.pages.next_seq

    # -- time that passes: not recorded, so it changes only what a replay finds out by itself

    def _wait(self, time: int, runs: Iterable[Run]) -> None:
        for run in runs:
            self.waiting.add(time, *run)
        if self.waiting.is_crowded:
            self.waiting.prune(lambda run: self.pages.select([run], IS_SCHEDULED))

    def _expire_at(self, time: int, start: int, stop: int) -> None:
        self.expiring.add(time, start, stop)
        if self.expiring.is_crowded:
            self.expiring.prune(lambda run: self.pages.select([run], HOLDS_PAYLOAD))

    def _ripen(self, now: int, limit: int | None = None) -> None:
        """SCHEDULED messages whose time has come are READY."""
        due = self.pages.select(self.waiting.due(now, limit), IS_SCHEDULED)
        if due:
            self._move_to(None, due, _TO_DUE)
            self._give(due, cut=True)

    def _give(self, runs: Sequence[Run], *, cut: bool = False) -> None:
        """These are READY; suspects among them stay apart (`cut`: in eighths)."""
        if self._counts[READY_SUSPECT]:
            suspects = self.pages.select(clean(runs), IS_SUSPECT)
            if suspects:
                self.lanes.suspect(pieces(suspects) if cut else suspects)
                runs = self.pages.select(runs, _IS_READY)
        self.lanes.give(runs)

    def _collect(self, now: int, limit: int | None = None) -> None:
        """Find what has expired by `now`. It is looked at once: what cannot expire now never will."""
        due = self.expiring.due(now, limit)
        if due or self.overdue_runs:
            self.overdue_runs = self.pages.select(clean([*self.overdue_runs, *due]), _MAY_EXPIRE)
            self.overdue_at = now

    # -- inside

    @property
    def _has_scheduled(self) -> int:
        return self._counts[SCHEDULED] + self._counts[SCHEDULED | SUSPECT]

    @property
    def _has_flagged(self) -> int:
        counts = self._counts
        return counts[0x23] + counts[0x43] + counts[0x63] + counts[0x33] + counts[0x53] + counts[0x73]

    def _move_to(self, event: object, runs: Sequence[Run], table: bytes) -> None:
        self.pages.write(self.pages.plan(runs, table, event))

    def _count_crash(self, runs: Sequence[Run]) -> None:
        for start, stop in runs:
            for seq in range(start, stop):
                self.crash_counts[seq] = self.crash_counts.get(seq, 0) + 1

    def _drop_crashes(self, runs: Sequence[Run]) -> None:
        if self.crash_counts:
            for seq in [seq for seq in self.crash_counts if any(start <= seq < stop for start, stop in runs)]:
                del self.crash_counts[seq]

    def _forget_details(self, runs: Sequence[Run], *, gone: bool) -> None:
        """What is known of messages that ended."""
        self._drop_crashes(runs)
        if gone and self.keys.key_of:
            self.keys.drop(runs)

    # -- checking

    def validate(self) -> None:
        """AssertionError if an invariant is broken (the docstrings of the parts list them)."""
        select, everything = self.pages.select, [(0, self.puts)]
        self.pages.validate()
        self.lanes.validate()
        self.leases.validate(select(everything, HELD))
        self.keys.validate()
        self.waiting.validate()
        self.expiring.validate()
        assert 0 <= self.committed <= self.puts, f"committed={self.committed} of {self.puts}"
        waiting = clean([(start, stop) for _, start, stop in self.waiting.runs()])
        forgotten = difference(select(everything, IS_SCHEDULED), waiting)
        assert not forgotten, f"scheduled {forgotten} wait for no time"
        for seq in self.crash_counts:
            byte = self.pages.byte(seq)
            assert byte in HOLDS_PAYLOAD.members, f"message {seq} is {state_of(byte)} and has a crash count"
        for seq in self.keys.key_of:
            assert self.pages.byte(seq) != MessageState.GONE, f"message {seq} is GONE and has a key"
