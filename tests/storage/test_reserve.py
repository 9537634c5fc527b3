"""A full disk: producers are refused, and consumers go on, out of what the index keeps for them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from daskqueue_core.batch import Batch, Keep, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_storage.errors import DiskFullError, StorageError
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles
from daskqueue_storage.verify import verify

SEGMENT = 1 << 19
RESERVE = SEGMENT // 16


def opened(files: SimFiles) -> DurableQueue:
    """The queue of this disk."""
    return DurableQueue("/queue", files=files, segment_bytes=SEGMENT, lock_ttl=10.0, wait=11.0, result_ttl=None)


def fill(queue: DurableQueue, size: int = 1500, count: int = 0) -> int:
    """Producers until they are refused; the number behind the last message."""
    while True:
        bodies = [b"%06d" % number + bytes(size) for number in range(count, count + 100)]
        try:
            queue.admit([Batch(100, b"".join(bodies), lengths_column(bodies), client=7, first=count, keep=Keep.KEEP)])
        except DiskFullError:
            return count
        count += 100


def work(queue: DurableQueue, owner: str, value: bytes = b"v") -> list[int]:
    """One consumer, one lease: the numbers of what it finished."""
    lease = queue.lease(100, owner=owner)
    if lease is None:
        return []
    done = []
    for part in lease.parts:
        for at, body in enumerate(part.bodies()):
            assert bytes(body).startswith(b"%06d" % (part.first + at))
        queue.settle(lease.id, [Report(part.start, part.stop, value)])
        done += range(part.first, part.first + part.count)
    return done


def test_consumers_go_on_and_make_room() -> None:
    """Nothing is free but what is reserved; all is consumed, the disk is free again, and nothing was lost."""
    files = SimFiles()
    queue = opened(files)
    files.free = files.used() + 4 * SEGMENT
    count = fill(queue)
    assert count >= 300
    files.free = files.used()  # not a byte more for anybody
    with pytest.raises(DiskFullError, match="make room"):
        queue.put(b"x")
    done: list[int] = []
    while news := work(queue, f"w{len(done)}"):
        done += news
        files.free = min(files.free, files.used() + SEGMENT)  # others take what becomes free
    assert done == list(range(count))
    queue.validate()
    assert fill(queue, count=count) > count, "room that came back is there for producers"
    files.free = None
    queue.close()
    assert verify("/queue", files=files.also()).whole
    with opened(files) as again:
        assert again.report.whole
        assert results(again) == list(range(count))


def test_every_word_of_a_consumer() -> None:
    """Leases, values, failures, returns, heartbeats, cancelling: on a disk without a free byte."""
    files = SimFiles()
    queue = opened(files)
    for number in range(40):
        queue.put(b"%d" % number)
    files.free = files.used()
    with pytest.raises(DiskFullError):
        queue.put(b"x")
    first = queue.lease(4, owner="a")
    second = queue.lease(4, owner="b", once=True)
    assert first is not None
    assert second is not None
    start = first.runs[0][0]
    assert queue.settle(first.id, [Report(start, start + 1, b"value")]) == 1
    assert queue.nack(first, [start + 1], error=b"E", text="no") == 1
    assert queue.release(first) == 2
    assert queue.owner_lost("b") == 4
    assert queue.cancel([(20, 22)]) == 2
    held = queue.stats()
    queue.validate()
    queue.close()  # also that needs room
    files.free = None
    with opened(files) as again:
        assert again.report.clean
        found = again.stats()
        assert (found.ready, found.failed, found.cancelled) == (held.ready, held.failed, held.cancelled) == (32, 5, 2)


def test_its_end_is_told_and_breaks_nothing() -> None:
    """Results without end: the one that is too much is refused, its consumer repeats it when there is room."""
    files = SimFiles()
    queue = opened(files)
    count = fill_some(queue, 60)
    files.free = files.used()
    with pytest.raises(DiskFullError):
        while work(queue, "w", b"a value of some length" * 40):
            pass
    done = results(queue)
    assert 5 <= len(done) < count
    queue.validate()
    held = queue._ledger.held(max(queue._ledger.leases.by_id))
    assert held, "what could not be written is held by its consumer"
    files.free = None
    for lease in list(queue._ledger.leases.by_id):  # the consumer says it again
        for start, stop in queue._ledger.held(lease):
            assert queue.settle(lease, [Report(start, stop, b"again")]) == stop - start
    while work(queue, "w"):
        pass
    assert results(queue) == list(range(count))
    queue.close()
    with opened(files) as again:
        assert again.report.whole
        assert again.unfinished == 0


def results(queue: DurableQueue) -> list[int]:
    """The numbers of all results that are kept."""
    found = []
    for _, one in queue.read_kept()[1]:
        for start, stop in one.runs:
            found += range(one.first + one.index + start, one.first + one.index + stop)
    return sorted(found)


def fill_some(queue: DurableQueue, count: int) -> int:
    """That many messages."""
    bodies = [b"%06d" % number for number in range(count)]
    for number, body in enumerate(bodies):
        queue.admit([Batch(1, body, lengths_column([body]), client=7, first=number, keep=Keep.KEEP)])
    return count


def test_what_is_too_large_leaves_the_reserve_for_what_is_not() -> None:
    """A record that does not fit is refused before a byte of it is written."""
    files = SimFiles()
    queue = opened(files)
    fill_some(queue, 9)
    files.free = files.used()
    lease = queue.lease(3, owner="a")
    assert lease is not None
    index = queue._store.index
    before = index._file.reserved - index._file.end
    for _ in range(3):
        with pytest.raises(DiskFullError):
            queue.settle(lease.id, [Report(0, 1, bytes(RESERVE))])
    assert index._file.reserved - index._file.end == before > RESERVE // 2
    assert queue.settle(lease.id, [Report(0, 1, b"small")]) == 1


def test_producers_wait_until_the_reserve_is_whole() -> None:
    """A little that becomes free is not theirs."""
    files = SimFiles()
    queue = opened(files)
    fill_some(queue, 400)
    files.free = files.used()
    while queue._store.index._file.reserved - queue._store.index._file.end > RESERVE // 2:
        assert work(queue, "w")
    files.free += RESERVE // 4
    with pytest.raises(DiskFullError, match="consumers"):
        queue.put(b"x")
    files.free += RESERVE
    queue.put(b"x")


def test_snapshots_and_compaction_wait_rather_than_cost_the_reserve() -> None:
    """What needs more than is there is refused before the index ends its segment; records still find their place."""
    files = SimFiles()
    queue = opened(files)
    fill_some(queue, 400)
    files.free = files.used()
    segment = queue._store.index.segment
    for _ in range(3):
        with pytest.raises(DiskFullError):
            queue._snapshot()
        with pytest.raises(DiskFullError):
            queue.compact()
    assert queue._store.index.segment is segment
    assert work(queue, "w")


def test_a_file_system_that_cannot_reserve() -> None:
    """Then consumers wait too, nothing is lost, and all goes on when there is room."""
    files = SimFiles()
    files.can_allocate = False
    queue = opened(files)
    count = fill_some(queue, 20)
    lease = queue.lease(1, owner="a")
    assert lease is not None
    files.free = files.used()
    for _ in range(2):
        with pytest.raises(DiskFullError):
            queue.settle(lease.id, [Report(0, 1, b"v")])
        with pytest.raises(DiskFullError):
            queue.lease(1, owner="b")
        with pytest.raises(DiskFullError):
            queue.put(b"x")
    files.free = None
    assert queue.settle(lease.id, [Report(0, 1, b"v")]) == 1
    done = [0]
    while news := work(queue, f"w{len(done)}"):
        done += news
    assert done == list(range(count))


def test_nothing_of_it_stays(tmp_path: Path) -> None:
    """What a closed queue takes on a real disk is what is in its files."""
    with DurableQueue(tmp_path / "queue") as queue:
        queue.put_many([b"x" * 100] * 100)
        queue.compact()
        queue.put(b"y")
    for path in (tmp_path / "queue").rglob("*.idx"):
        found = path.stat()
        assert found.st_blocks * 512 <= found.st_size + 65536, f"{path} takes {found.st_blocks * 512} bytes"


def life(files: SimFiles, told: dict[str, set[int]]) -> None:
    """Fills the disk, works it off, fills it again; others take what they can."""
    queue = opened(files)
    for life_round in range(2):
        files.free = files.used() + 3 * SEGMENT
        first = 1000 * life_round
        told["put"].update(range(first, fill(queue, count=first)))
        files.free = files.used()
        for turn in range(9):
            try:
                told["done"].update(work(queue, f"w{life_round}.{turn}"))
            except DiskFullError:
                files.free += SEGMENT
    files.free = None
    queue.close()


@pytest.mark.parametrize("mode", CRASH_MODES)
def test_a_crash_at_any_operation(mode: str, rounds: int) -> None:
    """On a full disk as on any other: what was acknowledged is there, and whoever opens it goes on."""
    files = SimFiles()
    life(files, {"put": set(), "done": set()})
    total = files.ops
    for at in range(2, total, 1 if rounds > 1 else 23):
        files, told = SimFiles(seed=at), {"put": set(), "done": set()}
        files.crash_at(at)
        with pytest.raises(SimCrash):
            life(files, told)
        after = files.crash(mode, at)
        after.free = None
        with opened(after) as queue:
            assert queue.report.whole or mode == "chaos", f"operation {at} of {total}: {queue.report}"
            queue.validate()
            kept = set(results(queue))
            left: set[int] = set()
            while news := work(queue, f"check {len(left)}"):
                left.update(news)
            assert told["done"] <= kept, f"operation {at} of {total}"
            assert not told["done"] & left, f"operation {at} of {total}"
            assert told["put"] <= kept | left, f"operation {at} of {total}"


def test_every_reservation_fails_once() -> None:
    """It is no reason to fail for what fits."""
    files = SimFiles()
    life(files, {"put": set(), "done": set()})
    for at in [at for at, what in enumerate(files.history, 1) if what.startswith("allocate")]:
        for code in (28, 5):
            again, told = SimFiles(), {"put": set[int](), "done": set[int]()}
            again.fail(at, code)
            try:
                life(again, told)
            except StorageError as problem:
                raise AssertionError(f"operation {at} failed with {code}") from problem
            with ReadOnlyQueue("/queue", files=again.also()) as reader:
                assert not reader.report.damaged
                assert len(told["put"]) > 30


TMPFS = """
import os, sys
from daskqueue_storage import DiskFullError
from daskqueue_storage.queue import DurableQueue

