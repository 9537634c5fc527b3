"""What may become of a message, all of it, with crashes between and within: a random walk against a small model.

`test_durable_walk` knows exactly what a crash may leave of puts and acknowledgements. Here there are also delays,
expiry, keys, cancelling of what is held, lost owners, retries, requeued, purged and forgotten messages; known is for
each message the way of its states, and up to where that is durable. A crash may set it back on that way, never further,
and never aside. The invariants have the names that they have there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_core.protocols import Accepted
from daskqueue_core.states import MessageState
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles

CLIENT = 7
SECOND = 10**9
OPEN, ABSENT = "open", "absent"
STATES = {
    MessageState.SCHEDULED: OPEN,
    MessageState.READY: OPEN,
    MessageState.DELIVERED: OPEN,
    MessageState.ACKED: "done",
    MessageState.FAILED: "dead",
    MessageState.CANCELLED: "cancelled",
    MessageState.EXPIRED: "expired",
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Crashes are reported, and looked at."""
    caplog.set_level(logging.CRITICAL, "daskqueue_storage")


class Message:
    """What is known of one. `way`: its states; those before `sure` cannot come back."""

    def __init__(self, number: int, payload: bytes, priority: int, ready_at: int, expires_at: int, key: str) -> None:
        self.number = number  # the client's
        self.payload = payload
        self.priority = priority
        self.ready_at = ready_at
        self.times = [ready_at]  # those that may come back, then it
        self.expires_at = expires_at
        self.key = key
        self.seq = -1  # not known as long as its put has not returned
        self.way = [ABSENT, OPEN]
        self.sure = 0
        self.asked = False  # to stop; somebody holds it
        self.surely_asked = False  # that was recorded
        self.once_asked = False  # on a way that may come to light again: the end of it may be lost
        self.robbed = False  # another has its key; both that and the asking may be lost
        self.fresh = not ready_at and not expires_at
        self.value: bytes | None = None

    @property
    def state(self) -> str:
        """The last."""
        return self.way[-1]

    def may_be(self) -> set[str]:
        """After a crash."""
        return set(self.way[self.sure :])


