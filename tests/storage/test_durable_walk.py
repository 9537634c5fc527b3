"""A durable queue against a dictionary, on random walks with crashes, failing disks, usurpers and damage.

`test_durable_machine` lets core's own walk run over a directory. Here the directory is what the walk is about: what it
must hold is known message by message, with two sets of what has happened: surely durable, and maybe.

The invariants, by the names they have in the checks below:

I1   an acknowledged put is delivered or has ended, never gone
I2   what durably ended is never delivered again
I3   a payload is what was put under that number
I4   what was never tried goes out by priority, then number
I5   one result for each message, and the one that was acknowledged
I6   open raises declared errors only, and reports every loss
I7   recovery, repeated, finds the same
I8   when all is done there are one LogSegment and two snapshots
I9   who was replaced acknowledges nothing
I10  a reader beside the writer sees what is there
I11  what is in memory is what a fresh open finds
I12  after an orderly power loss both logs are prefixes of what was written, no shorter than what was synced
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable
from itertools import groupby
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_core.protocols import Accepted, Lease
from daskqueue_core.states import MessageState
from daskqueue_storage.errors import DiskFullError, FencedError, StorageError, WriterFailedError
from daskqueue_storage.format import RecordHeader, RecordType, decode_file_header, record_salt
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.scan import scan
from daskqueue_storage.testing import SimCrash, SimFiles

CLIENT = 7
OPEN = "open"  # ready, scheduled or delivered: a crash turns one into the other
_STATES = {
    MessageState.SCHEDULED: OPEN,
    MessageState.READY: OPEN,
    MessageState.DELIVERED: OPEN,
    MessageState.ACKED: "done",
    MessageState.FAILED: "dead",
    MessageState.CANCELLED: "cancelled",
}
bodies = st.one_of(
    st.lists(st.just(0), min_size=1, max_size=30),
    st.lists(st.integers(0, 700), min_size=1, max_size=5),
    st.lists(st.integers(1000, 9000), min_size=1, max_size=2),
)
modes = st.sampled_from(["kill", "ordered", "chaos"])
seeds = st.integers(0, 99)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of crashes are reported, and looked at."""
    caplog.set_level(logging.CRITICAL, "daskqueue_storage")


class Known:
    """What is known of one message."""

    def __init__(self, number: int, payload: bytes, priority: int) -> None:
        self.number = number  # the client's
        self.payload = payload
        self.priority = priority
        self.attempts = 0
        self.fresh = True  # never leased, nor touched by a crash
        self.values: list[bytes] = []  # tried; the last may have been cut short
        self.acknowledged: bytes | None = None


class Held:
    """A lease, and what its owner has of it."""

    def __init__(self, lease: Lease) -> None:
        self.id = lease.id
        self.ids = lease.ids
        self.parts = [(part.start, part.stop) for part in lease.parts]

    def runs(self, seqs: list[int]) -> list[tuple[int, int]]:
        """Consecutive messages of one batch."""
        found = []
        for start, stop in self.parts:
            chosen = [seq for seq in range(start, stop) if seq in seqs]
            for _, run in groupby(enumerate(chosen), lambda pair: pair[1] - pair[0]):
                members = [seq for _, seq in run]
                found.append((members[0], members[-1] + 1))
        return found


class Put:
    """The messages of one put; without numbers as long as nobody knows whether it happened."""

    def __init__(self, known: list[Known]) -> None:
        self.known = known
        self.seqs: list[int] | None = None


