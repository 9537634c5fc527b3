"""A durable queue crashes at every operation, in three ways: what it acknowledged holds, and it goes on."""

from __future__ import annotations

from itertools import pairwise

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_core.protocols import Accepted, Lease
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles


def opened(files: SimFiles, sync: str) -> DurableQueue:
    """The queue of this disk."""
    return DurableQueue("/queue", files=files, sync=sync, segment_bytes=4096, lock_ttl=10.0, wait=10.0, result_ttl=None)


class Trial:
    """What was done to one directory so far."""

    def __init__(self) -> None:
        self.tried: set[bytes] = set()
        self.put: set[bytes] = set()
        self.tried_done: set[bytes] = set()
        self.done: set[bytes] = set()
        self.before: set[bytes] = set()  # what was done when the crash came
        self.number = 0

    def admit(self, queue: DurableQueue, *sizes: int, batches: int = 1) -> None:
        """A producer's numbered put."""
        made = []
        for _ in range(batches):
            bodies = [b"%06d" % (len(self.tried) + at) + b"x" * size for at, size in enumerate(sizes)]
            self.tried.update(bodies)
            first = len(self.tried)
            made.append(
                Batch(
                    len(bodies),
                    b"".join(bodies),
                    lengths_column(bodies),
                    b"shared",
                    Kind.CALL,
                    client=7,
                    first=first,
                    keep=Keep.KEEP,
                )
            )
        self.number += 1  # a put that was cut short is not tried again: it may have happened
        answer = queue.admit(made, producer=self.number, number=0)
        assert isinstance(answer, Accepted)
        self.put.update(bytes(body) for batch in made for body in split(batch))

    def succeed(self, queue: DurableQueue, lease: Lease) -> None:
        """All of a lease ran, with values."""
        for part in lease.parts:
            bodies = {bytes(body) for body in part.bodies()}
            self.tried_done |= bodies
            queue.settle(lease.id, [Report(part.start, part.stop, b"values")])
            self.done |= bodies

    def check(self, queue: DurableQueue, *, all_holds: bool) -> None:
        """Drain the queue and compare. `all_holds`: nothing that was acknowledged may be missing."""
        queue.validate()
        queue.requeue()
        found: list[bytes] = []
        while (lease := queue.lease(5, owner=f"check {len(found)}")) is not None:
            found += [bytes(body) for part in lease.parts for body in part.bodies()]
            self.succeed(queue, lease)
        assert len(set(found)) == len(found), "delivered twice"
        assert set(found) <= self.tried, "delivered what nobody put"
        if all_holds:
            lost = self.put - self.tried_done - set(found)
            assert not lost, f"acknowledged and lost: {sorted(body[:6] for body in lost)}"
            again = self.before & set(found)
            assert not again, f"done, and delivered again: {sorted(body[:6] for body in again)}"
            assert not queue.dead_letters()
        assert queue.unfinished == 0


def split(batch: Batch) -> list[memoryview]:
    """The bodies of a batch."""
    view, ends = memoryview(batch.body), [0, *batch.ends()]
    return [view[start:stop] for start, stop in pairwise(ends)]


def everyday_life(files: SimFiles, trial: Trial, sync: str) -> None:
    """Put, lease, ack with results, nack, requeue, snapshot, roll, compact, close; twice."""
    for _ in range(2):
        with opened(files, sync) as queue:
            trial.admit(queue, 10, 20, 0)
            trial.admit(queue, 700, batches=3)
            lease = queue.lease(2, owner="a")
            assert lease is not None
            trial.succeed(queue, lease)
            lease = queue.lease(2, owner="b")
            assert lease is not None
            queue.nack(lease, error=b"E", text="no")
            queue.tick()
            queue._snapshot()
            trial.admit(queue, 1500, 1500)
            queue.requeue()
            trial.admit(queue, 2000)
            lease = queue.lease(3, owner="c")
            assert lease is not None
            trial.succeed(queue, lease)
            queue.compact()
            lease = queue.lease(1, owner="d")
            assert lease is not None


def operations(sync: str) -> int:
    """How many the scenario takes when nothing happens."""
    files, trial = SimFiles(), Trial()
    everyday_life(files, trial, sync)
    trial.before = set(trial.done)
    with opened(files, sync) as queue:
        assert queue.report.clean
        trial.check(queue, all_holds=True)
    return files.ops


@pytest.mark.parametrize("sync", ["batch", "none"])
@pytest.mark.parametrize("mode", CRASH_MODES)
def test_crash_at_every_operation(mode: str, sync: str) -> None:
    """Nothing acknowledged is lost, nothing durably done is delivered again, nothing wrong is delivered."""
    all_holds = mode == "kill" or sync == "batch"
    total = operations(sync)
    for at in range(1, total, 3 if sync == "batch" else 7):
        files, trial = SimFiles(seed=at), Trial()
        files.crash_at(at)
        try:
            everyday_life(files, trial, sync)
        except SimCrash:
            pass
        trial.before = set(trial.done)
        survivor = files.crash(mode, at)
        try:
            with opened(survivor, sync) as queue:
                if mode != "chaos":  # that leaves holes in puts of several records, which nobody acknowledged
                    assert queue.report.whole, str(queue.report)
                trial.check(queue, all_holds=all_holds)
                trial.admit(queue, 5, 5)
            with opened(survivor, sync) as queue:
                assert queue.report.clean
                trial.before = set(trial.done)
                trial.check(queue, all_holds=all_holds)
        except Exception as problem:
            raise AssertionError(f"crashed at operation {at} of {total}, mode {mode}") from problem


@pytest.mark.parametrize("mode", CRASH_MODES)
def test_crash_again_during_recovery(mode: str) -> None:
    """Recovery may be cut short, too."""
    total = operations("batch")
    for at in range(3, total, 29):
        for second in range(1, 60, 7):
            files, trial = SimFiles(seed=at), Trial()
            files.crash_at(at)
            try:
                everyday_life(files, trial, "batch")
            except SimCrash:
                pass
            trial.before = set(trial.done)
            survivor = files.crash(mode, at)
            survivor.crash_at(second)
            try:
                opened(survivor, "batch").close()
            except SimCrash:
                with opened(survivor.crash(mode, second), "batch") as queue:
                    trial.check(queue, all_holds=True)
            else:
                break
