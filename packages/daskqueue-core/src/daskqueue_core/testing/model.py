"""`ModelLedger`: what the ledger promises, said plainly: one small object per message, no runs, no pages.

Slow, and meant to be read. It is told what happens (`put`, `delivered`, `acked`, ...) and answers what should have
been decided (`pick`, `news`, `held`, `lost`, ...), message by message. The ledger is compared with it after each step.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from daskqueue_core.states import MessageState

__all__ = ["ModelLease", "ModelLedger", "ModelMessage"]

READY, DELIVERED = MessageState.READY, MessageState.DELIVERED
ACKED, FAILED = MessageState.ACKED, MessageState.FAILED
CANCELLED, GONE = MessageState.CANCELLED, MessageState.GONE


@dataclass
class ModelMessage:
    """One message."""

    state: MessageState = READY
    cancel: bool = False
    lease: int | None = None  # who holds it, while DELIVERED

    @property
    def unfinished(self) -> bool:
        """Whether it will still end."""
        return self.state in (READY, DELIVERED)


@dataclass
class ModelLease:
    """One lease. It lives as long as it holds a message."""

    owner: str
    granted: list[int]
    once: bool
    request: int
    finished: int = 0
    started: int | None = None  # None: never reported


@dataclass
class ModelLedger:
    """All messages and leases of a queue."""

    messages: list[ModelMessage] = field(default_factory=list)
    leases: dict[int, ModelLease] = field(default_factory=dict)
    deadlines: dict[str, int] = field(default_factory=dict)
    producers: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    committed: int = 0
    stale: int = 0

    # -- what should be decided

    def admission(self, producer: int, number: int) -> tuple[int, int] | str:
        """What becomes of put `number`: the numbers given before, or a word."""
        puts = self.producers.get(producer, [])
        if number == len(puts):
            return "admit"
        if not puts:
            return "unknown"
        if number > len(puts):
            return "early"
        return puts[number] if number >= len(puts) - 64 else "unknown"

    def pick(self, limit: int, wanted: Collection[int] | None = None) -> list[int]:
        """The first ready and committed messages, of those `wanted`."""
        ready = [seq for seq in range(self.committed) if self.messages[seq].state is READY]
        return [seq for seq in ready if wanted is None or seq in wanted][:limit]

    def unfinished(self, seqs: Iterable[int]) -> list[int]:
        """Those an ack is news of."""
        return [seq for seq in sorted(set(seqs)) if 0 <= seq < len(self.messages) and self.messages[seq].unfinished]

    def held(self, lease: int, seqs: Iterable[int] | None = None) -> list[int]:
        """What `lease` holds now, of `seqs` or at all."""
        mine = [seq for seq, message in enumerate(self.messages) if message.lease == lease]
        return mine if seqs is None else sorted(set(mine) & set(seqs))

    def cancellable(self, seqs: Iterable[int]) -> list[int]:
        """Those a cancel changes something for."""
        return [seq for seq in self.unfinished(seqs) if not self.messages[seq].cancel]

    def forgettable(self, seqs: Iterable[int]) -> list[int]:
        """Those that can be forgotten."""
        known = [seq for seq in sorted(set(seqs)) if 0 <= seq < len(self.messages)]
        return [seq for seq in known if self.messages[seq].state in (ACKED, CANCELLED)]

    def lost(self, lease: int, *, unlisted: bool = False) -> tuple[list[int], list[int]]:
        """What fails and what goes back when the owner of `lease` is gone, or never got it."""
        entry, held = self.leases[lease], self.held(lease)
        if not entry.once or (unlisted and entry.started is None):
            return [], held
        begun = set(entry.granted if entry.started is None else entry.granted[: entry.started])
        return [seq for seq in held if seq in begun], [seq for seq in held if seq not in begun]

    def of(self, owner: str) -> list[int]:
        """The leases of `owner`."""
        return [lease for lease, entry in self.leases.items() if entry.owner == owner]

    def due(self, now: int) -> list[str]:
        """The owners that were silent too long."""
        return [owner for owner, deadline in self.deadlines.items() if deadline <= now]

    # -- what happens; each returns the messages that ended by it

    def put(self, count: int, producer: int | None = None) -> None:
        """New messages."""
        if producer is not None:
            self.producers.setdefault(producer, []).append((len(self.messages), count))
        self.messages.extend(ModelMessage() for _ in range(count))

    def delivered(
        self, seqs: list[int], lease: int, owner: str, deadline: int, *, once: bool = False, request: int = 0
    ) -> None:
        """A new lease."""
        self.leases[lease] = ModelLease(owner, seqs, once, request)
        self.deadlines[owner] = max(deadline, self.deadlines.get(owner, deadline))
        for seq in seqs:
            self.messages[seq].state, self.messages[seq].lease = DELIVERED, lease

    def acked(self, seqs: list[int], *, keep: bool) -> list[int]:
        """Done."""
        return self._end(seqs, ACKED if keep else GONE)

    def returned(self, seqs: list[int]) -> list[int]:
        """Back, or ended if a cancel was asked."""
        ended = [seq for seq in seqs if self.messages[seq].cancel]
        for seq in set(seqs) - set(ended):
            self.messages[seq] = ModelMessage()
        return self._end(ended, CANCELLED)

    def failed(self, seqs: list[int]) -> list[int]:
        """Failed for good."""
        return self._end(seqs, FAILED)

    def agreed(self, seqs: list[int]) -> list[int]:
        """Given up by the holder."""
        return self._end(seqs, CANCELLED)

    def cancel_asked(self, seqs: list[int]) -> list[int]:
        """Ended, or to be given up."""
        ended = [seq for seq in seqs if self.messages[seq].state is READY]
        for seq in set(seqs) - set(ended):
            self.messages[seq].cancel = True
        return self._end(ended, CANCELLED)

    def forgotten(self, seqs: list[int]) -> list[int]:
        """Gone; their payloads went before."""
        self._end(seqs, GONE)
        return []

    def heard(self, owner: str, held: Mapping[int, tuple[int, int]], deadline: int) -> None:
        """A heartbeat."""
        if owner in self.deadlines:
            self.deadlines[owner] = max(self.deadlines[owner], deadline)
        for lease, (finished, started) in held.items():
            entry = self.leases.get(lease)
            if entry is not None and entry.owner == owner:
                entry.finished = max(entry.finished, min(finished, len(entry.granted)))
                entry.started = max(entry.started or 0, entry.finished, min(started, len(entry.granted)))

    def _end(self, seqs: list[int], state: MessageState) -> list[int]:
        for seq in seqs:
            self.messages[seq] = ModelMessage(state)
        self.settle()
        return seqs

    def settle(self) -> None:
        """Leases without a message end, owners without a lease are forgotten."""
        holding = {message.lease for message in self.messages}
        self.leases = {lease: entry for lease, entry in self.leases.items() if lease in holding}
        owners = {entry.owner for entry in self.leases.values()}
        self.deadlines = {owner: deadline for owner, deadline in self.deadlines.items() if owner in owners}