class Walk(RuleBasedStateMachine):
    """Chooses what happens next."""

    queue: DurableQueue

    @initialize(sync=st.sampled_from(["batch", "batch", "none", 1.0]), seed=st.integers(0, 2**16))
    def begin(self, sync: str | float, seed: int) -> None:
        """An empty directory."""
        self.files = SimFiles(seed=seed)
        self.sync = sync
        self.numbers = self.reports = self.producers = 0
        self.highest = -1
        self.holes = False
        self.known: dict[int, Known] = {}
        self.leases: list[Held] = []
        self.old_lease: tuple[int, list[int]] | None = None
        self.puts: list[Put] = []  # in order; surely durable are the first `durable_puts`
        self.durable_puts = 0
        self.before: dict[int, str] = {}  # the states before `changes`; none: open
        self.changes: list[dict[int, str]] = []  # surely durable are the first `durable_changes`
        self.durable_changes = 0
        self.last_put: tuple[int, list[Batch], Accepted] | None = None
        self.queue = self.opened(self.files)

    def opened(self, files: SimFiles) -> DurableQueue:
        """The queue of a disk."""
        return DurableQueue(
            "/queue", files=files, sync=self.sync, segment_bytes=4096, lock_ttl=10.0, wait=11.0, result_ttl=None
        )

    # -------------------------------------------------------------------------------------------------------- producers

    def batch(self, sizes: list[int], priority: int) -> tuple[Batch, list[Known]]:
        """A batch of payloads that nobody put before."""
        first = self.numbers
        self.numbers += len(sizes)
        payloads = [b"%08d" % (first + at) + bytes(size) for at, size in enumerate(sizes)]
        options: dict[str, Any] = {"kind": Kind.CALL, "client": CLIENT, "first": first, "keep": Keep.KEEP}
        made = Batch(len(sizes), b"".join(payloads), lengths_column(payloads), b"shared", priority=priority, **options)
        return made, [Known(first + at, payload, priority) for at, payload in enumerate(payloads)]

    def admit(self, batches: list[Batch], known: list[Known]) -> None:
        """A producer's put. Until it returns nobody knows whether it happened."""
        put = Put(known)
        self.puts.append(put)
        self.producers += 1
        answer = self.queue.admit(batches, producer=self.producers, number=0)
        assert isinstance(answer, Accepted)
        assert answer.base > self.highest, f"{answer} was given before: {self.highest} was seen"
        self.number(put, answer.base)
        self.last_put = (self.producers, batches, answer)
        if self.sync == "batch":
            self.durable_puts = len(self.puts)

    def number(self, put: Put, base: int) -> None:
        """It happened."""
        put.seqs = list(range(base, base + len(put.known)))
        self.known.update(zip(put.seqs, put.known))
        self.highest = max(self.highest, put.seqs[-1])

    @rule(sizes=bodies, priority=st.sampled_from([0, 0, 0, 1, -3]))
    def put(self, sizes: list[int], priority: int) -> None:
        """One batch."""
        batch, known = self.batch(sizes, priority)
        self.admit([batch], known)

    @rule(many=st.lists(bodies, min_size=2, max_size=3))
    def put_batches(self, many: list[list[int]]) -> None:
        """Several records in one put: all of them or none."""
        made = [self.batch(sizes, 0) for sizes in many]
        self.admit([batch for batch, _ in made], [one for _, known in made for one in known])

    @precondition(lambda self: self.last_put)
    @rule()
    def repeat_put(self) -> None:
        """A producer that heard nothing asks again, and gets the same numbers."""
        assert self.last_put is not None
        producer, batches, answer = self.last_put
        assert self.queue.admit(batches, producer=producer, number=0) == answer

    # -------------------------------------------------------------------------------------------------------- consumers

    def held(self) -> set[int]:
        """What somebody holds."""
        return {seq for lease in self.leases for seq in lease.ids}

    def now(self) -> dict[int, str]:
        """The state of every message that is known."""
        states = {seq: OPEN for put in self.puts for seq in put.seqs or ()}
        states.update(self.before)
        for change in self.changes:
            states.update(change)
        return states

    def change(self, seqs: list[int], state: str, *, by_policy: bool) -> Callable[[], None]:
        """These are about to change; what is to be called when that is done."""
        self.changes.append(dict.fromkeys(seqs, state))

        def done() -> None:
            if by_policy and self.sync == "batch":
                self.durable_changes = len(self.changes)

        return done

    @rule(limit=st.integers(1, 40))
    def lease(self, limit: int) -> None:
        """I3, I4; and nothing that ended, nor what another holds (I2)."""
        states, held = self.now(), self.held()
        fresh = [seq for seq, state in states.items() if state == OPEN and self.known[seq].fresh and seq not in held]
        lease = self.queue.lease(limit, owner=f"w{self.queue.stats().delivered}")
        if lease is None:
            assert not [seq for seq, state in states.items() if state == OPEN and seq not in held], "nothing is ready?"
            return
        for part in lease.parts:
            for at, body in enumerate(part.bodies()):
                seq = part.start + at
                assert states[seq] == OPEN, f"I2: {seq} is {states[seq]}, and delivered"
                assert seq not in held, f"{seq} has two holders"
                assert bytes(body) == self.known[seq].payload, f"I3: {bytes(body)[:8]!r} under {seq}"
                assert (part.attempts or bytes(part.count))[at] == self.known[seq].attempts
        first = sorted(fresh, key=lambda seq: (-self.known[seq].priority, seq))
        out = [seq for seq in lease.ids if self.known[seq].fresh]
        assert out == first[: len(out)], "I4"
        for seq in lease.ids:
            self.known[seq].fresh = False
        self.leases.append(Held(lease))

    def settle(self, lease: Held, seqs: list[int], *, values: bool) -> None:
        """These ran: a report for each run of each batch."""
        for start, stop in lease.runs(seqs):
            self.reports += 1
            said = b"v%d" % self.reports if values else b""
            members = list(range(start, stop))
            for seq in members:
                self.known[seq].values.append(said)
            done = self.change(members, "done", by_policy=values)
            try:
                assert self.queue.settle(lease.id, [Report(start, stop, said)]) == stop - start
            except DiskFullError:
                self.changes.pop()
                for seq in members:
                    self.known[seq].values.pop()
                raise
            done()
            for seq in members:
                self.known[seq].acknowledged = said
            self.let_go(lease, members)

    def let_go(self, lease: Held, seqs: list[int]) -> None:
        """Its owner does not hold these any more."""
        lease.ids = [seq for seq in lease.ids if seq not in seqs]
        if not lease.ids and lease in self.leases:
            self.leases.remove(lease)
        self.old_lease = lease.id, seqs

    @precondition(lambda self: self.leases)
    @rule(chance=st.randoms(use_true_random=False), values=st.booleans(), whole=st.booleans())
    def ack(self, chance: random.Random, values: bool, whole: bool) -> None:
        """All of a lease or a part."""
        lease = chance.choice(self.leases)
        self.settle(lease, [seq for seq in lease.ids if whole or chance.random() < 0.5], values=values)

    @precondition(lambda self: self.old_lease)
    @rule()
    def ack_again(self) -> None:
        """Of a lease that has ended or is unknown: no news."""
        assert self.old_lease is not None
        lease, seqs = self.old_lease
        ended = [seq for seq in seqs if self.now().get(seq) == "done"]
        assert self.queue.settle(lease, [Report(seq, seq + 1, b"late") for seq in ended]) == 0
        assert self.queue.ack(2**63) == 0

    @precondition(lambda self: self.leases)
    @rule(chance=st.randoms(use_true_random=False), dead=st.booleans())
    def nack(self, chance: random.Random, dead: bool) -> None:
        """All of a lease failed: dead letters, or again."""
        lease = chance.choice(self.leases)
        done = self.change(lease.ids, "dead", by_policy=True) if dead else lambda: None
        count = self.queue.nack(lease.id, error=b"E", text="no", delay=None if dead else 0)
        assert count == len(lease.ids)
        done()
        for seq in lease.ids:
            self.known[seq].attempts += 1
        self.let_go(lease, lease.ids)

    @precondition(lambda self: self.leases)
    @rule(chance=st.randoms(use_true_random=False))
    def release(self, chance: random.Random) -> None:
        """Given back, not begun."""
        lease = chance.choice(self.leases)
        assert self.queue.release(lease.id) == len(lease.ids)
        self.let_go(lease, lease.ids)

    # -------------------------------------------------------------------------------------------------------- operators

    @rule(chance=st.randoms(use_true_random=False))
    def requeue(self, chance: random.Random) -> None:
        """Dead letters live again."""
        dead = [seq for seq, state in self.now().items() if state == "dead"]
        assert sorted(letter.seq for letter in self.queue.dead_letters()) == dead
        again = [seq for seq in dead if chance.random() < 0.5]
        if again:
            done = self.change(again, OPEN, by_policy=True)
            assert self.queue.requeue([(CLIENT, self.known[seq].number) for seq in again]) == len(again)
            done()
            for seq in again:
                self.known[seq].attempts = 0
                self.known[seq].fresh = False

    @rule(chance=st.randoms(use_true_random=False))
    def cancel(self, chance: random.Random) -> None:
        """One that nobody holds."""
        held = self.held()
        free = [seq for seq, state in self.now().items() if state == OPEN and seq not in held]
        if free:
            seq = chance.choice(free)
            done = self.change([seq], "cancelled", by_policy=True)
            self.queue.cancel([(seq, seq + 1)])
            done()

    @rule()
    def snapshot(self) -> None:
        """Replaying begins here from now on."""
        self.queue._snapshot()
        self.all_durable()

    @rule()
    def compact(self) -> None:
        """What is needed moves, the rest goes."""
        self.queue.compact()
        self.all_durable()

    @rule()
    def sync_now(self) -> None:
        """All of it is on disk."""
        self.queue.sync()
        self.all_durable()

    def all_durable(self) -> None:
        """Nothing is left to chance."""
        self.before = self.now()
        self.changes.clear()
        self.durable_changes = 0
        self.durable_puts = len(self.puts)

    @rule(seconds=st.sampled_from([0.5, 1.5, 8.9]), asleep=st.booleans())
    def time_passes(self, seconds: float, asleep: bool) -> None:
        """With or without this process."""
        if asleep:
            self.files.suspend(seconds)
        else:
            self.files.advance(seconds)
            if self.sync == 1.0 and seconds > 1:
                self.all_durable()

    # ------------------------------------------------------------------------------------------------------- the ends

    @rule()
    def close_and_open(self) -> None:
        """Cleanly."""
        self.queue.close()
        self.all_durable()
        self.reopen(self.files, "kill")
        assert self.queue.report.clean

    @rule(mode=modes, seed=seeds)
    def crash(self, mode: str, seed: int) -> None:
        """Between two operations."""
        self.reopen(self.files.crash(mode, seed), mode)

    @rule(
        within=st.integers(1, 14),
        what=st.sampled_from(["put", "put_batches", "ack", "compact", "close"]),
        mode=modes,
        again=st.integers(0, 30),
        seed=seeds,
    )
    def crash_in_the_middle(self, within: int, what: str, mode: str, again: int, seed: int) -> None:
        """Of an operation, and perhaps of the recovery from that."""
        self.files.crash_at(self.files.ops + within)
        try:
            self.do(what, seed)
        except SimCrash:
            pass
        after = self.files.crash(mode, seed)
        after.crash_at(after.ops + again if again else None)
        try:
            self.reopen(after, mode)
            after.crash_at(None)
        except SimCrash:
            self.reopen(after.crash("chaos", seed), "chaos")

    def do(self, what: str, seed: int) -> None:
        """Something that writes."""
        if what == "put":
            self.put([10, 300], 0)
        elif what == "put_batches":
            self.put_batches([[5, 5], [900], [7]])
        elif what == "ack" and self.leases:
            self.ack(random.Random(seed), True, True)
        elif what == "compact":
            self.compact()
        elif what == "close":
            self.queue.close()
            self.all_durable()

    @rule(
        within=st.integers(1, 8),
        code=st.sampled_from([28, 27, 5]),
        partial=st.none() | st.integers(0, 99),
        what=st.sampled_from(["put", "put_batches", "ack", "compact"]),
        seed=seeds,
    )
    def fail(self, within: int, code: int, partial: int | None, what: str, seed: int) -> None:
        """One operation of the disk fails. If it is full nothing is changed; if it is broken, open again (I6)."""
        self.files.fail(self.files.ops + within, code, partial=partial)
        self.tolerant(what, seed)
        self.files._plans.clear()

    @rule(room=st.integers(0, 3000), what=st.sampled_from(["put", "put_batches", "ack"]), seed=seeds)
    def full_disk(self, room: int, what: str, seed: int) -> None:
        """Little room, then room again."""
        self.files.free = self.files.used() + room
        self.tolerant(what, seed)
        self.files.free = None

    def tolerant(self, what: str, seed: int) -> None:
        """Do it, though the disk may not let us."""
        try:
            self.do(what, seed)
        except DiskFullError:
            self.puts = [put for put in self.puts if put.seqs is not None]
        except (WriterFailedError, OSError):
            pass
        store = self.queue._store
        if store.log.failure is not None or store.index.failure is not None:  # also where the operation was done
            self.queue.close()
            self.files.free = None
            try:
                self.reopen(self.files, "chaos")
            except (StorageError, OSError):
                self.reopen(self.files, "chaos")

    @rule(sizes=bodies, seed=seeds)
    def usurper(self, sizes: list[int], seed: int) -> None:
        """Away for too long, another host takes over; who was replaced is fenced and changes nothing (I9)."""
        old, leases, other = self.queue, self.leases, self.files.also(host="elsewhere")
        held = self.held()
        free = [seq for seq, state in self.now().items() if state == OPEN and seq not in held]
        self.files.suspend(30)
        self.reopen(other, "chaos")  # it sees what is synced: for the laxer policies that is like a power cut
        late = [Report(seq, seq + 1, b"late") for lease in leases for seq in lease.ids]
        tries: list[Callable[[], object]] = [lambda: old.put(b"late"), old.sync, old.compact]
        if late:
            tries.append(lambda: old.settle(leases[0].id, late))
        if free:
            tries.append(lambda: old.lease(9))
        random.Random(seed).shuffle(tries)
        for attempt in tries:
            with pytest.raises(FencedError):
                raise AssertionError(f"I9: who was replaced said {attempt()}")
        old.close()
        self.put(sizes, 0)

    # ------------------------------------------------------------------------------------------------------ on copies

    @rule()
    def a_fresh_open_finds_the_same(self) -> None:
        """I11, and I7: whoever opens what a kill leaves, and again after that."""
        copy = self.files.crash("kill")
        first = self.opened(copy)
        assert observed(first) == observed(self.queue), "I11"
        assert self.holes or first.report.whole
        second = self.opened(copy.crash("kill"))
        assert observed(second) == observed(first), "I7"
        another = {"puts": 0, "finished": 0, "bytes": 0, "segments": 0}
        assert second.stats()._replace(**another) == first.stats()._replace(**another)

    @rule()
    def a_reader_beside_the_writer(self) -> None:
        """I10: without the lock, from what is on disk alone."""
        states = {}
        with ReadOnlyQueue("/queue", files=self.files.also()) as reader:
            for message in reader.messages(bodies=True):
                name = _STATES[message.state]
                states[message.seq] = (name, message.body if name == OPEN else b"")
        assert states == observed(self.queue), "I10"

    @rule(which=st.randoms(use_true_random=False))
    def flip_a_bit(self, which: random.Random) -> None:
        """In a closed segment of the log, on a copy: never a wrong payload, and what is lost is reported (I3, I6)."""
        paths = sorted(path for path in self.files.tree() if path.endswith(".log"))[:-1]
        if not paths:
            return
        copy = self.files.crash("kill")
        path = which.choice(paths)
        data = bytearray(copy.tree()[path])
        if not data:
            return
        bit = which.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        copy.edit(path, bytes(data))
        queue, states = self.opened(copy), self.now()
        queue.validate()
        out: set[int] = set()
        while (lease := queue.lease(50, owner=f"check {len(out)}")) is not None:
            for part in lease.parts:
                for at, body in enumerate(part.bodies()):
                    assert bytes(body) == self.known[part.start + at].payload, "I3"
            out.update(lease.ids)
        lost = {seq for seq, state in states.items() if state == OPEN} - out
        letters = {letter.seq for letter in queue.dead_letters() if "DamagedPayload" in letter.text}
        assert not lost - letters or not queue.report.whole, f"I6: {lost} are lost and nobody says so"
        assert len({self.put_of(seq) for seq in lost}) <= 1, "I6: more is lost than one record"

    def put_of(self, seq: int) -> int:
        """Which put brought it."""
        return next(at for at, put in enumerate(self.puts) if seq in (put.seqs or ()))

    @rule(at=st.floats(0, 1, exclude_max=True))
    def lose_a_snapshot(self, at: float) -> None:
        """The newest, on a copy: the one before it and what followed are still there, and it is reported."""
        snapshots = self.queue._store.snapshots
        if len(snapshots) < 2:
            return
        copy = self.files.crash("kill")
        [path] = [info.path for info in self.queue._store.index_segments if info.segno == snapshots[-1][0]]
        data = bytearray(copy.tree()[path])
        header = decode_file_header(bytes(data[:64]))
        assert header is not None
        salt = record_salt(header.uuid, header.number, header.epoch)
        records = scan(lambda size, offset: bytes(data[offset : offset + size]), 64, len(data), salt)
        found = next(one for one in records if isinstance(one, RecordHeader) and one.type == RecordType.SNAPSHOT)
        data[found.pos + 64 + int(at * found.blen)] ^= 1
        copy.edit(path, bytes(data))
        queue = self.opened(copy)
        # The very last record of all cannot be told from one that was never finished.
        assert not queue.report.whole or queue.report.tail_bytes
        assert observed(queue) == observed(self.queue)

    # ------------------------------------------------------------------------------------------------------- the checks

    def reopen(self, files: SimFiles, mode: str) -> None:
        """Open and compare: what must be there is, and what may have happened is now known."""
        queue = self.opened(files)
        self.holes = self.holes or mode == "chaos"  # in what nobody acknowledged; they stay there
        assert self.holes or queue.report.whole, f"I6: {queue.report}"
        queue.validate()
        seen = observed(queue)
        self.find_puts(seen, holes=mode == "chaos" and self.sync != "batch")
        states = {seq: state for seq, (state, _) in seen.items()}
        if mode == "chaos":
            self.check_scattered(states)
        else:
            self.check_prefixes(states, exact=mode == "kill")
        for seq, (state, payload) in seen.items():
            assert state != OPEN or payload == self.known[seq].payload, f"I3: {payload!r} under {seq}"
        self.check_results(queue, states)
        self.files, self.queue, self.leases, self.last_put = files, queue, [], None
        for put in self.puts:
            put.seqs = [seq for seq in put.seqs or () if seq in states]
        self.puts = [put for put in self.puts if put.seqs]
        self.known = {seq: self.known[seq] for seq in states}
        self.before = states
        self.changes.clear()
        # Found again is not durable again: a kill leaves all in the cache, and only ends of segments are synced.
        self.durable_changes, self.durable_puts = 0, len(self.puts)
        for seq, known in self.known.items():
            attempts = queue._ledger.attempts(seq) if states[seq] in (OPEN, "dead") else known.attempts
            assert attempts == known.attempts or mode != "kill", f"{seq} has {attempts} attempts, not {known.attempts}"
            known.attempts, known.fresh = attempts, known.fresh and mode == "kill"

    def find_puts(self, seen: dict[int, tuple[str, bytes]], *, holes: bool) -> None:
        """Those that were cut short are there as a whole, or not at all; where there are holes perhaps their end."""
        strange = {payload: seq for seq, (_, payload) in seen.items() if seq not in self.known}
        for put in self.puts:
            found = [strange[one.payload] - at for at, one in enumerate(put.known) if one.payload in strange]
            if put.seqs is None and found:
                self.number(put, found[0])
        assert set(seen) <= set(self.known), "what nobody put"
        for put in self.puts:
            there = [seq in seen for seq in put.seqs or ()]
            assert there == sorted(there), f"the end of a put is missing: {put.seqs}"
            assert holes or all(there) or not any(there), f"a put is there in part: {put.seqs}"

    def check_scattered(self, states: dict[int, str]) -> None:
        """Anything may be missing that is not surely durable (I1, I2)."""
        for put in self.puts[: self.durable_puts]:
            assert (put.seqs or [-1])[0] in states, f"I1: {put.seqs} was acknowledged and is gone"
        may: dict[int, set[str]] = {}
        sure = {**dict.fromkeys(self.known, OPEN), **self.before}
        for change in self.changes[: self.durable_changes]:
            sure.update(change)
        for change in self.changes[self.durable_changes :]:
            for seq, state in change.items():
                may.setdefault(seq, set()).add(state)
        for seq, state in states.items():
            assert state in {sure[seq], *may.get(seq, ())}, f"I2: {seq} is {state}, was {sure[seq]}, {may.get(seq)}"

    def check_prefixes(self, states: dict[int, str], *, exact: bool) -> None:
        """I12; after a kill nothing is missing but what was under way."""
        count = 0
        for put in self.puts:
            if not put.seqs or put.seqs[0] not in states:
                break
            count += 1
        late = [put.seqs for put in self.puts[count:] if put.seqs and put.seqs[0] in states]
        assert not late, f"I12: {late} came after what is missing"
        done = sum(put.seqs is not None for put in self.puts)
        assert count >= (done if exact else self.durable_puts), "I1: puts are gone"
        merged = {**dict.fromkeys(self.known, OPEN), **self.before}
        for tried, change in enumerate(self.changes, 1):
            enough = tried > (len(self.changes) - 1 if exact else self.durable_changes)
            if enough and all(merged[seq] == state for seq, state in states.items()):
                return
            merged.update(change)
        wrong = {seq: (state, merged[seq]) for seq, state in states.items() if merged[seq] != state}
        assert not wrong, f"I12: no prefix of what happened leads there; differs from all of it in {wrong}"

    def check_results(self, queue: DurableQueue, states: dict[int, str]) -> None:
        """I5."""
        kept: dict[int, bytes] = {}
        after = 0
        while after >= 0:
            after, outcomes = queue.read_kept(after)
            for _, outcome in outcomes:
                if not outcome.values:
                    continue
                for start, stop in outcome.runs:
                    for number in range(outcome.first + outcome.index + start, outcome.first + outcome.index + stop):
                        assert number not in kept, f"I5: two results of {number}"
                        kept[number] = bytes(outcome.values)
        for seq, state in states.items():
            known = self.known[seq]
            if state == "done":
                got = kept.get(known.number, b"")
                assert got in known.values, f"I5: {got!r} is no result of {seq}"
                if known.acknowledged is not None:
                    assert got == known.acknowledged, f"I5: {got!r}, but {known.acknowledged!r} was acknowledged"
            else:
                assert known.number not in kept, f"a result of {seq}, which is {state}"

    def teardown(self) -> None:
        """I8: all is done, and the directory is small again; opened once more, nothing is left."""
        if not hasattr(self, "queue") or sys.exc_info()[0] is not None:
            return
        self.a_fresh_open_finds_the_same()
        for held in self.leases:
            self.queue.release(held.id)
        self.queue.requeue()
        while (lease := self.queue.lease(1000, owner="the last")) is not None:
            self.queue.ack(lease)
        self.queue._snapshot()
        while self.queue.compact():
            pass
        store = self.queue._store
        assert len(store.shelf.segments) <= 1, f"I8: {[info.path for info in store.shelf.segments]}"
        assert len(store.index_segments) <= 2, f"I8: {[info.path for info in store.index_segments]}"
        self.queue.close()
        with self.opened(self.files) as queue:  # also what a replaced writer left goes now
            assert queue.report.clean
            assert queue.unfinished == 0
            # By number: what a replaced writer began may have the number of a segment that counts.
            numbers = {path[: -len("-00000000.log")] for path in self.files.tree() if path.endswith((".log", ".idx"))}
            assert len(numbers) <= 1 + 3, f"I8: {sorted(numbers)}"


def observed(queue: DurableQueue) -> dict[int, tuple[str, bytes]]:
    """Every message that is there: its state, and its payload if it has not ended."""
    found: dict[int, tuple[str, bytes]] = {}
    for state, name in _STATES.items():
        for start, stop in queue._ledger.runs_in(state):
            if name != OPEN:
                found.update(dict.fromkeys(range(start, stop), (name, b"")))
                continue
            for part in queue._parts([(start, stop)], ()):
                found.update({part.start + at: (name, bytes(body)) for at, body in enumerate(part.bodies())})
    return dict(sorted(found.items()))


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=settings().max_examples // 10, deadline=None)
TestWalk.pytestmark = [pytest.mark.timeout(1800)]  # thousands of examples under the profile "properties"
