"""What a durable queue promises beyond the conformance suite: being opened again, damage, space, threads, refusals."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, OnDuplicate, lengths_column
from daskqueue_core.outcomes import End, Failure, Report
from daskqueue_core.protocols import Lease
from daskqueue_core.states import MessageState
from daskqueue_storage.errors import (
    ClosedError,
    DamagedLog,
    DiskFullError,
    LockedError,
    NotAQueue,
    RecordTooLarge,
    WriterFailedError,
)
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


def large(lease: Lease) -> list[int]:
    """The messages of 1500 bytes."""
    return [seq for part in lease.parts for seq, body in enumerate(part.bodies(), part.start) if len(body) == 1500]


def calls(count: int, **options: Any) -> Batch:
    """A block of calls whose results are kept."""
    return Batch(count, b"block", kind=Kind.CALL, client=7, keep=Keep.KEEP, **options)


def test_what_is_known_of_a_queue_is_found_fast() -> None:
    """Python shares the names of at most 30 attributes; with more every message takes a tenth longer."""
    queue = opened(SimFiles(), ack_sync=True, sync=1.0)
    for at in range(100):
        queue.put(b"%d" % at)
    for _ in range(99):
        lease = queue.lease(1)
        assert lease is not None
        queue.ack(lease)
    queue.compact()
    assert len(vars(queue)) <= 30


@pytest.mark.parametrize("killed", [False, True])
def test_everything_is_there_again(killed: bool) -> None:
    """Ready, scheduled, dead, done and kept messages, keys and counters, after a close and after a kill."""
    files = SimFiles()
    queue = opened(files, ack_sync=True)
    queue.put_many([b"a", b"", b"ccc"])
    queue.admit([calls(3, keys=("x", "y", "z"))], producer=5, number=0)
    queue.admit([calls(1, first=9, ready_at=2**62)])
    [lease] = [queue.lease(1)]
    assert lease is not None
    queue.ack(lease)
    queue.settle(0, [Report(3, 5, b"values")])
    dying = queue.lease(1, owner="b")
    assert dying is not None
    queue.nack(dying, error=b"E", text="boom")
    if killed:
        files = files.crash("kill")
    else:
        queue.close()
    with opened(files) as again:
        assert again.report.clean is not killed
        assert again.report.whole
        again.validate()
        counts = again.stats()
        assert (counts.ready, counts.scheduled, counts.failed, counts.acked) == (2, 1, 1, 2)
        assert [letter.text for letter in again.dead_letters()] == ["boom"]
        assert [outcome.values for _, outcome in again.read_kept()[1]] == [b"values"]
        assert again.subscribe(8, 0, ["x", "nothing"]) == [1, 0]
        assert again.admit([calls(3, keys=("x", "y", "z"))], producer=5, number=0)[0] == 3  # type: ignore[index]
        assert again.requeue() == 1
        assert bodies(again, 1) == [b""], "the dead letter, requeued"
        assert again.epoch > 1


def test_who_keeps_a_lease() -> None:
    """`owners` do, under the same number; what others held is ready again, or fails if it must not run twice."""
    files = SimFiles()
    queue = opened(files)
    queue.put_many([b"kept", b"back", b"once"])
    kept = queue.lease(1, owner="kept", request=4)
    queue.lease(1, owner="gone")
    queue.lease(1, owner="careful", once=True)
    assert kept is not None
    with opened(files.crash("kill"), owners=["kept"]) as again:
        same = again.lease(1, owner="kept", request=4)
        assert same is not None
        assert (same.id, same.ids) == (kept.id, kept.ids)
        assert again.next_ready_at() is not None
        assert again.next_ready_at() > files.wall_ns()  # type: ignore[operator]  # a fresh time to live
        assert bodies(again) == [b"back"]
        [letter] = again.dead_letters()
        assert (letter.seq, letter.reason) == (2, "early ack")
        assert again.ack(kept) == 1


def test_what_killed_the_host_is_found_out() -> None:
    """A message whose owner died with the queue, and is known to: suspect, and blamed when it was alone."""
    files = SimFiles()
    queue = opened(files)
    queue.put_many([b"%d" % number for number in range(9)])
    for number in range(20):
        lease = queue.lease(9, owner=f"host {number}")
        assert lease is not None
        if 3 in lease.ids:
            files = files.crash("kill")
            queue = opened(files, lost=[f"host {number}"])
            assert queue.taken_back == len(lease.ids)
            queue.validate()
        else:
            queue.ack(lease)
        if letters := queue.dead_letters():
            break
    [letter] = letters
    assert (letter.seq, letter.reason, letter.crashes) == (3, "crashed", 3)
    assert queue.lease(9, owner="host 0") is None, "it comes back as somebody else"


@pytest.mark.parametrize("mode", ["ordered", "chaos"])
def test_a_replaced_message_is_gone_though_its_end_was_lost(mode: str) -> None:
    """The new one's put is on the disk, what became of the old one is not: it takes its payload with it."""
    files = SimFiles()
    queue = opened(files, sync="none", segment_bytes=1 << 20)  # no snapshot on the way
    for number in range(2):
        body = b"%d" % number * 100
        options: dict[str, Any] = {"keep": Keep.KEEP, "keys": ("k",), "on_duplicate": OnDuplicate.REPLACE}
        queue.admit([Batch(1, body, lengths_column([body]), client=7, first=number, **options)])
        queue._store.log.sync()
    for seed in range(8):
        with opened(files.crash(mode, seed), sync="none") as again:
            again.validate()
            assert bodies(again) == [b"1" * 100]
            assert [outcome.end for outcome in again.poll(7).outcomes] == [End.CANCELLED]


