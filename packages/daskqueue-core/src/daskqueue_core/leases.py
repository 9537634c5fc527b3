"""Leases: who holds which messages, and until when.

A lease belongs to an owner (a worker and its incarnation), and an owner has one deadline for all its leases: as long
as it is heard of, none of them lapses alone. States are not kept here; the bytes tell which messages of a lease have
ended. What went back or failed is cut out of `runs`, since it may be delivered again to somebody else.

Invariants: a lease holds at least one DELIVERED message, `left` of them; no message is held by two; an owner has at
least one lease. Progress and deadlines only grow.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from daskqueue_core.batch import Run
from daskqueue_core.runs import clean, difference, intersection, positions, total

__all__ = ["Lease", "Leases", "Owner"]


class Lease:
    """Messages delivered to one owner."""

    __slots__ = (
        "finished",
        "granted",
        "id",
        "left",
        "once",
        "owner",
        "reported",
        "request",
        "runs",
        "started",
        "uncut",
    )

    def __init__(self, lease_id: int, owner: str, runs: tuple[Run, ...], count: int, once: bool, request: int) -> None:
        self.id = lease_id
        self.owner = owner
        self.once = once  # never to be delivered again, should its owner be lost
        self.request = request  # the owner's number of the request that was granted; 0: none
        self.granted = runs  # as delivered: progress counts positions in these
        self.runs: Sequence[Run] = runs  # without what was cut
        self.uncut = count  # numbers in `runs`
        self.left = count  # DELIVERED ones among them
        self.finished = 0  # positions below have run
        self.started = count  # positions from here on have not begun, for sure
        self.reported = False  # whether the owner ever said so itself

    def progress(self, finished: int, started: int) -> None:
        """The owner reports how far it is. It promises not to pass `started` unreported; an old report is ignored."""
        size = total(self.granted)
        self.finished = max(self.finished, min(finished, size))
        started = max(min(started, size), self.finished)
        self.started = max(self.started, started) if self.reported else started
        self.reported = True

    def regrant(self, runs: tuple[Run, ...]) -> None:
        """It was granted `runs`, some of which were lost before the ledger knew of it."""
        self.granted = runs
        self.started = total(runs)

    def begun(self) -> list[Run]:
        """Messages that may have begun, the finished ones among them."""
        return clean(positions(self.granted, 0, self.started))


class Owner:
    """Who holds leases."""

    __slots__ = ("deadline", "leases", "requests")

    def __init__(self, deadline: int) -> None:
        self.deadline = deadline
        self.leases: dict[int, Lease] = {}
        self.requests: dict[int, Lease] = {}


class Leases:
    """All leases of a queue, by id and by owner."""

    __slots__ = ("_spare", "by_id", "earliest", "owners")

    def __init__(self) -> None:
        self.by_id: dict[int, Lease] = {}
        self.owners: dict[str, Owner] = {}
        self.earliest = 0
        """No deadline is earlier: they only grow."""
        self._spare: Owner | None = None  # the last that lost all its leases: for the next, most often the same

    def add(self, lease: Lease, deadline: int) -> None:
        """A new lease; its owner's deadline becomes `deadline` if that is later."""
        owner = self.owners.get(lease.owner)
        if owner is None:
            owner = self.owners[lease.owner] = self._spare or Owner(deadline)
            owner.deadline, self._spare = deadline, None
            if deadline < self.earliest or len(self.owners) == 1:
                self.earliest = deadline
        elif deadline > owner.deadline:
            owner.deadline = deadline
        self.by_id[lease.id] = owner.leases[lease.id] = lease
        if lease.request:
            owner.requests[lease.request] = lease

    def load_owners(self, deadlines: Iterable[tuple[str, int]]) -> None:
        """The owners of a snapshot, in their order; their leases are added then."""
        self.owners = {owner: Owner(deadline) for owner, deadline in deadlines}
        self.earliest = min([owner.deadline for owner in self.owners.values()], default=0)

    def of(self, owner: str) -> list[Lease]:
        """The leases of `owner`, oldest first."""
        entry = self.owners.get(owner)
        return list(entry.leases.values()) if entry is not None else []

    def grant(self, owner: str, request: int) -> Lease | None:
        """The lease that answered this request, if it still holds something."""
        entry = self.owners.get(owner)
        return entry.requests.get(request) if entry is not None else None

    def ended(self, lease_id: int, runs: Sequence[Run]) -> None:
        """Delivered messages have ended for good, as `lease_id` reported: whoever held them holds them no more."""
        lease = self.by_id.get(lease_id)
        if lease is not None:
            runs = self._ended_in(lease, runs)
        if runs:  # a late report: another lease holds them now. Rare, so looked for
            for other in list(self.by_id.values()):
                runs = self._ended_in(other, runs)
                if not runs:
                    break

    def _ended_in(self, lease: Lease, runs: Sequence[Run]) -> Sequence[Run]:
        held = clean(lease.runs)
        mine = intersection(runs, held)
        if not mine:
            return runs
        count = total(mine)
        self.shrink(lease, count)
        return difference(runs, mine) if count < total(runs) else ()

    def cut(self, lease: Lease, runs: Sequence[Run]) -> None:
        """These delivered messages are its no more, and may become somebody else's."""
        count = total(runs)
        if count == lease.left:
            self.drop(lease)
            return
        lease.runs = difference(clean(lease.runs), clean(runs))
        lease.uncut -= count
        lease.left -= count

    def cut_anywhere(self, runs: Sequence[Run]) -> None:
        """As `cut`, of whoever holds these (clean) runs. Rare, so looked for."""
        for lease in list(self.by_id.values()):
            mine = intersection(runs, clean(lease.runs))
            if mine:
                self.cut(lease, mine)

    def shrink(self, lease: Lease, count: int) -> None:
        """`count` of its messages ended for good."""
        lease.left -= count
        if lease.left == 0:
            self.drop(lease)

    def drop(self, lease: Lease) -> None:
        """It holds nothing any more."""
        lease.left = 0
        del self.by_id[lease.id]
        owner = self.owners[lease.owner]
        del owner.leases[lease.id]
        if lease.request and owner.requests.get(lease.request) is lease:
            del owner.requests[lease.request]
        if not owner.leases:
            self._spare = self.owners.pop(lease.owner)

    # -- time

    def renew(self, owner: str, deadline: int) -> None:
        """The owner was heard of."""
        entry = self.owners.get(owner)
        if entry is not None and deadline > entry.deadline:
            entry.deadline = deadline

    def shift(self, by: int) -> None:
        """All deadlines are `by` later."""
        for owner in self.owners.values():
            owner.deadline += by

    def next_at(self) -> int | None:
        """The earliest deadline."""
        return min([owner.deadline for owner in self.owners.values()], default=None)

    def due(self, now: int) -> list[str]:
        """The owners whose deadline has come."""
        if now < self.earliest or not self.owners:
            return []
        due = [name for name, owner in self.owners.items() if owner.deadline <= now]
        if not due:
            self.earliest = min([owner.deadline for owner in self.owners.values()])
        return due

    def unlisted(self, owner: str, held: Collection[int], open_requests: Collection[int], sent: int) -> Iterator[Lease]:
        """The leases whose grant the owner never got, as its heartbeat says."""
        for lease in self.of(owner):
            if lease.id not in held and lease.request <= sent and lease.request not in open_requests:
                yield lease

    def validate(self, delivered: Iterable[Run]) -> None:
        """AssertionError if the table contradicts itself or `delivered`, the clean runs of all DELIVERED messages."""
        delivered = list(delivered)
        count = 0
        everything: list[Run] = []
        for id_, lease in self.by_id.items():
            owner = self.owners.get(lease.owner)
            assert owner is not None, f"lease {id_:#x}: its owner {lease.owner} is unknown"
            assert owner.leases.get(id_) is lease, f"lease {id_:#x} is not with its owner"
            mine = intersection(delivered, clean(lease.runs))
            assert lease.left == total(mine) > 0, f"lease {id_:#x}: left={lease.left}, delivered {mine}"
            assert lease.uncut == total(lease.runs), f"lease {id_:#x}: uncut={lease.uncut}, runs {lease.runs}"
            size = total(lease.granted)
            assert 0 <= lease.finished <= lease.started <= size, f"lease {id_:#x}: impossible progress"
            everything += mine
            count += lease.left
        assert clean(everything) == delivered, "the leases together do not hold what is delivered"
        assert count == total(delivered), "two leases hold the same message"
        for name, owner in self.owners.items():
            assert owner.leases, f"owner {name} has no lease"
            assert all(self.by_id.get(lease.id) is lease for lease in owner.requests.values()), f"{name}: requests"
            assert owner.deadline >= self.earliest, f"owner {name}: its deadline would be missed"
