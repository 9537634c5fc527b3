"""The golden directories: small logs and queues with every record that the code writes, always the same bytes.

    log          full segments, deleted ones, a killed writer with a torn tail, a clean end
    queue        all that can happen to a message, over a killed writer
    compacted    what is left of one: copies, snapshots, deleted segments; not closed

Written through `SimFiles`, so under a clock, a uuid, a host and chances that are fixed. A reader of any version of the
format must read them for ever; a change of what is written shows here first, and is a new version of the format or a
mistake. `scripts/make_golden_storage.py` puts them where the tests compare.

Not here: what a reader makes of them (that is written down beside them).
"""

from __future__ import annotations

from collections.abc import Collection

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column, times_column
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.states import MessageState
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing.sim_files import SimFiles

__all__ = ["UUID", "golden_files"]

UUID = bytes(range(16))
_SECOND = 10**9
_FAR = 2**62  # the year 2116
_LARGE = 1 << 20  # no snapshot before the end: the events stay


def golden_files() -> dict[str, bytes]:
    """Every file of the directories, by path: `log/...` and so on."""
    tree: dict[str, bytes] = {}
    for files in (_log(), _queue(), _compacted()):
        tree.update(files.tree())
    return {path.lstrip("/"): data for path, data in sorted(tree.items())}


def _log() -> SimFiles:
    files = SimFiles(seed=1)
    log = SegmentedLog("/log", files=files, uuid=UUID, segment_bytes=4096)
    log.append_many([b"equal", b"sizes"])
    log.append(b"long" * 1000)
    log.append_many([b"", b"and", b"mixed ones"])
    files.advance(1)
    log.append(b"more" * 1000)
    log.truncate_before(4)
    log.append(b"the last one of a writer that is killed")
    files = files.crash("kill")
    path = max(name for name in files.tree() if name.endswith(".log"))
    files.edit(path, files.tree()[path] + b"DQR1 torn, as a crash may leave it")
    with SegmentedLog("/log", files=files, segment_bytes=4096) as log:
        log.append("after it, in another epoch \N{SNOWMAN}".encode())
    return files


def _queue() -> SimFiles:
    files = SimFiles(seed=2)
    queue = _open("/queue", files, segment_bytes=_LARGE)
    _put_all_sorts(queue)
    _run_the_blocks(files, queue)
    files = files.crash("kill")
    queue = _open("/queue", files, segment_bytes=_LARGE, owners=("worker-2",))
    _mend(queue)
    queue.close()
    return files


def _compacted() -> SimFiles:
    files = SimFiles(seed=3)
    queue = _open("/compacted", files, segment_bytes=4096)
    queue.put_many([b"stays", b"goes"])
    for number in range(6):
        queue.put_many([b"%d" % number * 700, b"more" * 200])
        lease = queue.lease(3, owner="worker-1")
        assert lease is not None
        queue.ack(lease, [seq for seq in lease.ids if seq])
        queue.release(lease)
        files.advance(1)
    queue.compact()
    held = queue.lease(2, owner="worker-1", request=7)
    assert held is not None
    queue.put(b"the end")
    return files.crash("kill")


def _open(path: str, files: SimFiles, *, segment_bytes: int, owners: Collection[str] = ()) -> DurableQueue:
    return DurableQueue(path, files=files, uuid=UUID, segment_bytes=segment_bytes, owners=owners)


def _put_all_sorts(queue: DurableQueue) -> None:
    """Numbers 0 to 27."""
    now = queue._clock()
    queue.put_many([b"equal", b"sizes"])
    queue.put_many([b"", b"bb", b"ccc", b"dddd"])
    bodies = [b"one", b"three"]
    singles = Batch(2, b"".join(bodies), lengths_column(bodies), client=7, first=100, keep=Keep.KEEP, keys=("k1", "k2"))
    queue.admit([singles._replace(tags=("gpu",), control=b"policy", function=b"fn")], producer=9, number=0)
    block = Batch(
        6, b"a block of six", shared=b"shared", kind=Kind.CALL, client=7, first=200, keep=Keep.KEEP, priority=2
    )
    queue.admit([block, block._replace(first=206, function=b"other")], producer=9, number=1)
    stream = Batch(2, b"later", client=7, first=300, keep=Keep.STREAM)
    queue.admit([stream._replace(ready_ats=times_column([_FAR, now + 2 * _SECOND]))])
    queue.admit([stream._replace(count=1, body=b"short-lived", first=310, expires_at=now + _SECOND)])
    queue.admit([stream._replace(count=1, body=b"large", first=320, shared=b"s" * 9000, priority=-1)])
    queue.admit([stream._replace(count=1, body=b"asked to stop", first=330, ready_at=_FAR)])
    for number in range(3):
        queue.put(b"alone %d" % number)


def _run_the_blocks(files: SimFiles, queue: DurableQueue) -> None:
    lease = queue.lease(12, owner="worker-1", request=1)
    assert lease is not None
    start = lease.runs[0][0]
    queue.settle(lease.id, [Report(start, start + 4, b"four values, one pickle")])
    failures = (
        Failure(0, b"pickled", "ValueError: no", body=b"its own call"),
        Failure(1, b"pickled too", "TypeError: never", reason=FailureReason.REJECTED),
        Failure(2, b"", "OSError: again", retry_in=_SECOND),
    )
    queue.settle(lease.id, [Report(start + 4, start + 8, b"one value", failures)])
    queue.cancel([(start + 8, start + 10)])
    queue.agree(lease, [(start + 8, start + 9)])
    queue.release(lease, [(start + 10, start + 11)])
    files.advance(2)
    queue.tick()  # what was short-lived expires, one of the later ones is due
    queue.owner_lost("worker-1")


def _mend(queue: DurableQueue) -> None:
    early = queue.lease(1, owner="worker-3", once=True)
    assert early is not None
    queue.owner_lost("worker-3")  # and it fails: it must not run twice
    letters = queue.dead_letters()
    queue.requeue([(0, letters[0].seq)])
    queue.purge(MessageState.FAILED, [(0, letters[-1].seq)])
    queue.cancel([(24, 25)])
    queue.forget([(8, 9)])
    held = queue.lease(3, owner="worker-2", request=5)
    assert held is not None
    queue.ack(held, held.ids[:1])