def test_numbers_are_never_given_twice() -> None:
    """After an unclean end some are skipped: those that were lost may have been given."""
    files = SimFiles()
    queue = opened(files, sync="none")
    assert queue.put(b"a") == 0
    with opened(files.crash("kill")) as again:
        assert again.put(b"b") > 2**20
        assert bodies(again) == [b"a", b"b"]


def test_a_damaged_payload_fails_and_the_rest_goes_on() -> None:
    """Its messages are dead letters that say where; requeued, they fail again; nothing wrong is delivered."""
    files = SimFiles()
    queue = opened(files)
    queue.put_many([b"good"])
    queue.put_many([b"rotten one", b"rotten two"])
    queue.put_many([b"also good"])
    [(path, data)] = [(path, data) for path, data in files.tree().items() if path.endswith(".log")]
    files.edit(path, data.replace(b"rotten one", b"rotten 0ne"))
    assert bodies(queue) == [b"good", b"also good"]
    letters = queue.dead_letters()
    assert [letter.seq for letter in letters] == [1, 2]
    assert path in letters[0].text
    assert "DamagedPayload" in letters[0].text
    queue.validate()
    assert queue.requeue() == 2
    assert bodies(queue, owner="b") == []
    queue.close()
    with opened(files) as again:
        assert [letter.seq for letter in again.dead_letters()] == [1, 2]


def test_a_damaged_snapshot_costs_a_longer_replay() -> None:
    """The one before it and what followed are still there."""
    files = SimFiles()
    queue = opened(files)
    for at in range(3):
        queue.put_many([b"%d" % at])
        queue.compact()
        bodies(queue, 1, owner="x") if at == 0 else None
    queue.close()
    newest = max(path for path in files.tree() if path.endswith(".idx"))
    data = bytearray(files.tree()[newest])
    data[300] ^= 1
    files.edit(newest, bytes(data))
    with opened(files) as again:
        assert not again.report.whole
        again.validate()
        assert bodies(again) == [b"0", b"1", b"2"]