path = sys.argv[1] + "/queue"
queue = DurableQueue(path, segment_bytes=2 << 20, lock_ttl=600)
count = 0
try:
    while True:
        queue.put_many([b"%06d" % n + bytes(1000) for n in range(count, count + 200)])
        count += 200
except DiskFullError:
    pass
filler = os.open(sys.argv[1] + "/filler", os.O_CREAT | os.O_WRONLY)
try:
    while True:
        os.write(filler, bytes(4096))
except OSError as problem:
    print("nothing is free:", problem.strerror)
done = 0
while (lease := queue.lease(200, owner="w%d" % done)) is not None:
    for part in lease.parts:
        for body in part.bodies():
            assert bytes(body[:6]) == b"%06d" % done, done
            done += 1
    queue.ack(lease)
assert done == count, (done, count)
queue.put(b"room again")
queue.close()
with DurableQueue(path) as queue:
    assert queue.report.whole and queue.report.clean, queue.report
    assert queue.stats().ready == 1
print("done", count > 5000)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="needs to mount a file system")
def test_a_real_full_disk(tmp_path: Path) -> None:
    """A small tmpfs, filled by producers and then by a stranger to the last byte: consumers empty it."""
    script = 'mount -t tmpfs -o size=24m tmpfs "$1" && exec "$2" -c "$3" "$1"'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), sys.executable, TMPFS]
    try:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not here")
    if ran.returncode in (1, 32) and ("mount" in ran.stderr or "unshare" in ran.stderr):
        pytest.skip(f"may not mount: {ran.stderr.strip()}")
    assert ran.stdout.splitlines() == ["nothing is free: No space left on device", "done True"], ran.stderr
