"""A queue in memory: every operation is decide, record, apply, reply in one step on the caller's thread.

Put together of `contents` (what a queue holds and what events do to it), `administration` (the operator's side),
`producing` (the producer's), `handover` (to another host) and, here, the consumer's side. What is promised is in
`protocols`. No call waits; a queue is not thread-safe, its host serialises the calls.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import Final, TypeVar

from daskqueue_core.administration import as_runs
from daskqueue_core.batch import Keep, Part, Run
from daskqueue_core.choosing import chooser
from daskqueue_core.events import Acked, Blame, Failed, Reason
from daskqueue_core.handover import HandOver, MovableQueue
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.payloads import Entry
from daskqueue_core.protocols import (
    DEFAULT_TTL,
    REPLY_BYTES,
    Accepted,
    Admin,
    Consumer,
    Demand,
    Full,
    Known,
    Lease,
    Producer,
    PutAnswer,
    Queue,
)
from daskqueue_core.runs import clean, difference, intersection

__all__ = [
    "Accepted",
    "Admin",
    "Consumer",
    "DEFAULT_TTL",
    "Demand",
    "Full",
    "Known",
    "Lease",
    "Producer",
    "PutAnswer",
    "Queue",
    "REPLY_BYTES",
    "TransientQueue",
]

Q = TypeVar("Q", bound="TransientQueue")

REMEMBERED_OWNERS: Final = 1000
DUE_RUNS: Final = 10_000  # that fall due in one go: a few milliseconds
_KEEP: Final = int(Keep.KEEP)
_NONE: Final = int(Keep.NONE)
_new: Final = tuple.__new__  # half the time of a NamedTuple's own constructor


class TransientQueue(MovableQueue):
    """A queue in memory.

    `maxsize` messages without an outcome and `max_bytes` of payloads are its room (0: no limit).
    `clock` returns nanoseconds and never steps back; `uuid` names this life of the queue. `result_ttl` is in
    nanoseconds, None for ever; `result_max_bytes` None for no limit.
    """

    lapses_in_lease = True
    """Whether `lease` itself takes the leases of silent owners back. A host that calls `tick` in time says no: only
    there it knows for how long it could hear nobody (`shift_deadlines`)."""

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
        super().__init__(
            clock=clock,
            uuid=uuid,
            epoch=epoch,
            maxsize=maxsize,
            max_bytes=max_bytes,
            result_ttl=result_ttl,
            result_max_bytes=result_max_bytes,
        )

    @classmethod
    def take_over(
        cls: type[Q],
        state: HandOver,
        *,
        clock: Callable[[], int],
        epoch: int,
        maxsize: int = 0,
        max_bytes: int = 0,
        result_ttl: int | None = 3600 * 10**9,
        result_max_bytes: int | None = 256 << 20,
    ) -> Q:
        """The queue that was handed over as `state`, on another host and under a higher epoch."""
        if epoch <= state.epoch:
            raise ValueError(f"queue {state.uuid} was served under epoch {state.epoch}: {epoch} is not later")
        queue = cls(
            clock=clock,
            uuid=state.uuid,
            epoch=epoch,
            maxsize=maxsize,
            max_bytes=max_bytes,
            result_ttl=result_ttl,
            result_max_bytes=result_max_bytes,
        )
        queue._load(state)
        return queue

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
        suspects: bool = True,
    ) -> Lease | None:
        """Deliver at most `limit` messages to `owner` until `ttl` nanoseconds after its last heartbeat.

        The same `request` (not 0) gets the same grant while it is held. None when nothing is ready, or when the owner
        is known to be gone: its request was under way, and nobody would end that lease. Without `suspects`, nothing
        that may have killed its worker; one such lease at a time in any case, so that it is known which one did.
        """
        return self._lease(limit, owner, request, ttl, demand, once, suspects)

    def _lease(
        self, limit: int, owner: str, request: int, ttl: int, demand: Demand | None, once: bool, suspects: bool
    ) -> Lease | None:
        if limit == 1 and demand is None and not request:
            lease = self._lease_next(owner, ttl, once)
            if lease is not None:
                return lease
        if owner in self._gone:
            return None
        ledger = self._ledger
        have = demand.have if demand is not None else ()
        if request:
            held = ledger.find_grant(owner, request)
            if held is not None:
                deadline = ledger.deadline(owner) or 0
                runs = ledger.held(held.id)  # the payloads of what has ended may be gone
                return Lease(held.id, request, self._parts(runs, have), deadline, held.once)
        if self._mail.is_clogged():
            return None
        now = self._clock()
        # What has expired must not begin, whether the host's timer was late or not.
        if ledger.is_due(now):
            self._due(now, lapses=self.lapses_in_lease)
        routes = choose = None
        if demand is not None:
            unfinished = self._payloads.unfinished
            routes = self._routes.served(demand.kinds, demand.tags, demand.time_left)
            if not any(map(unfinished.get, routes)):
                return None
            choose = chooser(limit, demand, self._payloads, ledger.ready)
            if len(routes) == len(self._routes):
                routes = None
        suspects = suspects and not ledger.holds_suspect(owner)
        event = ledger.decide_lease(limit, owner, now, ttl, request, once, choose, routes, suspects)
        if event is None:
            return None
        self._record(event, None)  # as `_happen`: nothing ends by it
        ledger.apply_delivered(event)
        return _new(Lease, (event.lease, request, self._parts(event.runs, have), event.deadline, once))

    def _lease_next(self, owner: str, ttl: int, once: bool) -> Lease | None:
        """The next message, for who takes whatever it is, where nothing is in the way; None: look closer."""
        ledger, clock = self._ledger, self._clock
        now = clock()
        if owner in self._gone or self._mail.is_clogged() or ledger.is_due(now):
            return None
        event = ledger.decide_next(owner, now, ttl, once)
        if event is None:
            return None
        self._record(event, None)  # as `_happen`: nothing ends by it
        ledger.apply_delivered(event)
        _, runs, lease, _, _, deadline, _ = event
        return _new(Lease, (lease, 0, self._parts(runs, ()), deadline, once))

    def _parts(self, runs: Sequence[Run], have: Collection[int]) -> tuple[Part, ...]:
        payloads = self._payloads
        if len(runs) == 1 and not self._attempted:  # the common case
            start, stop = runs[0]
            entry = payloads.holder(start, stop)
            if entry is not None:
                return (entry.part(start, stop, have),)
        parts: list[Part] = []
        for start, stop in runs:
            while start < stop:
                entry = payloads.entry(start)
                end = payloads.stop(entry, start, stop)
                attempts = self._ledger.attempts_of(start, end) if self._attempted else b""
                parts.append(entry.part(start, end, have, attempts))
                start = end
        return tuple(parts)

    def ack(self, lease: int | Lease, ids: Sequence[int] | None = None) -> int:
        """These messages succeeded, without a value. Returns how many that was news of.

        Default: all that the lease still holds. Late news must name its messages, since nobody else knows them.
        """
        lease_id = _lease_id(lease)
        if ids is None and (news := self._ack_all(lease_id)):
            return news
        return self._settle(lease_id, [Report(*run) for run in self._runs(lease_id, ids)])

    def _ack_all(self, lease_id: int) -> int:
        """Ack a lease of one run of one batch that still holds all of it. Returns how many; 0 for any other lease."""
        lease = self._ledger.leases.by_id.get(lease_id)
        if lease is None or lease.left != lease.uncut or len(lease.runs) != 1:
            return 0
        start, stop = lease.runs[0]
        entry = self._payloads.holder(start, stop)
        if entry is None:
            return 0
        keep, clock = entry.batch.keep, self._clock
        event = _new(Acked, (clock(), ((start, stop),), lease_id, keep == _KEEP))
        if keep == _NONE and not self._mail.followers:  # as `_happen`, when nobody hears of it
            self._record(event, None)
            self._ledger.apply_acked(event)
            self._payloads.free_of(entry, start, stop)
        else:
            self._happen(event)
        return stop - start

    def nack(
        self,
        lease: int | Lease,
        ids: Sequence[int] | None = None,
        *,
        error: bytes = b"",
        text: str = "",
        delay: float | None = None,
    ) -> int:
        """These messages (default: all that the lease holds) failed. Returns how many that was news of.

        With a `delay` in seconds they are tried again after that, without one they are dead letters.
        """
        if delay is not None and not 0 <= delay < inf:
            raise ValueError(f"queue {self.uuid}: a delay is a number of seconds, not negative, and not {delay!r}")
        retry_in = -1 if delay is None else int(delay * 1e9)
        reports = [
            Report(start, stop, errors=tuple(Failure(i, error, text, retry_in) for i in range(stop - start)))
            for start, stop in self._runs(_lease_id(lease), ids)
        ]
        return self._settle(_lease_id(lease), reports)

    def settle(self, lease: int, reports: Sequence[Report]) -> int:
        """Take the outcomes of messages that ran. Late or repeated ones change nothing. Returns how many were news."""
        return self._settle(lease, reports)

    def _settle(self, lease: int, reports: Sequence[Report]) -> int:
        now, news = self._clock(), 0
        for report in reports:
            failures = _failures(report) if report.errors else {}
            for entry, start, stop in self._payloads.pieces([(report.start, report.stop)]):
                good = [(start, stop)]
                if failures:
                    bad = sorted([seq for seq in failures if start <= seq < stop])
                    good = _without((start, stop), bad)
                if good:
                    news += self._settle_good(lease, report, entry, good, now)
            if failures:
                news += self._settle_bad(lease, failures, now)
        return news

    def _settle_good(self, lease: int, report: Report, entry: Entry | None, runs: list[Run], now: int) -> int:
        keep = entry is not None and entry.batch.keep == Keep.KEEP
        event = self._ledger.decide_ack(lease, runs, now, keep)
        if event is None:
            return 0
        self._happen(event, report)
        return sum([stop - start for start, stop in event.runs])

    def _settle_bad(self, lease: int, failures: Mapping[int, Failure], now: int) -> int:
        """One event for all that are tried again after the same time, or fail for the same reason."""
        cancelled: list[int] = []
        retried: dict[int, list[int]] = {}
        dead: dict[Reason, list[int]] = {}
        for seq in sorted(failures):
            failure = failures[seq]
            if failure.reason == FailureReason.CANCELLED:
                cancelled.append(seq)
            elif failure.retry_in >= 0:
                retried.setdefault(failure.retry_in, []).append(seq)
            else:
                reason = Reason.REJECTED if failure.reason == FailureReason.REJECTED else Reason.RETRY
                dead.setdefault(reason, []).append(seq)
        ledger, news = self._ledger, 0
        if cancelled:
            news += self._agree(lease, as_runs(cancelled), now)
        for retry_in, seqs in retried.items():
            ready_at = now + retry_in if retry_in else 0
            event = ledger.decide_return(
                lease, as_runs(seqs), now, reason=Reason.RETRY, blame=Blame.ATTEMPT, ready_at=ready_at
            )
            news += self._apply(event, failures)
        for reason, seqs in dead.items():
            failed = ledger.decide_fail(lease, as_runs(seqs), now, reason=reason)
            if failed is not None:
                news += self._apply(failed, self._last_words(failed, failures))
        return news

    def _last_words(self, event: Failed, failures: Mapping[int, Failure]) -> Mapping[int, Failure]:
        """What a store keeps of messages that become dead letters: here what their consumer said."""
        return failures

    def release(self, lease: int | Lease, runs: Sequence[Run] | None = None) -> int:
        """The owner gives these back, not started (default: all it holds). Returns how many went back."""
        return self._apply(self._ledger.decide_return(_lease_id(lease), runs, self._clock(), reason=Reason.RELEASED))

    def agree(self, lease: int | Lease, runs: Sequence[Run]) -> int:
        """The owner did not run these and gives them up: they were cancelled, or expired. Returns how many ended."""
        return self._agree(_lease_id(lease), runs, self._clock())

    def _agree(self, lease: int, runs: Sequence[Run], now: int) -> int:
        """Given up: expired where that was why, cancelled otherwise."""
        ledger, asked = self._ledger, clean(runs)
        holder = ledger.lease(lease)
        overdue = ledger.overdue(holder.owner).get(lease, ()) if holder is not None else ()
        expired = intersection(asked, overdue) if overdue else []
        if not expired:
            return self._apply(ledger.decide_agree(lease, asked, now))
        news = self._apply(ledger.decide_agree(lease, expired, now, expired=True))
        cancelled = difference(asked, expired)
        return news + (self._apply(ledger.decide_agree(lease, cancelled, now)) if cancelled else 0)

    def heartbeat(
        self, owner: str, held: Mapping[int, tuple[int, int]], open: Collection[int], sent: int, ttl: int = DEFAULT_TTL
    ) -> dict[int, tuple[Run, ...]]:
        """Renew the owner's leases and release those it does not hold (semantics.md section 3).

        `held`: positions `(finished, started)` of each lease. Returns the messages of its leases to give up: those that
        were cancelled, and of those that expired what has not begun.
        """
        ledger = self._ledger
        for event in ledger.heartbeat(owner, held, open, sent, self._clock(), ttl):
            self._happen(event)
        asked = ledger.cancels(owner)
        for lease_id, runs in ledger.overdue(owner).items():
            holder = ledger.lease(lease_id)
            late = difference(runs, holder.begun()) if holder is not None else ()
            if late:
                asked[lease_id] = tuple(clean([*asked.get(lease_id, ()), *late]))
        return asked

    def owner_lost(self, owner: str) -> int:
        """The directory says the owner is gone, and it never comes back: an incarnation is part of its name.

        What it held goes back, or fails if it killed its owners once too often. Returns how many messages moved.
        """
        self._gone[owner] = None
        if len(self._gone) > REMEMBERED_OWNERS:
            del self._gone[next(iter(self._gone))]
        events = self._ledger.decide_owner_lost(
            owner, self._clock(), reason=Reason.OWNER_LOST, max_crashes=self._max_crashes
        )
        return sum([self._apply(event) for event in events])

    def owners(self) -> list[str]:
        """Who holds leases."""
        return self._ledger.owners()

    def shift_deadlines(self, by: int) -> None:
        """The queue could not listen for `by` nanoseconds: nobody's deadline passed meanwhile."""
        self._ledger.shift_deadlines(by)

    def next_scheduled_at(self) -> int:
        """When the first message is due or expires, beyond all times if none: of `next_ready_at` what puts change."""
        ledger = self._ledger
        return min(ledger.waiting.first, ledger.expiring.first)

    def next_ready_at(self) -> int | None:
        """When `tick` has something to do next."""
        return min((at for at in (self._ledger.next_at(), self._mail.next_at()) if at is not None), default=None)

    def tick(self) -> None:
        """Do what time brings: messages fall due or expire, leases of silent owners end, results and clients go.

        Of a million single messages that fall due together, only so many that nobody waits for long: `next_ready_at`
        says that there are more.
        """
        for client in self._mail.drop_absent():
            self._names.leave(client)
        self._due(self._clock())
        self._expire_kept()

    def _due(self, now: int, *, lapses: bool = True) -> None:
        decide = self._ledger.decide_due
        while events := decide(now, max_crashes=self._max_crashes, limit=DUE_RUNS, lapses=lapses):
            for event in events:
                self._happen(event)

    def _max_crashes(self, seq: int) -> int:
        return self._payloads.entry(seq).batch.max_crashes

    def _runs(self, lease: int, ids: Sequence[int] | None) -> tuple[Run, ...]:
        return self._ledger.held(lease) if ids is None else tuple(as_runs(sorted(ids)))

    def close(self) -> None:
        """Let go of everything."""
        self._payloads.clear()
        self._names.clear()
        self._letters.clear()
        self._mail.clear()


def _failures(report: Report) -> dict[int, Failure]:
    """By message. What has travelled is plain tuples."""
    count = report.stop - report.start
    return {report.start + error[0]: Failure(*error) for error in report.errors if 0 <= error[0] < count}


def _lease_id(lease: int | Lease) -> int:
    return lease.id if isinstance(lease, Lease) else lease


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
