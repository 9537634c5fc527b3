"""`LedgerPair`: the ledger and its model in lock-step.

Does each thing to both, demands that the decision is exactly the model's, and compares everything that can be seen,
after `validate()`. Who decides what to do is somebody else: a test by hand, or `ledger_machine` by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from daskqueue_core.batch import Run
from daskqueue_core.errors import IllegalMove
from daskqueue_core.events import Event, Failed, Put, Reason, Returned
from daskqueue_core.ledger import Duplicate, Early, Ledger, UnknownProducer
from daskqueue_core.states import MessageFlag, MessageState
from daskqueue_core.testing.model import ModelLedger

__all__ = ["LedgerPair", "numbers", "singles"]


def numbers(runs: Iterable[Run]) -> list[int]:
    """The messages of `runs`, in order."""
    return [seq for start, stop in runs for seq in range(start, stop)]


def singles(seqs: Iterable[int]) -> list[Run]:
    """A run for each message."""
    return [(seq, seq + 1) for seq in seqs]


class LedgerPair:
    """A ledger and its model, in step. `journal_fails`: events are decided and then dropped, not applied."""

    def __init__(self, page_size: int = 4) -> None:
        self.page_size = page_size
        self.ledger = Ledger(epoch=3, page_size=page_size)
        self.model = ModelLedger()
        self.events: list[Event] = []
        self.granted: dict[int, list[int]] = {}  # of all leases there ever were
        self.now = 0
        self.journal_fails = False

    # -- one method per thing that can happen

    def put(self, count: int) -> None:
        """Put, leasable only when committed."""
        event = self.ledger.decide_put(count, self.now)
        assert isinstance(event, Put)
        self._put(event)

    def put_numbered(self, producer: int, number: int, count: int) -> None:
        """Put by a producer that numbers its puts."""
        answer = self.ledger.decide_put(count, self.now, producer=producer, number=number)
        match self.model.admission(producer, number):
            case "admit":
                assert isinstance(answer, Put)
                self._put(answer)
            case "early":
                assert answer == Early()
                assert isinstance(answer, Early)
            case "unknown":
                assert isinstance(answer, UnknownProducer)
            case (base, size):
                assert answer == Duplicate(base, size)
                assert isinstance(answer, Duplicate)

    def _put(self, event: Put) -> None:
        assert event.base == len(self.model.messages)
        if self.journal_fails:
            return
        assert self.ledger.apply(event) == ()
        self.events.append(event)
        self.model.put(event.count, event.producer)

    def commit(self, seq: int) -> None:
        """Everything below `seq` may be leased."""
        self.ledger.commit(seq)
        self.model.committed = max(self.model.committed, seq)

    def lease(
        self, limit: int, owner: str, ttl: int = 100, *, once: bool = False, request: int = 0, wanted: Any = None
    ) -> int | None:
        """Lease; with `wanted` (a set of messages), by a consumer that skips all others."""
        picked = self.model.pick(limit, wanted)
        choose = None if wanted is None else lambda runs: self._choose(runs, wanted, limit)
        event = self.ledger.decide_lease(limit, owner, self.now, ttl, request=request, once=once, choose=choose)
        assert numbers(event.runs if event else ()) == picked
        if event is None or self.journal_fails:
            return None
        assert self.ledger.apply(event) == ()
        self.events.append(event)
        self.granted[event.lease] = picked
        self.model.delivered(picked, event.lease, owner, self.now + ttl, once=once, request=request)
        return event.lease

    def _choose(self, runs: Iterator[Run], wanted: Collection[int], limit: int) -> list[Run]:
        chosen: list[Run] = []
        last = -1
        for start, stop in runs:
            assert last <= start < stop <= self.model.committed, f"offered {(start, stop)} after {last}"
            assert all(self.model.messages[seq].state is MessageState.READY for seq in range(start, stop))
            last = stop
            chosen += singles(seq for seq in range(start, stop) if seq in wanted)
            if len(chosen) >= limit:
                break
        return chosen

    def ack(self, lease: int, runs: Sequence[Run] | None, *, keep: bool) -> None:
        """Done, as `lease` says."""
        asked = self._asked(runs)
        news = self.model.held(lease) if asked is None else self.model.unfinished(asked)
        self._count_stale(asked, news)
        event = self.ledger.decide_ack(lease, runs, self.now, keep=keep)
        self._happens(event, news, lambda: self.model.acked(news, keep=keep))

    def give_back(self, lease: int, runs: Sequence[Run] | None) -> None:
        """Returned by its holder."""
        news = self._from_holder(lease, runs)
        event = self.ledger.decide_return(lease, runs, self.now, reason=Reason.RELEASED)
        self._happens(event, news, lambda: self.model.returned(news))

    def fail(self, lease: int, runs: Sequence[Run] | None) -> None:
        """Failed, as its holder says."""
        news = self._from_holder(lease, runs)
        event = self.ledger.decide_fail(lease, runs, self.now, reason=Reason.REJECTED)
        self._happens(event, news, lambda: self.model.failed(news))

    def agree(self, lease: int, runs: Sequence[Run] | None) -> None:
        """Not run and given up, as its holder says."""
        news = self._from_holder(lease, runs)
        event = self.ledger.decide_agree(lease, runs, self.now)
        self._happens(event, news, lambda: self.model.agreed(news))

    def cancel(self, runs: Sequence[Run]) -> None:
        """A client does not want them any more."""
        news = self.model.cancellable(numbers(runs))
        self._happens(self.ledger.decide_cancel(runs, self.now), news, lambda: self.model.cancel_asked(news))

    def forget(self, runs: Sequence[Run]) -> None:
        """Nobody asks for them any more."""
        news = self.model.forgettable(numbers(runs))
        self._happens(self.ledger.decide_forget(runs, self.now), news, lambda: self.model.forgotten(news))

    def owner_lost(self, owner: str) -> None:
        """The directory says so."""
        events = self.ledger.decide_owner_lost(owner, self.now, reason=Reason.OWNER_LOST)
        self._lost(events, self.model.of(owner))

    def due(self) -> None:
        """What time brings."""
        owners = self.model.due(self.now)
        self._lost(self.ledger.decide_due(self.now), [lease for owner in owners for lease in self.model.of(owner)])
        if not self.journal_fails:
            assert self.ledger.decide_due(self.now) == []

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
        assert numbers(event.runs if event is not None else ()) == news
        if event is None or self.journal_fails:
            return
        freed = self.ledger.apply(event)
        self.events.append(event)
        assert sorted(numbers(freed)) == sorted(moved())
        self.model.settle()

    def _lost(self, events: Sequence[Event], leases: Sequence[int], *, unlisted: bool = False) -> None:
        expected: list[tuple[type, int, list[int]]] = []
        for lease in leases:
            failed, back = self.model.lost(lease, unlisted=unlisted)
            expected += [(Failed, lease, failed)] * bool(failed) + [(Returned, lease, back)] * bool(back)
        seen = [(type(event), event.lease, numbers(event.runs)) for event in events if isinstance(event, _LOST)]
        assert len(seen) == len(events)
        assert sorted(seen, key=repr) == sorted(expected, key=repr)
        for event in events:
            if isinstance(event, Returned):
                back = numbers(event.runs)
                self._happens(event, back, lambda back=back: self.model.returned(back))  # type: ignore[misc]
            elif isinstance(event, Failed):
                assert event.reason is Reason.EARLY_ACK
                failed = numbers(event.runs)
                self._happens(event, failed, lambda failed=failed: self.model.failed(failed))  # type: ignore[misc]

    # -- comparing

    def compare(self) -> None:
        """Everything that can be seen is as the model has it."""
        ledger, model = self.ledger, self.model
        self.compare_lasting(ledger)
        assert (ledger.committed, ledger.stale) == (model.committed, model.stale)
        assert {owner: ledger.deadline(owner) for owner in ledger.owners()} == model.deadlines
        assert ledger.next_at() == min(model.deadlines.values(), default=None)
        for lease, entry in model.leases.items():
            seen = ledger.lease(lease)
            assert seen is not None
            started = len(entry.granted) if entry.started is None else entry.started
            assert (seen.finished, seen.started) == (entry.finished, started)
            if entry.request:
                assert ledger.find_grant(entry.owner, entry.request) is seen
        for owner in ("a", "b", "c"):
            asked = {
                lease: [seq for seq in model.held(lease) if model.messages[seq].cancel] for lease in model.of(owner)
            }
            told = {lease: numbers(runs) for lease, runs in ledger.cancels(owner).items()}
            assert told == {lease: seqs for lease, seqs in asked.items() if seqs}

    def compare_lasting(self, ledger: Ledger) -> None:
        """What events determine is as the model has it."""
        model = self.model
        ledger.validate()
        states = [message.state for message in model.messages]
        assert ledger.puts == len(states)
        assert [ledger.state(seq) for seq in range(len(states))] == states
        cancels = [message.cancel for message in model.messages]
        assert [ledger.flags(seq) is MessageFlag.CANCEL for seq in range(len(states))] == cancels
        assert ledger.counts() == {state: states.count(state) for state in MessageState}
        assert ledger.ready == states.count(MessageState.READY)
        assert ledger.unfinished == sum(message.unfinished for message in model.messages)
        assert ledger.finished == ledger.puts - ledger.unfinished
        for state in MessageState:
            assert numbers(ledger.runs_in(state)) == [seq for seq, other in enumerate(states) if other is state]
        assert set(ledger.owners()) == {entry.owner for entry in model.leases.values()}
        for owner in ledger.owners():
            assert [lease.id for lease in ledger.leases_of(owner)] == model.of(owner)
        for lease, entry in model.leases.items():
            seen = ledger.lease(lease)
            assert seen is not None
            assert (seen.id, seen.owner, seen.once, seen.request) == (lease, entry.owner, entry.once, entry.request)
            assert numbers(seen.granted) == entry.granted
            assert numbers(ledger.held(lease)) == model.held(lease)
            assert seen.left == len(model.held(lease))

    def compare_replayed(self) -> None:
        """A fresh ledger that is told the events knows the same, and would go on the same."""
        again = Ledger(epoch=3, page_size=self.page_size)
        for event in self.events:
            again.apply(event)
        self.compare_lasting(again)
        for producer, puts in self.model.producers.items():
            answer = again.decide_put(1, 0, producer=producer, number=len(puts))
            assert answer == self.ledger.decide_put(1, 0, producer=producer, number=len(puts))
        again.commit(self.model.committed)
        mine, theirs = (ledger.decide_lease(1 << 30, "a", 0, 1) for ledger in (self.ledger, again))
        assert mine == theirs


_LOST = (Returned, Failed)