def test_space_comes_back() -> None:
    """When all is done and compacted, a segment of the log and two of the index are left."""
    files = SimFiles()
    queue = opened(files)
    for _ in range(100):
        queue.put_many([b"x" * 500] * 4)
        lease = queue.lease(4)
        assert lease is not None
        queue.ack(lease)
    assert sum(path.endswith(".log") for path in files.tree()) < 25, "nothing went by itself"
    queue.compact()
    names = files.tree()
    assert sum(path.endswith(".log") for path in names) == 1
    assert sum(path.endswith(".idx") for path in names) == 2
    queue.close()
    with opened(files) as again:
        assert again.report.whole
        assert again.unfinished == 0


def test_what_lives_on_is_copied() -> None:
    """One message in each of many segments: they move together, keep their place, and outlive two more openings."""
    files = SimFiles()
    queue = opened(files)
    for at in range(30):
        queue.put_many([b"%02d" % at])
        queue.put_many([b"y" * 1500])
    lease = queue.lease(60)
    assert lease is not None
    before = len(queue._store.shelf.segments)
    queue.ack(lease, large(lease))
    queue.release(lease)
    queue.compact()
    assert before - len(queue._store.shelf.segments) > 5
    live = sum(queue._store.shelf.live_bytes.values())
    assert sum(info.valid for info in queue._store.shelf.segments) <= 2 * live + 2 * 4096
    queue.validate()
    expected = [b"%02d" % at for at in range(30)]
    copy = files.crash("chaos", 3)
    queue.close()
    for disk in (copy, files, files):
        with opened(disk) as again:
            assert again.report.whole
            again.validate()
            assert bodies(again) == expected


def test_a_full_disk_changes_nothing() -> None:
    """A put that finds no room raises, and goes through when there is some; so does a half-written one."""
    files = SimFiles()
    queue = opened(files)
    queue.put(b"a")
    files.fail(files.ops + 2, errno.ENOSPC, partial=10)
    with pytest.raises(DiskFullError):
        queue.admit([Batch(1, b"b", lengths_column([b"b"])), Batch(1, b"c", lengths_column([b"c"]))])
    queue.validate()
    queue.put(b"d")
    assert bodies(queue) == [b"a", b"d"]
    queue.close()
    with opened(files) as again:
        assert again.report.whole
        assert bodies(again) == [b"a", b"d"]


@pytest.mark.parametrize("room", range(72, 400, 16))
def test_a_first_segment_that_finds_no_room(room: int) -> None:
    """Its name may come back with the power, though it was deleted: nothing is missing then."""
    files = SimFiles()
    queue = opened(files)
    files.free = sum(map(len, files.tree().values())) + room
    with pytest.raises(DiskFullError):
        queue.put(b"x" * 300)
    files.free = None
    queue.close()
    for mode in ("kill", "ordered", "chaos"):
        for seed in range(5):
            with opened(files.crash(mode, seed)) as again:
                assert again.report.whole, again.report
                assert bodies(again) == []


def test_a_failed_sync_is_told_and_opening_again_recovers() -> None:
    """The put raises and its message is not delivered; what was acknowledged is there."""
    files = SimFiles()
    queue = opened(files)
    queue.put(b"a")
    files.fail(files.ops + 2, errno.EIO)
    with pytest.raises(WriterFailedError):
        queue.put(b"b")
    assert bodies(queue) == [b"a"]
    queue.close()
    with opened(files) as again:
        assert b"a" in bodies(again)


