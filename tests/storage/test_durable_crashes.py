"""A durable queue crashes or meets a failing disk at every operation: what it acknowledged holds, and it goes on.

Three ways to crash (see `SimFiles`), and again during the recovery from it. A few seeds and every few operations by
default, every operation and many seeds if DASKQUEUE_STORAGE_ROUNDS asks for it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_core.protocols import Accepted, Lease
from daskqueue_storage.errors import DiskFullError, StorageError, WriterFailedError
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles

pytestmark = pytest.mark.timeout(1800)  # with many rounds


def opened(files: SimFiles, sync: str | float) -> DurableQueue:
    """The queue of this disk."""
    return DurableQueue("/queue", files=files, sync=sync, segment_bytes=4096, lock_ttl=10.0, wait=10.0, result_ttl=None)


class Trial:
    """What was done to one directory so far. Every payload is unique."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []
        self.put: set[bytes] = set()
        self.tried_done: set[bytes] = set()
        self.done: set[bytes] = set()
        self.number = 0

    def admit(self, queue: DurableQueue, *sizes: int, batches: int = 1) -> None:
        """A producer's numbered put."""
        made = []
        for _ in range(batches):
            first = len(self.tried)
            bodies = [b"%06d" % (first + at) + b"x" * size for at, size in enumerate(sizes)]
            self.tried += bodies
            column = lengths_column(bodies)
            options = {"kind": Kind.CALL, "client": 7, "first": first, "keep": Keep.KEEP}
            made.append(Batch(len(bodies), b"".join(bodies), column, b"shared", **options))
        self.number += 1  # a put that was cut short is not tried again: it may have happened
        answer = queue.admit(made, producer=self.number, number=0)
        assert isinstance(answer, Accepted)
        self.put.update(bytes(body) for batch in made for body in split(batch))

    def succeed(self, queue: DurableQueue, lease: Lease) -> None:
        """All of a lease ran, with values."""
        for part in lease.parts:
            bodies = {bytes(body) for body in part.bodies()}
            self.tried_done |= bodies
            queue.settle(lease.id, [Report(part.start, part.stop, b"values of %d" % part.first)])
            self.done |= bodies

    def check(self, queue: DurableQueue, *, all_holds: bool) -> None:
        """Drain the queue and compare. `all_holds`: nothing that was acknowledged may be missing."""
        done_before = set(self.done)
        queue.validate()
        self._check_results(queue, done_before if all_holds else set())
        queue.requeue()
        found: list[bytes] = []
        while (lease := queue.lease(50, owner=f"check {len(found)}")) is not None:
            for part in lease.parts:
                bodies = [bytes(body) for body in part.bodies()]
                assert bodies == self.tried[part.first : part.first + part.count], "under another number than it had"
                found += bodies
            self.succeed(queue, lease)
        assert len(set(found)) == len(found), "delivered twice"
        if all_holds:
            lost = self.put - self.tried_done - set(found)
            assert not lost, f"acknowledged and lost: {sorted(body[:6] for body in lost)}"
            again = done_before & set(found)
            assert not again, f"done, and delivered again: {sorted(body[:6] for body in again)}"
            assert not queue.dead_letters()
        assert queue.unfinished == 0

    def _check_results(self, queue: DurableQueue, must: set[bytes]) -> None:
        """At most one result for each message, and the one that was acknowledged."""
        kept: dict[int, bytes] = {}
        after = 0
        while after >= 0:
            after, outcomes = queue.read_kept(after)
            for _, outcome in outcomes:
                for start, stop in outcome.runs if not outcome.errors else ():
                    for at in range(start, stop):
                        number = outcome.first + outcome.index + at
                        assert number not in kept, f"two results of {number}"
                        kept[number] = bytes(outcome.values)
        for number, values in kept.items():
            assert self.tried[number] in self.tried_done
            # Named after the first message of the report it came with.
            assert int(values.removeprefix(b"values of ")) <= number
        missing = {body[:6] for body in must} - {self.tried[number][:6] for number in kept}
        assert not missing, f"results acknowledged and lost: {sorted(missing)}"


def split(batch: Batch) -> list[memoryview]:
    """The bodies of a batch."""
    view, ends = memoryview(batch.body), [0, *batch.ends()]
    return [view[start:stop] for start, stop in pairwise(ends)]


