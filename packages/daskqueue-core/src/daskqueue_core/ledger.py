"""The ledger: which message of one queue is where, and who holds it. A state machine and nothing else.

`decide_*` looks and returns an event, or None when there is nothing to do; it changes nothing but hints and the count
of stale reports. `apply` takes the event and moves the messages, all or none. Between the two its caller records the
event; decide, record and apply are one critical section. An event that could not be recorded is dropped, and
nothing has happened. `apply` over the recorded events rebuilds everything.

Good news comes from anyone, bad news only from the holder: an ack ends any unfinished message, whoever sends it; a
return, a failure or an agreed cancel counts only from the lease that holds the message now.

No clock (`now` is an argument, in nanoseconds), no chance, no I/O, no threads. Payloads and outcomes are elsewhere:
`apply` returns the runs whose payload nobody needs any more, each message once. `ledger_parts`,
`ledger_state` (`apply`) and `ledger_view` are the layers below; here is what is decided.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from daskqueue_core.admission import Duplicate, Early, UnknownProducer
from daskqueue_core.batch import Run, merge_runs
from daskqueue_core.events import (
    Acked,
    Blame,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Expired,
    Failed,
    Forgotten,
    Purged,
    Put,
    Reason,
    Requeued,
    Returned,
)
from daskqueue_core.lanes import Offer
from daskqueue_core.leases import Lease
from daskqueue_core.ledger_parts import Runs
from daskqueue_core.ledger_view import LedgerView
from daskqueue_core.replay import fitting
from daskqueue_core.runs import clean, difference, disjoint, intersection, positions, total
from daskqueue_core.snapshot import Columns, epoch_of, load, page_size, snapshot
from daskqueue_core.states import (
    HELD_SUSPECT,
    READY_SUSPECT,
    UNFINISHED,
    ByteClass,
    MessageFlag,
    MessageState,
    Move,
    accepted,
    flags_of,
)
from daskqueue_core.suspects import MaxCrashes, after_loss, candidates, culprit, default_max_crashes

__all__ = ["Choose", "Duplicate", "Early", "Ledger", "UnknownProducer"]

Choose = Callable[[Iterator[Run]], Sequence[Run]]
"""Picks from the ready runs, offered as they are asked for, what to deliver: each run inside an offered one."""

READY: Final = int(MessageState.READY)

_new: Final = tuple.__new__
"""Makes events at every put, lease and ack without the call that a NamedTuple's own constructor is: half the time."""

_MAY_ACK: Final = accepted(Move.ACKED_DROP)
_MAY_CANCEL: Final = accepted(Move.CANCEL_ASKED)
_MAY_REQUEUE: Final = accepted(Move.REQUEUED)
_MAY_PURGE: Final = accepted(Move.PURGED)
_MAY_FORGET: Final = accepted(Move.FORGOTTEN)
_MAY_BE_DAMAGED: Final = accepted(Move.DAMAGED)