class Walk:
    """One directory, one model, one source of chance."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.sync = self.chance.choice(["batch", "batch", "none", 1.0])
        self.files = SimFiles(seed=seed)
        self.messages: list[Message] = []
        self.leases: list[tuple[int, str, list[Message]]] = []
        self.numbers = self.owners = self.producers = 0
        self.highest = -1
        self.holes = False
        self.queue = self.opened(self.files)

    def opened(self, files: SimFiles) -> DurableQueue:
        """The queue of a disk."""
        options: dict[str, Any] = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 11.0, "result_ttl": None}
        return DurableQueue("/queue", files=files, sync=self.sync, **options)

    # ------------------------------------------------------------------------------------------------------ the model

    def now(self) -> int:
        """The queue's time."""
        return self.queue._clock()

    def by_seq(self) -> dict[int, Message]:
        """Those whose number is known."""
        return {one.seq: one for one in self.messages if one.seq >= 0}

    def held(self) -> dict[int, Message]:
        """What somebody holds."""
        return {one.seq: one for _, _, members in self.leases for one in members}

    def some(self, state: str, *, held: bool | None = False) -> list[Message]:
        """A few in that state; held or not, or either."""
        holders = self.held()
        there = [one for one in self.messages if one.state == state and held in (None, one.seq in holders)]
        return self.chance.sample(there, min(len(there), self.chance.randint(1, 4)))

    def become(self, messages: Sequence[Message], state: str, act: Callable[[], Any], *, lasts: bool = True) -> Any:
        """Do it. What must last is durable when that returns, if the policy says so."""
        for one in messages:
            one.way.append(state)
        answer = act()
        if lasts and self.sync == "batch":
            for one in messages:
                one.sure = len(one.way) - 1
                one.once_asked = one.asked
        return answer

    def all_sure(self) -> None:
        """Everything is on disk."""
        for one in self.messages:
            one.way, one.sure, one.once_asked = one.way[-1:], 0, one.asked
            one.times = [one.ready_at]
            if one.robbed:
                one.key, one.robbed = "", False

    def back(self, messages: Sequence[Message], act: Callable[[], Any], *, lasts: bool = False) -> Any:
        """Held ones go back: what was asked to stop does."""
        stopped = [one for one in messages if one.asked]
        return self.become(stopped, "cancelled", act, lasts=lasts)

    def look_at_time(self) -> None:
        """What has expired meanwhile did so in time, and was told when it was safe."""
        now, ledger = self.now(), self.queue._ledger
        for one in self.messages:
            if one.state == OPEN and one.seq >= 0 and ledger.state(one.seq) is MessageState.EXPIRED:
                assert 0 < one.expires_at <= now, f"{one.seq} expired too early"
                self.become([one], "expired", lambda: None, lasts=False)
                self.leases = [
                    (number, owner, [each for each in of if each is not one]) for number, owner, of in self.leases
                ]

    # ----------------------------------------------------------------------------------------------------------- rules

    def put(self, key: str = "", on_duplicate: int = OnDuplicate.RETURN) -> None:
        """One batch; all of it or nothing. Sometimes later, sometimes not for ever, sometimes under a key."""
        count = 1 if key else self.chance.choice([1, 1, 3, 12])
        options: dict[str, Any] = {"priority": self.chance.choice([0, 0, 0, 1, -3]), "max_crashes": 200}
        if self.chance.random() < 0.3:
            options["ready_at"] = self.now() + self.chance.choice([SECOND, 20 * SECOND])
        if self.chance.random() < 0.3:
            options["expires_at"] = self.now() + self.chance.choice([2 * SECOND, 30 * SECOND])
        if key:
            options |= {"keys": (key,), "on_duplicate": on_duplicate}
        first = self.numbers
        self.numbers += count
        payloads = [b"%06d" % (first + at) + bytes(self.chance.choice([0, 90, 700])) for at in range(count)]
        batch = Batch(
            count,
            b"".join(payloads),
            lengths_column(payloads),
            kind=Kind.CALL,
            client=CLIENT,
            first=first,
            keep=Keep.KEEP,
            **options,
        )
        times = options.get("ready_at", 0), options.get("expires_at", 0)
        new = [Message(first + at, body, batch.priority, *times, key) for at, body in enumerate(payloads)]
        holder = self.holder(key)
        if holder is not None:
            self.make_way(batch, holder, new)
            return
        self.messages += new
        self.admit(batch, new)

    def holder(self, key: str) -> Message | None:
        """Whose key it is."""
        return next(
            (
                one
                for one in reversed(self.messages)
                if key and one.key == key and not one.robbed and one.state != ABSENT
            ),
            None,
        )

    def make_way(self, batch: Batch, holder: Message, new: list[Message]) -> None:
        """A put whose key is somebody's: that one blocks it, is replaced, or has ended and is gone."""
        if holder.asked:  # it is on its way out: whoever comes may have its key
            holder.robbed = True
            self.messages += new
            self.admit(batch, new)
            if self.sync == "batch":
                holder.key, holder.robbed = "", False
            return
        blocks = holder.state in (OPEN, "done")
        if blocks and (batch.on_duplicate != OnDuplicate.REPLACE or holder.seq in self.held()):
            if batch.on_duplicate != OnDuplicate.REPLACE:
                answer = self.queue.admit([batch])
                assert isinstance(answer, Accepted)
                assert answer.count == 0, f"{holder.seq} is {holder.state} and has the key"
            return
        unsure = holder.sure < len(holder.way) - 1
        if blocks and holder.state == OPEN:
            holder.way.append("cancelled")
        holder.way.append(ABSENT)
        holder.robbed = holder.once_asked  # if how it ended is lost, this takes its key only: it was to stop
        self.messages += new
        self.admit(batch, new)
        if self.sync == "batch":  # what it was given back with may still be lost
            holder.sure = len(holder.way) - (2 if unsure and holder.robbed else 1)

    def admit(self, batch: Batch, new: list[Message]) -> None:
        """Its producer may ask again."""
        self.producers += 1
        answers = [
            self.queue.admit([batch], producer=self.producers, number=0) for _ in range(self.chance.choice([1, 1, 2]))
        ]
        assert answers == answers[:1] * len(answers)
        [answer] = answers[:1]
        assert isinstance(answer, Accepted)
        assert answer.count == len(new)
        assert answer.base > self.highest, "a number was given twice"
        self.highest = answer.base + answer.count - 1
        for at, one in enumerate(new):
            one.seq = answer.base + at
            if self.sync == "batch":
                one.sure = 1

    def put_keyed(self) -> None:
        """Of few keys."""
        self.put(f"key {self.chance.randint(0, 3)}", self.chance.choice(list(OnDuplicate)))

    def lease(self) -> None:
        """I2, I3, I4; not before its time and not after."""
        known, held = self.by_seq(), self.held()
        self.owners += 1
        owner = f"w{self.owners}"
        fresh = [one for one in self.messages if one.state == OPEN and one.fresh and one.seq not in held]
        lease = self.queue.lease(self.chance.randint(1, 12), owner=owner)
        if lease is None:
            assert not fresh, "nothing is ready?"
            return
        now = self.now()
        for part in lease.parts:
            for at, body in enumerate(part.bodies()):
                one = known[part.start + at]
                assert one.state == OPEN, f"I2: {one.seq} is {one.state}, and delivered"
                assert one.seq not in held, f"{one.seq} has two holders"
                assert bytes(body) == one.payload, f"I3: {bytes(body)[:8]!r} under {one.seq}"
                assert not one.asked, f"{one.seq} was to be cancelled, and is delivered"
                assert one.ready_at <= now, f"{one.seq} is delivered too early"
                assert not 0 < one.expires_at <= now, f"{one.seq} is delivered too late"
        out = [known[seq] for seq in lease.ids if known[seq].fresh]
        assert out == sorted(fresh, key=lambda one: (-one.priority, one.seq))[: len(out)], "I4"
        members = [known[seq] for seq in lease.ids]
        for one in members:
            one.fresh = False
        self.leases.append((lease.id, owner, members))

    def one_lease(self) -> tuple[int, str, list[Message]] | None:
        """Any."""
        self.leases = [lease for lease in self.leases if lease[2]]
        return self.chance.choice(self.leases) if self.leases else None

    def let_go(self, lease: tuple[int, str, list[Message]], members: Sequence[Message]) -> None:
        """Nobody holds these any more."""
        for one in members:
            one.asked = one.surely_asked = False  # but if its end is lost, it was once
            if one in lease[2]:
                lease[2].remove(one)

    def ack(self) -> None:
        """Some of a lease, each with a value."""
        if (lease := self.one_lease()) is None:
            return
        for one in self.chance.sample(lease[2], self.chance.randint(1, len(lease[2]))):
            one.value = b"value %d" % one.number
            report = Report(one.seq, one.seq + 1, one.value)
            assert self.become([one], "done", lambda report=report: self.queue.settle(lease[0], [report])) == 1
            self.let_go(lease, [one])

    def fail(self) -> None:
        """One of a lease, for good."""
        if (lease := self.one_lease()) is not None:
            one = self.chance.choice(lease[2])
            act = lambda: self.queue.nack(lease[0], [one.seq], error=b"E", text="no")
            assert self.become([one], "dead", act) == 1
            self.let_go(lease, [one])

    def retry(self) -> None:
        """One of a lease, to be tried again now or later."""
        if (lease := self.one_lease()) is not None:
            one, delay = self.chance.choice(lease[2]), self.chance.choice([0.0, 1.0, 25.0])
            ready_at = self.now() + int(delay * 1e9) if delay else 0
            one.times.append(ready_at)
            assert self.back([one], lambda: self.queue.nack(lease[0], [one.seq], delay=delay)) == 1
            one.ready_at = ready_at
            self.let_go(lease, [one])

    def release(self) -> None:
        """All of a lease, not begun."""
        if (lease := self.one_lease()) is not None:
            members = list(lease[2])
            assert self.back(members, lambda: self.queue.release(lease[0])) == len(members)
            self.let_go(lease, members)

    def lose_owner(self) -> None:
        """It was running all of it, for all we know."""
        if (lease := self.one_lease()) is not None:
            members = list(lease[2])
            assert self.back(members, lambda: self.queue.owner_lost(lease[1])) == len(members)
            self.let_go(lease, members)

    def cancel(self) -> None:
        """Those that nobody holds end; of the others the holder is asked."""
        for one in self.some(OPEN, held=None):
            run = [(one.seq, one.seq + 1)]
            if one.seq in self.held():
                one.asked = one.once_asked = True
                self.queue.cancel(run)
                one.surely_asked = True
            else:
                assert self.become([one], "cancelled", lambda run=run: self.queue.cancel(run)) == 1

    def purge(self) -> None:
        """Dead letters, or what waits."""
        chosen = self.some(self.chance.choice(["dead", OPEN]))
        runs = [(one.seq, one.seq + 1) for one in sorted(chosen, key=lambda one: one.seq)]
        if runs:
            assert self.become(chosen, ABSENT, lambda: self.purged(runs)) == len(chosen)

    def purged(self, runs: list[tuple[int, int]]) -> int:
        """As `purge`, by number: not all of them are in one state."""
        with self.queue._operation():
            return self.queue._apply(self.queue._ledger.decide_purge(runs, self.now()))

    def forget(self) -> None:
        """Results, and what ended without one."""
        for one in self.some(self.chance.choice(["done", "done", "cancelled", "expired"])):
            run = [(one.seq, one.seq + 1)]
            assert self.become([one], ABSENT, lambda run=run: self.queue.forget(run)) == 1

    def requeue(self) -> None:
        """Dead letters live again. Those that could expire do not begin anew here."""
        chosen = [one for one in self.some("dead") if not one.expires_at]
        if chosen:
            names = [(CLIENT, one.number) for one in chosen]
            for one in chosen:
                one.times.append(0)
            assert self.become(chosen, OPEN, lambda: self.queue.requeue(names)) == len(chosen)
            for one in chosen:
                one.ready_at = 0

    def time_passes(self) -> None:
        """And is noticed: what is over by then and held by nobody has expired."""
        seconds = self.chance.choice([0.5, 1.5, 8.0])
        self.files.advance(seconds)
        if self.sync == 1.0 and seconds > 1:
            self.all_sure()
        self.queue.tick()
        self.look_at_time()
        for one in self.messages:
            over = 0 < one.expires_at <= self.now() and one.seq not in self.held()
            assert not (over and one.state == OPEN), f"{one.seq} is over its time"

    def snapshot(self) -> None:
        """Replaying begins here from now on."""
        self.queue._snapshot()
        self.all_sure()

    def compact(self) -> None:
        """What is needed moves, the rest goes."""
        self.queue.compact()
        self.all_sure()

    # ------------------------------------------------------------------------------------------------------- the ends

    def close_and_open(self) -> None:
        """Cleanly."""
        self.queue.close()
        self.all_sure()
        self.reopen(self.files, "kill")
        assert self.queue.report.clean

    def crash(self) -> None:
        """Between two operations, or in the middle of one, perhaps in the recovery too."""
        mode, seed = self.chance.choice(CRASH_MODES), self.chance.randint(0, 99)
        if self.chance.random() < 0.6:
            self.files.crash_at(self.files.ops + self.chance.randint(1, 12))
            try:
                for _ in range(9):
                    self.chance.choice(DEEDS)(self)
                    self.look_at_time()
            except SimCrash:
                pass
        after = self.files.crash(mode, seed)
        if self.chance.random() < 0.3:
            after.crash_at(after.ops + self.chance.randint(1, 30))
            try:
                self.reopen(after, mode)
                after.crash_at(None)
                return
            except SimCrash:
                after, mode = after.crash("chaos", seed), "chaos"
        self.reopen(after, mode)

    def reopen(self, files: SimFiles, mode: str) -> None:
        """I1 to I3, I5, I6: each message is where its way may have led."""
        queue = self.opened(files)
        self.holes = self.holes or mode == "chaos"
        assert self.holes or queue.report.whole, f"I6: {queue.report}"
        queue.validate()
        seen = observed(queue)
        strange = {payload: seq for seq, (_, payload) in seen.items() if seq not in self.by_seq()}
        for one in self.messages:
            if one.seq < 0:
                one.seq = strange.get(one.payload, -1)
        known, held = self.by_seq(), self.held()
        assert set(seen) <= set(known), f"what nobody put: {set(seen) - set(known)}"
        for one in self.messages:
            state, payload = seen.get(one.seq, (ABSENT, b""))
            may = one.may_be()
            if OPEN in may and (one.asked or one.once_asked):
                may.add("cancelled")
            if one.robbed and mode != "kill" and self.sync != "batch":
                may.add(ABSENT)
            if OPEN in may and 0 < one.expires_at <= queue._clock():
                may.add("expired")
            assert state in may, f"{one.seq} is {state}; {mode}, {one.way} from {one.sure}, {one.asked}"
            assert state != OPEN or payload == one.payload, f"I3: {payload[:8]!r} under {one.seq}"
            key = queue._ledger.key_of(one.seq) or ""
            assert state == ABSENT or key == one.key or (one.robbed and not key), f"{one.seq} has the key {key!r}"
            one.key = key
            must_stop = one.surely_asked and one.seq in held and (mode == "kill" or self.sync == "batch")
            assert not (must_stop and state == OPEN), f"{one.seq} was to be cancelled, and is open again"
            one.way, one.sure, one.fresh = [state], 0, False
            one.asked = one.surely_asked = one.once_asked = one.robbed = False
            if state == OPEN:
                self.check_time(queue, one, mode)
        self.check_results(queue, known)
        self.messages = [one for one in self.messages if one.state != ABSENT]
        self.files, self.queue, self.leases = files, queue, []

    def check_time(self, queue: DurableQueue, one: Message, mode: str) -> None:
        """An open message waits for a time that it was given, if that is ahead; after a kill, for the last."""
        now, ledger = queue._clock(), queue._ledger
        times = one.times if mode != "kill" else [one.ready_at, one.times[-1]]
        if ledger.state(one.seq) is MessageState.SCHEDULED:
            [one.ready_at] = [at for at, start, stop in ledger.waiting.runs() if start <= one.seq < stop]
            assert one.ready_at <= now or one.ready_at in times, f"{one.seq} waits for what it was never told"
        else:
            assert min(times) <= now, f"{one.seq} is ready too early"
            one.ready_at = 0
        one.times = [one.ready_at]

    def check_results(self, queue: DurableQueue, known: dict[int, Message]) -> None:
        """I5."""
        values: dict[int, bytes] = {}
        after = 0
        while after >= 0:
            after, outcomes = queue.read_kept(after)
            for _, outcome in outcomes:
                for start, stop in outcome.runs if outcome.values else ():
                    for at in range(start, stop):
                        number = outcome.first + outcome.index + at
                        assert number not in values, f"I5: two results of {number}"
                        values[number] = bytes(outcome.values)
        for one in known.values():
            assert values.pop(one.number, None) == (one.value if one.state == "done" else None), f"I5: {one.seq}"
        assert not values, "I5: results of nobody"

    # ------------------------------------------------------------------------------------------------------ on copies

    def look_at_copies(self) -> None:
        """I7, I10, I11: whoever opens what a kill leaves, again, or looks without the lock, finds the same."""
        moving = {seq for seq, one in self.held().items() if one.asked or one.expires_at}
        here = {seq: what for seq, what in observed(self.queue).items() if seq not in moving}
        copy = self.files.crash("kill")
        first = self.opened(copy)
        found = observed(first)
        assert {seq: what for seq, what in found.items() if seq not in moving} == here, "I11"
        assert observed(self.opened(copy.crash("kill"))) == found, "I7"
        over = {one.seq for one in self.messages if 0 < one.expires_at <= self.now()}
        with ReadOnlyQueue("/queue", files=self.files.also()) as reader:
            read = {message.seq: message for message in reader.messages(bodies=True) if message.seq not in over}
        assert {seq: STATES[message.state] for seq, message in read.items()} == {
            seq: state for seq, (state, _) in observed(self.queue).items() if seq not in over
        }, "I10"

    def end(self) -> None:
        """I8: all is done, and the directory is small again."""
        self.look_at_copies()
        for number, _, _ in self.leases:
            self.queue.release(number)
        self.queue.requeue()
        for _ in range(200):
            self.files.advance(9)
            self.queue.tick()
            self.owners += 1
            while (lease := self.queue.lease(50, owner=f"w{self.owners}")) is not None:
                self.queue.ack(lease)
                self.owners += 1
            if not self.queue.unfinished:
                break
        assert self.queue.unfinished == 0
        self.queue._snapshot()
        while self.queue.compact():
            pass
        store = self.queue._store
        assert (len(store.shelf.segments), len(store.index_segments)) <= (1, 2), "I8"
        assert len(store.index_segments) <= 2, "I8"
        self.queue.close()
        with self.opened(self.files) as again:
            assert again.report.clean
            assert again.unfinished == 0


