"""What a queue promises: the protocols, and the values that pass through them.

`Producer`, `Consumer` and `Admin` are the three sides of a queue. No call waits: what cannot be answered yet (a put
that overtook its predecessor, a lease of an empty queue) is answered as such, and whoever hosts the queue waits. Times
are nanoseconds. How a queue keeps these promises is elsewhere; whether it does, the conformance suite says.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple, Protocol

from daskqueue_core.admission import Early, UnknownProducer
from daskqueue_core.batch import Batch, Buffer, Kind, Part, Run
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.names import TaskName
from daskqueue_core.outcomes import Cursor, Outcome, Outcomes, Report
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueStats

__all__ = [
    "DEFAULT_TTL",
    "REPLY_BYTES",
    "Accepted",
    "Admin",
    "Consumer",
    "Demand",
    "Full",
    "Known",
    "Lease",
    "Producer",
    "PutAnswer",
    "Queue",
]

REPLY_BYTES: Final = 8 << 20
DEFAULT_TTL: Final = 300 * 10**9


class Accepted(NamedTuple):
    """A put was admitted (or had been before): its messages are `base` to `base + count`.

    Fewer than were sent if keys among them were in use.
    """

    base: int
    count: int  # type: ignore[assignment]  # hides tuple's method, unused in a record


class Full(NamedTuple):
    """No room for the put now: it may be repeated, and its number is still free."""

    room: int  # messages that would fit; -1: it is the bytes that do not


PutAnswer = Accepted | Early | UnknownProducer | Full


class Known(IntEnum):
    """What a queue says of a task that somebody asks for."""

    UNKNOWN = 0  # never put here, as far as anybody remembers
    KNOWN = 1  # its outcome comes, at once or when it ends
    EXPIRED = 2  # its client's numbers went that far; what became of it is not kept any more


class Demand(NamedTuple):
    """What a consumer can use: how many messages of each function it timed, `unknown` of any other, of which kinds.

    A message goes only to a consumer that has all of its tags, and as much time left as it requests.
    """

    unknown: int
    wants: Mapping[bytes, int] = {}
    kinds: Collection[int] = (Kind.ITEM, Kind.CALL)
    have: Collection[int] = ()  # blocks it still has, by base: not sent again
    tags: Collection[str] = ()
    time_left: float | None = None  # seconds from the call on until the consumer's job ends; None: it does not


class Lease(NamedTuple):
    """Messages delivered to one owner until its deadline."""

    id: int
    request: int
    parts: tuple[Part, ...]
    deadline: int
    once: bool = False

    def __len__(self) -> int:
        return sum(part.stop - part.start for part in self.parts)

    @property
    def runs(self) -> tuple[Run, ...]:
        """Its messages, in lease order."""
        return tuple((part.start, part.stop) for part in self.parts)

    @property
    def ids(self) -> list[int]:
        """Its messages, one by one."""
        return [seq for part in self.parts for seq in range(part.start, part.stop)]

    @property
    def attempts(self) -> list[int]:
        """How often each of its messages failed before."""
        return [n for part in self.parts for n in (part.attempts or bytes(part.count))]

    @property
    def payloads(self) -> list[Any]:
        """A view for each single; `(block, start, stop)` for each part of a block."""
        out: list[Any] = []
        for part in self.parts:
            if part.lengths:
                out.extend(part.bodies())
            else:
                out.append((part.body, part.offset, part.offset + part.count))
        return out


class Producer(Protocol):
    """What a producer needs of a queue."""

    def put(self, body: bytes) -> int: ...

    def put_many(self, bodies: Sequence[bytes]) -> range: ...

    def put_block(self, block: Buffer, count: int) -> range: ...

    def admit(self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0) -> PutAnswer: ...

    def poll(self, client: int, cursor: Cursor | None = None, limit_bytes: int = REPLY_BYTES) -> Outcomes: ...

    def subscribe(self, client: int, first: int, names: Sequence[TaskName]) -> list[int]: ...


class Consumer(Protocol):
    """What a consumer needs of a queue."""

    def lease(
        self,
        limit: int,
        *,
        owner: str = "local",
        request: int = 0,
        ttl: int = DEFAULT_TTL,
        demand: Demand | None = None,
        once: bool = False,
        suspects: bool = True,
    ) -> Lease | None: ...

    def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int: ...

    def nack(
        self,
        lease: int | Lease,
        ids: Sequence[int] | None = None,
        *,
        error: bytes = b"",
        text: str = "",
        delay: float | None = None,
    ) -> int: ...

    def settle(self, lease: int, reports: Sequence[Report]) -> int: ...

    def release(self, lease: int | Lease, runs: Sequence[Run] | None = None) -> int: ...

    def agree(self, lease: int | Lease, runs: Sequence[Run]) -> int: ...

    def heartbeat(
        self, owner: str, held: Mapping[int, tuple[int, int]], open: Collection[int], sent: int, ttl: int = DEFAULT_TTL
    ) -> dict[int, tuple[Run, ...]]: ...

    def next_ready_at(self) -> int | None: ...

    def tick(self) -> None: ...


class Admin(Protocol):
    """What an operator needs of a queue."""

    def cancel(self, runs: Sequence[Run]) -> int: ...

    def cancel_tasks(self, client: int, tasks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]: ...

    def cancel_named(self, names: Sequence[TaskName]) -> list[TaskName]: ...

    def forget(self, runs: Sequence[Run]) -> int: ...

    def forget_tasks(self, names: Sequence[TaskName]) -> int: ...

    def dead_letters(self, after: int = 0, limit: int | None = None) -> list[DeadLetter]: ...

    def requeue(self, names: Sequence[TaskName] | None = None) -> int: ...

    def purge(self, state: MessageState, names: Sequence[TaskName] | None = None) -> int: ...

    def owner_lost(self, owner: str) -> int: ...

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]: ...

    def stats(self) -> QueueStats: ...

    def close(self) -> None: ...


class Queue(Producer, Consumer, Admin, Protocol):
    """All three."""
