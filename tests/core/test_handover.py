"""A queue that is handed over is the same queue elsewhere, and nothing where it was."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import rule

from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate, lengths_column
from daskqueue_core.errors import DaskQueueError
from daskqueue_core.handover import REMEMBERED_QUEUES, Epochs, HandOver, QueueMoved
from daskqueue_core.outcomes import Failure, Outcome, Report
from daskqueue_core.protocols import Accepted, Demand, Known, Lease
from daskqueue_core.queue import TransientQueue
from daskqueue_core.states import MessageState
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.queue_machine import CLIENTS, HOUR, RecordedQueue, queue_machine

SECOND = 10**9
ME, OTHER = 1, 2
ENDS = ["ok", "ok", "retry", "later", "fail"]


def journey(state: HandOver) -> HandOver:
    """Over the network."""
    arrived: HandOver = pickle.loads(pickle.dumps(state))
    return arrived


def moved(queue: TransientQueue, clock: Callable[[], int], **options: Any) -> TransientQueue:
    """The queue on another host."""
    state = journey(queue.hand_over())
    return type(queue).take_over(state, clock=clock, epoch=state.epoch + 1, **options)


def everything(queue: TransientQueue) -> dict[str, Any]:
    """All that can be seen of a queue, and what decides on what it will do. Without its epoch and lease counter."""
    ledger, payloads, mail, kept = queue._ledger, queue._payloads, queue._mail, queue._kept
    columns = ledger.snapshot()
    del columns["META"]
    unfinished = [
        run
        for state in (MessageState.READY, MessageState.SCHEDULED, MessageState.DELIVERED)
        for run in ledger.runs_in(state)
    ]
    clients = {client: known.next for client, known in queue._names._clients.items()}
    return {
        "ledger": (columns, ledger.puts, ledger.committed, ledger.stale, ledger.dropped, ledger.overdue_at),
        "uuid": queue.uuid,
        "stats": queue.stats(),
        "next_ready_at": queue.next_ready_at(),
        "next_scheduled_at": queue.next_scheduled_at(),
        "parts": queue._parts(unfinished, ()),
        "dead": [(each.card, each.template, each.body, each.life) for each in queue._letters._letters.values()],
        "with exceptions": list(queue._letters._with_blob),
        "kept": (queue.read_kept(0, 1 << 60), kept._next, list(kept._collected.items()), list(kept._abandoned)),
        "kept by batch": {batch: list(numbers) for batch, numbers in kept._of.items()},
        "outboxes": {
            client: (box.read_at, box.items(), box.nbytes, box.read(1 << 60).outcomes)
            for client, box in mail._outboxes.items()
        },
        "followers": {seq: list(followers) for seq, followers in mail.followers.items()},
        "names": {client: [queue._names.find(client, n) for n in range(above)] for client, above in clients.items()},
        "given": clients,
        "entries": {
            base: (each.batch, each.put_at, each.route, each.live, each.known)
            for base, each in payloads._entries.items()
        },
        "requeued": {seq: (each.batch, each.template(), each.life) for seq, each in payloads._again.items()},
        "lost owners": list(queue._gone),
        "routes": list(queue._routes),
        "attempted": queue._attempted,
    }


# -- by chance


class MovingQueue(queue_machine()):  # type: ignore[misc]
    """The queue's machine, and now and then the queue moves. It is kept busy, so that there is something to move."""

    @rule(client=st.sampled_from(CLIENTS), block=st.booleans(), ends=st.permutations(ENDS), more=st.booleans())
    def work(self, client: int, block: bool, ends: list[str], more: bool) -> None:
        """Some tasks, of which most end in one way or another, and some of those are requeued."""
        keys = tuple(f"w{self.numbers}-{end}" for end in ends) if more else ()
        self.put(self.batch(client, len(ends), block, keep=Keep.KEEP if more else Keep.STREAM, keys=keys))
        self.lease(4, suspects=False, tags=None)
        if self.leases:
            self.settle(len(self.leases) - 1, ends, again=more)
        if more:
            self.requeue(0, 1)

    @rule()
    def move(self) -> None:
        """At any step."""
        queue, records = self.queue, self.queue.records
        for client, cursor in self.cursors.items():  # what was read and not acknowledged comes again, and is known
            box = queue._mail._outboxes.get(client)
            if box is not None and cursor[0] == box._epoch:
                for outcome, _ in box.items()[: cursor[1] - box._number]:
                    for start, stop in outcome.runs:
                        for at in range(start, stop):
                            self.heard[client, outcome.first + outcome.index + at, outcome.life] -= 1
        before = everything(queue)
        self.queue = moved(queue, self.clock, result_ttl=HOUR, result_max_bytes=None)
        self.queue.records = records
        after = everything(self.queue)
        for name, value in before.items():
            assert after[name] == value, name
        assert self.queue.epoch == queue.epoch + 1
        with pytest.raises(QueueMoved):
            queue.validate()


