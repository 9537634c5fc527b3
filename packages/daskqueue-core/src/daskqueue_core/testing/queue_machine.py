"""`queue_machine`: Hypothesis chooses what clients, consumers and operators do, and looks for a broken promise.

Checked at every step: what a lease ships is what was put, attempts and names included; and the queue's own invariants.
At the end of a walk everything is ended, and every task that was submitted must have been heard of by who submitted it,
once in each of its lives. Then another queue takes what was recorded, and must hold the same.

Not here: which state a message is in when; the ledger's own machine compares that with a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate, Part, lengths_column, times_column
from daskqueue_core.contents import Ride
from daskqueue_core.events import Event, Put
from daskqueue_core.outcomes import Cursor, Failure, FailureReason, Report
from daskqueue_core.protocols import Accepted, Demand, Lease
from daskqueue_core.queue import TransientQueue
from daskqueue_core.states import MessageState
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.time_requests import split_request, time_tag

if TYPE_CHECKING:
    from hypothesis.stateful import RuleBasedStateMachine

__all__ = ["RecordedQueue", "queue_machine"]

SECOND: Final = 10**9
HOUR: Final = 3600 * SECOND
CLIENTS: Final = (1, 2)
KEYS: Final = "abcd"


class RecordedQueue(TransientQueue):
    """Writes down all that happens to it, in memory."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.records: list[tuple[Event, Ride]] = []

    def _record(self, event: Event, ride: Ride) -> None:
        self.records.append((event, ride))

    def rebuilt(self) -> RecordedQueue:
        """A queue that took what was recorded."""
        other = RecordedQueue(clock=self._clock, uuid=self.uuid, result_ttl=self._kept.ttl, result_max_bytes=None)
        other._routes = self._routes
        for event, ride in self.records:
            other._take(event, ride)
            if isinstance(event, Put):  # what was recorded is durable
                other._commit(event)
        return other


def body_of(client: int, number: int) -> bytes:
    """The payload of a client's task, if it is a single."""
    return b"%d:%d" % (client, number)


def check_part(part: Part) -> None:
    """What a lease ships is what was put: of a block the block and the place in it, else the task's own body."""
    for at in range(part.count):
        name = body_of(part.client, part.first + at)
        if part.lengths:
            assert bytes(part.bodies()[at]) == name, f"{name!r} has {bytes(part.bodies()[at])!r}"
        else:
            base = int(bytes(part.body or b"").split(b":")[2])
            assert part.offset + at == part.first + at - base, f"{name!r} is at {part.offset + at} of {part.body!r}"
    assert part.keys == () or len(part.keys) == part.count
    assert part.attempts == b"" or len(part.attempts) == part.count