def steps(queue: DurableQueue, trial: Trial) -> Iterator[None]:
    """Put, lease, ack with results, nack, requeue, snapshot, roll, compact: a life, step by step."""
    trial.admit(queue, 10, 20, 0)
    yield
    trial.admit(queue, 700, batches=3)
    lease = queue.lease(2, owner="a")
    assert lease is not None
    yield
    trial.succeed(queue, lease)
    lease = queue.lease(2, owner="b")
    assert lease is not None
    queue.nack(lease, error=b"E", text="no")
    queue.tick()
    yield
    queue._snapshot()
    yield
    trial.admit(queue, 1500, 1500)
    queue.requeue()
    yield
    trial.admit(queue, 2000)
    lease = queue.lease(3, owner="c")
    assert lease is not None
    yield
    trial.succeed(queue, lease)
    queue.compact()
    yield
    assert queue.lease(1, owner="d") is not None


def everyday_life(files: SimFiles, trial: Trial, sync: str | float) -> None:
    """Twice."""
    for _ in range(2):
        with opened(files, sync) as queue:
            for _ in steps(queue, trial):
                files.advance(0.3)  # a timed sync runs now and then


def operations(sync: str | float) -> int:
    """How many the scenario takes when nothing happens."""
    files, trial = SimFiles(), Trial()
    everyday_life(files, trial, sync)
    with opened(files, sync) as queue:
        assert queue.report.clean
        trial.check(queue, all_holds=True)
    return files.ops


def interrupted(at: int, sync: str | float) -> tuple[SimFiles, Trial]:
    """The scenario, until it dies in its `at`-th operation."""
    files, trial = SimFiles(seed=at), Trial()
    files.crash_at(at)
    try:
        everyday_life(files, trial, sync)
    except SimCrash:
        pass
    return files, trial