TestMovingQueue = MovingQueue.TestCase
TestMovingQueue.pytestmark = [pytest.mark.timeout(900)]


# -- by example


@pytest.fixture
def clock() -> ManualClock:
    """The clock of both hosts."""
    return ManualClock(1_000 * SECOND)


@pytest.fixture
def queue(clock: ManualClock) -> TransientQueue:
    """An empty queue."""
    return TransientQueue(clock=clock, uuid="q", epoch=4)


def batch(first: int, *bodies: bytes, **options: Any) -> Batch:
    """Singles of mine."""
    fields = {"client": ME, "first": first, "kind": Kind.CALL, "keep": Keep.STREAM, **options}
    return Batch(len(bodies), memoryview(b"".join(bodies)), lengths_column(list(bodies)), **fields)


def put(queue: TransientQueue, *batches: Batch, **options: Any) -> Accepted:
    """Admit them."""
    answer = queue.admit(batches, **options)
    assert isinstance(answer, Accepted)
    return answer


def lease(queue: TransientQueue, limit: int = 1, **options: Any) -> Lease:
    """Something must be ready."""
    granted = queue.lease(limit, **options)
    assert granted is not None
    return granted


def numbers(outcomes: tuple[Outcome, ...]) -> list[int]:
    """Whose outcomes these are, as their client counts."""
    return [each.first + each.index + at for each in outcomes for lo, hi in each.runs for at in range(lo, hi)]