def test_threads_share_a_sync() -> None:
    """Sixteen threads that put at once: all is there, under numbers of their own."""
    files = SimFiles()
    numbers: list[int] = []
    with opened(files, segment_bytes=1 << 20) as queue:
        threads = [threading.Thread(target=lambda: numbers.append(queue.put(b"x"))) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(numbers) == list(range(16))
        assert len(bodies(queue)) == 16


def test_what_is_refused() -> None:
    """A clear error each, and nothing changed."""
    files = SimFiles()
    with pytest.raises(NotAQueue, match="create=False"):
        opened(files, create=False)
    assert files.list_dir("/") == []
    SegmentedLog("/log", files=files).close()
    with pytest.raises(NotAQueue, match="index is missing"):
        DurableQueue("/log", files=files)
    queue = opened(files)
    with pytest.raises(LockedError):
        opened(files, wait=0.0)
    with pytest.raises(RecordTooLarge):
        queue.put_block(b"", 2**21)
    with pytest.raises(TypeError, match="is durable"):
        queue.hand_over()
    queue.close()
    queue.close()
    with pytest.raises(ClosedError):
        queue.put(b"a")
    with pytest.raises(NotAQueue, match="not 0101"):
        opened(files, uuid=b"\1" * 16)
    for wrong in ({"sync": "often"}, {"segment_bytes": 1}, {"lock_ttl": 0}, {"uuid": b"1"}, {"on_damage": "ignore"}):
        with pytest.raises(ValueError, match=r"not|positive|at least"):
            opened(files, **wrong)
    before = files.tree()
    [path] = [path for path in before if path.endswith(".log")] or [None]  # type: ignore[list-item]
    assert path is None, "a queue without messages has no segment of the log"


def test_damage_may_be_refused() -> None:
    """With on_damage="raise"."""
    files = SimFiles()
    queue = opened(files)
    queue.put(b"a")
    queue.nack(queue.lease(1) or 0, error=b"E")
    files = files.crash("kill")  # after a close nothing of the log needs to be read
    path = max(path for path in files.tree() if path.endswith(".log"))
    data = bytearray(files.tree()[path])
    data[70] ^= 4
    files.edit(path, bytes(data))
    with pytest.raises(DamagedLog):
        opened(files, on_damage="raise")
    with opened(files) as again:
        assert not again.report.whole


def test_a_crash_letter_keeps_its_payload() -> None:
    """Dead without a word of its holder: the message stays where it is, moves with the rest, and can be requeued."""
    files = SimFiles()
    queue = opened(files)
    queue.admit([Batch(2, b"onetwo", lengths_column([b"one", b"two"]), max_crashes=1)])
    lease = queue.lease(1, owner="w")
    assert lease is not None
    queue.heartbeat("w", {lease.id: (0, 1)}, [], 0)
    queue.owner_lost("w")
    assert queue.stats().failed == 1
    queue.settle(0, [Report(1, 2)])
    for _ in range(20):
        queue.put_many([b"z" * 1000])
        queue.purge(MessageState.READY)
    queue.compact()
    queue.close()
    with opened(files) as again:
        again.validate()
        assert again.requeue() == 1
        assert bodies(again) == [b"one"]


def test_failures_of_blocks_bring_their_own_payload() -> None:
    """It stands in the index, so that a dead letter pins no block."""
    files = SimFiles()
    queue = opened(files)
    queue.admit([calls(2)])
    lease = queue.lease(2)
    assert lease is not None
    queue.settle(lease.id, [Report(0, 2, b"v", (Failure(1, b"E", "no", body=b"own"),))])
    assert sum(queue._store.shelf.live_bytes.values()) == 0
    with opened(files.crash("kill")) as again:
        again.requeue()
        assert bodies(again) == [b"own"]


@pytest.mark.parametrize("seed", range(4))
def test_a_segment_goes_after_the_acks_that_free_it(seed: int) -> None:
    """Bare acks are not synced by themselves; a power failure after the deletion must not bring their messages back."""
    files = SimFiles(seed=seed)
    queue = opened(files)
    for _ in range(12):
        queue.put_many([b"x" * 1500])
    queue.compact()
    queue.compact()
    lease = queue.lease(100)
    assert lease is not None
    before = len(queue._store.shelf.segments)
    queue.ack(lease)
    assert before - len(queue._store.shelf.segments) > 2, "without being asked"
    with opened(files.crash("chaos", seed)) as again:
        assert again.dead_letters() == []
        assert all(body == b"x" * 1500 for body in bodies(again))
        assert again.dead_letters() == []


@pytest.mark.parametrize("seed", range(4))
def test_a_snapshot_speaks_of_nothing_that_may_be_lost(seed: int) -> None:
    """Without syncs: what a durable snapshot knows is durable too."""
    files = SimFiles(seed=seed)
    queue = opened(files, sync="none")
    queue.put_many([b"a" * 900, b"b"])
    queue._snapshot()
    with opened(files.crash("chaos", seed)) as again:
        assert bodies(again) == [b"a" * 900, b"b"]


@pytest.mark.parametrize("seed", range(4))
def test_a_segment_goes_after_its_copies_are_safe(seed: int) -> None:
    """What was copied out of it is on disk before it is deleted."""
    files = SimFiles(seed=seed)
    queue = opened(files)
    for at in range(12):
        queue.put_many([b"%02d" % at])
        queue.put_many([b"x" * 1500])
    queue.compact()
    queue.compact()
    lease = queue.lease(100)
    assert lease is not None
    before = len(queue._store.shelf.segments)
    queue.ack(lease, large(lease))
    queue.release(lease)
    with queue._operation():
        queue._squeeze(0, None)
        queue._store.retire()
    assert before - len(queue._store.shelf.segments) > 2
    with opened(files.crash("chaos", seed)) as again:
        assert bodies(again) == [b"%02d" % at for at in range(12)]
        assert again.dead_letters() == []


def test_both_logs_are_replayed_in_one_order() -> None:
    """A key is used again after its first message was done: both outcomes are told, as they were."""
    files = SimFiles()
    queue = opened(files)
    for first in (0, 1):
        queue.admit([Batch(1, b"block", kind=Kind.CALL, client=7, first=first, keep=Keep.STREAM, keys=("x",))])
        lease = queue.lease(1)
        assert lease is not None
        queue.settle(lease.id, [Report(first, first + 1, b"value %d" % first)])
    with opened(files.crash("kill")) as again:
        again.validate()
        assert [(one.first, one.values) for one in again.poll(7).outcomes] == [(0, b"value 0"), (1, b"value 1")]


def test_no_segment_goes_before_a_snapshot_knows_it() -> None:
    """Results of messages whose segments are full and done are there after a kill."""
    files = SimFiles()
    queue = opened(files)
    for first in range(7):
        queue.admit([calls(1, first=first)._replace(body=b"x" * 1500)])
        lease = queue.lease(1)
        assert lease is not None
        queue.settle(lease.id, [Report(first, first + 1, b"value")])
    with opened(files.crash("kill")) as again:
        assert again.report.whole
        assert again.stats().acked == 7


def test_a_lease_is_never_empty() -> None:
    """Where the first message is damaged, the lease has the next one."""
    files = SimFiles()
    queue = opened(files)
    queue.put_many([b"rotten"])
    queue.put_many([b"good"])
    [(path, data)] = [(path, data) for path, data in files.tree().items() if path.endswith(".log")]
    files.edit(path, data.replace(b"rotten", b"r0tten"))
    assert bodies(queue, 1) == [b"good"]


def test_what_was_acknowledged_is_not_told_after_a_close() -> None:
    """Nor what was done before the last snapshot."""
    files = SimFiles()
    queue = opened(files)
    queue.admit([Batch(1, b"block", client=7, keep=Keep.STREAM)])
    queue.ack(queue.lease(1) or 0)
    queue.compact()
    cursor = queue.poll(7).cursor
    queue.poll(7, cursor)
    queue.close()
    with opened(files) as again:
        assert again.poll(7).outcomes == ()


def test_nothing_is_leased_before_its_put_is_durable() -> None:
    """While a put waits for the disk others get in, and do not see its messages."""
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 26)  # no snapshot on the way, which would wait for the same disk
    queue.put(b"a")
    meanwhile: list[Any] = []
    files.before(files.ops + 2, lambda: meanwhile.append((bodies(queue), bodies(queue, owner="b"))))
    queue.put(b"b")
    assert meanwhile == [([b"a"], [])]
    assert bodies(queue, owner="c") == [b"b"]


