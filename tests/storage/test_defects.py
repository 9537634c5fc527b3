"""What daskqueue 0.2.0 got wrong in its durable queue, row by row: each test fails when its cure is taken out."""

from __future__ import annotations

import marshal
import os
import types
from collections.abc import Callable
from pathlib import Path
from queue import Full
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind
from daskqueue_core.outcomes import Report
from daskqueue_storage.errors import LockedError
from daskqueue_storage.files import OsFiles
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import SimFiles


def opened(files: SimFiles, **options: Any) -> DurableQueue:
    """The queue of this disk."""
    return DurableQueue("/queue", files=files, **{"segment_bytes": 4096, "wait": 100.0, **options})


def bodies(queue: DurableQueue, limit: int = 100, **options: Any) -> list[bytes]:
    """What a lease ships."""
    lease = queue.lease(limit, **options)
    return [] if lease is None else [bytes(body) for part in lease.parts for body in part.bodies()]


def test_d10_a_large_index_is_reopened_while_collection_is_due(rounds: int) -> None:
    """Thousands of records, nearly all garbage, a killed writer: recovery is finished before anything else changes."""
    files, count = SimFiles(), 40_000 if rounds > 1 else 1_500
    queue = opened(files, sync="none", segment_bytes=1 << 26, result_ttl=None)
    queue.admit([Batch(count, b"block", kind=Kind.CALL, client=7, keep=Keep.KEEP)])
    lease = queue.lease(count)
    assert lease is not None
    for seq in range(count - 5):
        queue.settle(lease.id, [Report(seq, seq + 1, b"%d" % seq)])
    assert queue._store.index._next_rno > count - 5, "not as many records as it takes"
    after = files.crash("kill")
    with opened(after, segment_bytes=4096) as again:  # so small that opening it makes collection due
        again.validate()
        assert again.report.whole
        assert again.stats().acked == count - 5
        left = again.lease(100)
        assert left is not None
        assert left.ids == list(range(count - 5, count))
        again.compact()
    sealed = next(at for at, what in enumerate(after.history) if what == "sync_dir /queue/index")
    deleted = [at for at, what in enumerate(after.history) if what.startswith("unlink /queue/index/")]
    assert deleted, "nothing was collected"
    assert min(deleted) > sealed, "collected before recovery was finished"


def test_d11_a_torn_last_index_record_costs_itself_alone() -> None:
    """Cut at every byte of it: reported, everything before it is served, the queue goes on."""
    files = SimFiles()
    queue = opened(files, ack_sync=True, segment_bytes=1 << 26)
    queue.put_many([b"a", b"b", b"c"])
    lease = queue.lease(3)
    assert lease is not None
    queue.ack(lease, [0])
    [path] = [path for path in files.tree() if path.endswith(".idx")]
    before = len(files.tree()[path])
    queue.ack(lease, [1])
    data = files.tree()[path]
    for size in range(before, len(data)):
        torn = files.crash("kill")
        torn.edit(path, data[:size])
        with opened(torn) as again:
            again.validate()
            assert again.report.whole
            assert again.report.tail_bytes == size - before
            assert bodies(again) == [b"b", b"c"]
            again.put(b"d")
            assert bodies(again, owner="other") == [b"d"]


def test_d12_no_limit_to_a_life() -> None:
    """More cycles than 0.2.0 could do in a life (852,500): the disk returns to a floor, numbers and memory go on."""
    files = SimFiles()
    queue = opened(files, sync="none", segment_bytes=1 << 16)
    sizes = []
    for turn in range(9):
        queue.put_block(b"block", 100_000)
        lease = queue.lease(100_000)
        assert lease is not None
        queue.ack(lease)
        for _ in range(100):
            queue.put_many([b"x" * 100])
            lease = queue.lease(1, owner=f"{turn}")
            assert lease is not None
            queue.ack(lease)
        queue.compact()
        sizes.append(sum(map(len, files.tree().values())))
    assert queue.stats().puts == 9 * 100_100
    assert queue.unfinished == 0
    assert max(sizes) < 2 << 16, f"the directory grows: {sizes}"
    assert queue.put(b"and on") == 9 * 100_100


