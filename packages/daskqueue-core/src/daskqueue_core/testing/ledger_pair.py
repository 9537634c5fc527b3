"""`LedgerPair`: the ledger and its model in lock-step.

Does each thing to both, demands that the decision is exactly the model's, and compares everything that can be seen,
after `validate()`. Who decides what to do is somebody else: a test by hand, or `ledger_machine` by chance. The ledgers
that recovery makes are compared too: `ledger_recovery`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
from daskqueue_core.events import Blame, Event, Expired, Failed, Put, Reason, Returned
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.states import MessageFlag, MessageState
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

    # -- comparing

    def compare(self) -> None:
        """Everything that can be seen is as the model has it."""
        ledger, model = self.ledger, self.model
        self.compare_lasting(ledger)
        assert (ledger.committed, ledger.stale, ledger.dropped) == (model.committed, model.stale, 0)
        assert {owner: ledger.deadline(owner) for owner in ledger.owners()} == model.deadlines
        next_at, expected = ledger.next_at(), model.next_at()
        assert expected is None or (next_at is not None and next_at <= expected)  # what ended meanwhile may wake it
        for lease, entry in model.leases.items():
            seen = ledger.lease(lease)
            assert seen is not None
            started = len(entry.granted) if entry.started is None else entry.started
            assert (seen.finished, seen.started) == (entry.finished, started)
            if entry.request:
                assert ledger.find_grant(entry.owner, entry.request) is seen
            if any(model.messages[seq].suspect for seq in model.held(lease)):
                first = entry.granted[0]
                assert entry.granted == list(range(first, first + len(entry.granted))), "suspects with others"
        for owner in ("a", "b", "c"):
            held = {lease: [(seq, model.messages[seq]) for seq in model.held(lease)] for lease in model.of(owner)}
            asked = {lease: [seq for seq, message in seqs if message.cancel] for lease, seqs in held.items()}
            late = {
                lease: [seq for seq, message in seqs if message.overdue and not message.cancel]
                for lease, seqs in held.items()
            }
            for seen_runs, wanted in ((ledger.cancels(owner), asked), (ledger.overdue(owner), late)):
                told = {lease: numbers(runs) for lease, runs in seen_runs.items()}
                assert told == {lease: seqs for lease, seqs in wanted.items() if seqs}

    def compare_lasting(self, ledger: Ledger, *, live: bool = True) -> None:
        """What events determine is as the model has it."""
        model = self.model
        ledger.validate()
        messages = model.messages
        states = [message.state for message in messages]
        assert ledger.puts == len(states)
        everything = range(len(states))
        assert [ledger.state(seq) for seq in everything] == states
        flags = [
            (MessageFlag.SUSPECT if message.suspect else MessageFlag(0))
            | (MessageFlag.CANCEL if message.cancel else MessageFlag(0))
            | (MessageFlag.OVERDUE if message.overdue else MessageFlag(0))
            for message in messages
        ]
        assert [ledger.flags(seq) for seq in everything] == flags
        assert [ledger.crashes(seq) for seq in everything] == [message.crashes for message in messages]
        assert [ledger.key_of(seq) for seq in everything] == [message.key for message in messages]
        attempts = [message.attempts for message in messages]
        shown = ledger.attempts_of(0, len(states)) or bytes(len(states))
        for seq in everything:
            if states[seq] is not MessageState.GONE:
                assert ledger.attempts(seq) == shown[seq] == attempts[seq]
        for seq, message in enumerate(messages):
            if message.key is not None:
                assert ledger.find_key(message.key) == seq
                assert ledger.is_blocked(message.key) == message.blocks_key
                assert ledger.is_taken(message.key) == (message.unfinished or message.state is MessageState.ACKED)
        assert ledger.counts() == {state: states.count(state) for state in MessageState}
        assert ledger.ready == states.count(MessageState.READY)
        assert ledger.unfinished == sum(message.unfinished for message in messages)
        assert ledger.finished == ledger.puts - ledger.unfinished
        for state in MessageState:
            assert numbers(ledger.runs_in(state)) == [seq for seq, other in enumerate(states) if other is state]
        self._compare_times(ledger, live=live)
        self._compare_leases(ledger)

    def _compare_times(self, ledger: Ledger, *, live: bool) -> None:
        waiting = _times(ledger.waiting.runs())
        expiring = _times(ledger.expiring.runs())
        for seq in numbers(ledger.overdue_runs):
            expiring.setdefault(seq, set()).add(-1)
        for seq, message in enumerate(self.model.messages):
            if message.state is MessageState.SCHEDULED:
                assert min(waiting[seq]) == message.ready_at
            if not message.unfinished and message.state is not MessageState.FAILED:
                continue
            if message.expires_at:
                assert message.expires_at in expiring[seq] or (not live and -1 in expiring[seq])
            elif not message.overdue and (live or not message.unsure):
                assert not expiring.get(seq)

    def _compare_leases(self, ledger: Ledger) -> None:
        model = self.model
        assert set(ledger.owners()) == {entry.owner for entry in model.leases.values()}
        for owner in ledger.owners():
            assert [lease.id for lease in ledger.leases_of(owner)] == model.of(owner)
        for lease, entry in model.leases.items():
            seen = ledger.lease(lease)
            assert seen is not None
            assert (seen.id, seen.owner, seen.once, seen.request) == (lease, entry.owner, entry.once, entry.request)
            assert numbers(seen.granted) == entry.granted
            assert sorted(numbers(ledger.held(lease))) == model.held(lease)
            assert seen.left == len(model.held(lease))


def _times(runs: Iterable[tuple[int, int, int]]) -> dict[int, set[int]]:
    times: dict[int, set[int]] = {}
    for time, start, stop in runs:
        for seq in range(start, stop):
            times.setdefault(seq, set()).add(time)
    return times
