"""`ledger_machine`: Hypothesis chooses what a `LedgerPair` does next, and looks for a walk on which the two differ.

The rules are steered by preconditions and weights: with a uniform choice most steps do nothing, few leases live at
the same time, and planted bugs are missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daskqueue_core.batch import Run
from daskqueue_core.events import Acked, Cancelled, Delivered, Reason, Returned
from daskqueue_core.states import MessageState
from daskqueue_core.testing.ledger_pair import LedgerPair, singles

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["ledger_machine"]


def ledger_machine() -> type[RuleBasedStateMachine]:
    """The Hypothesis machine that drives a `LedgerPair`. Needs hypothesis (`daskqueue-core[testing]`)."""
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

    owners = st.sampled_from("aabc")
    few = st.integers(1, 5)
    rarely = st.integers(0, 11).map(lambda n: n == 7)
    sometimes = st.sampled_from([False, False, True])
    sizes = st.integers(1, 12)

    class LedgerMachine(RuleBasedStateMachine):
        """Chooses what to do next."""

        pair: LedgerPair

        @initialize(size=st.sampled_from([2, 4, 8, 32]), count=st.integers(5, 60))
        def begin(self, size: int, count: int) -> None:
            self.pair = LedgerPair(size)
            self.requests = 0
            self.pair.put(count)
            self.pair.commit(count)

        # -- drawing

        def some(self, data: st.DataObject, seqs: Sequence[int]) -> list[Run]:
            """Some of `seqs`, shuffled, some twice; a few others; as runs of one or joined."""
            chosen = data.draw(st.lists(st.sampled_from(seqs), min_size=1, max_size=12)) if seqs else []
            if data.draw(st.booleans()):
                lo, hi = sorted((min(chosen, default=0), max(chosen, default=0) + 1))
                return [(lo, hi)]
            chosen += data.draw(st.lists(st.integers(-1, self.pair.ledger.puts + 1), max_size=2))
            return singles(chosen)

        def a_lease(self, data: st.DataObject) -> int:
            """A lease, mostly a living one."""
            alive = sorted(self.pair.model.leases)
            if alive and not data.draw(rarely):
                return data.draw(st.sampled_from(alive))
            return data.draw(st.sampled_from(sorted(self.pair.granted) or [77]))

        def of_lease(self, data: st.DataObject, lease: int) -> list[Run] | None:
            """All of a lease, or some of what it was once granted."""
            if data.draw(rarely) and lease in self.pair.model.leases:
                return None
            return self.some(data, self.pair.granted.get(lease, []))

        def in_state(self, *states: MessageState) -> list[int]:
            messages = enumerate(self.pair.model.messages)
            return [seq for seq, message in messages if message.state in states]

        # -- rules

        @rule(count=sizes, fails=rarely, commit=st.booleans())
        @precondition(lambda self: len(self.pair.model.pick(12)) < 12 and self.pair.ledger.puts < 150)
        def put(self, count: int, fails: bool, commit: bool) -> None:
            with self.journal(fails):
                self.pair.put(count)
            if commit:
                self.pair.commit(self.pair.ledger.puts)

        @rule(producer=st.integers(0, 2), off=st.sampled_from([0, 0, 0, -1, -2, -3, 1]), count=sizes, fails=rarely)
        @precondition(lambda self: len(self.pair.model.pick(12)) < 12 and self.pair.ledger.puts < 150)
        def put_numbered(self, producer: int, off: int, count: int, fails: bool) -> None:
            number = max(0, len(self.pair.model.producers.get(producer, [])) + off)
            with self.journal(fails):
                self.pair.put_numbered(producer, number, count)

        @rule(data=st.data())
        @precondition(lambda self: self.pair.model.committed < self.pair.ledger.puts)
        def commit(self, data: st.DataObject) -> None:
            self.pair.commit(data.draw(st.integers(self.pair.model.committed, self.pair.ledger.puts)))

        @rule(limits=st.lists(few, min_size=1, max_size=3), owner=owners, ttl=st.integers(1, 60), once=sometimes)
        @precondition(lambda self: self.pair.model.pick(1))
        def lease(self, limits: list[int], owner: str, ttl: int, once: bool) -> None:
            for limit in limits:
                self.requests += 1
                self.pair.lease(limit, owner, ttl, once=once, request=self.requests)

        @rule(limit=sizes, owner=owners, fails=rarely)
        @precondition(lambda self: self.pair.model.pick(1))
        def lease_unnumbered(self, limit: int, owner: str, fails: bool) -> None:
            with self.journal(fails):
                self.pair.lease(limit, owner)

        @rule(limit=few, owner=owners, data=st.data(), fails=rarely)
        @precondition(lambda self: len(self.pair.model.pick(3)) == 3)
        def lease_choosy(self, limit: int, owner: str, data: st.DataObject, fails: bool) -> None:
            mask = data.draw(st.integers(1, 2**16 - 1))
            wanted = {seq for seq in range(self.pair.ledger.puts) if mask >> (seq % 16) & 1}
            with self.journal(fails):
                self.pair.lease(limit, owner, wanted=wanted)

        @rule(data=st.data(), keep=st.booleans(), fails=rarely)
        @precondition(lambda self: self.pair.granted)
        def ack(self, data: st.DataObject, keep: bool, fails: bool) -> None:
            lease = self.a_lease(data)
            with self.journal(fails):
                self.pair.ack(lease, self.of_lease(data, lease), keep=keep)

        @rule(data=st.data(), keep=st.booleans())
        @precondition(lambda self: len(self.pair.granted) > len(self.pair.model.leases))
        def ack_late(self, data: st.DataObject, keep: bool) -> None:
            old = sorted(set(self.pair.granted) - set(self.pair.model.leases))
            lease = data.draw(st.sampled_from(old))
            self.pair.ack(lease, self.some(data, self.pair.granted[lease]), keep=keep)

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.pair.granted)
        def give_back(self, data: st.DataObject, fails: bool) -> None:
            lease = self.a_lease(data)
            with self.journal(fails):
                self.pair.give_back(lease, self.of_lease(data, lease))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.pair.granted)
        def fail(self, data: st.DataObject, fails: bool) -> None:
            lease = self.a_lease(data)
            with self.journal(fails):
                self.pair.fail(lease, self.some(data, self.pair.granted.get(lease, [])))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: any(message.cancel for message in self.pair.model.messages))
        def agree(self, data: st.DataObject, fails: bool) -> None:
            asked = [message.lease for message in self.pair.model.messages if message.cancel]
            lease = self.a_lease(data) if data.draw(rarely) else data.draw(st.sampled_from(asked))
            assert lease is not None
            with self.journal(fails):
                self.pair.agree(lease, self.of_lease(data, lease))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.pair.model.leases)
        def cancel(self, data: st.DataObject, fails: bool) -> None:
            with self.journal(fails):
                self.pair.cancel(self.some(data, self.in_state(MessageState.READY, MessageState.DELIVERED)))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.in_state(MessageState.ACKED, MessageState.CANCELLED))
        def forget(self, data: st.DataObject, fails: bool) -> None:
            with self.journal(fails):
                self.pair.forget(self.some(data, self.in_state(MessageState.ACKED, MessageState.CANCELLED)))

        @rule(data=st.data())
        @precondition(lambda self: len(self.pair.model.leases) > 2)
        def owner_lost(self, data: st.DataObject) -> None:
            self.pair.owner_lost(data.draw(st.sampled_from(sorted(self.pair.model.deadlines))))

        @rule(data=st.data(), ttl=st.integers(-20, 100))
        @precondition(lambda self: self.pair.model.leases)
        def heartbeat(self, data: st.DataObject, ttl: int) -> None:
            owner = data.draw(st.sampled_from(sorted(self.pair.model.deadlines)))
            held: dict[int, tuple[int, int]] = {}
            for lease in self.pair.model.of(owner):
                if not data.draw(sometimes):
                    size = len(self.pair.granted[lease])
                    finished = data.draw(st.integers(0, size))
                    held[lease] = (finished, data.draw(st.integers(finished, size + 1)))
            if data.draw(rarely):
                held[data.draw(st.sampled_from(sorted(self.pair.granted)))] = (0, 1)
            requests = st.integers(0, self.requests)
            still_open = data.draw(st.sets(requests, max_size=3)) if data.draw(sometimes) else set()
            sent = self.requests - data.draw(st.sampled_from([0, 0, 1, 2]))
            self.pair.heartbeat(owner, held, still_open, sent, ttl)

        @rule(by=st.sampled_from([-60, -5, 5, 30, 120]))
        @precondition(lambda self: self.pair.model.leases)
        def clock(self, by: int) -> None:
            self.pair.now += by

        @rule(fails=rarely, late=st.integers(-1, 2))
        @precondition(lambda self: len(self.pair.model.leases) > 2)
        def due(self, fails: bool, late: int) -> None:
            """About when the next deadline comes."""
            self.pair.now = max(self.pair.now, min(self.pair.model.deadlines.values()) + late)
            with self.journal(fails):
                self.pair.due()

        @rule(by=st.integers(0, 50))
        @precondition(lambda self: self.pair.model.leases)
        def shift_deadlines(self, by: int) -> None:
            self.pair.shift_deadlines(by)

        @rule()
        @precondition(lambda self: self.pair.events)
        def repeat(self) -> None:
            self.pair.repeat()

        @rule(data=st.data(), kind=st.sampled_from([Acked, Returned, Cancelled, Delivered]))
        @precondition(lambda self: self.pair.model.leases and self.in_state(MessageState.GONE, MessageState.FAILED))
        def half_legal(self, data: st.DataObject, kind: type) -> None:
            """One message that can move, one that cannot: neither does."""
            pair = self.pair
            lease = data.draw(st.sampled_from(sorted(pair.model.leases)))
            ready = self.in_state(MessageState.READY) or [0]
            good = ready[0] if kind is Delivered else pair.model.held(lease)[0]
            bad = data.draw(st.sampled_from(self.in_state(MessageState.GONE, MessageState.FAILED)))
            runs = ((good, good + 1), (bad, bad + 1))
            if kind is Delivered:
                pair.refused(Delivered(0, runs, 12345, "a"))
            elif kind is Acked:
                pair.refused(Acked(0, runs, lease, keep=data.draw(st.booleans())))
            elif kind is Returned:
                pair.refused(Returned(0, runs, lease, Reason.RELEASED))
            else:
                pair.refused(Cancelled(0, runs, lease))

        def journal(self, fails: bool) -> _JournalFails:
            return _JournalFails(self.pair, fails)

        @invariant()
        def same(self) -> None:
            self.pair.compare()

        def teardown(self) -> None:
            if hasattr(self, "pair"):
                self.pair.compare_replayed()

    return LedgerMachine


class _JournalFails:
    """While entered, what is decided cannot be recorded and does not happen."""

    def __init__(self, pair: LedgerPair, fails: bool) -> None:
        self._pair, self._fails = pair, fails

    def __enter__(self) -> None:
        self._pair.journal_fails = self._fails

    def __exit__(self, *exc: object) -> None:
        self._pair.journal_fails = False
