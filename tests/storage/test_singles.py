"""Messages put one by one share an entry in memory, and stay messages of their own in everything else."""

from __future__ import annotations

from array import array
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.testing.clock import ManualClock
from daskqueue_storage.format import record_size
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.singles import MOST, _stored
from daskqueue_storage.testing import SimFiles

SECOND = 10**9


def opened(files: SimFiles, **options: Any) -> DurableQueue:
    """The queue in there."""
    return DurableQueue("/queue", files=files, **{"segment_bytes": 1 << 16, "wait": 100.0, **options})


def single(body: bytes, **options: Any) -> Batch:
    """A put of one message."""
    return Batch(1, body, lengths_column([body]), **options)


def leased(queue: DurableQueue, limit: int = 10_000) -> dict[int, bytes]:
    """What a lease brings, by number."""
    lease = queue.lease(limit)
    return (
        {}
        if lease is None
        else {seq: bytes(body) for part in lease.parts for seq, body in enumerate(part.bodies(), part.start)}
    )


def test_an_entry_goes_on_when_all_of_it_has_ended() -> None:
    """A queue that is worked off message by message makes no new entry for each; after something else it does."""
    queue = opened(SimFiles())
    for at in range(3):
        queue.put(b"%d" % at)
        assert [(entry.base, entry.stop, entry.live) for entry in queue._payloads.singles()] == [(0, at + 1, 1)]
        assert leased(queue, 1) == {at: b"%d" % at}
        queue.validate()
        assert queue.ack(queue._ledger.next_lease - 1) == 1
        queue.validate()
        assert queue._payloads.singles() == []
    queue.put_many([b"two", b"of them"])
    queue.put(b"5")
    assert [(entry.base, entry.stop) for entry in queue._payloads.singles()] == [(5, 6)]
    queue.put(b"6")
    queue.close()
    again = opened(queue._store.files)
    assert leased(again) == {3: b"two", 4: b"of them", 5: b"5", 6: b"6"}
    again.validate()


def test_an_entry_that_goes_on_is_found_again() -> None:
    """Also when the index of entries was tidied meanwhile."""
    queue = opened(SimFiles())
    for _ in range(64):
        queue.put_many([b"a", b"b"])
    queue.put(b"c")
    while queue.ready:
        lease = queue.lease(2)
        assert lease is not None
        queue.ack(lease)
    assert queue._payloads._bases == []
    queue.put(b"d")
    assert leased(queue) == {129: b"d"}
    queue.validate()


def test_they_share_an_entry() -> None:
    """Sizes and delays may differ; what a message is for may not, nor who hears of it, nor its segment."""
    queue = opened(SimFiles(), segment_bytes=4096)
    for size in (3, 0, 700):
        queue.put(b"x" * size)
    for at in (2**62, 2**61):
        queue.admit([single(b"later", ready_at=at)])
    assert [(entry.base, entry.stop) for entry in queue._payloads.singles()] == [(0, 3), (3, 5)]
    for other in ({"function": b"f"}, {"tags": ("gpu",)}, {"kind": Kind.CALL}, {"control": b"c"}, {"priority": 1}):
        queue.admit([single(b"y", **other)])
    assert [entry.stop - entry.base for entry in queue._payloads.singles()] == [3, 2, 1, 1, 1, 1, 1]
    queue.admit([single(b"kept", client=7, keep=Keep.KEEP)])
    queue.admit([single(b"named", keys=("k",))])
    queue.put_many([b"two", b"of them"])
    assert [entry.base for entry in queue._payloads.batches()] == [10, 11, 12]
    for _ in range(40):
        queue.put(b"z" * 100)
    segments = {entry._segment.segno for entry in queue._payloads.singles()}  # type: ignore[union-attr]
    assert len(segments) == len(queue._store.shelf.segments) > 1
    queue.validate()
    queue.close()


@pytest.mark.parametrize("extra", [*range(8), 117])
def test_what_they_take_is_counted_as_if_one_by_one(extra: int) -> None:
    """Padding too, for bodies of all sizes."""
    sizes = array("I", [*range(520), 1 << 20, 2**31 - 500])
    assert _stored(extra, sizes) == sum(record_size(extra + size) for size in sizes)


def test_an_entry_has_an_end() -> None:
    """What the last message of an entry keeps in memory is bounded; killed and opened, it is the same."""
    files = SimFiles()
    queue = opened(files, segment_bytes=1 << 22, sync="none")
    for _ in range(MOST + 10):
        queue.put(b"")
    spans = [entry.stop - entry.base for entry in queue._payloads.singles()]
    assert spans == [MOST, 10]
    with opened(files.crash("kill")) as again:
        assert [entry.stop - entry.base for entry in again._payloads.singles()] == spans
        again.validate()


