"""`ledger_machine`: Hypothesis chooses what a `LedgerPair` does next, and looks for a walk on which the two differ.

The rules are steered by preconditions and weights: with a uniform choice most steps do nothing, few leases live at
the same time, and planted bugs are missed. At the end of a walk the ledger is recovered from what was recorded, in
three ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from daskqueue_core.batch import Run
from daskqueue_core.events import Acked, Blame, Cancelled, Delivered, Event, Reason, Returned
from daskqueue_core.states import MessageState
from daskqueue_core.testing.ledger_compare import compare
from daskqueue_core.testing.ledger_pair import LedgerPair, singles
from daskqueue_core.testing.ledger_recovery import compare_incomplete, compare_puts_first, compare_replayed
from daskqueue_core.testing.model import ModelMessage

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["ledger_machine"]

SCHEDULED, READY, DELIVERED = MessageState.SCHEDULED, MessageState.READY, MessageState.DELIVERED
FAILED, GONE = MessageState.FAILED, MessageState.GONE


def ledger_machine() -> type[RuleBasedStateMachine]:
    """The Hypothesis machine that drives a `LedgerPair`. Needs hypothesis (`daskqueue-core[testing]`)."""
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

    owners = st.sampled_from("aabc")
    few = st.integers(1, 5)
    rarely = st.integers(0, 11).map(lambda n: n == 7)
    sometimes = st.sampled_from([False, False, True])
    sizes = st.integers(1, 12)
    priorities = st.sampled_from([0, 0, 0, 1, -1])
    routes = st.sampled_from([0, 0, 1])
    served = st.sampled_from([None, None, None, (0,), (0, 1), (1, 7)])
    ahead = st.integers(-5, 60)  # a time, from now

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

        def any_message(self, flag: str) -> bool:
            return any(getattr(message, flag) for message in self.pair.model.messages)

        def holders(self, flag: str) -> list[int]:
            """The leases with a message that is flagged so."""
            messages: list[ModelMessage] = self.pair.model.messages
            return [message.lease for message in messages if message.lease and getattr(message, flag)]

        def later(self, time: int) -> int:
            return max(0, self.pair.now + time)

        def wants_more(self) -> bool:
            return len(self.pair.model.offered()) < 12 and self.pair.ledger.puts < 150

        # -- puts

        @rule(count=sizes, fails=rarely, commit=st.booleans(), priority=priorities, route=routes)
        @precondition(wants_more)
        def put(self, count: int, fails: bool, commit: bool, priority: int, route: int) -> None:
            with self.journal(fails):
                self.pair.put(count, priority=priority, route=route)
            if commit:
                self.pair.commit(self.pair.ledger.puts)

        @rule(
            count=few,
            fails=rarely,
            priority=priorities,
            route=routes,
            ready=st.one_of(st.none(), ahead),
            expires=st.one_of(st.none(), st.integers(-2, 40)),
            suspect=sometimes,
        )
        @precondition(wants_more)
        def put_with_options(
            self,
            count: int,
            fails: bool,
            priority: int,
            route: int,
            ready: int | None,
            expires: int | None,
            suspect: bool,
        ) -> None:
            with self.journal(fails):
                self.pair.put(
                    count,
                    priority=priority,
                    route=route,
                    ready_at=0 if ready is None else self.later(ready),
                    expires_at=0 if expires is None else self.later(expires),
                    suspect=suspect,
                )
            self.pair.commit(self.pair.ledger.puts)

        @rule(times=st.lists(ahead, min_size=1, max_size=6), fails=rarely, suspect=sometimes)
        @precondition(wants_more)
        def put_for_many_times(self, times: list[int], fails: bool, suspect: bool) -> None:
            with self.journal(fails):
                self.pair.put(len(times), ready_ats=[self.later(time) for time in times], suspect=suspect)
            self.pair.commit(self.pair.ledger.puts)

        @rule(producer=st.integers(0, 2), off=st.sampled_from([0, 0, 0, -1, -2, -3, 1]), count=st.integers(0, 9))
        @precondition(wants_more)
        def put_numbered(self, producer: int, off: int, count: int) -> None:
            number = max(0, len(self.pair.model.producers.get(producer, [])) + off)
            self.pair.put(count, producer=producer, number=number)

        @rule(names=st.sets(st.integers(0, 9), min_size=1, max_size=3), fails=rarely, delay=sometimes)
        @precondition(wants_more)
        def put_keyed(self, names: set[int], fails: bool, delay: bool) -> None:
            """Those of a few keys that may be used; now and then one that is in use."""
            keys = [str(name) for name in sorted(names)]
            free = [key for key in keys if not self.pair._is_blocked(key)]
            with self.journal(fails):
                keys = free or keys
                self.pair.put(len(keys), keys=keys, ready_at=self.later(20) if delay else 0)
            self.pair.commit(self.pair.ledger.puts)

        @rule(data=st.data())
        @precondition(lambda self: self.pair.model.committed < self.pair.ledger.puts)
        def commit(self, data: st.DataObject) -> None:
            self.pair.commit(data.draw(st.integers(self.pair.model.committed, self.pair.ledger.puts)))

        # -- leases

        @rule(limits=st.lists(few, min_size=1, max_size=3), owner=owners, ttl=st.integers(1, 60), once=sometimes)
        @precondition(lambda self: self.pair.model.offered())
        def lease(self, limits: list[int], owner: str, ttl: int, once: bool) -> None:
            for limit in limits:
                self.requests += 1
                self.pair.lease(limit, owner, ttl, once=once, request=self.requests)

        @rule(limit=sizes, owner=owners, fails=rarely, routes=served, suspects=st.booleans())
        @precondition(lambda self: self.pair.model.offered())
        def lease_of_routes(
            self, limit: int, owner: str, fails: bool, routes: tuple[int, ...] | None, suspects: bool
        ) -> None:
            with self.journal(fails):
                self.pair.lease(limit, owner, routes=routes, suspects=suspects)

        @rule(limit=few, owner=owners, data=st.data(), fails=rarely, routes=served)
        @precondition(lambda self: len(self.pair.model.offered()) > 2)
        def lease_choosy(
            self, limit: int, owner: str, data: st.DataObject, fails: bool, routes: tuple[int, ...] | None
        ) -> None:
            mask = data.draw(st.integers(1, 2**16 - 1))
            wanted = {seq for seq in range(self.pair.ledger.puts) if mask >> (seq % 16) & 1}
            with self.journal(fails):
                self.pair.lease(limit, owner, wanted=wanted, routes=routes)

        # -- reports

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

        @rule(data=st.data(), fails=rarely, blame=st.sampled_from(Blame), ready=st.one_of(st.none(), ahead))
        @precondition(lambda self: self.pair.granted)
        def give_back(self, data: st.DataObject, fails: bool, blame: Blame, ready: int | None) -> None:
            lease = self.a_lease(data)
            ready_at = 0 if ready is None else self.later(ready)
            with self.journal(fails):
                self.pair.give_back(lease, self.of_lease(data, lease), blame, ready_at)

        @rule(data=st.data(), fails=rarely, reason=st.sampled_from([Reason.RETRY, Reason.REJECTED, Reason.CRASHED]))
        @precondition(lambda self: self.pair.granted)
        def fail(self, data: st.DataObject, fails: bool, reason: Reason) -> None:
            lease = self.a_lease(data)
            with self.journal(fails):
                self.pair.fail(lease, self.some(data, self.pair.granted.get(lease, [])), reason)

        @rule(data=st.data(), fails=rarely, flag=st.sampled_from(["cancel", "overdue"]))
        @precondition(lambda self: self.holders("cancel") or self.holders("overdue"))
        def agree(self, data: st.DataObject, fails: bool, flag: str) -> None:
            asked = self.holders(flag) or sorted(self.pair.model.leases)
            lease = self.a_lease(data) if data.draw(rarely) else data.draw(st.sampled_from(asked))
            with self.journal(fails):
                self.pair.agree(lease, self.of_lease(data, lease), expired=flag == "overdue")

        # -- administration: rare, or nothing would be left to work on

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.pair.model.leases)
        def cancel(self, data: st.DataObject, fails: bool) -> None:
            with self.journal(fails):
                self.pair.cancel(self.some(data, self.in_state(SCHEDULED, READY, DELIVERED)))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.in_state(FAILED))
        def requeue(self, data: st.DataObject, fails: bool) -> None:
            with self.journal(fails):
                self.pair.requeue(self.some(data, self.in_state(FAILED)))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: len(self.in_state(FAILED)) > 2)
        def purge(self, data: st.DataObject, fails: bool) -> None:
            with self.journal(fails):
                self.pair.purge(self.some(data, self.in_state(FAILED)))

        @rule(data=st.data())
        @precondition(lambda self: len(self.in_state(DELIVERED, SCHEDULED)) > 4 and self.in_state(READY))
        def damage(self, data: st.DataObject) -> None:
            seqs = data.draw(st.lists(st.sampled_from(self.in_state(SCHEDULED, READY, DELIVERED)), max_size=3))
            self.pair.damage(singles(seqs))

        @rule(data=st.data(), fails=rarely)
        @precondition(lambda self: self.in_state(MessageState.ACKED, MessageState.CANCELLED, MessageState.EXPIRED))
        def forget(self, data: st.DataObject, fails: bool) -> None:
            ended = (MessageState.ACKED, MessageState.CANCELLED, MessageState.EXPIRED)
            with self.journal(fails):
                self.pair.forget(self.some(data, self.in_state(*ended)))

        # -- owners and time

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
                    held[lease] = (finished, min(finished + data.draw(st.sampled_from([0, 1, 1, 2, 9])), size + 1))
            if data.draw(rarely):
                held[data.draw(st.sampled_from(sorted(self.pair.granted)))] = (0, 1)
            requests = st.integers(0, self.requests)
            still_open = data.draw(st.sets(requests, max_size=3)) if data.draw(sometimes) else set()
            sent = self.requests - data.draw(st.sampled_from([0, 0, 1, 2]))
            self.pair.heartbeat(owner, held, still_open, sent, ttl)

        @rule(by=st.sampled_from([-60, -5, 5, 30, 120]))
        @precondition(lambda self: self.pair.model.next_at() is not None)
        def clock(self, by: int) -> None:
            self.pair.now += by

        @rule(fails=rarely, late=st.integers(-1, 2))
        @precondition(lambda self: self.pair.model.next_at() is not None)
        def due(self, fails: bool, late: int) -> None:
            """About when something happens by itself."""
            at = self.pair.model.next_at()
            assert at is not None
            self.pair.now = max(self.pair.now, at + late)
            with self.journal(fails):
                self.pair.due()

        @rule(by=st.integers(0, 50))
        @precondition(lambda self: self.pair.model.leases)
        def shift_deadlines(self, by: int) -> None:
            self.pair.shift_deadlines(by)

        # -- recovery, and what is not allowed

        @rule()
        @precondition(lambda self: self.in_state(FAILED, SCHEDULED) or self.any_message("suspect"))
        def reopen(self) -> None:
            self.pair.reopen()

        @rule()
        @precondition(lambda self: self.pair.events)
        def repeat(self) -> None:
            self.pair.repeat()

        @rule(data=st.data(), kind=st.sampled_from([Acked, Returned, Cancelled, Delivered]))
        @precondition(lambda self: self.pair.model.leases and self.in_state(GONE, FAILED))
        def half_legal(self, data: st.DataObject, kind: type) -> None:
            """One message that can move, one that cannot: neither does."""
            pair = self.pair
            lease = data.draw(st.sampled_from(sorted(pair.model.leases)))
            ready = self.in_state(READY) or [0]
            good = ready[0] if kind is Delivered else pair.model.held(lease)[0]
            bad = data.draw(st.sampled_from(self.in_state(GONE, FAILED)))
            runs = ((good, good + 1), (bad, bad + 1))
            event: Event = Cancelled(pair.now, runs, lease)
            if kind is Delivered:
                event = Delivered(-1000, runs, 12345, "a")
            elif kind is Acked:
                event = Acked(pair.now, runs, lease, keep=data.draw(st.booleans()))
            elif kind is Returned:
                event = Returned(pair.now, runs, lease, Reason.RELEASED)
            pair.refused(event)

        @rule(data=st.data())
        @precondition(lambda self: len(self.pair.events) > 8)
        def recover_what_is_left(self, data: st.DataObject) -> None:
            """Some records are lost."""
            positions = st.integers(0, len(self.pair.events) - 1)
            compare_incomplete(self.pair, data.draw(st.sets(positions, max_size=6)))

        def journal(self, fails: bool) -> _JournalFails:
            return _JournalFails(self.pair, fails)

        @invariant()
        def same(self) -> None:
            compare(self.pair)

        def teardown(self) -> None:
            if hasattr(self, "pair"):
                compare_replayed(self.pair)
                compare_puts_first(self.pair)

    return LedgerMachine


class _JournalFails:
    """While entered, what is decided cannot be recorded and does not happen."""

    def __init__(self, pair: LedgerPair, fails: bool) -> None:
        self._pair, self._fails = pair, fails

    def __enter__(self) -> None:
        self._pair.journal_fails = self._fails

    def __exit__(self, *exc: object) -> None:
        self._pair.journal_fails = False