def seeds_of(mode: str, rounds: int) -> range:
    """A kill leaves one image, power loss many."""
    return range(1 if mode == "kill" else max(1, rounds // 3))


@pytest.mark.parametrize("sync", ["batch", "none", 0.5])
def test_crash_at_every_operation(sync: str | float, rounds: int) -> None:
    """Nothing acknowledged is lost, nothing durably done is delivered again, nothing wrong is delivered."""
    total = operations(sync)
    for at in range(1, total, 1 if rounds > 1 else 11 if sync == "batch" else 19):
        files, trial = interrupted(at, sync)
        for mode in CRASH_MODES:
            for seed in seeds_of(mode, rounds):
                try:
                    goes_on_after(files.crash(mode, seed), deepcopy(trial), mode, sync)
                except Exception as problem:
                    where = f"crashed at operation {at} of {total}, mode {mode}, seed {seed}"
                    raise AssertionError(where) from problem


def goes_on_after(survivor: SimFiles, trial: Trial, mode: str, sync: str | float) -> None:
    """Open, check, work, close, open again."""
    all_holds = mode == "kill" or sync == "batch"
    with opened(survivor, sync) as queue:
        if mode != "chaos":  # that leaves holes in puts of several records, which nobody acknowledged
            assert queue.report.whole, str(queue.report)
        assert not queue.report.missing_files, "a file went before the record that says so was durable"
        trial.check(queue, all_holds=all_holds)
        trial.admit(queue, 5, 5)
    with opened(survivor, sync) as queue:
        assert queue.report.clean
        trial.check(queue, all_holds=all_holds)


def test_crash_again_during_recovery(rounds: int) -> None:
    """Recovery may be cut short, too, in another way than what it recovers from."""
    total = operations("batch")
    for at in range(3, total, 5 if rounds > 1 else 61):
        files, trial = interrupted(at, "batch")
        for second in range(1, 60, 1 if rounds > 1 else 5):
            survived = 0
            for mode in CRASH_MODES:
                survivor = files.crash(mode, at)
                survivor.crash_at(second)
                try:
                    opened(survivor, "batch").close()
                except SimCrash:
                    again = CRASH_MODES[(at + second) % 3]
                    with opened(survivor.crash(again, second), "batch") as queue:
                        deepcopy(trial).check(queue, all_holds=True)
                else:
                    survived += 1
            if survived == len(CRASH_MODES):
                break
        else:
            raise AssertionError("a recovery of 60 operations")


def test_recovery_repeated_finds_the_same(rounds: int) -> None:
    """recover(recover(x)) is recover(x): opened, killed at once and opened again, the queue holds the same."""
    total = operations("batch")
    for at in range(1, total, 3 if rounds > 1 else 31):
        files, _ = interrupted(at, "batch")
        for mode in CRASH_MODES:
            first = files.crash(mode, at)
            once = opened(first, "batch")
            with opened(first.crash("kill"), "batch") as twice:
                another = {"uuid": "", "puts": 0, "finished": 0, "oldest_ready_at": 0, "bytes": 0, "segments": 0}
                assert twice.stats()._replace(**another) == once.stats()._replace(**another)
                assert twice.dead_letters() == once.dead_letters()
                assert twice.read_kept() == once.read_kept()
                assert twice.report.whole, twice.report


FAULTS = {
    "no space": (errno.ENOSPC, None),
    "short write, then no space": (errno.ENOSPC, 70),
    "broken": (errno.EIO, None),
    "short write, then broken": (errno.EIO, 5),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_fails_once(fault: str, rounds: int) -> None:
    """Declared errors only; a full disk changes nothing, a broken one needs another opening; then a power failure."""
    code, partial = FAULTS[fault]
    total, seen = operations("batch"), set()
    for at in range(1, total, 1 if rounds > 1 else 19):
        files, trial = SimFiles(seed=at), Trial()
        files.fail(at, code, partial=partial)
        for _ in range(2):
            seen |= stubborn_life(files, trial)
        with opened(files.crash("chaos", at), "batch") as queue:
            trial.check(queue, all_holds=True)
    assert (WriterFailedError if code == errno.EIO else DiskFullError) in seen


def stubborn_life(files: SimFiles, trial: Trial) -> set[type[BaseException]]:
    """As much of a life as goes; whoever fails but for lack of room opens again. What was raised."""
    raised: set[type[BaseException]] = set()
    for _ in range(3):
        try:
            queue = opened(files, "batch")
        except (StorageError, OSError) as problem:
            raised.add(type(problem))
            continue
        try:
            for _ in steps(queue, trial):
                pass
        except StorageError as problem:
            raised.add(type(problem))
            queue.validate()
            queue.close()
            continue
        queue.close()
        return raised
    raise AssertionError("one failure, and three refusals")


def test_a_failed_sync_poisons_both_logs_until_the_queue_is_opened_again() -> None:
    """Of the log or of the index: no retry on that file, every later change raises, and a reopen recovers."""
    for part in ("log", "index"):
        files, trial = SimFiles(), Trial()
        queue = opened(files, "batch")
        trial.admit(queue, 10, 10)
        lease = queue.lease(1)
        assert lease is not None
        files.fail(files.ops + 2, errno.EIO)  # append, then sync
        with pytest.raises(WriterFailedError, match="open it again"):
            trial.admit(queue, 20) if part == "log" else trial.succeed(queue, lease)
        syncs = sum(entry.startswith("sync ") for entry in files.history)
        for _ in range(3):
            with pytest.raises(WriterFailedError):
                trial.admit(queue, 30) if part == "log" else queue.cancel([(1, 2)])
            with pytest.raises(WriterFailedError):
                queue.sync()
        later = sum(entry.startswith("sync ") for entry in files.history)
        assert later - syncs <= 1, "a sync was tried again"  # the log's own, when it is the index that failed
        queue.close()
        for after in (files.crash("chaos", 3), files.crash("ordered", 4), files):
            with opened(after, "batch") as again:
                deepcopy(trial).check(again, all_holds=True)


def test_a_segment_goes_after_the_record_that_says_so() -> None:
    """Power fails right after a deletion: of log and index alike, what is gone is known to be retired, not lost."""
    files, trial = SimFiles(), Trial()
    everyday_life(files, trial, "batch")
    deletions = [
        at for at, what in enumerate(files.history, 1) if what.startswith("unlink /queue/") and "/lock" not in what
    ]
    assert {files.history[at - 1].split("/")[2] for at in deletions} >= {"log", "index"}
    for at in deletions:
        interrupted_files, _ = interrupted(at + 1, "batch")
        for seed in range(6):
            with opened(interrupted_files.crash("chaos", seed), "batch") as queue:
                assert not queue.report.missing_files, f"after {files.history[at - 1]}: {queue.report}"