def queue_machine() -> type[RuleBasedStateMachine]:
    """The machine. Needs hypothesis (`daskqueue-core[testing]`)."""
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

    few = st.integers(1, 5)
    clients = st.sampled_from(CLIENTS)
    keeps = st.sampled_from([Keep.STREAM, Keep.STREAM, Keep.KEEP, Keep.NONE])
    delays = st.sampled_from([0, 0, 0, 0, SECOND, 2 * SECOND])
    tags = st.sampled_from([(), (), ("gpu",), ("big", "gpu"), (time_tag(60),), ("gpu", time_tag(9))])
    hows = st.lists(st.sampled_from(["ok", "ok", "retry", "later", "fail", "reject", "stop"]), min_size=1, max_size=4)

    class QueueMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.clock = ManualClock(1_000 * SECOND)
            self.queue = RecordedQueue(clock=self.clock, result_ttl=HOUR, result_max_bytes=None)
            self.leases: list[tuple[str, Lease]] = []
            self.owners = self.numbers = 0
            self.submitted: dict[int, set[int]] = {client: set() for client in CLIENTS}
            self.heard: Counter[tuple[int, int, int]] = Counter()  # client, number, life
            self.cursors: dict[int, Cursor] = {}
            self.requests: dict[int, int] = {}  # seconds, by the client's number

        # -- clients

        def put(self, batch: Batch) -> None:
            assert isinstance(self.queue.admit([batch]), Accepted)
            if batch.keep != Keep.NONE:
                self.submitted[batch.client].update(range(batch.first, batch.first + batch.count))

        def batch(self, client: int, count: int, block: bool, **options: Any) -> Batch:
            first = self.numbers
            self.numbers += count
            named = {"client": client, "first": first, "kind": Kind.CALL, "shared": b"S", **options}
            if block:
                return Batch(count, b"block:%d:%d" % (client, first), **named)
            bodies = [body_of(client, first + n) for n in range(count)]
            return Batch(count, b"".join(bodies), lengths_column(bodies), **named)

        @rule(client=clients, count=few, block=st.booleans(), keep=keeps, tags=tags, priority=st.integers(0, 1))
        def put_plain(self, client: int, count: int, block: bool, **options: Any) -> None:
            batch = self.batch(client, count, block, **options)
            self.requests.update(dict.fromkeys(range(batch.first, self.numbers), split_request(batch.tags)[1]))
            self.put(batch)

        @rule(client=clients, times=st.lists(delays, min_size=1, max_size=4), block=st.booleans(), keep=keeps)
        def put_later(self, client: int, times: list[int], block: bool, keep: Keep) -> None:
            column = times_column([time and self.clock() + time for time in times])
            self.put(self.batch(client, len(times), block, keep=keep, ready_ats=column))

        @rule(client=clients, count=few, block=st.booleans(), keep=keeps, delay=st.sampled_from([1, SECOND]))
        def put_expiring(self, client: int, count: int, block: bool, keep: Keep, delay: int) -> None:
            self.put(self.batch(client, count, block, keep=keep, expires_at=self.clock() + delay))

        @rule(
            client=clients,
            keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
            block=st.booleans(),
            keep=keeps,
            way=st.sampled_from(OnDuplicate),
        )
        def put_keyed(self, client: int, keys: list[str], block: bool, keep: Keep, way: OnDuplicate) -> None:
            self.put(self.batch(client, len(keys), block, keep=keep, keys=tuple(keys), on_duplicate=way))

        @rule(client=clients, acknowledge=st.booleans())
        def poll(self, client: int, acknowledge: bool) -> None:
            answer = self.queue.poll(client, self.cursors.get(client))
            if not acknowledge:
                return
            self.cursors[client] = answer.cursor
            for outcome in answer.outcomes:
                assert len(outcome.attempts) in (0, outcome.count), outcome
                for start, stop in outcome.runs:
                    for at in range(start, stop):
                        self.heard[client, outcome.first + outcome.index + at, outcome.life] += 1

        @rule(client=clients, number=st.integers(0, 60))
        def subscribe(self, client: int, number: int) -> None:
            first = self.numbers
            self.numbers += 1
            if self.queue.subscribe(client, first, [(3 - client, number)]) == [1]:
                self.submitted[client].add(first)

        @rule(client=clients, number=st.integers(0, 60), count=few)
        def cancel_tasks(self, client: int, number: int, count: int) -> None:
            for first, lo, hi in self.queue.cancel_tasks(client, [(number, 0, count)]):
                assert first == number
                assert 0 <= lo < hi <= count

        @rule(count=few)
        def put_without_options(self, count: int) -> None:
            base = self.queue._ledger.puts
            if count == 1:
                assert self.queue.put(b"mine") == base
            else:
                assert self.queue.put_many([b"mine"] * count) == range(base, base + count)

        # -- consumers

        @rule(
            limit=st.integers(1, 8),
            suspects=st.booleans(),
            tags=st.sampled_from([None, (), ("gpu", "big")]),
            time_left=st.sampled_from([None, -1.0, 9.0, 59.5, 1e6]),
        )
        def lease(
            self, limit: int, suspects: bool, tags: tuple[str, ...] | None, time_left: float | None = None
        ) -> None:
            self.owners += 1
            owner = f"w{self.owners}"
            demand = None if tags is None else Demand(8, tags=tags, time_left=time_left)
            lease = self.queue.lease(limit, owner=owner, demand=demand, suspects=suspects)
            if lease is not None:
                assert len(lease) <= limit
                self.leases.append((owner, lease))
                for part in lease.parts:
                    if part.client:
                        check_part(part)
                        if demand is not None and time_left is not None:
                            asked = max(self.requests.get(part.first + at, 0) for at in range(part.count))
                            assert not asked or asked <= time_left, f"{part} was leased with {time_left} s left"

        @precondition(lambda self: self.leases)
        @rule(which=st.integers(0, 9), hows=hows, again=st.booleans())
        def settle(self, which: int, hows: list[str], again: bool) -> None:
            at = which % len(self.leases)
            _, lease = self.leases[at] if again else self.leases.pop(at)
            for part in lease.parts:
                failures = [
                    self.failure(part, n, hows[n % len(hows)]) for n in range(part.count) if hows[n % len(hows)] != "ok"
                ]
                self.queue.settle(lease.id, [Report(part.start, part.stop, b"values", tuple(failures))])

        def failure(self, part: Part, index: int, how: str) -> Failure:
            retry_in = {"retry": 0, "later": SECOND}.get(how, -1)
            reason = {"reject": FailureReason.REJECTED, "stop": FailureReason.CANCELLED}.get(how, FailureReason.FAILED)
            body = b"" if part.lengths or index % 2 else body_of(part.client, part.first + index)
            return Failure(index, b"E" * index, how, retry_in, body, reason)

        @precondition(lambda self: self.leases)
        @rule(which=st.integers(0, 9))
        def ack(self, which: int) -> None:
            _, lease = self.leases.pop(which % len(self.leases))
            assert self.queue.ack(lease) <= len(lease)
            assert self.queue.ack(lease) == 0

        @precondition(lambda self: self.leases)
        @rule(which=st.integers(0, 9))
        def release(self, which: int) -> None:
            _, lease = self.leases.pop(which % len(self.leases))
            self.queue.release(lease)

        @precondition(lambda self: self.leases)
        @rule(which=st.integers(0, 9), begun=st.integers(0, 3))
        def lose_owner(self, which: int, begun: int) -> None:
            owner, lease = self.leases.pop(which % len(self.leases))
            self.queue.heartbeat(owner, {lease.id: (0, begun)}, [], 0)
            self.queue.owner_lost(owner)

        # -- operators and time

        @rule(seq=st.integers(0, 60), count=few)
        def cancel(self, seq: int, count: int) -> None:
            self.queue.cancel([(seq, seq + count)])

        @precondition(lambda self: self.queue.dead_letters())
        @rule(which=st.integers(0, 9), count=few)
        def requeue(self, which: int, count: int) -> None:
            letters = self.queue.dead_letters()[which:][:count]
            names = [letter.key if letter.key is not None else (letter.client, letter.number) for letter in letters]
            assert self.queue.requeue(names) == len(names)

        @rule(state=st.sampled_from(["FAILED", "FAILED", "READY", "ACKED"]), key=st.sampled_from([None, *KEYS]))
        def purge(self, state: str, key: str | None) -> None:
            self.queue.purge(MessageState[state], None if key is None else [key])

        @rule(key=st.sampled_from(KEYS))
        def forget(self, key: str) -> None:
            self.queue.forget_tasks([key])

        @rule(by=st.sampled_from([SECOND, SECOND, SECOND, 2 * HOUR]))
        def wait(self, by: int) -> None:
            for client in CLIENTS:  # one that does not read for an hour is gone
                self.poll(client, True)
            self.clock.set(self.clock() + by)
            self.queue.tick()

        # -- checks

        @invariant()
        def is_valid(self) -> None:
            self.queue.validate()

        def teardown(self) -> None:
            queue = self.queue
            _compare(queue, queue.rebuilt())
            for _, lease in self.leases:
                queue.release(lease)
            queue.cancel([(0, queue.puts)])
            assert queue.unfinished == 0
            for client in CLIENTS:
                self.poll(client, True)
                lives = {number for of, number, _ in self.heard if of == client}
                assert self.submitted[client] <= lives, (
                    f"client {client} never heard of {self.submitted[client] - lives}"
                )
            twice = {heard: times for heard, times in self.heard.items() if times > 1}
            assert not twice, f"told more than once: {twice}"
            queue.validate()

    return QueueMachine


def _compare(queue: RecordedQueue, other: RecordedQueue) -> None:
    """`other` took what `queue` recorded."""
    other.validate()
    for name in ("puts", "delivered", "acked", "failed", "cancelled", "expired", "nbytes", "retries", "calls", "items"):
        mine, its = getattr(queue.stats(), name), getattr(other.stats(), name)
        assert mine == its, f"{name}: {mine}, but {its} when it is built from what was recorded"
    assert queue.dead_letters() == other.dead_letters()
    for state in (MessageState.READY, MessageState.SCHEDULED, MessageState.DELIVERED):
        for start, stop in queue._ledger.runs_in(state):
            assert _parts(queue._parts, start, stop) == _parts(other._parts, start, stop)


def _parts(parts: Callable[..., Sequence[Part]], start: int, stop: int) -> list[tuple[Any, ...]]:
    return [tuple(bytes(x) if isinstance(x, memoryview) else x for x in part) for part in parts([(start, stop)], ())]