def test_a_put_whose_beginning_is_lost_can_be_repeated() -> None:
    """What is left of it is delivered, and its producer is not told that all of it was there."""
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 26)  # no snapshot, which would know better
    put = [Batch(1, body, lengths_column([body]), client=7, first=at) for at, body in enumerate((b"one", b"two"))]
    queue.admit(put, producer=5, number=0)
    files = files.crash("kill")
    [(path, data)] = [(path, data) for path, data in files.tree().items() if path.endswith(".log")]
    first_put = data.index(b"DQR1", data.index(b"DQR1") + 1)
    files.edit(path, data[: first_put + 20] + bytes(44) + data[first_put + 64 :])
    with opened(files) as again:
        assert not again.report.whole
        assert again.stats().ready == 1
        answer = again.admit(put, producer=5, number=0)
        assert answer[0] > 2**20, "its producer was told that the put was there"  # type: ignore[index]
        assert sorted(bodies(again)) == [b"one", b"two", b"two"]


@pytest.mark.parametrize("single", [False, True])
def test_the_newer_place_counts(single: bool) -> None:
    """Copied, and killed before a snapshot knew: read there, and the old segment is free to go."""
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 26)
    payload = [b"moved"] if single else [b"moved", b"too"]
    queue.put_many(payload)
    queue._store.log.roll()
    with queue._operation():
        [needed] = queue._payloads.needed()
        assert queue._move(needed)
        queue._store.log.sync()
    killed = files.crash("kill")
    first, second = sorted(path for path in killed.tree() if path.endswith(".log"))
    assert b"moved" in killed.tree()[second]
    for damaged in (False, True):
        if damaged:
            killed.edit(first, killed.tree()[first].replace(b"moved", b"m0ved"))
        with opened(killed.crash("kill"), segment_bytes=1 << 26) as again:
            again.validate()
            live = again._store.shelf.live_bytes
            assert (live[1], live[2]) == (0, needed.place.size)
            assert bodies(again) == payload
            assert not again.dead_letters()


