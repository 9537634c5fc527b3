"""Who may have killed a worker: what becomes of the leases of an owner that is gone.

The messages of all its leases that may have been running then are the *candidates*. If there is exactly one, it did
it: a crash is counted, and too many crashes end it. If there are more, but exactly one that was a suspect before, that
one did it. Else one of them may have. All candidates are suspects from then on, and are leased apart, in eighths, until
a lease holds one, and one such lease an owner. Everybody else goes back without blame. Pure functions; the ledger
decides with them.

Eighths: a lease of 2,500 messages with one that kills its worker takes 30 leases and costs 7 workers until it is
found; halves 24 and 14, one by one 2,502 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

from daskqueue_core.batch import Run
from daskqueue_core.events import Blame, Event, Failed, Reason, Returned
from daskqueue_core.leases import Lease
from daskqueue_core.runs import clean, difference, intersection, positions, total

__all__ = ["DEFAULT_MAX_CRASHES", "MaxCrashes", "after_loss", "candidates", "culprit", "default_max_crashes", "pieces"]

MaxCrashes = Callable[[int], int]
"""How many crashes message `seq` is allowed: with the last of them it fails."""

DEFAULT_MAX_CRASHES: Final = 3
PARTS: Final = 8


def default_max_crashes(seq: int) -> int:
    """The same for all messages."""
    return DEFAULT_MAX_CRASHES


def pieces(runs: Iterable[Run]) -> list[Run]:
    """Each run cut into eighths."""
    out: list[Run] = []
    for start, stop in runs:
        step = -(-(stop - start) // PARTS)
        out += [(at, min(at + step, stop)) for at in range(start, stop, step)]
    return out


def candidates(lease: Lease, held: Sequence[Run]) -> list[Run]:
    """The `held` messages of a lost lease that may have been running."""
    if lease.once:
        return []
    return intersection(clean(held), clean(positions(lease.granted, lease.finished, lease.started)))


def culprit(running: Sequence[Run], suspects: Sequence[Run]) -> int | None:
    """Who of the candidates of an owner did it, if that is certain; `suspects` were so before."""
    for certain in (running, suspects):
        if total(certain) == 1:
            return certain[0][0]
    return None


def after_loss(
    lease: Lease,
    held: Sequence[Run],
    now: int,
    reason: Reason,
    blamed: int | None,
    *,
    is_last_crash: Callable[[int], bool],
) -> Iterator[Event]:
    """What happens to the `held` messages of a lease whose owner is gone. `blamed`: the message that did it."""
    clean_held = clean(held)
    if lease.once:
        begun = intersection(clean_held, lease.begun())
        if begun:  # also what has ended: nobody can tell, and it must not run twice
            yield Failed(now, tuple(begun), lease.id, Reason.EARLY_ACK)
        back = difference(clean_held, begun)
        if back:
            yield Returned(now, tuple(back), lease.id, reason)
        return
    running = candidates(lease, held)
    others = difference(clean_held, running)
    if others:
        yield Returned(now, tuple(others), lease.id, reason)
    it = [] if blamed is None else intersection(running, [(blamed, blamed + 1)])
    innocent = difference(running, it)
    if innocent:
        yield Returned(now, tuple(innocent), lease.id, reason, Blame.SUSPECTED)
    if not it:
        return
    if is_last_crash(it[0][0]):
        yield Failed(now, tuple(it), lease.id, Reason.CRASHED)
    else:
        yield Returned(now, tuple(it), lease.id, reason, Blame.CRASH)