def test_d13_a_second_writer_is_told_who_holds_it(tmp_path: Path) -> None:
    """Host, process and age; nothing of the holder's is touched, and readers are let in."""
    path = tmp_path / "queue"
    with DurableQueue(path, owner="the first") as queue:
        queue.put(b"a")
        for _ in range(2):
            with pytest.raises(LockedError) as refused:
                DurableQueue(path)
            assert refused.value.pid == os.getpid()
            assert refused.value.host
        queue.put(b"b")
        assert bodies(queue) == [b"a", b"b"]
    files = SimFiles()
    queue = opened(files, owner="the first")
    queue.put(b"a")
    files.advance(3.0)
    with pytest.raises(LockedError, match="the first") as refused:
        DurableQueue("/queue", files=files.also(host="elsewhere"), wait=0.0)
    assert (refused.value.host, refused.value.pid, refused.value.age_s) == ("sim", files.pid, 3.0)
    queue.put(b"b")
    assert bodies(queue) == [b"a", b"b"]
    log = SegmentedLog("/log", files=files)
    log.append(b"seen")
    with SegmentedLog("/log", files=files.also(), mode="ro") as reader:
        assert [payload for _, payload in reader.scan()] == [b"seen"]


@pytest.mark.parametrize("large", [False, True])
def test_a_closure_in_a_durable_queue_is_run(large: bool) -> None:
    """What a closure was pickled to comes back byte by byte, after a kill too, and runs."""

    def closure() -> Callable[[int], int]:
        captured, ballast = 40, "x" * 20_000 if large else ""
        return lambda n: captured + n + len(ballast) // 20_000 * 0

    function = closure()
    cells = tuple(cell.cell_contents for cell in function.__closure__ or ())
    pickled = marshal.dumps((function.__code__, cells))  # stands for cloudpickle, which the store does not know
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 16)
    queue.admit([Batch(1, b"2", shared=pickled, kind=Kind.CALL, function=b"f", client=7)])
    with opened(files.crash("kill")) as again:
        lease = again.lease(1)
        assert lease is not None
        [part] = lease.parts
        code, values = marshal.loads(bytes(part.shared))
        rebuilt = types.FunctionType(code, {"len": len}, closure=tuple(map(types.CellType, values)))
        assert rebuilt(int(bytes(part.body or b""))) == 42


@pytest.mark.parametrize("killed", [False, True])
def test_no_disk_is_held_by_nothing(killed: bool) -> None:
    """157 MB stayed for no message: here a LogSegment and two IndexSegments, also when a killed writer left them."""
    files = SimFiles()
    queue = opened(files)
    for _ in range(30):
        queue.put_many([b"x" * 900] * 4)
    if killed:
        files = files.crash("kill")
        queue = opened(files)
        queue.put_many([b"x" * 900] * 40)
    while (lease := queue.lease(50)) is not None:
        queue.ack(lease)
    queue.compact()
    while queue.compact():
        pass
    names = list(files.tree())
    assert sum(path.endswith(".log") for path in names) == 1
    assert sum(path.endswith(".idx") for path in names) == 2
    assert sum(map(len, files.tree().values())) < 30 * 4 * 900 / 4
    queue.close()


class Counting(OsFiles):
    """Counts the bytes that are read."""

    def __init__(self) -> None:
        self.read = 0

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        """Counted."""
        data = super().read_at(handle, size, offset)
        self.read += len(data)
        return data


def test_reopening_reads_a_snapshot_and_no_payload(tmp_path: Path) -> None:
    """3 s per million records: here a closed queue is opened from its snapshot and the last segment of its log."""
    with DurableQueue(tmp_path / "queue", sync="none", segment_bytes=1 << 18) as queue:
        for _ in range(50):
            queue.put_many([b"x" * 1000] * 200)
        size = queue.size_bytes
    files = Counting()
    with DurableQueue(tmp_path / "queue", files=files) as again:
        assert again.report.clean
        assert again.stats().ready == 10_000
        assert files.read < size / 10, f"{files.read} bytes were read of {size}"


def test_maxsize_counts_what_was_there_before() -> None:
    """It was ignored by durable queues: here a reopened one is as full as it was."""
    files = SimFiles()
    queue = opened(files, maxsize=3)
    queue.put_many([b"a", b"b"])
    for reopened in (lambda: files.crash("kill"), lambda: queue.close() or files):
        with opened(reopened(), maxsize=3) as again:
            with pytest.raises(Full):
                again.put_many([b"c", b"d"])
            assert again.stats().ready == 2
            again.put(b"c")
            with pytest.raises(Full):
                again.put(b"d")
            lease = again.lease(1)
            assert lease is not None
            again.ack(lease)
            again.put(b"d")


def test_a_log_after_a_kill_still_lets_old_segments_go() -> None:
    """What a killed writer left unfinished does not stand in the way of retention and truncation."""
    files = SimFiles()
    SegmentedLog("/log", files=files, segment_bytes=4096).append(b"x" * 3000)
    with SegmentedLog("/log", files=files.crash("kill"), segment_bytes=4096, retain_bytes=9000) as log:
        for _ in range(20):
            log.append(b"x" * 3000)
        assert log.stats().segments <= 4
        log.truncate_before(log.stats().end)
        assert log.stats().segments == 1
