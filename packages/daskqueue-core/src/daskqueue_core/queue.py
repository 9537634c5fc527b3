"""A queue: the ledger, with the batches and the outcomes it speaks of.

`Producer`, `Consumer` and `Admin` are the protocols every queue implements; `TransientQueue` holds everything in
memory. No call waits: what cannot be answered yet (a put that overtook its predecessor, a lease of an empty queue)
is answered as such, and whoever hosts the queue waits. Every operation is decide, apply, reply in one step on the
caller's thread; a queue is not thread-safe, its host serialises the calls.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from queue import Full as QueueFull
from typing import Any, Final, NamedTuple, Protocol

from daskqueue_core.batch import Batch, Buffer, Keep, Kind, Part, Run, lengths_column, merge_runs
from daskqueue_core.events import Event, Failed, Put, Reason
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.outcomes import Cursor, End, KeptResults, Outbox, Outcome, Outcomes, Report
from daskqueue_core.states import MessageState
from daskqueue_core.stats import QueueStats

__all__ = [
    "Accepted",
    "Admin",
    "Consumer",
    "Demand",
    "Full",
    "Lease",
    "Producer",
    "PutAnswer",
    "Queue",
    "TransientQueue",
]

LEASE_BYTES: Final = 4 << 20
OUTBOX_BYTES: Final = 64 << 20  # that one client may have to read before nothing more is leased
AWAY: Final = 60 * 10**9  # a client that polled no later is not waited for
REPLY_BYTES: Final = 8 << 20
DEFAULT_TTL: Final = 300 * 10**9
REMEMBERED_OWNERS: Final = 1000


class Accepted(NamedTuple):
    """A put was admitted (or had been before): its messages are `base` to `base + count`."""

    base: int
    count: int  # type: ignore[assignment]  # hides tuple's method, unused in a record


class Full(NamedTuple):
    """No room for the put now: it may be repeated, and its number is still free."""

    room: int  # messages that would fit; -1: it is the bytes that do not


PutAnswer = Accepted | Early | UnknownProducer | Full


class Demand(NamedTuple):
    """What a consumer can use: how many messages of each function it timed, `unknown` of any other, of which kinds."""

    unknown: int
    wants: Mapping[bytes, int] = {}
    kinds: Collection[int] = (Kind.ITEM, Kind.CALL)
    have: Collection[int] = ()  # blocks it still has, by base: not sent again


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
    ) -> Lease | None: ...

    def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int: ...

    def nack(
        self, lease: int | Lease, ids: Sequence[int] | None = None, *, error: bytes = b"", text: str = ""
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

    def forget(self, runs: Sequence[Run]) -> int: ...

    def owner_lost(self, owner: str) -> int: ...

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]: ...

    def stats(self) -> QueueStats: ...

    def close(self) -> None: ...


class Queue(Producer, Consumer, Admin, Protocol):
    """All three."""


class _Entry:
    """A batch in the queue: where it begins, and how many of its messages still need it."""

    __slots__ = ("base", "batch", "ends", "live", "stop")

    def __init__(self, base: int, batch: Batch) -> None:
        self.base = base
        self.stop = base + batch.count
        self.batch = batch
        self.live = batch.count
        self.ends: Sequence[int] | None = None

    def part(self, start: int, stop: int, have: Collection[int]) -> Part:
        """The messages `start` to `stop`, as a lease ships them."""
        batch = self.batch
        lo, hi = start - self.base, stop - self.base
        body: Buffer | None = batch.body
        lengths = batch.lengths
        if not lengths:
            if self.base in have:
                body = None
        elif hi - lo != batch.count:
            ends = self.ends
            if ends is None:
                ends = self.ends = batch.ends()
            body = memoryview(batch.body)[ends[lo - 1] if lo else 0 : ends[hi - 1]]
            lengths = lengths[4 * lo : 4 * hi]
        return Part(start, stop, self.base, batch.offset + lo, body, lengths, batch.shared, batch.kind, batch.function)


class TransientQueue:
    """A queue in memory.

    `maxsize` messages without an outcome and `max_bytes` of payloads are its room (0: no limit).
    `clock` returns nanoseconds and never steps back; `uuid` names this life of the queue. `result_ttl` is in
    nanoseconds, None for ever; `result_max_bytes` None for no limit.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], int],
        uuid: str = "local",
        epoch: int = 0,
        maxsize: int = 0,
        max_bytes: int = 0,
        result_ttl: int | None = 3600 * 10**9,
        result_max_bytes: int | None = 256 << 20,
    ) -> None:
        self.uuid = uuid
        self.epoch = epoch
        self.maxsize = maxsize
        self.max_bytes = max_bytes
        self._clock = clock
        self._ledger = Ledger(epoch=epoch)
        self._bases: list[int] = []  # of entries, ascending; some may be gone
        self._entries: dict[int, _Entry] = {}
        self._bases_of: dict[tuple[int, int], int] = {}  # of batches with outcomes, by (client, first number)
        self._nbytes = 0
        self._unfinished = dict.fromkeys(Kind, 0)
        self._outboxes: dict[int, Outbox] = {}
        self._gone: dict[str, None] = {}  # owners that were lost last, in order
        self._kept = KeptResults(ttl=result_ttl, max_bytes=result_max_bytes)

    # -- producer

    def put(self, body: bytes) -> int:
        """Add one message; returns its number."""
        return self.put_many([body])[0]

    def put_many(self, bodies: Sequence[bytes]) -> range:
        """Add messages; returns their numbers."""
        if not bodies:
            base = self._ledger.puts
            return range(base, base)
        return self._put_local(Batch(len(bodies), b"".join(bodies), lengths_column(list(bodies))))

    def put_block(self, block: Buffer, count: int) -> range:
        """Add `count` messages with one payload for all of them; returns their numbers."""
        return self._put_local(Batch(count, block))

    def _put_local(self, batch: Batch) -> range:
        answer = self.admit([batch])
        if not isinstance(answer, Accepted):
            raise QueueFull(f"queue {self.uuid} has {self.unfinished} messages of at most {self.maxsize}")
        return range(answer.base, answer.base + answer.count)

    def admit(self, batches: Sequence[Batch], *, producer: int | None = None, number: int = 0) -> PutAnswer:
        """Admit a producer's put, in number order: once, however often it is repeated."""
        count = sum(batch.count for batch in batches)
        if count <= 0 or any(batch.count <= 0 for batch in batches):
            raise ValueError(f"queue {self.uuid}: a put needs at least one message in each batch")
        event = self._ledger.decide_put(count, self._clock(), producer=producer, number=number)
        if isinstance(event, Duplicate):
            return Accepted(event.base, event.count)
        if not isinstance(event, Put):
            return event
        full = self._full(count, sum(batch.nbytes for batch in batches))
        if full is not None:
            return full
        self._apply(event)
        base = event.base
        for batch in batches:
            self._entries[base] = _Entry(base, batch)
            self._bases.append(base)
            self._unfinished[Kind(batch.kind)] += batch.count
            if batch.keep != Keep.NONE:
                self._bases_of[batch.client, batch.first] = base
            self._nbytes += batch.nbytes
            base += batch.count
        self._ledger.commit(base)
        return Accepted(event.base, event.count)

    def poll(self, client: int, cursor: Cursor | None = None, limit_bytes: int = REPLY_BYTES) -> Outcomes:
        """The outcomes of `client` after `cursor`, which acknowledges those up to it."""
        outbox = self._outbox(client)
        outbox.read_at = self._clock()
        collected = outbox.acknowledge(cursor)
        if collected:
            self._kept.collected(collected, self._clock())
        return outbox.read(limit_bytes)

    def _full(self, count: int, nbytes: int) -> Full | None:
        """Whether a put has to wait; one that is too large for an empty queue is let in."""
        unfinished = self._ledger.unfinished
        if self.maxsize and unfinished and unfinished + count > self.maxsize:
            return Full(max(0, self.maxsize - unfinished))
        if self.max_bytes and self._nbytes and self._nbytes + nbytes > self.max_bytes:
            return Full(-1)
        return None

    def has_outcomes(self, client: int) -> bool:
        """Whether `client` has something to read."""
        return bool(self._outboxes.get(client))

    def _is_clogged(self) -> bool:
        """Whether a client that is there has so much to read that more work would only fill this host's memory."""
        since = self._clock() - AWAY
        return any(outbox.nbytes > OUTBOX_BYTES and outbox.read_at > since for outbox in self._outboxes.values())

    def _drop_outboxes(self) -> None:
        """Clients that did not poll for `result_ttl` are gone: nobody reads their outcomes.

        Kept ones stay while there is room, for whoever asks by key.
        """
        ttl = self._kept.ttl
        if ttl is not None:
            since = self._clock() - ttl
            for client in [client for client, outbox in self._outboxes.items() if outbox.read_at <= since]:
                self._kept.abandon(self._outboxes.pop(client).kept())

    def _outbox(self, client: int) -> Outbox:
        outbox = self._outboxes.get(client)
        if outbox is None:
            outbox = self._outboxes[client] = Outbox(f"{self.uuid}:{self.epoch}", self._clock())
        return outbox

    # -- consumer

    def lease(
        self,
        limit: int,
        *,
        owner: str = "local",
        request: int = 0,
        ttl: int = DEFAULT_TTL,
        demand: Demand | None = None,
        once: bool = False,
    ) -> Lease | None:
        """Deliver at most `limit` messages to `owner` until `ttl` nanoseconds after its last heartbeat.

        The same `request` (not 0) gets the same grant while it is held. None when nothing is ready, or when the owner
        is known to be gone: its request was under way, and nobody would end that lease.
        """
        if owner in self._gone:
            return None
        have = demand.have if demand is not None else ()
        if request:
            held = self._ledger.find_grant(owner, request)
            if held is not None:
                deadline = self._ledger.deadline(owner) or 0
                runs = self._ledger.held(held.id)  # the payloads of what has ended may be gone
                return Lease(held.id, request, self._parts(runs, have), deadline, held.once)
        if self._is_clogged() or (demand is not None and not self.unfinished_of(demand.kinds)):
            return None
        choose = None if demand is None else self._chooser(limit, demand)
        event = self._ledger.decide_lease(limit, owner, self._clock(), ttl, request=request, once=once, choose=choose)
        if event is None:
            return None
        self._apply(event)
        return Lease(event.lease, request, self._parts(event.runs, have), event.deadline, once)

    def _chooser(self, limit: int, demand: Demand) -> Callable[[Iterator[Run]], list[Run]]:
        """Takes the first messages somebody like this can run: of one function, so that its time estimate holds."""
        kinds, wants, have = demand.kinds, demand.wants, demand.have

        def choose(ready: Iterator[Run]) -> list[Run]:
            picked: list[Run] = []
            function: bytes | None = None
            room, room_bytes = limit, LEASE_BYTES
            for start, stop in ready:
                while start < stop:
                    entry = self._entry(start)
                    batch, end = entry.batch, min(stop, entry.stop)
                    if batch.kind in kinds:
                        if function is None:
                            function = batch.function
                            room = min(limit, wants.get(function, demand.unknown))
                        elif function != batch.function:
                            return list(merge_runs(picked))
                        end = min(end, start + room)
                        picked.append((start, end))
                        room -= end - start
                        if entry.base not in have or batch.lengths:
                            room_bytes -= (
                                batch.nbytes if not batch.lengths else batch.nbytes * (end - start) // batch.count
                            )
                        if room <= 0 or room_bytes <= 0:
                            return list(merge_runs(picked))
                    start = end
            return list(merge_runs(picked))

        return choose

    def _parts(self, runs: Sequence[Run], have: Collection[int]) -> tuple[Part, ...]:
        parts: list[Part] = []
        for start, stop in runs:
            while start < stop:
                entry = self._entry(start)
                end = min(stop, entry.stop)
                parts.append(entry.part(start, end, have))
                start = end
        return tuple(parts)

    def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int:
        """These messages succeeded, without a value. Returns how many that was news of.

        Default: all that the lease still holds. Late news must name its messages, since nobody else knows them.
        """
        return self.settle(_lease_id(lease), [Report(*run) for run in self._runs(lease, ids)])

    def nack(self, lease: int | Lease, ids: Sequence[int] | None = None, *, error: bytes = b"", text: str = "") -> int:
        """These messages (default: all that the lease holds) failed. Returns how many that was news of."""
        reports = [
            Report(start, stop, errors=tuple((i, error, text) for i in range(stop - start)))
            for start, stop in self._runs(lease, ids)
        ]
        return self.settle(_lease_id(lease), reports)

    def settle(self, lease: int, reports: Sequence[Report]) -> int:
        """Take the outcomes of messages that ran. Late or repeated ones change nothing. Returns how many were news."""
        news = 0
        for report in reports:
            for part in self._split(report):
                news += self._settle_part(lease, part)
        return news

    def _split(self, report: Report) -> Iterator[Report]:
        """A consumer's reports do not cross batches; `ack` of anything may."""
        for start, stop in self._cut([(report.start, report.stop)]):
            if (start, stop) == (report.start, report.stop):
                yield report
                return
            lo, hi = start - report.start, stop - report.start
            yield Report(start, stop, report.values, tuple((i - lo, b, t) for i, b, t in report.errors if lo <= i < hi))

    def _settle_part(self, lease: int, report: Report) -> int:
        entry = self._find(report.start)
        if entry is None:  # its messages ended long ago
            self._ledger.stale += report.stop - report.start
            return 0
        now, batch = self._clock(), entry.batch
        failed = sorted([report.start + index for index, _, _ in report.errors])
        good = _without((report.start, report.stop), failed)
        keep = batch.keep == Keep.KEEP
        acked = self._ledger.decide_ack(lease, good, now, keep=keep) if good else None
        if acked is not None:
            self._apply(acked)
        bad = self._ledger.decide_fail(lease, _as_runs(failed), now, reason=Reason.REJECTED) if failed else None
        if bad is not None:
            self._apply(bad)
        accepted = sorted([*(acked.runs if acked else ()), *(bad.runs if bad else ())])
        if not accepted:
            return 0
        self._report(entry, report, merge_runs(accepted), acked.runs if acked else ())
        return sum(stop - start for start, stop in accepted)

    def _report(self, entry: _Entry, report: Report, accepted: Sequence[Run], acked: tuple[Run, ...]) -> None:
        batch = entry.batch
        if batch.keep == Keep.NONE:
            return
        start, count = report.start, report.stop - report.start
        errors = report.errors
        relative: tuple[Run, ...] = ()
        if accepted != ((start, report.stop),):
            relative = tuple((lo - start, hi - start) for lo, hi in accepted)
            errors = tuple(error for error in errors if any(lo <= error[0] < hi for lo, hi in relative))
        outcome = Outcome(batch.first, start - entry.base, count, relative, report.values, errors)
        self._deliver(batch, outcome, acked)

    def _deliver(self, batch: Batch, outcome: Outcome, acked: tuple[Run, ...] = ()) -> None:
        kept = None
        if batch.keep == Keep.KEEP:
            kept = self._kept.add(batch.client, outcome, acked)
            if self._kept.max_bytes is not None and self._kept.nbytes > self._kept.max_bytes:
                self._expire_kept()
        self._outbox(batch.client).add(outcome, kept)

    def release(self, lease: int | Lease, runs: Sequence[Run] | None = None) -> int:
        """The owner gives these back, not started (default: all it holds). Returns how many went back."""
        event = self._ledger.decide_return(_lease_id(lease), runs, self._clock(), reason=Reason.RELEASED)
        return self._apply_ends(event)

    def agree(self, lease: int | Lease, runs: Sequence[Run]) -> int:
        """The owner did not run these and gives up those that were cancelled. Returns how many ended."""
        return self._apply_ends(self._ledger.decide_agree(_lease_id(lease), runs, self._clock()))

    def heartbeat(
        self, owner: str, held: Mapping[int, tuple[int, int]], open: Collection[int], sent: int, ttl: int = DEFAULT_TTL
    ) -> dict[int, tuple[Run, ...]]:
        """Renew the owner's leases and release those it does not hold (semantics.md section 3).

        `held`: positions `(finished, started)` of each lease. Returns the messages of its leases to cancel.
        """
        for event in self._ledger.heartbeat(owner, held, open, sent, self._clock(), ttl):
            self._apply_ends(event)
        return self._ledger.cancels(owner)

    def owner_lost(self, owner: str) -> int:
        """The directory says the owner is gone, and it never comes back: an incarnation is part of its name.

        What it held goes back. Returns how many messages moved.
        """
        self._gone[owner] = None
        if len(self._gone) > REMEMBERED_OWNERS:
            del self._gone[next(iter(self._gone))]
        events = self._ledger.decide_owner_lost(owner, self._clock(), reason=Reason.OWNER_LOST)
        return sum(self._apply_ends(event) for event in events)

    def owners(self) -> list[str]:
        """Who holds leases."""
        return list(self._ledger.owners())

    def shift_deadlines(self, by: int) -> None:
        """The queue could not listen for `by` nanoseconds: nobody's deadline passed meanwhile."""
        self._ledger.shift_deadlines(by)

    def next_ready_at(self) -> int | None:
        """When `tick` has something to do next."""
        times = [at for at in (self._ledger.next_at(), self._kept.next_at()) if at is not None]
        ttl = self._kept.ttl
        if ttl is not None:
            times += [outbox.read_at + ttl for outbox in self._outboxes.values() if outbox]
        return min(times, default=None)

    def tick(self) -> None:
        """Do what time brings: leases of silent owners end, kept results expire, absent clients are forgotten."""
        self._drop_outboxes()
        while events := self._ledger.decide_due(self._clock()):
            for event in events:
                self._apply_ends(event)
        self._expire_kept()

    # -- admin

    def cancel(self, runs: Sequence[Run]) -> int:
        """End what is not delivered; ask the owners of what is. Returns how many it concerned."""
        return self._apply_ends(self._ledger.decide_cancel(runs, self._clock()))

    def cancel_tasks(self, client: int, tasks: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        """Cancel `(batch's first number, from index, to index)` of a client. Returns those that have ended by it.

        What is delivered is flagged: its owner hears of it and gives it up if it has not begun.
        """
        ended: list[tuple[int, int, int]] = []
        for first, lo, hi in tasks:
            base = self._bases_of.get((client, first))
            if base is None:
                continue
            stop = self._entries[base].stop
            runs = [(min(base + max(lo, 0), stop), min(base + hi, stop))]
            freed = self._end(self._ledger.decide_cancel(runs, self._clock()))
            ended += [(first, start - base, stop - base) for start, stop in freed]
        return ended

    def forget(self, runs: Sequence[Run]) -> int:
        """Drop kept successes and cancelled messages. Returns how many.

        The bytes of a result are free when all the messages it covers are forgotten.
        """
        event = self._ledger.decide_forget(runs, self._clock())
        if event is not None:
            self._kept.forget(event.runs)
        return self._apply_ends(event)

    def read_kept(self, after: int = 0, limit_bytes: int = REPLY_BYTES) -> tuple[int, list[tuple[int, Outcome]]]:
        """`(client, outcome)` of kept results; the number to go on with, -1 at the end."""
        return self._kept.read(after, limit_bytes)

    @property
    def ready(self) -> int:
        """Messages that could be leased."""
        return self._ledger.ready

    @property
    def puts(self) -> int:
        """Messages ever admitted."""
        return self._ledger.puts

    @property
    def unfinished(self) -> int:
        """Messages without an outcome."""
        return self._ledger.unfinished

    def unfinished_of(self, kinds: Collection[int]) -> int:
        """Messages of these kinds without an outcome."""
        return sum(count for kind, count in self._unfinished.items() if kind in kinds)

    def stats(self) -> QueueStats:
        """Counts."""
        counts = self._ledger.counts()
        return QueueStats(
            uuid=self.uuid,
            puts=self._ledger.puts,
            ready=counts.get(MessageState.READY, 0),
            delivered=counts.get(MessageState.DELIVERED, 0),
            acked=counts.get(MessageState.ACKED, 0),
            failed=counts.get(MessageState.FAILED, 0),
            cancelled=counts.get(MessageState.CANCELLED, 0),
            finished=self._ledger.finished,
            stale=self._ledger.stale,
            owners=len(self.owners()),
            calls=self._unfinished[Kind.CALL],
            items=self._unfinished[Kind.ITEM],
            nbytes=self._nbytes,
            kept_bytes=self._kept.nbytes,
            undelivered_outcomes=sum(map(len, self._outboxes.values())),
        )

    def close(self) -> None:
        """Let go of everything."""
        self._entries.clear()
        self._bases.clear()
        self._bases_of.clear()
        self._outboxes.clear()

    # -- inside

    def _apply(self, event: Event) -> None:
        freed = self._ledger.apply(event)
        if freed:
            self._free(freed)

    def _apply_ends(self, event: Event | None) -> int:
        """As `_end`; returns how many messages the event moved."""
        self._end(event)
        return 0 if event is None or isinstance(event, Put) else sum(stop - start for start, stop in event.runs)

    def _end(self, event: Event | None) -> tuple[Run, ...]:
        """Apply an event by which messages may end without having run; their clients hear of it. Returns those."""
        if event is None:
            return ()
        freed = self._ledger.apply(event)
        end = End.CRASHED if isinstance(event, Failed) else End.CANCELLED
        for start, stop in self._cut(freed):
            entry = self._entry(start)
            if entry.batch.keep != Keep.NONE:
                self._deliver(entry.batch, Outcome(entry.batch.first, start - entry.base, stop - start, end=end))
        self._free(freed)
        return freed

    def _expire_kept(self) -> None:
        runs = self._kept.expire(self._clock())
        if runs:
            self._apply_ends(self._ledger.decide_forget(runs, self._clock()))

    def _entry(self, seq: int) -> _Entry:
        entry = self._find(seq)
        assert entry is not None, f"queue {self.uuid}: message {seq} has no batch"
        return entry

    def _find(self, seq: int) -> _Entry | None:
        at = bisect_right(self._bases, seq) - 1
        if at < 0:
            return None
        entry = self._entries.get(self._bases[at])
        return entry if entry is not None and seq < entry.stop else None

    def _cut(self, runs: Sequence[Run]) -> Iterator[Run]:
        """`runs` cut where batches begin and end."""
        for start, stop in runs:
            while start < stop:
                at = bisect_right(self._bases, start)
                end = stop if at == len(self._bases) else min(stop, self._bases[at])
                yield start, end
                start = end

    def _free(self, runs: Sequence[Run]) -> None:
        """The payloads of these messages are not needed any more."""
        for start, stop in self._cut(runs):
            entry = self._find(start)
            if entry is None:
                continue
            entry.live -= stop - start
            self._unfinished[Kind(entry.batch.kind)] -= stop - start
            if entry.live == 0:
                del self._entries[entry.base]
                name = entry.batch.client, entry.batch.first
                if self._bases_of.get(name) == entry.base:  # not that of a copy that was put again
                    del self._bases_of[name]
                self._nbytes -= entry.batch.nbytes
        if len(self._bases) > 2 * len(self._entries) + 64:
            self._bases = sorted(self._entries)

    def _runs(self, lease: int | Lease, ids: Sequence[int] | None) -> tuple[Run, ...]:
        if ids is not None:
            return tuple(_as_runs(sorted(ids)))
        return self._ledger.held(_lease_id(lease))


def _lease_id(lease: int | Lease) -> int:
    return lease.id if isinstance(lease, Lease) else lease


def _as_runs(seqs: Sequence[int]) -> list[Run]:
    """Ascending numbers as runs."""
    return list(merge_runs([(seq, seq + 1) for seq in seqs]))


def _without(run: Run, holes: Sequence[int]) -> list[Run]:
    """`run` without the numbers `holes`, ascending."""
    start, stop = run
    out: list[Run] = []
    for hole in holes:
        if start < hole:
            out.append((start, hole))
        start = hole + 1
    if start < stop:
        out.append((start, stop))
    return out
