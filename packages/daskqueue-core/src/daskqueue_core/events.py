"""Events: what happened to the messages of one queue, as `decide_*` returns and `apply` takes it.

An event is a value: it can be recorded, sent, and applied again to an empty ledger. It carries `time`, the `now` of
its decision in nanoseconds, and `runs`, the messages in lease order. Payloads, results and error texts ride beside
events, never in them. What memory alone knows (renewed deadlines, progress, counts of stale reports, and that the time
of a scheduled message has come) is no event.

NamedTuples, since they are made at every operation (0.3 us; a frozen slotted dataclass takes 0.6).
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import NamedTuple

from daskqueue_core.batch import Run

__all__ = [
    "Acked",
    "Blame",
    "CancelAsked",
    "Cancelled",
    "Delivered",
    "Event",
    "Expired",
    "Failed",
    "Forgotten",
    "Purged",
    "Put",
    "Reason",
    "Requeued",
    "Returned",
]


class Reason(Enum):
    """Why messages went back or failed."""

    RELEASED = "released"  # returned: the consumer gave them up before it started them
    RETRY = "retry"  # returned: they failed and may be tried again; failed: out of attempts
    UNLISTED = "unlisted"  # returned: the owner's heartbeat does not know the lease, its grant was lost
    OWNER_LOST = "owner lost"  # returned: the directory says so
    LAPSED = "lapsed"  # returned: no heartbeat until the deadline
    REOPENED = "reopened"  # returned: the queue was opened again and knows their holder no more
    REJECTED = "rejected"  # failed: the function said so, whatever attempts are left
    CRASHED = "crashed"  # failed: alone when its worker died, once too often
    DAMAGED = "damaged"  # failed: its bytes cannot be read
    EARLY_ACK = "early ack"  # failed: its owner is gone, and it must not run twice


class Blame(IntEnum):
    """What a return says about the messages. The numbers are written to disk by stores: they never change."""

    NONE = 0  # nothing new
    ATTEMPT = 1  # they ran to an exception: an attempt is counted, and they are no suspects
    SUSPECTED = 2  # one of them may have killed its worker
    CRASH = 3  # it killed its worker: a crash is counted, and it is a suspect


class Put(NamedTuple):
    """`count` new messages, numbered from `base`; the put `number` of `producer`, if that one numbers its puts.

    One put, one set of options. Without messages it only says that the producer's number is used.
    """

    time: int
    base: int
    count: int  # type: ignore[assignment]  # nobody needs tuple.count here
    producer: int | None = None
    number: int = 0
    priority: int = 0
    route: int = 0
    ready_at: int = 0
    ready_ats: bytes = b""  # instead of `ready_at`: a little-endian u64 for each message
    expires_at: int = 0  # 0: never
    keys: tuple[str, ...] = ()
    suspect: bool = False


class Delivered(NamedTuple):
    """Leased to `owner`. `deadline` and `request` matter to the living ledger only."""

    time: int
    runs: tuple[Run, ...]
    lease: int
    owner: str
    once: bool = False
    deadline: int = 0
    request: int = 0


class Acked(NamedTuple):
    """Done, as `lease` reported: whoever holds them now. `keep`: their outcome is kept until forgotten."""

    time: int
    runs: tuple[Run, ...]
    lease: int
    keep: bool


class Returned(NamedTuple):
    """Given back by their holder, or taken from it: ready again, at `ready_at` if that is ahead.

    Those with CANCEL end as CANCELLED, those with OVERDUE as EXPIRED.
    """

    time: int
    runs: tuple[Run, ...]
    lease: int
    reason: Reason
    blame: Blame = Blame.NONE
    ready_at: int = 0


class Failed(NamedTuple):
    """Dead letters: out of attempts, as their holder reported, or lost with a holder that must not be repeated.

    Damaged ones (`lease` 0) fail wherever they are.
    """

    time: int
    runs: tuple[Run, ...]
    lease: int
    reason: Reason


class CancelAsked(NamedTuple):
    """Those not delivered end; of delivered ones the holder is asked."""

    time: int
    runs: tuple[Run, ...]


class Cancelled(NamedTuple):
    """Their holder agreed: it did not run them and will not."""

    time: int
    runs: tuple[Run, ...]
    lease: int


class Expired(NamedTuple):
    """Their time is over: those not delivered end, delivered ones are OVERDUE.

    `agreed`: their holder, `lease`, did not run them in time and will not; they end.
    """

    time: int
    runs: tuple[Run, ...]
    lease: int = 0
    agreed: bool = False


class Requeued(NamedTuple):
    """Dead letters that are tried again, from the beginning: a new life."""

    time: int
    runs: tuple[Run, ...]


class Purged(NamedTuple):
    """Dead letters, and messages not delivered, that nobody wants any more."""

    time: int
    runs: tuple[Run, ...]


class Forgotten(NamedTuple):
    """Kept successes, cancelled and expired ones nobody needs to hear of any more."""

    time: int
    runs: tuple[Run, ...]


Event = Put | Delivered | Acked | Returned | Failed | CancelAsked | Cancelled | Expired | Requeued | Purged | Forgotten