DEEDS: list[Callable[[Walk], None]] = [
    *(Walk.put, Walk.put, Walk.put_keyed, Walk.put_keyed, Walk.lease, Walk.lease, Walk.lease, Walk.ack, Walk.ack),
    *(
        Walk.fail,
        Walk.fail,
        Walk.retry,
        Walk.release,
        Walk.lose_owner,
        Walk.cancel,
        Walk.purge,
        Walk.forget,
        Walk.requeue,
    ),
    *(Walk.time_passes, Walk.snapshot, Walk.compact),
]
RARE: list[Callable[[Walk], None]] = [Walk.crash, Walk.crash, Walk.close_and_open, Walk.look_at_copies]


def observed(queue: DurableQueue) -> dict[int, tuple[str, bytes]]:
    """Every message that is there: its state, and its payload if it has not ended."""
    found: dict[int, tuple[str, bytes]] = {}
    for state, name in STATES.items():
        for start, stop in queue._ledger.runs_in(state):
            if name != OPEN:
                found.update(dict.fromkeys(range(start, stop), (name, b"")))
                continue
            for part in queue._parts([(start, stop)], ()):
                found.update({part.start + at: (name, bytes(body)) for at, body in enumerate(part.bodies())})
    return dict(sorted(found.items()))


@pytest.mark.parametrize("seed", range(8))
def test_no_message_leaves_its_way(seed: int, rounds: int) -> None:
    """A hundred deeds each."""
    for again in range(rounds):
        walk = Walk(1000 * again + seed)
        for _ in range(100):
            walk.chance.choice(RARE if walk.chance.random() < 0.12 else DEEDS)(walk)
            walk.look_at_time()
            walk.queue.validate()
        walk.end()
