"""`ModelLedger`: what the ledger promises, said plainly: one small object per message, no runs, no pages.

Slow, and meant to be read. It is told what happens (`put`, `delivered`, `acked`, ...) and answers what should have
been decided (`pick`, `news`, `held`, `lost`, ...), message by message. The ledger is compared with it after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from daskqueue_core.events import Blame, Reason
from daskqueue_core.states import MessageState

__all__ = ["Loss", "ModelLease", "ModelLedger", "ModelMessage"]

SCHEDULED, READY, DELIVERED = MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED
ACKED, FAILED = MessageState.ACKED, MessageState.FAILED
CANCELLED, EXPIRED, GONE = MessageState.CANCELLED, MessageState.EXPIRED, MessageState.GONE

Loss = tuple[list[int], Reason, Blame | None]
"""What becomes of some messages of a lost lease: they go back with this blame, or fail (None)."""

DUE_NOW = -1
"""As `expires_at`: found to have expired; what says so is not recorded yet."""


@dataclass
class ModelMessage:
    """One message."""

    state: MessageState = READY
    priority: int = 0
    route: int = 0
    ready_at: int = 0
    expires_at: int = 0  # 0: never, or never again
    key: str | None = None
    suspect: bool = False
    piece: int = 0  # of suspects: those with the same number are leased together
    cancel: bool = False
    overdue: bool = False
    attempts: int = 0
    crashes: int = 0
    lease: int | None = None  # who holds it, while DELIVERED
    unsure: bool = False  # whether a replay may find it expired: time, as the ledger saw it, went back

    @property
    def unfinished(self) -> bool:
        """Whether it will still end."""
        return self.state in (SCHEDULED, READY, DELIVERED)

    @property
    def may_expire(self) -> bool:
        """Whether it should not start, or should not have started, once its time is over."""
        return self.unfinished and not self.overdue

    @property
    def blocks_key(self) -> bool:
        """Whether no new message can have its key."""
        return self.state is ACKED or (self.unfinished and not self.cancel)


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
    pieces: int = 0
    replaced: bool = False  # whether a key was ever taken from a message that somebody held

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

    def holder(self, key: str) -> int | None:
        """The message of this key."""
        return next((seq for seq, message in enumerate(self.messages) if message.key == key), None)

    def offered(self, routes: Collection[int] | None = None, suspects: bool = True) -> list[int]:
        """What can be leased, in order."""
        ready = [seq for seq in range(self.committed) if self.messages[seq].state is READY]
        served = [
            seq
            for seq in ready
            if (routes is None or self.messages[seq].route in routes) and (suspects or not self.messages[seq].suspect)
        ]
        return sorted(served, key=lambda seq: (-self.messages[seq].priority, seq))

    def pick(
        self,
        limit: int,
        wanted: Collection[int] | None = None,
        routes: Collection[int] | None = None,
        suspects: bool = True,
    ) -> list[int]:
        """What a lease takes, of those `wanted`: suspects of one piece, or all before the next suspect."""
        picked: list[int] = []
        for seq in self.offered(routes, suspects):
            if len(picked) == limit:
                break
            if wanted is not None and seq not in wanted:
                continue
            message = self.messages[seq]
            apart = message.suspect or (picked and self.messages[picked[0]].suspect)
            if picked and apart and not self._is_next(picked[-1], seq):
                break
            picked.append(seq)
        return picked

    def _is_next(self, before: int, seq: int) -> bool:
        """Whether two suspects are neighbours in one piece."""
        one, other = self.messages[before], self.messages[seq]
        return seq == before + 1 and one.suspect and other.suspect and one.piece == other.piece

    def unfinished(self, seqs: Iterable[int]) -> list[int]:
        """Those an ack is news of, and damage."""
        return [seq for seq in self.known(seqs) if self.messages[seq].unfinished]

    def known(self, seqs: Iterable[int]) -> list[int]:
        """Those that were put."""
        return [seq for seq in sorted(set(seqs)) if 0 <= seq < len(self.messages)]

    def those(self, seqs: Iterable[int], *states: MessageState) -> list[int]:
        """Those in one of `states`."""
        return [seq for seq in self.known(seqs) if self.messages[seq].state in states]

    def held(self, lease: int, seqs: Iterable[int] | None = None) -> list[int]:
        """What `lease` holds now, of `seqs` or at all."""
        mine = [seq for seq, message in enumerate(self.messages) if message.lease == lease]
        return mine if seqs is None else sorted(set(mine) & set(seqs))

    def cancellable(self, seqs: Iterable[int]) -> list[int]:
        """Those a cancel changes something for."""
        return [seq for seq in self.unfinished(seqs) if not self.messages[seq].cancel]

    def running(self, lease: int) -> list[int]:
        """The messages of a lease that its owner may have been running."""
        entry = self.leases[lease]
        started = len(entry.granted) if entry.started is None else entry.started
        begun = set(entry.granted[entry.finished : started])
        return [] if entry.once else [seq for seq in self.held(lease) if seq in begun]

    def blamed(self, owner: str) -> int | None:
        """Who of an owner's messages has taken it along, if that is certain."""
        running = [seq for lease in self.of(owner) for seq in self.running(lease)]
        suspects = [seq for seq in running if self.messages[seq].suspect]
        return running[0] if len(running) == 1 else suspects[0] if len(suspects) == 1 else None

    def lost(self, lease: int, max_crashes: Callable[[int], int], *, unlisted: bool = False) -> list[Loss]:
        """What becomes of a lease whose owner is gone, or never got it."""
        entry, held = self.leases[lease], self.held(lease)
        reason = Reason.UNLISTED if unlisted else Reason.OWNER_LOST
        started = len(entry.granted) if entry.started is None else entry.started
        if entry.once and (entry.started is not None or not unlisted):
            begun = set(entry.granted[:started])
            found: list[Loss] = [([seq for seq in held if seq in begun], Reason.EARLY_ACK, None)]
            found.append(([seq for seq in held if seq not in begun], reason, Blame.NONE))
        elif unlisted:
            found = [(held, reason, Blame.NONE)]
        else:
            candidates, blamed = self.running(lease), self.blamed(entry.owner)
            found = [([seq for seq in held if seq not in candidates], reason, Blame.NONE)]
            found.append(([seq for seq in candidates if seq != blamed], reason, Blame.SUSPECTED))
            if blamed is not None and blamed in candidates:
                message = self.messages[blamed]
                if message.crashes + 1 >= max_crashes(blamed) and not message.cancel and not message.overdue:
                    found.append(([blamed], Reason.CRASHED, None))
                else:
                    found.append(([blamed], reason, Blame.CRASH))
        return [loss for loss in found if loss[0]]

    def of(self, owner: str) -> list[int]:
        """The leases of `owner`."""
        return [lease for lease, entry in self.leases.items() if entry.owner == owner]

    def silent(self, now: int) -> list[str]:
        """The owners that were silent too long."""
        return [owner for owner, deadline in self.deadlines.items() if deadline <= now]

    def expired(self) -> list[int]:
        """Those that were found to have expired."""
        return [seq for seq, message in enumerate(self.messages) if message.expires_at == DUE_NOW]

    def next_at(self) -> int | None:
        """When something happens by itself."""
        times = [*self.deadlines.values()]
        times += [message.ready_at for message in self.messages if message.state is SCHEDULED]
        times += [message.expires_at for message in self.messages if message.expires_at > 0 and message.may_expire]
        return min(times, default=None)

    # -- what happens; each returns the messages whose payload nobody needs any more

    def put(
        self, new: Sequence[ModelMessage], now: int, *, producer: int | None = None, each: bool = False
    ) -> list[int]:
        """New messages; older ones with their keys are superseded. `each`: they have times of their own."""
        freed = [seq for message in new if message.key is not None for seq in self._superseded(message.key)]
        if producer is not None:
            self.producers.setdefault(producer, []).append((len(self.messages), len(new)))
        base = len(self.messages)
        for message in new:
            message.state = SCHEDULED if each or message.ready_at > max(now, 0) else READY
            message.unsure = 0 < message.expires_at <= now
        self.messages.extend(new)
        if each:
            self.ripen(now)
            return freed
        self._cut([seq for seq in range(base, len(self.messages)) if self.messages[seq].state is READY])
        return freed

    def _superseded(self, key: str) -> list[int]:
        seq = self.holder(key)
        if seq is None:
            return []
        message = self.messages[seq]
        if message.unfinished:
            assert message.state is DELIVERED
            message.key = None
            self.replaced = True
            return []
        return self._end([seq], GONE, freed=message.state is FAILED)

    def ripen(self, now: int) -> None:
        """Time passes for those that wait."""
        due = [seq for seq, message in enumerate(self.messages) if message.state is SCHEDULED]
        due = [seq for seq in due if self.messages[seq].ready_at <= now]
        for seq in due:
            self.messages[seq].state = READY
        self._cut(due)

    def collect(self, now: int) -> None:
        """Time passes for those that expire. It is looked at once."""
        for message in self.messages:
            if message.expires_at == DUE_NOW or 0 < message.expires_at <= now:
                if not message.may_expire:
                    message.unsure = True
                message.expires_at = DUE_NOW if message.may_expire else 0

    def _cut(self, seqs: Iterable[int], *, parts: int = 8) -> None:
        """Suspects among `seqs`, which are READY now: each run of them in so many pieces."""
        suspects = [seq for seq in seqs if self.messages[seq].suspect]
        while suspects:
            run = [seq for at, seq in enumerate(suspects) if seq == suspects[0] + at]
            size = -(-len(run) // parts)
            for at, seq in enumerate(run):
                before = self.messages[run[at - 1]]
                message = self.messages[seq]
                if at % size == 0 or (before.priority, before.route) != (message.priority, message.route):
                    self.pieces += 1
                message.piece = self.pieces
            suspects = suspects[len(run) :]

    def recut(self) -> None:
        """The queue was opened again: pieces are cut anew."""
        self._cut([seq for seq, message in enumerate(self.messages) if message.state is READY])

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

    def returned(self, seqs: list[int], blame: Blame, ready_at: int, now: int) -> list[int]:
        """Back, or ended if a cancel was asked or it is overdue."""
        back: list[int] = []
        freed: list[int] = []
        for seq in seqs:
            message = self.messages[seq]
            message.attempts += blame is Blame.ATTEMPT
            message.crashes += blame is Blame.CRASH
            if message.cancel or message.overdue:
                freed += self._end([seq], CANCELLED if message.cancel else EXPIRED)
                continue
            if blame is not Blame.NONE:
                message.suspect = blame is not Blame.ATTEMPT
            message.state, message.lease, message.ready_at = READY, None, ready_at
            if ready_at > max(now, 0):
                message.state = SCHEDULED
            else:
                back.append(seq)
        self._cut(sorted(back), parts=1 if blame is Blame.NONE else 8)
        self.settle()
        return freed

    def failed(self, seqs: list[int], reason: Reason) -> list[int]:
        """Failed for good."""
        for seq in seqs:
            self.messages[seq].attempts += reason in (Reason.RETRY, Reason.REJECTED)
            self.messages[seq].crashes += reason is Reason.CRASHED
        return self._end(seqs, FAILED, freed=False)

    def agreed(self, seqs: list[int], *, expired: bool) -> list[int]:
        """Given up by the holder."""
        return self._end(seqs, EXPIRED if expired else CANCELLED)

    def cancel_asked(self, seqs: list[int]) -> list[int]:
        """Ended, or to be given up."""
        ended = [seq for seq in seqs if self.messages[seq].state is not DELIVERED]
        for seq in set(seqs) - set(ended):
            self.messages[seq].cancel = True
        return self._end(ended, CANCELLED)

    def expire(self, seqs: list[int]) -> list[int]:
        """Ended, or overdue."""
        ended = [seq for seq in seqs if self.messages[seq].state is not DELIVERED]
        for seq in set(seqs) - set(ended):
            self.messages[seq].overdue = True
        for seq in seqs:
            self.messages[seq].expires_at = 0
        return self._end(ended, EXPIRED)

    def requeued(self, seqs: list[int], now: int) -> list[int]:
        """As new."""
        self.collect(now)
        for seq in seqs:
            message = self.messages[seq]
            message.state, message.attempts, message.crashes = READY, 0, 0
        return []

    def purged(self, seqs: list[int]) -> list[int]:
        """Gone."""
        return self._end(seqs, GONE)

    def forgotten(self, seqs: list[int]) -> list[int]:
        """Gone; their payloads went before."""
        return self._end(seqs, GONE, freed=False)

    def heard(self, owner: str, held: Mapping[int, tuple[int, int]], deadline: int) -> None:
        """A heartbeat."""
        if owner in self.deadlines:
            self.deadlines[owner] = max(self.deadlines[owner], deadline)
        for lease, (finished, started) in held.items():
            entry = self.leases.get(lease)
            if entry is not None and entry.owner == owner:
                entry.finished = max(entry.finished, min(finished, len(entry.granted)))
                entry.started = max(entry.started or 0, entry.finished, min(started, len(entry.granted)))

    def _end(self, seqs: list[int], state: MessageState, *, freed: bool = True) -> list[int]:
        for seq in seqs:
            message = self.messages[seq]
            message.state, message.lease = state, None
            message.suspect = message.cancel = message.overdue = False
            if state is not FAILED:
                message.crashes = 0
            if state is GONE:
                message.key = None
        self.settle()
        return seqs if freed else []

    def settle(self) -> None:
        """Leases without a message end, owners without a lease are forgotten."""
        holding = {message.lease for message in self.messages}
        self.leases = {lease: entry for lease, entry in self.leases.items() if lease in holding}
        owners = {entry.owner for entry in self.leases.values()}
        self.deadlines = {owner: deadline for owner, deadline in self.deadlines.items() if owner in owners}
