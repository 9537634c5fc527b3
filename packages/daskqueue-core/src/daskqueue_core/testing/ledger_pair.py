"""`LedgerPair`: the ledger and its model in lock-step.

Does each thing to both, and demands that the decision is exactly the model's. Who decides what to do is somebody else:
a test by hand, or `ledger_machine` by chance. `ledger_compare` compares the two, `ledger_recovery` what recovery makes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
from daskqueue_core.events import Blame, Event, Expired, Failed, Put, Reason, Returned
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.states import MessageState
from daskqueue_core.testing.model import ModelLedger, ModelMessage

__all__ = ["LedgerPair", "max_crashes", "numbers", "singles"]

EPOCH = 3


def numbers(runs: Iterable[Run]) -> list[int]:
    """The messages of `runs`, in order."""
    return [seq for start, stop in runs for seq in range(start, stop)]


def singles(seqs: Iterable[int]) -> list[Run]:
    """A run for each message."""
    return [(seq, seq + 1) for seq in seqs]


def max_crashes(seq: int) -> int:
    """How many crashes a message is allowed here."""
    return 1 + seq % 3


class LedgerPair:
    """A ledger and its model, in step. `journal_fails`: events are decided and then dropped, not applied."""

    def __init__(self, page_size: int = 4) -> None:
        self.page_size = page_size
        self.ledger = Ledger(epoch=EPOCH, page_size=page_size)
        self.model = ModelLedger()
        self.events: list[Event] = []
        self.granted: dict[int, list[int]] = {}  # of all leases there ever were
        self.now = 0
        self.latest = 0  # when time was last looked at, whatever the clock did since
        self.journal_fails = False

    # -- one method per thing that can happen

    def put(
        self,
        count: int,
        *,
        priority: int = 0,
        route: int = 0,
        ready_at: int = 0,
        ready_ats: Sequence[int] = (),
        expires_at: int = 0,
        keys: Sequence[str] = (),
        suspect: bool = False,
        producer: int | None = None,
        number: int = 0,
    ) -> None:
        """Put, leasable only when committed; refused if the producer's number or a key does not fit."""
        options: dict[str, Any] = {"priority": priority, "route": route, "expires_at": expires_at, "suspect": suspect}
        expected: Any = self.model.admission(producer, number) if producer is not None else "admit"
        if expected == "admit" and any(self._is_blocked(key) for key in keys):
            expected = "in use"
        try:
            answer: Any = self.ledger.decide_put(
                count,
                self.now,
                ready_at=ready_at,
                ready_ats=array("Q", ready_ats).tobytes(),
                keys=keys,
                producer=producer,
                number=number,
                **options,
            )
        except ValueError:
            answer = "in use"
        match expected:
            case "admit":
                assert isinstance(answer, Put)
                times = ready_ats or [ready_at] * count
                names: Sequence[str | None] = keys or [None] * count
                new = [ModelMessage(ready_at=time, key=key, **options) for time, key in zip(times, names)]
                self._put(answer, new, each=len(ready_ats) > 0)
            case "early":
                assert answer == Early()
                assert isinstance(answer, Early)
            case "unknown":
                assert isinstance(answer, UnknownProducer)
            case "in use":
                assert answer == "in use"
            case (base, size):
                assert answer == Duplicate(base, size)
                assert isinstance(answer, Duplicate)

    def _is_blocked(self, key: str) -> bool:
        holder = self.model.holder(key)
        return holder is not None and self.model.messages[holder].blocks_key

    def _put(self, event: Put, new: list[ModelMessage], *, each: bool) -> None:
        assert (event.base, event.count) == (len(self.model.messages), len(new))
        if self.journal_fails:
            return
        freed = self.ledger.apply(event)
        self.events.append(event)
        assert sorted(numbers(freed)) == sorted(self.model.put(new, self.now, producer=event.producer, each=each))
        self._looked(each)

    def commit(self, seq: int) -> None:
        """Everything below `seq` may be leased."""
        self.ledger.commit(seq)
        self.model.committed = max(self.model.committed, seq)

    def lease(
        self,
        limit: int,
        owner: str,
        ttl: int = 100,
        *,
        once: bool = False,
        request: int = 0,
        wanted: Any = None,
        routes: Collection[int] | None = None,
        suspects: bool = True,
    ) -> int | None:
        """Lease; with `wanted` (a set of messages), by a consumer that skips all others."""
        short = self.ledger.decide_next(owner, self.now, ttl, once)
        assert short in (None, self.ledger.decide_lease(1, owner, self.now, ttl, once=once))
        picked = self.model.pick(limit, wanted, routes, suspects)
        offered = self.model.offered(routes, suspects)
        choose = None if wanted is None else lambda runs: self._choose(runs, wanted, limit, offered)
        event = self.ledger.decide_lease(
            limit,
            owner,
            self.now,
            ttl,
            request=request,
            once=once,
            choose=choose,
            routes=routes,
            suspects=suspects,
        )
        assert numbers(event.runs if event else ()) == picked
        if event is None or self.journal_fails:
            return None
        assert self.ledger.apply(event) == ()
        self.events.append(event)
        self.granted[event.lease] = picked
        self._looked()
        self.model.delivered(picked, event.lease, owner, self.now + ttl, once=once, request=request)
        return event.lease

    def _choose(self, runs: Iterator[Run], wanted: Collection[int], limit: int, offered: Sequence[int]) -> list[Run]:
        chosen: list[Run] = []
        seen: list[int] = []
        for start, stop in runs:
            assert start < stop
            seen += range(start, stop)
            chosen += singles(seq for seq in range(start, stop) if seq in wanted)
            if len(chosen) >= limit:
                break
        else:
            assert seen == offered
        assert seen == offered[: len(seen)]
        return chosen

    def ack(self, lease: int, runs: Sequence[Run] | None, *, keep: bool) -> None:
        """Done, as `lease` says."""
        asked = self._asked(runs)
        news = self.model.held(lease) if asked is None else self.model.unfinished(asked)
        self._count_stale(asked, news)
        event = self.ledger.decide_ack(lease, runs, self.now, keep=keep)
        self._happens(event, news, lambda: self.model.acked(news, keep=keep))

    def give_back(self, lease: int, runs: Sequence[Run] | None, blame: Blame = Blame.NONE, ready_at: int = 0) -> None:
        """Returned by its holder."""
        news = self._from_holder(lease, runs)
        reason = Reason.RETRY if blame is Blame.ATTEMPT else Reason.RELEASED
        event = self.ledger.decide_return(lease, runs, self.now, reason=reason, blame=blame, ready_at=ready_at)
        self._happens(event, news, lambda: self.model.returned(news, blame, ready_at, self.now))

    def fail(self, lease: int, runs: Sequence[Run] | None, reason: Reason = Reason.REJECTED) -> None:
        """Failed, as its holder says."""
        news = self._from_holder(lease, runs)
        event = self.ledger.decide_fail(lease, runs, self.now, reason=reason)
        self._happens(event, news, lambda: self.model.failed(news, reason))

    def agree(self, lease: int, runs: Sequence[Run] | None, *, expired: bool = False) -> None:
        """Not run and given up, as its holder says."""
        news = self._from_holder(lease, runs)
        event = self.ledger.decide_agree(lease, runs, self.now, expired=expired)
        self._happens(event, news, lambda: self.model.agreed(news, expired=expired))

    def damage(self, runs: Sequence[Run]) -> None:
        """Their bytes cannot be read."""
        news = self.model.unfinished(numbers(runs))
        event = self.ledger.decide_damaged(runs, self.now)
        self._happens(event, news, lambda: self.model.failed(news, Reason.DAMAGED))

    def cancel(self, runs: Sequence[Run]) -> None:
        """A client does not want them any more."""
        news = self.model.cancellable(numbers(runs))
        self._happens(self.ledger.decide_cancel(runs, self.now), news, lambda: self.model.cancel_asked(news))

    def requeue(self, runs: Sequence[Run]) -> None:
        """Dead letters are tried again."""
        news = self.model.those(numbers(runs), MessageState.FAILED)
        event = self.ledger.decide_requeue(runs, self.now)
        self._happens(event, news, lambda: self.model.requeued(news, self.now))

    def purge(self, runs: Sequence[Run]) -> None:
        """Nobody wants them."""
        news = self.model.those(numbers(runs), MessageState.SCHEDULED, MessageState.READY, MessageState.FAILED)
        self._happens(self.ledger.decide_purge(runs, self.now), news, lambda: self.model.purged(news))

    def forget(self, runs: Sequence[Run]) -> None:
        """Nobody asks for them any more."""
        ended = (MessageState.ACKED, MessageState.CANCELLED, MessageState.EXPIRED)
        news = self.model.those(numbers(runs), *ended)
        self._happens(self.ledger.decide_forget(runs, self.now), news, lambda: self.model.forgotten(news))

    def owner_lost(self, owner: str) -> None:
        """The directory says so."""
        events = self.ledger.decide_owner_lost(owner, self.now, reason=Reason.OWNER_LOST, max_crashes=max_crashes)
        self._lost(events, self.model.of(owner))

    def due(self) -> None:
        """What time brings, until there is no more."""
        while True:
            events = self.ledger.decide_due(self.now, max_crashes=max_crashes)
            self._looked()
            self.model.collect(self.now)
            expired = self.model.expired()
            if expired:
                assert len(events) == 1
                assert isinstance(events[0], Expired)
                self._happens(events[0], expired, lambda expired=expired: self.model.expire(expired))  # type: ignore[misc]
            else:
                owners = self.model.silent(self.now)
                self._lost(events, [lease for owner in owners for lease in self.model.of(owner)])
            if not events or self.journal_fails:
                break

    def heartbeat(
        self,
        owner: str,
        held: Mapping[int, tuple[int, int]],
        open_requests: Collection[int],
        sent: int,
        ttl: int = 100,
    ) -> None:
        """The owner says what it has."""
        self.model.heard(owner, held, self.now + ttl)
        entries = [(lease, self.model.leases[lease].request) for lease in self.model.of(owner) if lease not in held]
        unlisted = [lease for lease, request in entries if request <= sent and request not in open_requests]
        events = self.ledger.heartbeat(owner, held, open_requests, sent, self.now, ttl)
        self._lost(events, unlisted, unlisted=True)

    def shift_deadlines(self, by: int) -> None:
        """The queue was deaf."""
        self.ledger.shift_deadlines(by)
        self.model.deadlines = {owner: deadline + by for owner, deadline in self.model.deadlines.items()}

    def reopen(self) -> None:
        """From a snapshot. Nothing but the pieces of suspects changes."""
        columns = self.ledger.snapshot()
        self.ledger = Ledger.restore(columns)
        self.model.recut()
        again = self.ledger.snapshot()
        different = {name: (column, columns[name]) for name, column in again.items() if column != columns[name]}
        assert not different, f"restored, then: {different}"

    def repeat(self) -> None:
        """The last event once more: always illegal."""
        self.refused(self.events[-1])

    def refused(self, event: Event) -> None:
        """`event` is illegal and changes nothing."""
        try:
            freed = self.ledger.apply(event)
        except IllegalMove:
            return
        raise AssertionError(f"{event} was applied and freed {freed}")

    def _looked(self, ripens: bool = True) -> None:
        """The ledger noticed what time it is: what was SCHEDULED until now is READY."""
        if ripens:
            self.model.ripen(self.now)
            self.latest = max(self.latest, self.now)

    def _asked(self, runs: Sequence[Run] | None) -> list[int] | None:
        return None if runs is None else sorted(set(numbers(runs)))

    def _count_stale(self, asked: list[int] | None, news: list[int]) -> None:
        if asked is not None:
            self.model.stale += len(asked) - len(news)

    def _from_holder(self, lease: int, runs: Sequence[Run] | None) -> list[int]:
        asked = self._asked(runs)
        news = self.model.held(lease, asked)
        self._count_stale(asked, news)
        return news

    def _happens(self, event: Any, news: list[int], moved: Callable[[], list[int]]) -> None:
        """`event` is what the model says, and frees what the model says."""
        assert sorted(numbers(event.runs if event is not None else ())) == news
        if event is None or self.journal_fails:
            return
        freed = self.ledger.apply(event)
        self.events.append(event)
        assert sorted(numbers(freed)) == sorted(moved())
        self.model.settle()

    def _lost(self, events: Sequence[Event], leases: Sequence[int], *, unlisted: bool = False) -> None:
        expected = []
        for lease in leases:
            for seqs, reason, blame in self.model.lost(lease, max_crashes, unlisted=unlisted):
                expected.append((lease, seqs, reason if blame is None else None, blame))
        seen: list[Any] = []
        for event in events:
            assert isinstance(event, (Returned, Failed))
            blame = event.blame if isinstance(event, Returned) else None
            seen.append((event.lease, sorted(numbers(event.runs)), event.reason if blame is None else None, blame))
        assert sorted(seen, key=repr) == sorted(expected, key=repr), f"{seen}, expected {expected}"
        for event in events:
            seqs = sorted(numbers(event.runs))  # type: ignore[union-attr]
            if isinstance(event, Returned):
                blame = event.blame
                self._happens(event, seqs, lambda s=seqs, b=blame: self.model.returned(s, b, 0, self.now))  # type: ignore[misc]
            elif isinstance(event, Failed):
                reason = event.reason
                self._happens(event, seqs, lambda s=seqs, r=reason: self.model.failed(s, r))  # type: ignore[misc]