class Ledger(LedgerView):
    """Who is where. Not thread-safe: one caller at a time."""

    # -- deciding

    def decide_put(
        self,
        count: int,
        now: int,
        *,
        priority: int = 0,
        route: int = 0,
        ready_at: int = 0,
        ready_ats: bytes = b"",
        expires_at: int = 0,
        keys: Sequence[str] = (),
        suspect: bool = False,
        producer: int | None = None,
        number: int = 0,
    ) -> Put | Duplicate | Early | UnknownProducer:
        """`count` new messages with the same options. A `producer` numbers its puts from 0: admitted in order, once.

        Its put may be of no message: the number is used all the same. `ready_ats` (a little-endian u64 for each
        message) is instead of `ready_at`. `keys`: one for each message or none; each free, or of one that has ended
        badly or was asked to stop. That older message is GONE, or has no key any more.
        """
        if count < 1 and (count < 0 or producer is None):
            raise ValueError(f"count={count}: a put needs at least one message")
        if producer is not None:
            refusal = self.admission.refusal(producer, number)
            if refusal is not None:
                return refusal
        if ready_ats and len(ready_ats) != 8 * count:
            raise ValueError(f"ready_ats has {len(ready_ats)} bytes: {count} messages need {8 * count}")
        if keys:
            self._check_keys(count, keys)
        if priority or route:
            self.lanes.lane(priority, route)  # refuses what is no priority
        base, names = self.pages.next_seq, tuple(keys) if keys else ()
        return _new(
            Put,
            (now, base, count, producer, number, priority, route, ready_at, ready_ats, expires_at, names, suspect),
        )

    def decide_plain_put(self, count: int, now: int, route: int) -> Put:
        """As `decide_put`, of at least one message, for who asks for nothing special."""
        if route:
            self.lanes.lane(0, route)
        return _new(Put, (now, self.pages.next_seq, count, None, 0, 0, route, 0, b"", 0, (), False))

    def _check_keys(self, count: int, keys: Sequence[str]) -> None:
        if len(keys) != count or len(set(keys)) != count:
            raise ValueError(f"{len(keys)} keys, {len(set(keys))} different ones, for {count} messages: give each one")
        for key in keys:
            if self.is_blocked(key):
                seq = self.keys.seq_of[key]
                raise ValueError(f"key {key!r} is in use: message {seq} is {self.state(seq).name}")

    def decide_lease(
        self,
        limit: int,
        owner: str,
        now: int,
        ttl: int,
        request: int = 0,
        once: bool = False,
        choose: Choose | None = None,
        routes: Collection[int] | None = None,
        suspects: bool = True,
    ) -> Delivered | None:
        """At most `limit` messages of `routes` (None: all) for `owner`, or what `choose` picks of them.

        Highest priority first, then lowest number. A piece of suspects is leased alone, and a lease ends before the
        next one; without `suspects` they are passed over. `once`: they are never delivered again, even if the owner is
        lost. What time brings (`decide_due`) must have been applied. Whether `request` was granted before is for the
        caller to ask (`find_grant`).
        """
        if limit < 1 or not (self._counts[READY] or self._counts[READY_SUSPECT]):
            return None
        if choose is None:
            runs: Sequence[Run] = self.lanes.first(limit, self.committed, routes, suspects)
        else:
            runs = self._chosen(limit, choose, routes, suspects)
        if not runs:
            return None
        return _new(Delivered, (now, tuple(runs), self.next_lease, owner, once, now + ttl, request))

    def decide_next(self, owner: str, now: int, ttl: int, once: bool) -> Delivered | None:
        """As `decide_lease` of one message, if one lane is in use and its next is plain; None: look closer."""
        active = self.lanes.active
        if len(active) != 1:
            return None
        lane = active[0]
        seq = lane.cursor
        if seq >= lane.end or seq >= self.committed or lane.returned or lane.suspects:
            return None
        if not self.pages.is_ready(seq, lane.id):
            return None
        return _new(Delivered, (now, ((seq, seq + 1),), self.next_lease, owner, once, now + ttl, 0))

    def _chosen(self, limit: int, choose: Choose, routes: Collection[int] | None, suspects: bool) -> Sequence[Run]:
        offered: list[Offer] = []
        picked = choose(self._offer(limit, routes, suspects, offered))
        if len(picked) == 1 and offered:  # the common case
            start, stop = picked[0]
            if offered[-1][0] <= start < stop <= offered[-1][1]:
                return [(start, min(stop, start + limit))]
        known = clean([entry[:2] for entry in offered])
        foreign = difference(clean(picked), known)
        if foreign or not disjoint(picked):
            raise ValueError(f"choose returned {foreign or picked}, which it was not offered, or not once")
        apart = [entry for entry in offered if entry[2]]
        return positions(_until_suspect(merge_runs(list(picked)), apart), 0, limit)

    def _offer(self, limit: int, routes: Collection[int] | None, suspects: bool, offered: list[Offer]) -> Iterator[Run]:
        """All that can be leased, in order; noted in `offered`. First `limit` at most, for who takes what comes."""
        active, most = self.lanes.active, self.pages.size
        if len(active) == 1 and not active[0].returned and not active[0].suspects:  # the common case, straight
            lane = active[0]
            if routes is not None and lane.route not in routes:
                return
            start, stop = lane.cursor, min(lane.end, self.committed)
            until = self.pages.ready_until(start, min(start + limit, stop), lane.id) if start < stop else start
            run = (start, until) if start < until else lane.fresh(limit, stop)
            while run is not None:
                offered.append((run[0], run[1], False))
                yield run
                run = self.pages.next_ready(run[1], stop, most, lane.id)
            return
        for offer in self.lanes.offers(max(limit, most), self.committed, routes, suspects):
            offered.append(offer)
            yield offer[:2]

    def decide_ack(self, lease_id: int, runs: Iterable[Run] | None, now: int, keep: bool) -> Acked | None:
        """These are done (None: all the lease holds), whoever holds them. `keep`: until they are forgotten."""
        lease = self.leases.by_id.get(lease_id)
        news: Runs
        if lease is not None and (runs is None or runs == lease.runs):  # the common case
            if lease.left == lease.uncut:
                news = tuple(lease.runs)
            else:
                news = self._held(lease, None)
                self.stale += lease.uncut - lease.left if runs is not None else 0
        else:
            news = self._ackable(lease, list(runs)) if runs is not None else ()
        return _new(Acked, (now, news, lease_id, keep)) if news else None

    def _ackable(self, lease: Lease | None, runs: list[Run]) -> Runs:
        """Those of `runs` that have not ended; the rest is counted as stale."""
        if len(runs) == 1:  # the common case
            start, stop = runs[0]
            if lease is not None and lease.left == lease.uncut and len(lease.runs) == 1:
                first, end = lease.runs[0]
                if first <= start < stop <= end:
                    return (runs[0],)
            elif start >= 0 and self.pages.uniform(start, stop) in UNFINISHED.members:
                return (runs[0],)
        asked = clean(runs)
        news = tuple(self.pages.select(self._known(asked), _MAY_ACK))
        self.stale += total(asked) - total(news)
        return news

    def decide_return(
        self,
        lease_id: int,
        runs: Iterable[Run] | None,
        now: int,
        *,
        reason: Reason,
        blame: Blame = Blame.NONE,
        ready_at: int = 0,
    ) -> Returned | None:
        """The holder gives these back (None: all it holds). Those with CANCEL or OVERDUE end: `apply` frees them."""
        news = self._from_holder(lease_id, runs)
        return Returned(now, news, lease_id, reason, blame, ready_at) if news else None

    def decide_fail(self, lease_id: int, runs: Iterable[Run] | None, now: int, *, reason: Reason) -> Failed | None:
        """The holder says these failed for good."""
        news = self._from_holder(lease_id, runs)
        return Failed(now, news, lease_id, reason) if news else None

    def decide_agree(
        self, lease_id: int, runs: Iterable[Run] | None, now: int, *, expired: bool = False
    ) -> Cancelled | Expired | None:
        """The holder did not run these and gives them up: cancelled, or `expired`."""
        news = self._from_holder(lease_id, runs)
        if not news:
            return None
        return Expired(now, news, lease_id, True) if expired else Cancelled(now, news, lease_id)

    def decide_damaged(self, runs: Iterable[Run], now: int) -> Failed | None:
        """The bytes of these cannot be read: they fail wherever they are."""
        news = self._those(runs, _MAY_BE_DAMAGED)
        return Failed(now, news, 0, Reason.DAMAGED) if news else None

    def decide_cancel(self, runs: Iterable[Run], now: int) -> CancelAsked | None:
        """End what is not delivered; ask the holders of what is, once."""
        news = self._those(runs, _MAY_CANCEL)
        return CancelAsked(now, news) if news else None

    def decide_requeue(self, runs: Iterable[Run], now: int) -> Requeued | None:
        """Dead letters are to be tried again, as if they were new."""
        news = self._those(runs, _MAY_REQUEUE)
        return Requeued(now, news) if news else None

    def decide_purge(self, runs: Iterable[Run], now: int) -> Purged | None:
        """Nobody wants these: dead letters and what is not delivered (cancel what is)."""
        news = self._those(runs, _MAY_PURGE)
        return Purged(now, news) if news else None

    def decide_forget(self, runs: Iterable[Run], now: int) -> Forgotten | None:
        """Nobody needs to hear of these any more: kept successes, cancelled and expired ones."""
        news = self._those(runs, _MAY_FORGET)
        return Forgotten(now, news) if news else None

    def decide_owner_lost(
        self, owner: str, now: int, *, reason: Reason, max_crashes: MaxCrashes = default_max_crashes
    ) -> list[Event]:
        """The owner is gone: what it held goes back; what may have been running is suspect (`suspects`).

        Except from `once` leases: what may have begun must not run again and fails.
        """
        leases = self.leases.of(owner)
        running = clean([run for lease in leases for run in candidates(lease, self._held(lease, None))])
        blamed = culprit(running, self.pages.select(running, HELD_SUSPECT))
        return [event for lease in leases for event in self._lost(lease, now, reason, max_crashes, blamed)]

    def _lost(
        self, lease: Lease, now: int, reason: Reason, max_crashes: MaxCrashes, blamed: int | None = None
    ) -> Iterator[Event]:
        def is_last_crash(seq: int) -> bool:
            flagged = flags_of(self.pages.byte(seq)) & (MessageFlag.CANCEL | MessageFlag.OVERDUE)
            return not flagged and self.crashes(seq) + 1 >= max_crashes(seq)

        return after_loss(lease, self._held(lease, None), now, reason, blamed, is_last_crash=is_last_crash)

    def decide_due(
        self,
        now: int,
        *,
        max_crashes: MaxCrashes = default_max_crashes,
        limit: int | None = None,
        lapses: bool = True,
    ) -> list[Event]:
        """What time brings. Apply all, and ask again while there is something, or while `next_at` is not ahead.

        SCHEDULED messages become READY here and now; messages expire; the owners that were silent for too long are
        taken for lost. `limit`: no more than about so many runs fall due at once, so that a million do not keep the
        caller from everything else. Without `lapses`, owners are not judged: the host may not have listened.
        """
        if now >= self.waiting.first:
            self._ripen(now, limit)
        if self.overdue_runs or now >= self.expiring.first:
            self._collect(now, limit)
            if self.overdue_runs:
                return [Expired(now, tuple(self.overdue_runs))]
        events: list[Event] = []
        for owner in self.leases.due(now) if lapses else ():
            events += self.decide_owner_lost(owner, now, reason=Reason.LAPSED, max_crashes=max_crashes)
        return events

    def heartbeat(
        self,
        owner: str,
        held: Mapping[int, tuple[int, int]],
        open: Collection[int],
        sent: int,
        now: int,
        ttl: int,
    ) -> list[Event]:
        """The owner was heard of: its deadline becomes `now + ttl`, and it says how far it is.

        `held` maps each lease it has to `(finished, started)`, positions in what was granted. A lease it does not
        list goes back if its grant was lost: its request is none of those still `open`, nor above the last `sent`. It
        fails where a `once` lease was listed before, so that it may have begun.
        """
        self.leases.renew(owner, now + ttl)
        for lease_id, (finished, started) in held.items():
            lease = self.leases.by_id.get(lease_id)
            if lease is not None and lease.owner == owner:
                lease.progress(finished, started)
        lost = list(self.leases.unlisted(owner, held, open, sent))
        return [event for lease in lost for event in self._unlisted(lease, now)]

    def _unlisted(self, lease: Lease, now: int) -> Iterator[Event]:
        """The owner lives and does not have it: nothing is suspect."""
        if lease.once and lease.reported:
            return self._lost(lease, now, Reason.UNLISTED, default_max_crashes)
        return iter([Returned(now, self._held(lease, None), lease.id, Reason.UNLISTED)])

    def _those(self, runs: Iterable[Run], wanted: ByteClass) -> Runs:
        return tuple(self.pages.select(self._known(clean(runs)), wanted))

    def _known(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Those of the clean `runs` that were put."""
        if runs and (runs[0][0] < 0 or runs[-1][1] > self.puts):
            return intersection(runs, [(0, self.puts)])
        return runs

    def _from_holder(self, lease_id: int, runs: Iterable[Run] | None) -> Runs:
        """What `lease_id` may give up of `runs`; the rest is counted as stale."""
        asked = None if runs is None else clean(runs)
        lease = self.leases.by_id.get(lease_id)
        news = self._held(lease, asked) if lease is not None else ()
        if asked is not None:
            self.stale += total(asked) - total(news)
        return news

    # -- keeping

    def snapshot(self) -> Columns:
        """Everything, as columns of bytes; `restore` takes them."""
        return snapshot(self)

    @classmethod
    def restore(cls, columns: Mapping[str, bytes], *, epoch: int | None = None) -> Ledger:
        """A ledger that goes on where `snapshot` was taken; under another `epoch`, if it has a new host."""
        ledger = cls(epoch=epoch_of(columns) if epoch is None else epoch, page_size=page_size(columns))
        load(ledger, columns)
        return ledger

    # -- changing what is not recorded

    def commit(self, seq: int) -> None:
        """All messages below `seq` may be leased."""
        if seq > self.pages.next_seq:
            raise ValueError(f"commit({seq}): only {self.puts} messages were put")
        if seq > self.committed:
            self.committed = seq

    def shift_deadlines(self, by: int) -> None:
        """The queue itself was deaf for `by` nanoseconds: nobody's silence meanwhile counts."""
        if by < 0:
            raise ValueError(f"shift_deadlines({by}): deadlines only grow")
        self.leases.shift(by)

    def replay(self, event: Event) -> Runs:
        """`apply` for recovery, when records may be missing: what does not fit is dropped and counted."""
        fit, dropped = fitting(self, event)
        self.dropped += dropped
        if isinstance(event, Delivered):
            self.next_lease = max(self.next_lease, event.lease + 1)
        if fit is None:
            return ()
        self._replaying = True
        try:
            freed = self.apply(fit)
        finally:
            self._replaying = False
        if isinstance(event, Delivered):  # progress counts positions in what was granted, whatever is left of it
            self.leases.by_id[event.lease].regrant(event.runs)
        return freed


def _until_suspect(picked: Sequence[Run], apart: Sequence[Offer]) -> Sequence[Run]:
    """What one lease takes of `picked`, in order: a part of one piece of suspects, or all before the first one."""
    taken: list[Run] = []
    for start, stop in picked:
        pieces = sorted((lo, hi) for lo, hi, _ in apart if lo < stop and start < hi)
        for lo, hi in pieces:
            if lo > start:
                taken.append((start, lo))
            return taken if taken else [(start, min(stop, hi))]
        taken.append((start, stop))
    return taken