@pytest.mark.parametrize("end", ["killed", "closed", "snapshot, then killed"])
def test_they_are_there_again(end: str) -> None:
    """Those not acked, with their bodies, between others, and the puts that follow join them."""
    files = SimFiles()
    queue = opened(files, segment_bytes=4096)
    expected: dict[int, bytes] = {}
    for at in range(60):
        body = b"%d" % at * (at % 7)
        expected[queue.put(body)] = body
        if at % 20 == 19:
            expected.update(zip(queue.put_many([b"a", b"b"]), (b"a", b"b")))
    lease = queue.lease(50)
    assert lease is not None
    gone = list(range(0, 50, 3))
    queue.ack(lease, gone)
    queue.release(lease)
    for seq in gone:
        del expected[seq]
    nbytes = queue.stats().nbytes
    if end.startswith("snapshot"):
        queue._snapshot()
        expected[queue.put(b"behind")] = b"behind"
        nbytes = queue.stats().nbytes
    if end == "closed":
        queue.close()
    with opened(files if end == "closed" else files.crash("kill"), segment_bytes=4096) as again:
        assert again.report.whole
        again.validate()
        assert again.stats().nbytes == nbytes
        expected[again.put(b"new")] = b"new"
        assert leased(again) == expected
        again.validate()


def test_events_between_puts_are_replayed_where_they_were() -> None:
    """An urgent message is leased first by who came after it, and not by who came before."""
    files = SimFiles()
    queue = opened(files)
    queue.put(b"0")
    first = queue.lease(5, owner="first")
    queue.put(b"1")
    queue.put(b"2")
    queue.purge(2)
    queue.put(b"3")
    assert first is not None
    with opened(files.crash("kill"), owners=("first",)) as again:
        again.validate()
        assert again._ledger.dropped == 0
        assert leased(again) == {3: b"3"}
        assert again.ack(first.id, [0]) == 1


def test_damage_costs_one_message() -> None:
    """The neighbours that share its entry, and would be read with it, are served."""
    files = SimFiles()
    queue = opened(files)
    for at in range(9):
        queue.put(b"message %d" % at)
    [(path, data)] = [item for item in files.tree().items() if item[0].endswith(".log")]
    for body in (b"message 3", b"message 8"):
        at = data.index(body)
        files.edit(path, data[:at] + b"M" + data[at + 1 :])
        data = files.tree()[path]
    assert leased(queue) == {at: b"message %d" % at for at in range(9) if at not in (3, 8)}
    assert [letter.seq for letter in queue.dead_letters()] == [3, 8]
    queue.validate()
    assert queue.requeue() == 2
    assert leased(queue) == {}, "what cannot be read dies again"
    assert [letter.seq for letter in queue.dead_letters()] == [3, 8]
    queue.close()
    with opened(files) as again:
        again.validate()
        assert leased(again) == {at: b"message %d" % at for at in range(9) if at not in (3, 8)}


