"""`LedgerState`: the parts of a ledger, and what each event does to them.

`apply` is the only way anything lasting changes. It checks an event against the table of moves before it touches
anything, so an event happens wholly or not at all. What `decide_*` will say is `ledger`'s business.

Invariants, beside those of the parts: `committed` is at most `puts`; a crash count belongs to a message that is
unfinished or FAILED; a key to one that is not GONE; every SCHEDULED message is in `waiting` at its time, every one
that can still expire in `expiring`, or in `overdue_runs` when its time has come.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from daskqueue_core.admission import Admission
from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
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
from daskqueue_core.keys import Keys
from daskqueue_core.lanes import Lanes
from daskqueue_core.leases import Lease, Leases
from daskqueue_core.pages import Pages
from daskqueue_core.runs import clean, difference, total
from daskqueue_core.schedule import Schedule
from daskqueue_core.states import (
    HELD,
    READY_SUSPECT,
    SUSPECT,
    TRANSITIONS,
    UNFINISHED,
    ByteClass,
    MessageFlag,
    MessageState,
    Move,
    Refusal,
    accepted,
    bytes_of,
    compiled,
    flags_of,
    state_of,
)
from daskqueue_core.suspects import pieces

__all__ = ["LedgerState", "Runs"]

Runs = tuple[Run, ...]

READY: Final = int(MessageState.READY)
SCHEDULED: Final = int(MessageState.SCHEDULED)

_IS_READY: Final = ByteClass([READY])
_IS_SUSPECT: Final = ByteClass([READY_SUSPECT])
_IS_SCHEDULED: Final = bytes_of(MessageState.SCHEDULED)
_IS_PENDING: Final = bytes_of(MessageState.SCHEDULED, MessageState.READY)
_IS_FLAGGED: Final = ByteClass(
    byte for byte in HELD.members if flags_of(byte) & (MessageFlag.CANCEL | MessageFlag.OVERDUE)
)
_HOLDS_PAYLOAD: Final = ByteClass([*UNFINISHED.members, MessageState.FAILED])
_MAY_EXPIRE: Final = accepted(Move.EXPIRED)

_TO_DUE: Final = compiled(Move.DUE)
_TO_DELIVERED: Final = compiled(Move.DELIVERED)
_TO_ACKED: Final = {True: compiled(Move.ACKED_KEEP), False: compiled(Move.ACKED_DROP)}
_TO_RETURNED: Final = {
    (Blame.NONE, False): compiled(Move.RETURNED),
    (Blame.NONE, True): compiled(Move.RETURNED_LATER),
    (Blame.ATTEMPT, False): compiled(Move.RETRIED),
    (Blame.ATTEMPT, True): compiled(Move.RETRIED_LATER),
    (Blame.SUSPECTED, False): compiled(Move.SUSPECTED),
    (Blame.SUSPECTED, True): compiled(Move.SUSPECTED_LATER),
    (Blame.CRASH, False): compiled(Move.SUSPECTED),
    (Blame.CRASH, True): compiled(Move.SUSPECTED_LATER),
}
_TO_FAILED: Final = compiled(Move.FAILED)
_TO_DAMAGED: Final = compiled(Move.DAMAGED)
_TO_CANCEL_ASKED: Final = compiled(Move.CANCEL_ASKED)
_TO_CANCELLED: Final = compiled(Move.CANCELLED)
_TO_EXPIRED: Final = compiled(Move.EXPIRED)
_TO_EXPIRY_AGREED: Final = compiled(Move.EXPIRY_AGREED)
_TO_REQUEUED: Final = compiled(Move.REQUEUED)
_TO_PURGED: Final = compiled(Move.PURGED)
_TO_FORGOTTEN: Final = compiled(Move.FORGOTTEN)
_SUPERSEDE: Final = {False: Move.SUPERSEDED, True: Move.SUPERSEDED_IN_REPLAY}

_LEASE_BITS: Final = 40


class LedgerState:
    """Who is where."""

    def __init__(self, *, epoch: int = 0, page_size: int = 4096) -> None:
        self.epoch = epoch
        self.committed = 0
        """Messages below may be leased: their put is as durable as was asked for."""
        self.stale = 0
        """Reports about messages that had ended, or that another lease holds."""
        self.dropped = 0
        """Messages in replayed events that did not fit: records before them are lost."""
        self.pages = Pages(page_size)
        self._counts = self.pages.counts
        self.lanes = Lanes(self.pages)
        self.leases = Leases()
        self.admission = Admission()
        self.keys = Keys()
        self.crash_counts: dict[int, int] = {}  # sure culprits only
        self.waiting = Schedule()  # SCHEDULED ones
        self.expiring = Schedule()
        self.overdue_runs: list[Run] = []  # taken from `expiring`; the event that says so is not applied yet
        self.overdue_at = 0
        self._replaying = False
        self.next_lease = (epoch << _LEASE_BITS) + 1
        self._apply: dict[type, Callable[[Any], Runs]] = {
            Put: self._apply_put,
            Delivered: self._apply_delivered,
            Acked: self._apply_acked,
            Returned: self._apply_returned,
            Failed: self._apply_failed,
            CancelAsked: self._apply_cancel_asked,
            Cancelled: self._apply_cancelled,
            Expired: self._apply_expired,
            Requeued: self._apply_requeued,
            Purged: self._apply_purged,
            Forgotten: self._apply_forgotten,
        }

    @property
    def puts(self) -> int:
        """Messages ever put: also the number the next one gets."""
        return self.pages.next_seq

    def apply(self, event: Event) -> Runs:
        """Let `event` happen. Returns the messages whose payload nobody needs any more, by it.

        They are those that ended, but dead letters only when they are purged or superseded. Raises `IllegalMove`, and
        changes nothing, if one of its messages cannot make the move.
        """
        return self._apply[event.__class__](event)

    # -- puts

    def _apply_put(self, event: Put) -> Runs:
        time, base, count, producer, number, priority, route, ready_at, ready_ats, expires_at, keys, suspect = event
        if base != self.pages.next_seq or count < 1:
            self._check_put(event)
        freed: Runs = ()
        if count:
            lane = self.lanes.last
            if lane.priority != priority or lane.route != route:
                lane = self.lanes.lane(priority, route)
            if keys:
                freed = self._supersede(event)
            if suspect or ready_at > time or ready_ats:
                self._put_apart(event, lane.id)
            else:
                self.pages.append(count, READY, lane.id)
                if not lane.active:
                    self.lanes.activate(lane)
                if lane.cursor == lane.end:
                    lane.cursor = base
                lane.end = base + count
            if expires_at:
                self._expire_at(expires_at, base, base + count)
            for seq, key in enumerate(keys, base):
                self.keys.name(seq, key)
        if producer is not None:
            self.admission.admit(producer, number, base, count)
        return freed

    def _check_put(self, event: Put) -> None:
        if event.base != self.puts or event.count < 0 or (event.count == 0 and event.producer is None):
            raise IllegalMove(event, None, event.base, f"the next message is {self.puts}")
        if event.producer is not None and self.admission.is_known(event.producer, event.number):
            raise IllegalMove(event, None, None, f"put {event.number} of producer {event.producer:#x} was admitted")

    def _put_apart(self, event: Put, lane: int) -> None:
        """Suspects, and those that wait for their time."""
        run = event.base, event.base + event.count
        suspect = SUSPECT if event.suspect else 0
        if event.ready_ats:
            times = array("Q")
            times.frombytes(event.ready_ats)
            if len(times) != event.count:
                raise IllegalMove(event, None, event.base, f"{len(times)} times for {event.count} messages")
            self.pages.append(event.count, SCHEDULED | suspect, lane)
            self.waiting.add_each(times, event.base)
            self._ripen(event.time)
        elif event.ready_at > event.time:
            self.pages.append(event.count, SCHEDULED | suspect, lane)
            self._wait(event.ready_at, [run])
        else:
            self.pages.append(event.count, READY_SUSPECT, lane)
            self.lanes.suspect(pieces([run]))

    def _supersede(self, event: Put) -> Runs:
        """The older holders of its keys are GONE. One that is delivered and cancelled only loses its key."""
        if len(event.keys) != event.count or len(set(event.keys)) != event.count:
            raise IllegalMove(event, None, event.base, "it needs one key for each message, no two equal")
        row = TRANSITIONS[_SUPERSEDE[self._replaying]]
        old: list[Run] = []
        for key in event.keys:
            seq = self.keys.seq_of.get(key)
            if seq is None:
                continue
            byte = self.pages.byte(seq)
            cell = row[byte]
            if cell is Refusal.ILLEGAL:
                raise IllegalMove(event, state_of(byte), seq, f"its key {key!r} is in use")
            if not isinstance(cell, Refusal):
                old.append((seq, seq + 1))
        if not old:
            return ()
        old = clean(old)
        freed = self.pages.select(old, _HOLDS_PAYLOAD)
        self.leases.ended(0, self.pages.select(old, HELD))
        self._move_to(event, old, compiled(_SUPERSEDE[self._replaying]))
        self._drop_crashes(old)
        return tuple(freed)

    # -- leases

    def _apply_delivered(self, event: Delivered) -> Runs:
        runs, lease_id = event.runs, event.lease
        if lease_id in self.leases.by_id:
            raise IllegalMove(event, None, None, f"lease {lease_id:#x} exists")
        if event.time >= self.waiting.first:
            self._ripen(event.time)
        start, stop = runs[0] if runs else (0, 0)
        before = self.pages.move_uniform(start, stop, _TO_DELIVERED) if len(runs) == 1 else -1
        count = stop - start
        if before == READY:
            lane = self.lanes.by_id[0]
            if start == lane.cursor and stop <= lane.end and len(self.lanes.by_id) == 1:
                lane.cursor = stop  # the common case
            else:
                self.lanes.leased(runs)
        elif before == READY_SUSPECT:
            self.lanes.tried(start, stop)
        elif before >= 0:
            self.waiting.remove(runs)
        else:
            count = self._deliver_mixed(event)
        self.leases.add(Lease(lease_id, event.owner, runs, count, event.once, event.request), event.deadline)
        if lease_id >= self.next_lease:
            self.next_lease = lease_id + 1
        return ()

    def _deliver_mixed(self, event: Delivered) -> int:
        runs = event.runs
        steps = self.pages.plan(runs, _TO_DELIVERED, event)
        suspects = self.pages.select(runs, _IS_SUSPECT) if self._counts[READY_SUSPECT] else []
        early = self.pages.select(runs, _IS_SCHEDULED) if self._has_scheduled else []
        self.pages.write(steps)
        self.lanes.leased(runs)
        for run in suspects:
            self.lanes.tried(*run)
        if early:  # a replay, or the clock went back: an entry left behind would bring a later retry back too early
            self.waiting.remove(clean(early))
        return total(runs)

    def _apply_acked(self, event: Acked) -> Runs:
        runs, table = event.runs, _TO_ACKED[event.keep]
        lease = self.leases.by_id.get(event.lease)
        if lease is not None and len(runs) == 1 == len(lease.runs):
            (start, stop), (first, end) = runs[0], lease.runs[0]
            # Inside its own lease a message is DELIVERED or has ended, and what has ended is refused.
            if first <= start and stop <= end and self.pages.move_uniform(start, stop, table) >= 0:
                self.leases.shrink(lease, stop - start)
                if self.crash_counts or self.keys.key_of:
                    self._forget_details(runs, gone=not event.keep)
                return runs
        steps = self.pages.plan(runs, table, event)
        delivered = self.pages.select(clean(runs), HELD)
        self.pages.write(steps)
        if delivered:
            self.leases.ended(event.lease, delivered)
        self._forget_details(runs, gone=not event.keep)
        return runs

    def _apply_returned(self, event: Returned) -> Runs:
        lease = self._holder(event)
        runs, blame, later = event.runs, event.blame, event.ready_at > event.time
        steps = self.pages.plan(runs, _TO_RETURNED[blame, later], event)
        ended = self.pages.select(runs, _IS_FLAGGED) if self._has_flagged else []
        self.pages.write(steps)
        self.leases.cut(lease, runs)
        if blame is Blame.ATTEMPT:
            self.pages.count_attempt(runs)
        elif blame is Blame.CRASH:
            self._count_crash(runs)
        back: Sequence[Run] = runs
        if ended:
            self._drop_crashes(ended)
            back = difference(clean(runs), clean(ended))
        if later:
            self._wait(event.ready_at, clean(back))
        elif blame in (Blame.SUSPECTED, Blame.CRASH):
            self.lanes.suspect(pieces(clean(back)))
        else:
            self._give(back)
        return tuple(ended)

    def _apply_failed(self, event: Failed) -> Runs:
        runs, reason = event.runs, event.reason
        if reason is Reason.DAMAGED:
            self._fail_damaged(event)
            return ()
        lease = self._holder(event)
        self._move_to(event, runs, _TO_FAILED)
        self.leases.cut(lease, runs)
        if reason in (Reason.RETRY, Reason.REJECTED):
            self.pages.count_attempt(runs)
        elif reason is Reason.CRASHED:
            self._count_crash(runs)
        return ()

    def _fail_damaged(self, event: Failed) -> None:
        steps = self.pages.plan(event.runs, _TO_DAMAGED, event)
        runs = clean(event.runs)
        waiting = self.pages.select(runs, _IS_SCHEDULED) if self._has_scheduled else []
        held = self.pages.select(runs, HELD)
        self.pages.write(steps)
        if waiting:
            self.waiting.remove(waiting)
        if held:
            self.leases.cut_anywhere(held)

    def _apply_cancelled(self, event: Cancelled) -> Runs:
        return self._agreed(event, _TO_CANCELLED)

    def _agreed(self, event: Cancelled | Expired, table: bytes) -> Runs:
        lease = self._holder(event)
        self._move_to(event, event.runs, table)
        self.leases.cut(lease, event.runs)
        self._drop_crashes(event.runs)
        return event.runs

    # -- administration and time

    def _apply_cancel_asked(self, event: CancelAsked) -> Runs:
        return self._end_pending(event, _TO_CANCEL_ASKED)

    def _apply_expired(self, event: Expired) -> Runs:
        if event.agreed:
            return self._agreed(event, _TO_EXPIRY_AGREED)
        if event.time >= self.expiring.first:
            self._collect(event.time)
        ended = self._end_pending(event, _TO_EXPIRED)
        if self.overdue_runs:
            self.overdue_runs = difference(self.overdue_runs, clean(event.runs))
        return ended

    def _end_pending(self, event: CancelAsked | Expired, table: bytes) -> Runs:
        """Those not delivered end; of delivered ones it is noted."""
        steps = self.pages.plan(event.runs, table, event)
        ended = self.pages.select(event.runs, _IS_PENDING)
        self.pages.write(steps)
        self._drop_crashes(ended)
        return tuple(ended)

    def _apply_requeued(self, event: Requeued) -> Runs:
        steps = self.pages.plan(event.runs, _TO_REQUEUED, event)
        self._collect(event.time)  # what expired as a dead letter runs all the same
        self.pages.write(steps)
        self.pages.reset_attempts(event.runs)
        self._drop_crashes(event.runs)
        self.lanes.give(event.runs)
        return ()

    def _apply_purged(self, event: Purged) -> Runs:
        self._move_to(event, event.runs, _TO_PURGED)
        self._forget_details(event.runs, gone=True)
        return event.runs

    def _apply_forgotten(self, event: Forgotten) -> Runs:
        self._move_to(event, event.runs, _TO_FORGOTTEN)
        self._forget_details(event.runs, gone=True)
        return ()

    # -- time that passes: not recorded, so it changes only what a replay finds out by itself

    def _wait(self, time: int, runs: Iterable[Run]) -> None:
        for run in runs:
            self.waiting.add(time, *run)
        if self.waiting.is_crowded:
            self.waiting.prune(lambda run: self.pages.select([run], _IS_SCHEDULED))

    def _expire_at(self, time: int, start: int, stop: int) -> None:
        self.expiring.add(time, start, stop)
        if self.expiring.is_crowded:
            self.expiring.prune(lambda run: self.pages.select([run], _HOLDS_PAYLOAD))

    def _ripen(self, now: int, limit: int | None = None) -> None:
        """SCHEDULED messages whose time has come are READY."""
        due = self.pages.select(self.waiting.due(now, limit), _IS_SCHEDULED)
        if due:
            self._move_to(None, due, _TO_DUE)
            self._give(due, cut=True)

    def _give(self, runs: Sequence[Run], *, cut: bool = False) -> None:
        """These are READY; suspects among them stay apart (`cut`: in eighths)."""
        if self._counts[READY_SUSPECT]:
            suspects = self.pages.select(clean(runs), _IS_SUSPECT)
            if suspects:
                self.lanes.suspect(pieces(suspects) if cut else suspects)
                runs = self.pages.select(runs, _IS_READY)
        self.lanes.give(runs)

    def _collect(self, now: int, limit: int | None = None) -> None:
        """Find what has expired by `now`. It is looked at once: what cannot expire now never will."""
        due = self.expiring.due(now, limit)
        if due or self.overdue_runs:
            self.overdue_runs = self.pages.select(clean([*self.overdue_runs, *due]), _MAY_EXPIRE)
            self.overdue_at = now

    # -- inside

    @property
    def _has_scheduled(self) -> int:
        return self._counts[SCHEDULED] + self._counts[SCHEDULED | SUSPECT]

    @property
    def _has_flagged(self) -> int:
        counts = self._counts
        return counts[0x23] + counts[0x43] + counts[0x63] + counts[0x33] + counts[0x53] + counts[0x73]

    def _move_to(self, event: object, runs: Sequence[Run], table: bytes) -> None:
        self.pages.write(self.pages.plan(runs, table, event))

    def _count_crash(self, runs: Sequence[Run]) -> None:
        for start, stop in runs:
            for seq in range(start, stop):
                self.crash_counts[seq] = self.crash_counts.get(seq, 0) + 1

    def _drop_crashes(self, runs: Sequence[Run]) -> None:
        if self.crash_counts:
            for seq in [seq for seq in self.crash_counts if any(start <= seq < stop for start, stop in runs)]:
                del self.crash_counts[seq]

    def _forget_details(self, runs: Sequence[Run], *, gone: bool) -> None:
        """What is known of messages that ended."""
        self._drop_crashes(runs)
        if gone and self.keys.key_of:
            self.keys.drop(runs)

    def _holder(self, event: Returned | Failed | Cancelled | Expired) -> Lease:
        """The lease of `event`, which must hold all its messages."""
        lease = self.leases.by_id.get(event.lease)
        if lease is None:
            raise IllegalMove(event, None, None, f"lease {event.lease:#x} holds nothing")
        if event.runs is not lease.runs:
            foreign = difference(clean(event.runs), clean(lease.runs))
            if foreign:
                seq = foreign[0][0]
                state = state_of(self.pages.byte(seq)) if 0 <= seq < self.puts else None
                raise IllegalMove(event, state, seq, f"lease {event.lease:#x} does not hold it")
        return lease

    # -- checking

    def validate(self) -> None:
        """AssertionError if an invariant is broken (the docstrings of the parts list them)."""
        select, everything = self.pages.select, [(0, self.puts)]
        self.pages.validate()
        self.lanes.validate()
        self.leases.validate(select(everything, HELD))
        self.keys.validate()
        self.waiting.validate()
        self.expiring.validate()
        assert 0 <= self.committed <= self.puts, f"committed={self.committed} of {self.puts}"
        waiting = clean([(start, stop) for _, start, stop in self.waiting.runs()])
        forgotten = difference(select(everything, _IS_SCHEDULED), waiting)
        assert not forgotten, f"scheduled {forgotten} wait for no time"
        for seq in self.crash_counts:
            byte = self.pages.byte(seq)
            assert byte in _HOLDS_PAYLOAD.members, f"message {seq} is {state_of(byte)} and has a crash count"
        for seq in self.keys.key_of:
            assert self.pages.byte(seq) != MessageState.GONE, f"message {seq} is GONE and has a key"