OPERATIONS: dict[str, Callable[[TransientQueue], Any]] = {
    "put": lambda queue: queue.put(b"x"),
    "put_many": lambda queue: queue.put_many([]),
    "put_block": lambda queue: queue.put_block(b"x", 2),
    "admit": lambda queue: queue.admit([batch(9, b"x")], producer=7, number=0),
    "admit with keys": lambda queue: queue.admit([batch(9, b"x", keys=("k",))]),
    "poll": lambda queue: queue.poll(ME),
    "has_outcomes": lambda queue: queue.has_outcomes(ME),
    "subscribe": lambda queue: queue.subscribe(ME, 9, [(ME, 0)]),
    "subscribe by key": lambda queue: queue.subscribe(ME, 9, ["k"]),
    "lease": lambda queue: queue.lease(1),
    "lease of a lost owner": lambda queue: queue.lease(1, owner="gone", demand=Demand(1)),
    "ack": lambda queue: queue.ack(1),
    "nack": lambda queue: queue.nack(1, [0]),
    "settle": lambda queue: queue.settle(1, [Report(0, 1)]),
    "release": lambda queue: queue.release(1),
    "agree": lambda queue: queue.agree(1, [(0, 1)]),
    "heartbeat": lambda queue: queue.heartbeat("a", {}, (), 0),
    "owners": lambda queue: queue.owners(),
    "owner_lost": lambda queue: queue.owner_lost("a"),
    "shift_deadlines": lambda queue: queue.shift_deadlines(1),
    "next_ready_at": lambda queue: queue.next_ready_at(),
    "next_scheduled_at": lambda queue: queue.next_scheduled_at(),
    "tick": lambda queue: queue.tick(),
    "cancel": lambda queue: queue.cancel([(0, 1)]),
    "cancel_tasks": lambda queue: queue.cancel_tasks(ME, [(0, 0, 1)]),
    "cancel_named": lambda queue: queue.cancel_named([(ME, 0)]),
    "forget": lambda queue: queue.forget([(0, 1)]),
    "forget_tasks": lambda queue: queue.forget_tasks([(ME, 0)]),
    "read_kept": lambda queue: queue.read_kept(),
    "dead_letters": lambda queue: queue.dead_letters(),
    "requeue": lambda queue: queue.requeue(),
    "purge": lambda queue: queue.purge(MessageState.READY),
    "ready": lambda queue: queue.ready,
    "puts": lambda queue: queue.puts,
    "unfinished": lambda queue: queue.unfinished,
    "unfinished_of": lambda queue: queue.unfinished_of((Kind.CALL,)),
    "stats": lambda queue: queue.stats(),
    "depth": lambda queue: queue.depth(),
    "validate": lambda queue: queue.validate(),
    "hand_over": lambda queue: queue.hand_over(),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_it_is_closed(queue: TransientQueue, operation: str) -> None:
    """Whatever is asked of the old one is refused, so that its host sends the caller on."""
    put(queue, batch(0, b"x"))
    queue.owner_lost("gone")
    queue.hand_over()
    with pytest.raises(QueueMoved, match=r"queue q .*epoch 4") as caught:
        OPERATIONS[operation](queue)
    assert isinstance(caught.value, DaskQueueError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.uuid, again.epoch, str(again)) == ("q", 4, str(caught.value))


def test_every_operation_was_tried() -> None:
    """A new operation of a queue belongs into the list above."""
    public = {name for name in dir(TransientQueue) if not name.startswith("_")} - {
        "take_over",
        "close",
        "lapses_in_lease",
    }
    assert public == {name.split(" ")[0] for name in OPERATIONS}


def test_its_host_may_close_it(queue: TransientQueue) -> None:
    """That does nothing."""
    queue.hand_over()
    queue.close()
    with pytest.raises(QueueMoved):
        queue.stats()


def test_only_to_a_later_epoch(queue: TransientQueue, clock: ManualClock) -> None:
    """Lease ids and cursors of two hosts must differ."""
    state = queue.hand_over()
    with pytest.raises(ValueError, match="epoch 4: 4 is not later"):
        TransientQueue.take_over(state, clock=clock, epoch=4)
    assert TransientQueue.take_over(state, clock=clock, epoch=5).epoch == 5


def test_what_was_asked_of_the_old_host_is_asked_again(queue: TransientQueue, clock: ManualClock) -> None:
    """A put, a lease, a report, a cancel: each is answered as if it had been repeated at the old one."""
    first = put(queue, batch(0, b"a", b"b", b"c"), producer=77, number=0)
    granted = lease(queue, 2, owner="w", request=5)
    queue.settle(granted.id, [Report(0, 1, b"A")])
    queue.cancel([(2, 3)])
    there = moved(queue, clock)
    assert put(there, batch(0, b"a", b"b", b"c"), producer=77, number=0) == first
    again = lease(there, 9, owner="w", request=5)
    assert (again.id, again.runs, again.payloads) == (granted.id, ((1, 2),), [b"b"])
    assert there.settle(granted.id, [Report(0, 1, b"A")]) == 0
    assert there.cancel([(2, 3)]) == 0
    assert there.heartbeat("w", {}, (5,), 5) == {}
    assert there.stats().delivered == 1
    assert there.settle(granted.id, [Report(1, 2, b"B")]) == 1
    there.validate()
    assert there.puts == 3
    assert there.unfinished == 0


def test_its_own_leases_have_other_ids(queue: TransientQueue, clock: ManualClock) -> None:
    """The epoch is in them."""
    put(queue, batch(0, b"a", b"b"))
    old = lease(queue)
    new = lease(moved(queue, clock))
    assert (old.id >> 40, new.id >> 40) == (4, 5)


def test_outcomes_are_sent_again_from_the_start(queue: TransientQueue, clock: ManualClock) -> None:
    """What was acknowledged is gone; a cursor of the old host acknowledges nothing here."""
    put(queue, batch(0, b"a", b"b", b"c"))
    for _ in range(3):
        queue.ack(lease(queue))
    one = queue.poll(ME, None, 1)
    two = queue.poll(ME, one.cursor, 1)
    assert numbers(one.outcomes + two.outcomes) == [0, 1]
    there = moved(queue, clock)
    again = there.poll(ME, two.cursor)
    assert numbers(again.outcomes) == [1, 2]
    assert again.cursor[0] != two.cursor[0]
    assert there.poll(ME, again.cursor).outcomes == ()
    assert there.stats().undelivered_outcomes == 0


def test_who_waits_for_a_task_of_somebody_else_is_told(queue: TransientQueue, clock: ManualClock) -> None:
    """A follower by name, and one whose key was in use."""
    put(queue, batch(0, b"a", keys=("k",), keep=Keep.KEEP))
    assert queue.subscribe(OTHER, 50, ["k"]) == [Known.KNOWN]
    put(queue, batch(60, b"a", client=OTHER, keys=("k",), on_duplicate=OnDuplicate.RETURN))
    there = moved(queue, clock)
    there.settle(0, [Report(0, 1, b"A")])
    told = there.poll(OTHER).outcomes
    assert numbers(told) == [50, 60]
    assert [outcome.values for outcome in told] == [b"A", b"A"]


def test_a_dead_letter_lives_again_there(queue: TransientQueue, clock: ManualClock) -> None:
    """One with the body that its consumer sent, one whose block was kept for it; requeued here, or there."""
    put(queue, Batch(4, memoryview(b"block"), client=ME, keep=Keep.STREAM, function=b"f", shared=b"S"))
    granted = lease(queue, 4)
    own = [Failure(at, b"E", "no", body=body) for at, body in enumerate([b"one", b"", b"three", b""])]
    queue.settle(granted.id, [Report(0, 4, errors=tuple(own))])
    assert queue.requeue([(ME, 2), (ME, 3)]) == 2
    there = moved(queue, clock)
    there.validate()
    assert there.requeue() == 2
    there.validate()
    parts = lease(there, 4).parts
    assert [(bytes(part.body or b""), part.offset, part.first) for part in parts] == [
        (b"one", 0, 0),
        (b"block", 1, 1),
        (b"three", 0, 2),
        (b"block", 3, 3),
    ]
    assert {part.shared for part in parts} == {b"S"}
    there.ack(there._ledger.leases_of("local")[0].id)
    assert there.poll(ME).outcomes[-1].life == 1
    assert there.stats().nbytes == 0
    there.validate()


def test_attempts_are_counted_on(queue: TransientQueue, clock: ManualClock) -> None:
    """A consumer is told how often a task failed at the old host, and its client in the end; so do the counters."""
    put(queue, batch(0, b"a"))
    queue.nack(lease(queue), delay=0)
    there = moved(queue, clock)
    assert lease(there).attempts == [1]
    there.ack(there._ledger.leases_of("local")[0].id)
    assert there.poll(ME).outcomes[0].attempts == bytes([2])
    assert there.stats().retries == 1


def test_lives_are_counted_on(queue: TransientQueue, clock: ManualClock) -> None:
    """Of a task that was requeued twice, and moved in between in every state."""
    put(queue, batch(0, b"a"))
    for _ in range(2):
        queue.nack(lease(queue))
        queue = moved(queue, clock)
        assert queue.requeue() == 1
        queue = moved(queue, clock)
    queue.ack(lease(queue))
    assert [outcome.life for outcome in queue.poll(ME).outcomes] == [0, 1, 2]
    queue.validate()


def test_results_of_a_client_that_is_gone(queue: TransientQueue, clock: ManualClock) -> None:
    """They stay for others, and make room first, at the new host as well; new ones are not mistaken for old ones."""
    put(queue, batch(0, b"a", b"b", keep=Keep.KEEP))
    queue.settle(lease(queue, 2).id, [Report(0, 1, b"A" * 1000), Report(1, 2, b"B" * 1000)])
    queue.forget_tasks([(ME, 0)])
    clock.set(clock() + 3600 * SECOND)
    queue.tick()
    there = moved(queue, clock, result_max_bytes=1500)
    put(there, batch(5, b"c", client=OTHER, keep=Keep.KEEP))
    there.ack(lease(there))
    assert [client for client, _ in there.read_kept()[1]] == [ME, OTHER]
    put(there, batch(6, b"d", client=OTHER, keep=Keep.KEEP))
    there.settle(lease(there).id, [Report(3, 4, b"D" * 1000)])
    assert [client for client, _ in there.read_kept()[1]] == [OTHER, OTHER]
    there.validate()


def test_names_of_what_is_over(queue: TransientQueue, clock: ManualClock) -> None:
    """A task whose result was given out is known as expired, one that was never put as unknown."""
    put(queue, batch(0, b"a"))
    queue.ack(lease(queue))
    there = moved(queue, clock)
    assert there.subscribe(OTHER, 0, [(ME, 0), (ME, 1)]) == [Known.EXPIRED, Known.UNKNOWN]


def test_a_copy_that_was_named_later(queue: TransientQueue, clock: ManualClock) -> None:
    """Of two batches with the same numbers the later one is meant, on each host; and nobody, when that is over."""
    put(queue, batch(0, b"a"))
    put(queue, batch(0, b"a"))
    there = moved(queue, clock)
    assert there.cancel_tasks(ME, [(0, 0, 1)]) == [(0, 0, 1)]
    assert [there._ledger.state(seq) for seq in (0, 1)] == [MessageState.READY, MessageState.CANCELLED]
    there = moved(there, clock)
    assert there.cancel_tasks(ME, [(0, 0, 1)]) == []
    there.validate()


def test_tags_go_where_they_went(queue: TransientQueue, clock: ManualClock) -> None:
    """The ledger's routes mean the same there."""
    put(queue, batch(0, b"plain"))
    put(queue, batch(1, b"gpu", tags=("gpu",)))
    there = moved(queue, clock)
    put(there, batch(2, b"gpu", tags=("gpu",)))
    assert lease(there, 9, demand=Demand(9)).payloads == [b"plain"]
    assert there.lease(9, demand=Demand(9)) is None
    assert lease(there, 9, demand=Demand(9, tags=("gpu",))).payloads == [b"gpu", b"gpu"]


def test_an_owner_that_was_lost_stays_lost(queue: TransientQueue, clock: ManualClock) -> None:
    """Its request was under way when the queue moved: nobody would end that lease."""
    put(queue, batch(0, b"a"))
    queue.owner_lost("w")
    assert moved(queue, clock).lease(1, owner="w") is None


def test_nobody_was_silent_on_the_way(queue: TransientQueue, clock: ManualClock) -> None:
    """A journey, or the clock of the new host, makes no lease lapse and no client absent."""
    put(queue, batch(0, b"a", b"b"), batch(2, b"c", client=OTHER))
    granted = lease(queue, 2, owner="w", ttl=30 * SECOND)
    queue.settle(granted.id, [Report(0, 1, b"A")])
    queue.poll(ME)
    clock.set(clock() + 20 * SECOND)
    later = ManualClock(clock() + 7200 * SECOND)
    there = moved(queue, later)
    there.tick()
    assert there.stats().delivered == 1
    assert there.has_outcomes(ME)
    assert there.next_ready_at() == later() + 10 * SECOND
    later.set(later() + 11 * SECOND)
    there.tick()
    assert there.stats().delivered == 0


def test_a_clock_that_is_behind(queue: TransientQueue, clock: ManualClock) -> None:
    """Deadlines never come nearer."""
    put(queue, batch(0, b"a"))
    lease(queue, owner="w", ttl=30 * SECOND)
    there = moved(queue, ManualClock(clock() - 100 * SECOND))
    assert there.next_ready_at() == clock() + 30 * SECOND


def test_what_waits_for_its_time(queue: TransientQueue, clock: ManualClock) -> None:
    """Delays and expiry are times of day: they stay as they are."""
    put(queue, batch(0, b"later", ready_at=clock() + 5 * SECOND))
    put(queue, batch(1, b"soon", expires_at=clock() + 3 * SECOND))
    there = moved(queue, clock)
    clock.set(clock() + 3 * SECOND)
    there.tick()
    assert (there.stats().expired, there.stats().scheduled) == (1, 1)
    clock.set(clock() + 2 * SECOND)
    assert lease(there).payloads == [b"later"]


def test_kept_results_keep_their_time(queue: TransientQueue, clock: ManualClock) -> None:
    """Collected ones go after the rest of it, as the new host is told."""
    put(queue, batch(0, b"a", b"b", keep=Keep.KEEP))
    queue.settle(lease(queue, 2).id, [Report(0, 1, b"A"), Report(1, 2, b"B")])
    queue.poll(ME, queue.poll(ME, None, 1).cursor)
    clock.set(clock() + 60 * SECOND)
    there = moved(queue, clock, result_ttl=100 * SECOND)
    assert there.subscribe(OTHER, 0, [(ME, 0), (ME, 1)]) == [Known.KNOWN, Known.KNOWN]
    clock.set(clock() + 40 * SECOND)
    there.poll(ME)
    there.tick()
    assert there.subscribe(OTHER, 9, [(ME, 0), (ME, 1)]) == [Known.EXPIRED, Known.KNOWN]
    there.validate()


def test_the_room_is_that_of_the_new_host(queue: TransientQueue, clock: ManualClock) -> None:
    """Its options count; what came along is counted."""
    put(queue, batch(0, b"a", b"b"))
    assert moved(queue, clock, maxsize=2).admit([batch(2, b"c")]) == (0,)


def test_it_shares_nothing_that_changes(queue: TransientQueue, clock: ManualClock) -> None:
    """Two queues made of one value, without a journey: what happens to one does not reach the other."""
    put(queue, batch(0, b"a", keep=Keep.KEEP), batch(1, b"b", keys=()))
    queue.subscribe(OTHER, 0, [(ME, 1)])
    state = queue.hand_over()
    one, other = (TransientQueue.take_over(state, clock=clock, epoch=5) for _ in range(2))
    before = everything(other)
    one.subscribe(OTHER, 1, [(ME, 1)])
    put(one, batch(7, b"c", tags=("t",)))
    one.ack(lease(one, 2))
    one.poll(ME, one.poll(ME).cursor)
    one.owner_lost("w")
    assert everything(other) == before


def test_views_become_bytes_and_are_sent_once(queue: TransientQueue, clock: ManualClock) -> None:
    """`nbytes` says how large it is; what many share counts once, as it travels once."""
    frame = memoryview(bytearray(1_000_000))
    shared = b"S" * 100_000
    put(queue, *(Batch(10, frame, shared=shared, client=ME, first=10 * n, keep=Keep.KEEP) for n in range(5)))
    values = memoryview(bytearray(300_000))
    queue.settle(0, [Report(0, 1, values)])  # in the client's outbox, and kept
    state = queue.hand_over()
    assert 1_300_000 < state.nbytes < 1_500_000
    assert 0.9 < len(pickle.dumps(state)) / state.nbytes < 1.1
    there = TransientQueue.take_over(journey(state), clock=clock, epoch=5)
    there.validate()
    kept = there.read_kept()[1][0][1]
    assert there.poll(ME).outcomes[0].values is kept.values
    assert isinstance(kept.values, bytes)


def test_large_bodies_lie_apart(queue: TransientQueue, clock: ManualClock) -> None:
    """As they are, without a copy; what is left travels, and the queue is the same."""
    large, small = memoryview(bytearray(b"x" * 100)), memoryview(b"small")
    put(queue, Batch(1, large, client=1, first=0), Batch(1, small, client=1, first=1))
    state = queue.hand_over(apart=100)
    [(at, body)] = state.bodies
    assert body is large
    assert state.nbytes > 100
    state = journey(state._replace(bodies=()))._replace(bodies=[(at, body)])
    there = TransientQueue.take_over(state, clock=clock, epoch=state.epoch + 1)
    assert [bytes(part.body or b"") for part in lease(there, 2).parts] == [b"x" * 100, b"small"]


def test_a_hand_over_that_fails_changes_nothing(queue: TransientQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be no memory for the copy: then the queue goes on where it is."""

    def fail(*_: Any) -> Any:
        raise MemoryError

    put(queue, batch(0, b"a"))
    monkeypatch.setattr("daskqueue_core.handover.HandOver", fail)
    with pytest.raises(MemoryError):
        queue.hand_over()
    assert lease(queue).payloads == [b"a"]
    queue.validate()


def test_epochs() -> None:
    """Only upwards; of other queues nothing is known."""
    epochs = Epochs()
    assert epochs.admits("q", 0)
    epochs.saw("q", 3)
    epochs.saw("q", 1)
    assert [epochs.admits("q", epoch) for epoch in (0, 3, 4)] == [False, False, True]
    assert epochs.admits("r", 0)


def test_epochs_are_not_remembered_for_ever() -> None:
    """Those heard of longest ago go first."""
    epochs = Epochs()
    epochs.saw("old", 5)
    epochs.saw("used", 5)
    for number in range(REMEMBERED_QUEUES - 2):
        epochs.saw(f"q{number}", 0)
    epochs.saw("used", 6)
    epochs.saw("one more", 0)
    assert epochs.admits("old", 0)
    assert not epochs.admits("used", 6)


def test_the_recorder_moves_too(clock: ManualClock) -> None:
    """`take_over` makes a queue of its own class."""
    assert isinstance(moved(RecordedQueue(clock=clock), clock), RecordedQueue)