@pytest.mark.parametrize("reopened", [False, True])
def test_a_dead_letter_of_them_runs_again(reopened: bool) -> None:
    """With its own bytes or out of its record, with its own time, and its segment stays for it."""
    files, clock = SimFiles(), ManualClock(1_000 * SECOND)
    queue = opened(files, clock=clock, segment_bytes=4096)
    for at in range(3):
        queue.put(b"%d" % at * 100)
        clock.advance(1)
    failing = queue.lease(1)
    once = queue.lease(1, owner="careful", once=True)
    assert failing is not None
    assert once is not None
    queue.settle(failing.id, [Report(0, 1, errors=(Failure(0, b"blob", "boom"),))])
    queue.owner_lost("careful")
    for _ in range(60):
        queue.put(b"more" * 20)
    lease = queue.lease(100)
    assert lease is not None
    queue.ack(lease)
    queue.compact()
    if reopened:
        queue.close()
        queue = opened(files, clock=clock, segment_bytes=4096)
    assert [(card.seq, card.put_at // SECOND) for card in queue.dead_letters()] == [(0, 1_000), (1, 1_001)]
    queue.validate()
    assert queue.requeue() == 2
    queue.validate()
    assert leased(queue) == {0: b"0" * 100, 1: b"1" * 100}
    queue.close()


@pytest.mark.parametrize("batch", [1, 50])
def test_disk_comes_back_without_a_roll(batch: int) -> None:
    """At any time twice what lives and two segments; of nothing, one segment and two of the index."""
    size = 1 << 15
    files = SimFiles()
    queue = opened(files, segment_bytes=size, sync="none")
    for at in range(600 // batch):
        queue.put_many([b"%03d" % at * 300] * batch)
    while True:
        lease = queue.lease(40)
        if lease is None:
            break
        queue.ack(lease)
        assert sum(info.valid for info in queue._store.shelf.segments) <= 2 * queue._store.shelf.live + 2 * size
    assert len(queue._store.shelf.segments) == 1
    assert len(queue._store.index_segments) == 2
    assert queue.size_bytes < 2 * size
    names = files.tree()
    assert sum(path.endswith(".log") for path in names) == 1
    queue.close()


def test_what_differs_after_a_kill() -> None:
    """Records of the same length that differ in client, function, kind or in what else a consumer needs."""
    files = SimFiles()
    queue = opened(files)
    options: list[dict[str, Any]] = [
        {},
        {"client": 7, "first": 3},
        {"client": 7, "first": 9},
        {"function": b"f"},
        {"function": b"g"},
        {"control": b"c"},
        {"control": b"d"},
        {"kind": Kind.CALL},
        {"shared": b"s"},
        {},
    ]
    for each in options:
        queue.admit([single(b"x", **each)])
    queue.admit([single(b"one of two", function=b"f"), single(b"two of two", function=b"f")])

    def parts(queue: DurableQueue) -> list[tuple[Any, ...]]:
        lease = queue.lease(100)
        assert lease is not None
        return [(part.start, part.client, part.first, *part[6:10], bytes(part.body or b"")) for part in lease.parts]

    with opened(files.crash("kill")) as again:
        again.validate()
        assert parts(again) == parts(queue)


def test_the_last_that_ends_frees_the_disk() -> None:
    """Also if little was freed since the disk was looked at."""
    files, size = SimFiles(), 1 << 15
    queue = opened(files, segment_bytes=size, sync="none")
    first, second, third = [queue.put_many([b"x" * part]) for part in (14_500, 14_500, 6_000)]
    leases = {seq.start: queue.lease(1) for seq in (first, second, third)}
    assert len(queue._store.shelf.segments) == 2
    for seq in (third, first, second):
        lease = leases[seq.start]
        assert lease is not None
        queue.ack(lease)
    assert len(queue._store.shelf.segments) == 1
    queue.close()


@pytest.mark.parametrize("killed", [False, True])
def test_moved_ones_are_as_they_were(killed: bool) -> None:
    """Runs of acked messages hold nothing; those between are copied, cost no more memory, and are found again."""
    files = SimFiles()
    queue = opened(files, segment_bytes=4096)
    for at in range(120):
        queue.put(b"%03d" % at * (1 + at % 3))
    queue._snapshot()
    lease = queue.lease(120)
    assert lease is not None
    queue.ack(lease, [at for at in range(120) if at % 20 not in (3, 4)])
    queue.release(lease)
    queue.compact()
    queue.validate()
    assert all(entry._owners is None for entry in queue._payloads.singles())
    if not killed:
        queue.close()
    with opened(files.crash("kill") if killed else files, segment_bytes=4096) as again:
        again.validate()
        assert leased(again) == {at: b"%03d" % at * (1 + at % 3) for at in range(120) if at % 20 in (3, 4)}


def test_a_copy_of_a_known_one_is_no_new_message() -> None:
    """Moved behind the snapshot that knows them: nothing is dropped, and they are read where they are now."""
    files = SimFiles()
    queue = opened(files, segment_bytes=4096)
    for at in range(30):
        queue.put(b"%d" % at)
    queue._snapshot()
    with queue._operation():
        for needed in list(queue._payloads.needed()):
            queue._move(needed)
    first = min(path for path in files.tree() if path.endswith(".log"))
    with opened(files.crash("kill"), segment_bytes=4096) as again:
        again.validate()
        assert again._ledger.dropped == 0
        assert all(place.segment.path != first for _, _, place in again._payloads.needed())
        assert leased(again) == {at: b"%d" % at for at in range(30)}


def test_after_a_close_no_message_is_read() -> None:
    """The snapshot knows them all: opening takes no time for them, and damage is found when it matters."""
    files = SimFiles()
    with opened(files) as queue:
        for at in range(5):
            queue.put(b"message %d" % at)
    [(path, data)] = [item for item in files.tree().items() if item[0].endswith(".log")]
    files.edit(path, data.replace(b"message 2", b"massage 2"))
    with opened(files) as again:
        assert again.report.whole
        assert leased(again) == {at: b"message %d" % at for at in range(5) if at != 2}
        assert [letter.seq for letter in again.dead_letters()] == [2]


class Counting(SimFiles):
    """Knows how much of each file was read."""

    def __init__(self) -> None:
        super().__init__()
        self.was_read = 0

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        """As always."""
        data = super().read_at(handle, size, offset)
        self.was_read += len(data)
        return data


def test_after_a_kill_what_the_snapshot_knows_is_read_once() -> None:
    """To see that it is whole; what messages are in there need not be found out again."""
    before = Counting()
    with opened(before, segment_bytes=1 << 20) as queue:
        for at in range(3000):
            queue.put(b"%d" % at)
        queue._snapshot()
        queue.put(b"last")
        files = Counting()
        files.__dict__.update(before.crash("kill").__dict__)
        size = sum(len(data) for path, data in files.tree().items() if path.endswith(".log"))
    with opened(files, segment_bytes=1 << 20) as queue:
        assert size < files.was_read < 1.6 * size
        assert leased(queue) == {at: b"%d" % at for at in range(3000)} | {3000: b"last"}