def test_a_block_that_was_moved_knows_its_place() -> None:
    """With both snapshots gone a copy is all there is: it says which element of its block is the first message."""
    files = SimFiles()
    queue = opened(files)
    queue.admit([calls(3, first=40, offset=4)])
    for _ in range(12):
        queue.put_many([b"x" * 1500])
    queue.lease(1, owner="somebody")
    for _ in range(3):
        queue.cancel([(3, 100)])
        queue.compact()
    assert min(info.segno for info in queue._store.shelf.segments) > 1, "it was not moved"
    queue.close()
    for path, data in files.tree().items():
        if path.endswith(".idx"):
            files.edit(path, data[:64] + bytes(len(data) - 64))
    with opened(files) as again:
        lease = again.lease(3)
        assert lease is not None
        [part] = lease.parts
        assert (bytes(part.body or b""), part.offset, part.first, part.count) == (b"block", 4, 40, 3)


def test_a_refused_put_does_not_come_back_with_the_next() -> None:
    """Half of it is in the log, and the next put has the numbers behind that: it is another one all the same."""
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 26)
    column = lengths_column([b"x", b"x"])
    batches = [Batch(2, b"xx", column, client=7), Batch(2, b"yy", column, client=7, first=2)]
    queue.put(b"a")
    files.fail(files.ops + 2, errno.ENOSPC)
    with pytest.raises(DiskFullError):
        queue.admit(batches, producer=5, number=0)
    answer = queue.admit([batches[1]._replace(body=b"zz")], producer=6, number=0)
    with opened(files.crash("kill")) as again:
        assert again.stats().ready == 3
        assert again.admit([batches[1]._replace(body=b"zz")], producer=6, number=0) == answer
        assert bodies(again) == [b"a", b"z", b"z"]
