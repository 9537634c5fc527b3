"""A consumer's side of one queue: which requests are open, which leases are held, how far they are. Pure.

One `LeaseBook` for each owner and queue; the request numbers of an owner come from one `RequestNumbers`, shared by
all its books. The rule they serve (semantics.md section 3): a queue may release a lease whose request is at most the
highest number sent, not open and not held. So a number is open from the moment it is given until its answer arrived
or it was withdrawn, a grant of a withdrawn request is not run, and a lease is held until its last report is answered.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["Heartbeat", "LeaseBook", "RequestNumbers"]

FAREWELLS: Final = 2


class RequestNumbers:
    """One counter for each owner; 0 is never given."""

    def __init__(self) -> None:
        self.sent = 0

    def next(self) -> int:
        """The next number, which counts as sent."""
        self.sent += 1
        return self.sent


class Heartbeat(NamedTuple):
    """What an owner says to a queue, once a second while there is something to say (`LeaseBook.active`)."""

    held: dict[int, tuple[int, int]]  # lease -> positions: below the first all have run, from the second on none
    open: tuple[int, ...]
    sent: int


class _Held:
    __slots__ = ("done", "started", "unsettled")

    def __init__(self, size: int) -> None:
        self.done = 0
        self.started = self.unsettled = size


class LeaseBook:
    """The requests and leases of one owner at one queue."""

    def __init__(self, numbers: RequestNumbers) -> None:
        self._numbers = numbers
        self._open: set[int] = set()
        self._held: dict[int, _Held] = {}
        self._farewells = 0

    @property
    def active(self) -> bool:
        """Whether there is something to say in a heartbeat: leases to renew, or a request to take leave of.

        A request that waits at the queue needs no heartbeat. It holds nothing that could lapse, and if the connection
        breaks under its answer, it is repeated under its number and gets the same lease, or a new one.
        """
        return bool(self._held or self._farewells)

    @property
    def held(self) -> list[int]:
        """Lease ids."""
        return list(self._held)

    def request(self) -> int:
        """A number for a new lease request: open from now on."""
        number = self._numbers.next()
        self._open.add(number)
        return number

    def granted(self, request: int, lease: int, size: int) -> bool:
        """`request` was answered with a lease of `size` messages. False: it was withdrawn, so give the lease back."""
        if request not in self._open:
            return False
        self._open.discard(request)
        self._held[lease] = _Held(size)
        return True

    def withdraw(self, request: int) -> None:
        """`request` is over: answered with nothing, or its queue is gone."""
        self._open.discard(request)

    def give_up(self, request: int) -> None:
        """Nobody waits for an answer to `request` any more, but a grant may be under way.

        So that its messages do not wait for the deadline, the next heartbeats are said even if there is nothing else
        to say: two, since the first may overtake the request itself.
        """
        self._open.discard(request)
        self._farewells = FAREWELLS

    def progress(self, lease: int, done: int, started: int) -> None:
        """Positions below `done` have run, those from `started` on will not begin without another call of this."""
        held = self._held.get(lease)
        if held is not None:
            held.done, held.started = max(held.done, done), started

    def settled(self, lease: int, count: int) -> bool:
        """The queue answered for `count` messages of `lease` (report or release). True: those were the last."""
        held = self._held.get(lease)
        if held is None:
            return False
        held.unsettled -= count
        if held.unsettled <= 0:
            del self._held[lease]
            return True
        return False

    def heartbeat(self) -> Heartbeat:
        """What to say now."""
        self._farewells = max(0, self._farewells - 1)
        return Heartbeat(
            {lease: (held.done, held.started) for lease, held in self._held.items()},
            tuple(self._open),
            self._numbers.sent,
        )

    def queue_lost(self) -> None:
        """The queue's life is over: its requests and leases mean nothing to the next."""
        self._open.clear()
        self._held.clear()
        self._farewells = 0
