"""`LedgerView`: what can be seen of a ledger without deciding anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.leases import Lease
from daskqueue_core.ledger_parts import Runs
from daskqueue_core.ledger_state import LedgerState
from daskqueue_core.runs import clean, intersection
from daskqueue_core.schedule import NEVER
from daskqueue_core.states import (
    HELD,
    HELD_SUSPECT,
    READY_SUSPECT,
    UNFINISHED,
    ByteClass,
    MessageFlag,
    MessageState,
    bytes_of,
    flags_of,
    state_of,
)

__all__ = ["LedgerView"]

READY: Final = int(MessageState.READY)
CANCEL: Final = int(MessageFlag.CANCEL)
OVERDUE: Final = int(MessageFlag.OVERDUE)

_IS_CANCELLING: Final = ByteClass(byte for byte in HELD.members if byte & CANCEL)
_IS_OVERDUE: Final = ByteClass(byte for byte in HELD.members if byte & OVERDUE and not byte & CANCEL)
_IN_STATE: Final = {state: bytes_of(state) for state in MessageState}
_IS_TAKEN: Final = frozenset([*UNFINISHED.members, int(MessageState.ACKED)])
_IS_BLOCKED: Final = frozenset([byte for byte in _IS_TAKEN if not byte & CANCEL])


class LedgerView(LedgerState):
    """Who is where, to be looked at."""

    @property
    def ready(self) -> int:
        """Messages in READY, those not committed yet among them."""
        return self._counts[READY] + self._counts[READY_SUSPECT]

    @property
    def unfinished(self) -> int:
        """Messages that will still end."""
        counts = self._counts
        delivered = counts[0x03] + counts[0x13] + counts[0x23] + counts[0x33]
        delivered += counts[0x43] + counts[0x53] + counts[0x63] + counts[0x73]
        return delivered + counts[0x01] + counts[0x02] + counts[0x11] + counts[0x12]

    @property
    def finished(self) -> int:
        """Messages that have ended."""
        return self.pages.next_seq - self.pages.skipped - self.unfinished

    def counts(self) -> dict[MessageState, int]:
        """Messages by state."""
        counts = {state: sum([self._counts[byte] for byte in _IN_STATE[state].members]) for state in MessageState}
        counts[MessageState.GONE] = self.pages.gone
        return counts

    def state(self, seq: int) -> MessageState:
        """Where message `seq` is."""
        return state_of(self._byte(seq))

    def flags(self, seq: int) -> MessageFlag:
        """What else is known of message `seq`."""
        return flags_of(self._byte(seq))

    def _byte(self, seq: int) -> int:
        if not 0 <= seq < self.puts:
            raise ValueError(f"message {seq} was never put; there are {self.puts}")
        return self.pages.byte(seq)

    def runs_in(self, state: MessageState) -> list[Run]:
        """All messages in `state`, ascending."""
        if state is MessageState.GONE:
            return self.pages.select_gone()
        return self.pages.select([(0, self.puts)], _IN_STATE[state])

    def attempts(self, seq: int) -> int:
        """How often message `seq` was tried and failed, in this life; meaningless once it is GONE."""
        return self.pages.attempts(seq)

    def attempts_of(self, start: int, stop: int) -> bytes:
        """`attempts` of consecutive messages, a byte each; empty if all are 0."""
        return self.pages.attempts_of(start, stop)

    def crashes(self, seq: int) -> int:
        """How many workers message `seq` killed for sure, in this life."""
        return self.crash_counts.get(seq, 0)

    def find_key(self, key: str) -> int | None:
        """The message of this key."""
        return self.keys.seq_of.get(key)

    def key_of(self, seq: int) -> str | None:
        """The key of message `seq`."""
        return self.keys.key_of.get(seq)

    def is_taken(self, key: str) -> bool:
        """Whether a message of this key is unfinished, or has succeeded and is kept."""
        seq = self.keys.seq_of.get(key)
        return seq is not None and self.pages.byte(seq) in _IS_TAKEN

    def is_blocked(self, key: str) -> bool:
        """Whether no new message can have this key: it `is_taken`, by one that was not asked to stop."""
        seq = self.keys.seq_of.get(key)
        return seq is not None and self.pages.byte(seq) in _IS_BLOCKED

    def owners(self) -> list[str]:
        """Who holds leases."""
        return list(self.leases.owners)

    def deadline(self, owner: str) -> int | None:
        """When the leases of `owner` lapse if it is not heard of; None if it has none."""
        entry = self.leases.owners.get(owner)
        return entry.deadline if entry is not None else None

    def leases_of(self, owner: str) -> list[Lease]:
        """What `owner` holds, oldest first."""
        return self.leases.of(owner)

    def lease(self, lease_id: int) -> Lease | None:
        """A lease that still holds something. To be looked at, not changed."""
        return self.leases.by_id.get(lease_id)

    def held(self, lease_id: int) -> Runs:
        """The messages a lease holds now: neither ended nor gone back."""
        lease = self.leases.by_id.get(lease_id)
        return self._held(lease, None) if lease is not None else ()

    def find_grant(self, owner: str, request: int) -> Lease | None:
        """What this request was granted before, if it is still held: a repeated request gets the same."""
        return self.leases.grant(owner, request) if request else None

    def holds_suspect(self, owner: str) -> bool:
        """Whether a message that may kill its worker is with `owner` now."""
        counts = self._counts
        if not counts[0x13] + counts[0x33] + counts[0x53] + counts[0x73]:  # `HELD_SUSPECT`: asked at every lease
            return False
        return any(self.pages.select(clean(lease.runs), HELD_SUSPECT) for lease in self.leases.of(owner))

    def cancels(self, owner: str) -> dict[int, Runs]:
        """The messages that `owner` is asked to give up, by lease."""
        return self._flagged(owner, _IS_CANCELLING)

    def overdue(self, owner: str) -> dict[int, Runs]:
        """The messages that `owner` should not start any more, since they expired, by lease; without cancelled ones."""
        return self._flagged(owner, _IS_OVERDUE)

    def _flagged(self, owner: str, wanted: ByteClass) -> dict[int, Runs]:
        if not self._has_flagged:
            return {}
        asked = {lease.id: tuple(self.pages.select(clean(lease.runs), wanted)) for lease in self.leases.of(owner)}
        return {lease_id: runs for lease_id, runs in asked.items() if runs}

    def is_due(self, now: int) -> bool:
        """Whether time may have brought something (`decide_due`)."""
        return (
            now >= self.leases.earliest
            or now >= self.waiting.first
            or now >= self.expiring.first
            or bool(self.overdue_runs)
        )

    def next_at(self) -> int | None:
        """When `decide_due` may have something to do, if nothing is heard of anybody until then."""
        at = min(self.waiting.first, self.expiring.first)
        if self.overdue_runs:
            at = min(at, self.overdue_at)
        deadline = self.leases.next_at()
        if deadline is None:
            return None if at == NEVER else at
        return min(at, deadline)

    def _held(self, lease: Lease, runs: Sequence[Run] | None) -> Runs:
        """What `lease` holds now of the clean `runs`, or of all."""
        if runs is None:
            if lease.left == lease.uncut:
                return tuple(lease.runs)
            return tuple(self.pages.select(clean(lease.runs), HELD))
        return tuple(self.pages.select(intersection(runs, clean(lease.runs)), HELD))
