"""The ledger: which message of one queue is where, and who holds it. A state machine and nothing else.

`decide_*` looks and returns an event, or None when there is nothing to do; it changes nothing but hints and the count
of stale reports. `apply` takes the event and moves the messages, all or none. Between the two its caller records the
event; decide, record and apply are one critical section. An event that could not be recorded is dropped, and
nothing has happened. `apply` over the recorded events rebuilds everything.

Good news comes from anyone, bad news only from the holder: an ack ends any unfinished message, whoever sends it; a
return, a failure or an agreed cancel counts only from the lease that holds the message now.

No clock (`now` is an argument, in nanoseconds), no chance, no I/O, no threads. Payloads and outcomes are elsewhere:
`apply` returns the runs whose payload nobody needs any more, each message once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from daskqueue_core.admission import Admission, Duplicate, Early, UnknownProducer
from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
from daskqueue_core.events import (
    Acked,
    CancelAsked,
    Cancelled,
    Delivered,
    Event,
    Failed,
    Forgotten,
    Put,
    Reason,
    Returned,
)
from daskqueue_core.leases import Lease, Leases
from daskqueue_core.pages import Pages
from daskqueue_core.ready import Ready
from daskqueue_core.runs import clean, difference, intersection, positions, total
from daskqueue_core.states import (
    CANCELLING,
    ByteClass,
    MessageFlag,
    MessageState,
    Move,
    accepted,
    compiled,
    flags_of,
    state_of,
)

__all__ = ["Choose", "Duplicate", "Early", "Ledger", "UnknownProducer"]

Choose = Callable[[Iterator[Run]], Sequence[Run]]
"""Picks from the ready runs, offered as they are asked for, what to deliver: each run inside an offered one."""

_Runs = tuple[Run, ...]

DELIVERED: Final = int(MessageState.DELIVERED)
READY: Final = int(MessageState.READY)

_IS_READY: Final = ByteClass([READY])
_IS_HELD: Final = ByteClass([DELIVERED, CANCELLING])
_IS_CANCELLING: Final = ByteClass([CANCELLING])
_MAY_ACK: Final = accepted(Move.ACKED_DROP)
_MAY_CANCEL: Final = accepted(Move.CANCEL_ASKED)
_MAY_FORGET: Final = accepted(Move.FORGOTTEN)

_TO_DELIVERED: Final = compiled(Move.DELIVERED)
_TO_ACKED: Final = {True: compiled(Move.ACKED_KEEP), False: compiled(Move.ACKED_DROP)}
_TO_RETURNED: Final = compiled(Move.RETURNED)
_TO_FAILED: Final = compiled(Move.FAILED)
_TO_CANCEL_ASKED: Final = compiled(Move.CANCEL_ASKED)
_TO_CANCELLED: Final = compiled(Move.CANCELLED)
_TO_FORGOTTEN: Final = compiled(Move.FORGOTTEN)

_LEASE_BITS: Final = 40


class Ledger:
    """Who is where. Not thread-safe: one caller at a time."""

    def __init__(self, *, epoch: int = 0, page_size: int = 4096) -> None:
        self.epoch = epoch
        self.committed = 0
        """Messages below may be leased: their put is as durable as was asked for."""
        self.stale = 0
        """Reports about messages that had ended, or that another lease holds."""
        self._pages = Pages(page_size)
        self._counts = self._pages.counts
        self._ready = Ready(self._pages)
        self._leases = Leases()
        self._admission = Admission()
        self._next_lease = (epoch << _LEASE_BITS) + 1
        self._apply: dict[type, Callable[[Any], _Runs]] = {
            Put: self._apply_put,
            Delivered: self._apply_delivered,
            Acked: self._apply_acked,
            Returned: self._apply_returned,
            Failed: self._apply_failed,
            CancelAsked: self._apply_cancel_asked,
            Cancelled: self._apply_cancelled,
            Forgotten: self._apply_forgotten,
        }

    # -- looking

    @property
    def puts(self) -> int:
        """Messages ever put: also the number the next one gets."""
        return self._pages.next_seq

    @property
    def ready(self) -> int:
        """Messages in READY, those not committed yet among them."""
        return self._counts[READY]

    @property
    def unfinished(self) -> int:
        """Messages that will still end."""
        return self._counts[READY] + self._counts[DELIVERED] + self._counts[CANCELLING]

    @property
    def finished(self) -> int:
        """Messages that have ended."""
        return self._pages.next_seq - self.unfinished

    def counts(self) -> dict[MessageState, int]:
        """Messages by state."""
        counts = {state: self._counts[state] for state in MessageState}
        counts[MessageState.DELIVERED] += self._counts[CANCELLING]
        counts[MessageState.GONE] = self._pages.gone
        return counts

    def state(self, seq: int) -> MessageState:
        """Where message `seq` is."""
        return state_of(self._byte(seq))

    def flags(self, seq: int) -> MessageFlag:
        """What else is known of message `seq`."""
        return flags_of(self._byte(seq))

    def _byte(self, seq: int) -> int:
        if not 0 <= seq < self.puts:
            raise ValueError(f"message {seq} was never put; there are {self.puts}")
        return self._pages.byte(seq)

    def runs_in(self, state: MessageState) -> list[Run]:
        """All messages in `state`, ascending."""
        if state is MessageState.GONE:
            return self._pages.select_gone()
        wanted = _IS_HELD if state is MessageState.DELIVERED else ByteClass([state])
        return self._pages.select([(0, self.puts)], wanted)

    def owners(self) -> list[str]:
        """Who holds leases."""
        return list(self._leases.owners)

    def deadline(self, owner: str) -> int | None:
        """When the leases of `owner` lapse if it is not heard of; None if it has none."""
        entry = self._leases.owners.get(owner)
        return entry.deadline if entry is not None else None

    def leases_of(self, owner: str) -> list[Lease]:
        """What `owner` holds, oldest first."""
        return self._leases.of(owner)

    def lease(self, lease_id: int) -> Lease | None:
        """A lease that still holds something. To be looked at, not changed."""
        return self._leases.by_id.get(lease_id)

    def held(self, lease_id: int) -> _Runs:
        """The messages a lease holds now: neither ended nor gone back."""
        lease = self._leases.by_id.get(lease_id)
        return self._held(lease, None) if lease is not None else ()

    def find_grant(self, owner: str, request: int) -> Lease | None:
        """What this request was granted before, if it is still held: a repeated request gets the same."""
        return self._leases.grant(owner, request) if request else None

    def cancels(self, owner: str) -> dict[int, _Runs]:
        """The messages that `owner` is asked to give up, by lease."""
        if not self._counts[CANCELLING]:
            return {}
        asked = {
            lease.id: tuple(self._pages.select(clean(lease.runs), _IS_CANCELLING)) for lease in self._leases.of(owner)
        }
        return {lease_id: runs for lease_id, runs in asked.items() if runs}

    def next_at(self) -> int | None:
        """When `decide_due` has something to do, if nothing is heard of anybody until then."""
        return self._leases.next_at()

    # -- deciding

    def decide_put(
        self, count: int, now: int, *, producer: int | None = None, number: int = 0
    ) -> Put | Duplicate | Early | UnknownProducer:
        """`count` new messages. A `producer` numbers its puts from 0: admitted in order, each once."""
        if count < 1:
            raise ValueError(f"count={count}: a put needs at least one message")
        if producer is not None:
            refusal = self._admission.refusal(producer, number)
            if refusal is not None:
                return refusal
        return Put(now, self._pages.next_seq, count, producer, number)

    def decide_lease(
        self,
        limit: int,
        owner: str,
        now: int,
        ttl: int,
        *,
        request: int = 0,
        once: bool = False,
        choose: Choose | None = None,
    ) -> Delivered | None:
        """At most `limit` messages for `owner`, lowest numbers first, or what `choose` picks of them.

        `once`: they are never delivered again, even if the owner is lost. Whether `request` was granted before is for
        the caller to ask (`find_grant`).
        """
        if limit < 1 or not self._counts[READY]:
            return None
        if choose is None:
            runs = self._ready.first(limit, self.committed)
        else:
            runs = self._chosen(limit, choose)
        if not runs:
            return None
        return Delivered(now, tuple(runs), self._next_lease, owner, once, now + ttl, request)

    def _chosen(self, limit: int, choose: Choose) -> list[Run]:
        offered: list[Run] = []

        def offer() -> Iterator[Run]:
            for run in self._ready.runs(max(limit, self._pages.size), self.committed):
                offered.append(run)
                yield run

        picked = choose(offer())
        if len(picked) == 1 and offered:  # the common case
            start, stop = picked[0]
            if offered[-1][0] <= start < stop <= offered[-1][1]:
                return [(start, min(stop, start + limit))]
        chosen = clean(picked)
        if intersection(chosen, clean(offered)) != chosen:
            raise ValueError(f"choose returned {difference(chosen, clean(offered))}, which it was not offered")
        return positions(chosen, 0, limit)

    def decide_ack(self, lease_id: int, runs: Iterable[Run] | None, now: int, *, keep: bool) -> Acked | None:
        """These are done (None: all the lease holds), whoever holds them. `keep`: until they are forgotten."""
        lease = self._leases.by_id.get(lease_id)
        if runs is None:
            news = self._held(lease, None) if lease is not None else ()
        else:
            asked = clean(runs)
            news = tuple(self._pages.select(self._known(asked), _MAY_ACK))
            self.stale += total(asked) - total(news)
        return Acked(now, news, lease_id, keep) if news else None

    def decide_return(self, lease_id: int, runs: Iterable[Run] | None, now: int, *, reason: Reason) -> Returned | None:
        """The holder gives these back (None: all it holds). Those with CANCEL end: `apply` frees them."""
        news = self._from_holder(lease_id, runs)
        return Returned(now, news, lease_id, reason) if news else None

    def decide_fail(self, lease_id: int, runs: Iterable[Run] | None, now: int, *, reason: Reason) -> Failed | None:
        """The holder says these failed for good."""
        news = self._from_holder(lease_id, runs)
        return Failed(now, news, lease_id, reason) if news else None

    def decide_agree(self, lease_id: int, runs: Iterable[Run] | None, now: int) -> Cancelled | None:
        """The holder did not run these and gives them up."""
        news = self._from_holder(lease_id, runs)
        return Cancelled(now, news, lease_id) if news else None

    def decide_cancel(self, runs: Iterable[Run], now: int) -> CancelAsked | None:
        """End what is ready; ask the holders of what is delivered, once."""
        news = tuple(self._pages.select(self._known(clean(runs)), _MAY_CANCEL))
        return CancelAsked(now, news) if news else None

    def decide_forget(self, runs: Iterable[Run], now: int) -> Forgotten | None:
        """Nobody needs to hear of these any more: kept successes and cancelled ones."""
        news = tuple(self._pages.select(self._known(clean(runs)), _MAY_FORGET))
        return Forgotten(now, news) if news else None

    def decide_owner_lost(self, owner: str, now: int, *, reason: Reason) -> list[Event]:
        """The owner is gone: what it held goes back, without blame.

        Except from `once` leases: what may have begun must not run again and fails.
        """
        return [event for lease in self._leases.of(owner) for event in self._lost(lease, now, reason, once=lease.once)]

    def _lost(self, lease: Lease, now: int, reason: Reason, *, once: bool) -> Iterator[Event]:
        held: Sequence[Run] = self._held(lease, None)
        if once:
            begun = intersection(clean(held), lease.begun())
            if begun:
                yield Failed(now, tuple(begun), lease.id, Reason.EARLY_ACK)
                held = difference(clean(held), begun)
        if held:
            yield Returned(now, tuple(held), lease.id, reason)

    def decide_due(self, now: int) -> list[Event]:
        """What time brings: the owners that were silent for too long are taken for lost."""
        due = self._leases.due(now)
        return [event for owner in due for event in self.decide_owner_lost(owner, now, reason=Reason.LAPSED)]

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
        self._leases.renew(owner, now + ttl)
        for lease_id, (finished, started) in held.items():
            lease = self._leases.by_id.get(lease_id)
            if lease is not None and lease.owner == owner:
                lease.progress(finished, started)
        lost = self._leases.unlisted(owner, held, open, sent)
        return [
            event
            for lease in lost
            for event in self._lost(lease, now, Reason.UNLISTED, once=lease.once and lease.reported)
        ]

    def _known(self, runs: Sequence[Run]) -> Sequence[Run]:
        """Those of the clean `runs` that were put."""
        if runs and (runs[0][0] < 0 or runs[-1][1] > self.puts):
            return intersection(runs, [(0, self.puts)])
        return runs

    def _held(self, lease: Lease, runs: Sequence[Run] | None) -> _Runs:
        """What `lease` holds now of the clean `runs`, or of all."""
        if runs is None:
            if lease.left == lease.uncut:
                return tuple(lease.runs)
            return tuple(self._pages.select(clean(lease.runs), _IS_HELD))
        return tuple(self._pages.select(intersection(runs, clean(lease.runs)), _IS_HELD))

    def _from_holder(self, lease_id: int, runs: Iterable[Run] | None) -> _Runs:
        """What `lease_id` may give up of `runs`; the rest is counted as stale."""
        asked = None if runs is None else clean(runs)
        lease = self._leases.by_id.get(lease_id)
        news = self._held(lease, asked) if lease is not None else ()
        if asked is not None:
            self.stale += total(asked) - total(news)
        return news

    # -- changing

    def commit(self, seq: int) -> None:
        """All messages below `seq` may be leased."""
        if seq > self._pages.next_seq:
            raise ValueError(f"commit({seq}): only {self.puts} messages were put")
        if seq > self.committed:
            self.committed = seq

    def shift_deadlines(self, by: int) -> None:
        """The queue itself was deaf for `by` nanoseconds: nobody's silence meanwhile counts."""
        if by < 0:
            raise ValueError(f"shift_deadlines({by}): deadlines only grow")
        self._leases.shift(by)

    def apply(self, event: Event) -> _Runs:
        """Let `event` happen. Returns the messages that ended by it, whose payloads can be freed.

        Raises `IllegalMove`, and changes nothing, if one of its messages cannot make the move.
        """
        return self._apply[event.__class__](event)

    def _apply_put(self, event: Put) -> _Runs:
        if event.base != self._pages.next_seq or event.count < 1:
            raise IllegalMove(event, None, event.base, f"the next message is {self.puts}")
        self._pages.append(event.count)
        if event.producer is not None:
            self._admission.admit(event.producer, event.number, event.base, event.count)
        return ()

    def _apply_delivered(self, event: Delivered) -> _Runs:
        runs, lease_id = event.runs, event.lease
        if lease_id in self._leases.by_id:
            raise IllegalMove(event, None, None, f"lease {lease_id:#x} exists")
        if len(runs) == 1 and self._pages.move_uniform(*runs[0], _TO_DELIVERED) >= 0:
            count = runs[0][1] - runs[0][0]
        else:
            self._move(event, _TO_DELIVERED)
            count = total(runs)
        self._ready.leased(runs)
        self._leases.add(Lease(lease_id, event.owner, runs, count, event.once, event.request), event.deadline)
        if lease_id >= self._next_lease:
            self._next_lease = lease_id + 1
        return ()

    def _apply_acked(self, event: Acked) -> _Runs:
        runs, table = event.runs, _TO_ACKED[event.keep]
        lease = self._leases.by_id.get(event.lease)
        if lease is not None and len(runs) == 1 == len(lease.runs):
            (start, stop), (first, end) = runs[0], lease.runs[0]
            # Inside its own lease a message is DELIVERED or has ended, and what has ended is refused.
            if first <= start and stop <= end and self._pages.move_uniform(start, stop, table) >= 0:
                self._leases.shrink(lease, stop - start)
                return runs
        steps = self._pages.plan(runs, table, event)
        delivered = self._pages.select(clean(runs), _IS_HELD)
        self._pages.write(steps)
        if delivered:
            self._leases.ended(event.lease, delivered)
        return runs

    def _apply_returned(self, event: Returned) -> _Runs:
        lease = self._holder(event)
        steps = self._pages.plan(event.runs, _TO_RETURNED, event)
        ended = self._pages.select(event.runs, _IS_CANCELLING) if self._counts[CANCELLING] else []
        self._pages.write(steps)
        self._leases.cut(lease, event.runs)
        self._ready.give(difference(clean(event.runs), clean(ended)) if ended else event.runs)
        return tuple(ended)

    def _apply_failed(self, event: Failed) -> _Runs:
        lease = self._holder(event)
        self._move(event, _TO_FAILED)
        self._leases.cut(lease, event.runs)
        return event.runs

    def _apply_cancel_asked(self, event: CancelAsked) -> _Runs:
        steps = self._pages.plan(event.runs, _TO_CANCEL_ASKED, event)
        ended = self._pages.select(event.runs, _IS_READY)
        self._pages.write(steps)
        return tuple(ended)

    def _apply_cancelled(self, event: Cancelled) -> _Runs:
        lease = self._holder(event)
        self._move(event, _TO_CANCELLED)
        self._leases.cut(lease, event.runs)
        return event.runs

    def _apply_forgotten(self, event: Forgotten) -> _Runs:
        self._move(event, _TO_FORGOTTEN)
        return ()

    def _move(self, event: _RunsEvent, table: bytes) -> None:
        self._pages.write(self._pages.plan(event.runs, table, event))

    def _holder(self, event: Returned | Failed | Cancelled) -> Lease:
        """The lease of `event`, which must hold all its messages."""
        lease = self._leases.by_id.get(event.lease)
        if lease is None:
            raise IllegalMove(event, None, None, f"lease {event.lease:#x} holds nothing")
        if event.runs is not lease.runs:
            foreign = difference(clean(event.runs), clean(lease.runs))
            if foreign:
                seq = foreign[0][0]
                state = self.state(seq) if 0 <= seq < self.puts else None
                raise IllegalMove(event, state, seq, f"lease {event.lease:#x} does not hold it")
        return lease

    # -- checking

    def validate(self) -> None:
        """AssertionError if an invariant is broken (the docstrings of the parts list them)."""
        self._pages.validate()
        self._ready.validate()
        self._leases.validate(self._pages.select([(0, self.puts)], _IS_HELD))
        assert 0 <= self.committed <= self.puts, f"committed={self.committed} of {self.puts}"


_RunsEvent = Delivered | Failed | Cancelled | Forgotten
