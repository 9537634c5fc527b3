"""`LedgerState`: what each event does to a ledger.

`apply` is the only way anything lasting changes. It checks an event against the table of moves before it touches
anything, so an event happens wholly or not at all. What `decide_*` will say is `ledger`'s business.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import Any, Final

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
from daskqueue_core.lanes import Lane
from daskqueue_core.leases import Lease
from daskqueue_core.ledger_parts import HOLDS_PAYLOAD, IS_SCHEDULED, IS_SUSPECT, READY, SCHEDULED, LedgerParts, Runs
from daskqueue_core.runs import clean, difference, total
from daskqueue_core.states import (
    HELD,
    READY_SUSPECT,
    SUSPECT,
    TRANSITIONS,
    ByteClass,
    MessageFlag,
    MessageState,
    Move,
    Refusal,
    bytes_of,
    compiled,
    flags_of,
    state_of,
)
from daskqueue_core.suspects import pieces

__all__ = ["LedgerState"]

_IS_PENDING: Final = bytes_of(MessageState.SCHEDULED, MessageState.READY)
_IS_FLAGGED: Final = ByteClass(
    byte for byte in HELD.members if flags_of(byte) & (MessageFlag.CANCEL | MessageFlag.OVERDUE)
)

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


class LedgerState(LedgerParts):
    """Who is where, and what becomes of it."""

    def __init__(self, *, epoch: int = 0, page_size: int = 4096) -> None:
        super().__init__(epoch=epoch, page_size=page_size)
        self._apply: dict[type, Callable[[Any], Runs]] = {
            Put: self.apply_put,
            Delivered: self.apply_delivered,
            Acked: self.apply_acked,
            Returned: self._apply_returned,
            Failed: self._apply_failed,
            CancelAsked: self._apply_cancel_asked,
            Cancelled: self._apply_cancelled,
            Expired: self._apply_expired,
            Requeued: self._apply_requeued,
            Purged: self._apply_purged,
            Forgotten: self._apply_forgotten,
        }

    def apply(self, event: Event) -> Runs:
        """Let `event` happen. Returns the messages whose payload nobody needs any more, by it.

        They are those that ended, but dead letters only when they are purged or superseded. Raises `IllegalMove`, and
        changes nothing, if one of its messages cannot make the move. `apply_put`, `apply_delivered`, `apply_acked`:
        the same for who knows what event it is.
        """
        return self._apply[event.__class__](event)

    # -- puts

    def apply_put(self, event: Put) -> Runs:
        """Let it happen, see `apply`."""
        _, base, count, producer, number, priority, route, ready_at, ready_ats, expires_at, keys, suspect = event
        if base != self.pages.next_seq or count < 1:
            self._check_put(event)
        freed: Runs = ()
        if count:
            lane = self.lanes.last
            if lane.priority != priority or lane.route != route:
                lane = self.lanes.lane(priority, route)
            if ready_at or suspect or expires_at or keys or ready_ats:
                freed = self._put_with_options(event, lane)
            else:  # the common case
                self.pages.append(count, READY, lane.id)
                if not lane.active:
                    self.lanes.activate(lane)
                if lane.cursor == lane.end:
                    lane.cursor = base
                lane.end = base + count
        if producer is not None:
            self.admission.admit(producer, number, base, count)
        return freed

    def _check_put(self, event: Put) -> None:
        if event.base != self.puts or event.count < 0 or (event.count == 0 and event.producer is None):
            raise IllegalMove(event, None, event.base, f"the next message is {self.puts}")
        if event.producer is not None and self.admission.is_known(event.producer, event.number):
            raise IllegalMove(event, None, None, f"put {event.number} of producer {event.producer:#x} was admitted")

    def _put_with_options(self, event: Put, lane: Lane) -> Runs:
        if event.ready_ats and len(event.ready_ats) != 8 * event.count:
            raise IllegalMove(event, None, event.base, f"{len(event.ready_ats)} bytes are not 8 for each time")
        run = event.base, event.base + event.count
        freed = self._supersede(event) if event.keys else ()
        suspect = SUSPECT if event.suspect else 0
        if event.ready_ats:
            times = array("Q")
            times.frombytes(event.ready_ats)
            self.pages.append(event.count, SCHEDULED | suspect, lane.id)
            self.waiting.add_each(times, event.base)
            self._ripen(event.time)
        elif event.ready_at > max(event.time, 0):
            self.pages.append(event.count, SCHEDULED | suspect, lane.id)
            self._wait(event.ready_at, [run])
        else:
            self.pages.append(event.count, READY | suspect, lane.id)
            self._give([run], cut=True)
        if event.expires_at:
            self._expire_at(event.expires_at, *run)
        for seq, key in enumerate(event.keys, event.base):
            self.keys.name(seq, key)
        return freed

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
        freed = self.pages.select(old, HOLDS_PAYLOAD)
        self.leases.ended(0, self.pages.select(old, HELD))
        self._move_to(event, old, compiled(_SUPERSEDE[self._replaying]))
        self._drop_crashes(old)
        return tuple(freed)

    # -- leases

    def apply_delivered(self, event: Delivered) -> Runs:
        """Let it happen, see `apply`."""
        time, runs, lease_id, owner, once, deadline, request = event
        if lease_id in self.leases.by_id:
            raise IllegalMove(event, None, None, f"lease {lease_id:#x} exists")
        if time >= self.waiting.first:
            self._ripen(time)
        start = stop = 0
        before = -1
        if len(runs) == 1:
            start, stop = runs[0]
            before = self.pages.move_uniform(start, stop, _TO_DELIVERED)
        count = stop - start
        if before == READY:
            lanes = self.lanes.by_id
            lane = lanes[0]
            if start == lane.cursor and stop <= lane.end and len(lanes) == 1:
                lane.cursor = stop  # the common case
            else:
                self.lanes.leased(runs)
        elif before == READY_SUSPECT:
            self.lanes.tried(start, stop)
        elif before >= 0:
            self.waiting.remove(runs)
        else:
            count = self._deliver_mixed(event)
        self.leases.add(Lease(lease_id, owner, runs, count, once, request), deadline)
        if lease_id >= self.next_lease:
            self.next_lease = lease_id + 1
        return ()

    def _deliver_mixed(self, event: Delivered) -> int:
        runs = event.runs
        steps = self.pages.plan(runs, _TO_DELIVERED, event)
        suspects = self.pages.select(runs, IS_SUSPECT) if self._counts[READY_SUSPECT] else []
        early = self.pages.select(runs, IS_SCHEDULED) if self._has_scheduled else []
        self.pages.write(steps)
        self.lanes.leased(runs)
        for run in suspects:
            self.lanes.tried(*run)
        if early:  # a replay, or the clock went back: an entry left behind would bring a later retry back too early
            self.waiting.remove(clean(early))
        return total(runs)

    def apply_acked(self, event: Acked) -> Runs:
        """Let it happen, see `apply`."""
        _, runs, lease_id, keep = event
        table = _TO_ACKED[keep]
        lease = self.leases.by_id.get(lease_id)
        if lease is not None and len(runs) == 1 == len(lease.runs):
            (start, stop), (first, end) = runs[0], lease.runs[0]
            # Inside its own lease a message is DELIVERED or has ended, and what has ended is refused.
            if first <= start and stop <= end and self.pages.move_uniform(start, stop, table) >= 0:
                if stop - start == lease.left:
                    self.leases.drop(lease)
                else:
                    self.leases.shrink(lease, stop - start)
                if self.crash_counts or self.keys.key_of:
                    self._forget_details(runs, gone=not keep)
                return runs
        steps = self.pages.plan(runs, table, event)
        delivered = self.pages.select(clean(runs), HELD)
        self.pages.write(steps)
        if delivered:
            self.leases.ended(lease_id, delivered)
        self._forget_details(runs, gone=not keep)
        return runs

    def _apply_returned(self, event: Returned) -> Runs:
        lease = self._holder(event)
        runs, blame, later = event.runs, event.blame, event.ready_at > max(event.time, 0)
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
        waiting = self.pages.select(runs, IS_SCHEDULED) if self._has_scheduled else []
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
