"""`ReadOnlyQueue`: what it sees of a queue, beside its writer and after it, and that it changes nothing."""

from __future__ import annotations

import pytest

from daskqueue_core.batch import Batch, Keep, Kind, lengths_column
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.states import MessageFlag, MessageState
from daskqueue_storage.errors import (
    AccessError,
    ClosedError,
    DamagedLog,
    FormatError,
    NotAQueue,
    StorageError,
    UnsafeDirectory,
)
from daskqueue_storage.format import FileHeader, FileKind, encode_file_header
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import Message, ReadOnlyQueue
from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles

SECOND = 10**9


def written(files: SimFiles, **options: object) -> DurableQueue:
    """The queue of this disk, opened to write."""
    return DurableQueue("/queue", files=files, **{"segment_bytes": 4096, "wait": 100.0, **options})  # type: ignore[arg-type]


def looked(files: SimFiles) -> ReadOnlyQueue:
    """The same, by another process that only looks."""
    return ReadOnlyQueue("/queue", files=files.also())


def states(queue: ReadOnlyQueue) -> dict[int, MessageState]:
    """Of all its messages."""
    return {message.seq: message.state for message in queue.messages()}


def busy(files: SimFiles) -> DurableQueue:
    """A queue with messages in every state."""
    queue = written(files)
    queue.put_many([b"a", b"bb", b"", b"dddd", b"e"])
    queue.admit(
        [Batch(6, b"block", kind=Kind.CALL, client=7, first=50, keep=Keep.KEEP, priority=3, keys=tuple("uvwxyz"))]
    )
    queue.admit([Batch(1, b"later", ready_at=2**62)])
    queue.admit([Batch(1, b"short", expires_at=files.wall_ns() + SECOND, client=7, first=90, keep=Keep.STREAM)])
    lease = queue.lease(6, owner="worker-1")
    assert lease is not None
    first = lease.ids[0]
    errors = (Failure(1, b"pickled", "ValueError: no"), Failure(2, b"x", "OSError: again", retry_in=0))
    queue.settle(lease.id, [Report(first, first + 3, b"values", errors)])
    queue.cancel([(first + 3, first + 4)])
    queue.cancel([(0, 1)])
    files.advance(2)
    queue.tick()
    return queue


def test_it_sees_what_the_writer_has() -> None:
    """Counts, states, holders, flags and names, while the writer is at it and after it closed; nothing is changed."""
    files = SimFiles()
    queue = busy(files)
    before = files.tree()
    eye = files.also()
    with ReadOnlyQueue("/queue", files=eye) as look:
        assert look.stats() == queue.stats()
        assert look.report.whole
        assert look.uuid == queue.uuid
        assert look.size_bytes == queue.size_bytes
        seen = {message.seq: message for message in look.messages()}
        counts = look.stats()
        assert states(look) == {seq: queue._ledger.state(seq) for seq in seen}
        assert len(seen) == counts.unfinished + counts.acked + counts.failed + counts.cancelled + counts.expired
        assert {state.name for state in states(look).values()} == {state.name for state in MessageState} - {"GONE"}
    assert seen[5][:6] == (5, MessageState.ACKED, 7, 50, "u", Kind.CALL)
    assert (seen[7].attempts, seen[7].priority, seen[7].state) == (1, 3, MessageState.READY)
    assert (seen[8].owner, seen[8].flags) == ("worker-1", MessageFlag.CANCEL)
    assert (seen[9].owner, seen[9].flags) == ("worker-1", MessageFlag(0))
    assert all(message.body is None and message.offset < 0 for message in seen.values()), "bodies were not asked for"
    assert files.tree() == before
    assert eye.ops == 0, eye.history
    queue.close()
    with looked(files) as look:
        assert {message.seq: message for message in look.messages()} == seen


def test_payloads() -> None:
    """Of what has not ended: own bytes, or the block and a place in it; of dead letters what came along."""
    files = SimFiles()
    busy(files)
    with looked(files) as look:
        seen = {message.seq: message for message in look.messages(bodies=True)}
        assert [seen[seq].body for seq in (1, 2, 3, 4)] == [b"bb", b"", b"dddd", b"e"]
        assert [(seen[seq].body, seen[seq].offset) for seq in (7, 8, 9, 10)] == [(b"block", at) for at in (2, 3, 4, 5)]
        assert seen[5].body is None, "it has ended"
        assert [message.seq for message in look.messages(MessageState.READY, bodies=True)] == [1, 2, 3, 4, 7]
        with pytest.raises(ValueError, match="GONE"):
            look.messages(MessageState.GONE)
    other = SimFiles()
    queue = written(other)
    queue.put_many([b"good", b"bad one"])
    lease = queue.lease(2)
    assert lease is not None
    queue.nack(lease, [1], text="boom")
    with looked(other) as look:
        [dead] = look.messages(MessageState.FAILED, bodies=True)
        assert (dead.seq, dead.body) == (1, b"bad one")


def test_peek_is_what_a_lease_would_bring() -> None:
    """The same messages in the same order, and they can be leased afterwards."""
    files = SimFiles()
    queue = busy(files)
    with looked(files) as look:
        assert look.peek() == look.peek(1)
        peeked = look.peek(10)
        assert [message.seq for message in peeked] == [7, 1, 2, 3, 4], "priority first"
        lease = queue.lease(10)
        assert lease is not None
        assert lease.ids == [message.seq for message in peeked]
        bodies = [body for part in lease.parts for body in (map(bytes, part.bodies()) if part.lengths else [part.body])]
        assert bodies == [message.body for message in peeked]
        assert len(look.peek(10)) == 5, "as it was when it was looked at"
        look.refresh()
        assert look.peek(10) == []


def test_what_time_brings() -> None:
    """What is due is ready and what is over has expired, though nobody wrote that down; leases are left alone."""
    files = SimFiles()
    queue = written(files)
    now = files.wall_ns()
    queue.put(b"held")
    queue.lease(1, owner="silent", ttl=SECOND)
    queue.admit([Batch(1, b"later", ready_at=now + SECOND)])
    queue.admit([Batch(1, b"short", expires_at=now + SECOND, client=7, keep=Keep.STREAM)])
    with looked(files) as look:
        assert [message.body for message in look.peek(9)] == [b"short"]
    files.suspend(5)
    with looked(files) as look:
        assert [message.body for message in look.peek(9)] == [b"later"]
        assert list(states(look).values()) == [MessageState.DELIVERED, MessageState.READY, MessageState.EXPIRED]


def test_results_and_dead_letters() -> None:
    """By number, by key and by name; opaque, with the position of the one that was asked for."""
    files = SimFiles()
    queue = busy(files)
    with looked(files) as look:
        good = look.result(5)
        assert good is not None
        assert (good.values, good.position, good.count, good.text) == (b"values", 0, 3, "")
        assert look.result("u") == look.result((7, 50)) == good
        bad = look.result("v")
        assert bad is not None
        assert (bad.position, bad.text, bad.blob) == (0, "ValueError: no", b"pickled")
        assert [look.result(name) for name in (1, 8, 999, "nothing", (7, 999))] == [None] * 5
        assert look.dead_letters() == queue.dead_letters()
        assert look.dead_letters(after=7) == []


@pytest.mark.parametrize("mode", CRASH_MODES)
def test_after_every_crash_it_sees_what_an_opener_finds(mode: str) -> None:
    """The process dies at each operation: the reader says the same of every message, but leaves leases alone.

    What a power failure tore out of the middle is damage for both.
    """

    def work(files: SimFiles) -> None:
        queue = busy(files)
        queue.put_many([b"x" * 1500, b"y" * 1500])
        lease = queue.lease(3)
        assert lease is not None
        queue.ack(lease)
        queue.compact()
        queue.put(b"last")
        queue.close()

    counting = SimFiles()
    work(counting)
    compared = 0
    for op in range(1, counting.ops + 1, 4):
        files = SimFiles()
        files.crash_at(op)
        with pytest.raises(SimCrash):
            work(files)
        try:
            image = files.crash(mode, op)
            image.suspend(300)  # so that what expires has done so for both
            with ReadOnlyQueue("/queue", files=image) as look:
                found = {message.seq: message for message in look.messages(bodies=True)}
                torn = look.report.damaged
        except NotAQueue:
            continue  # it had not begun to be
        assert not any(message.damage for message in found.values())
        image = files.crash(mode, op)
        image.suspend(300)
        with written(image) as queue:
            if queue.report.whole or torn == queue.report.damaged:
                compared += 1
                with looked(image) as after:
                    assert states(after) == {seq: opened_as(message) for seq, message in found.items()}, op
    assert compared > 10


def opened_as(message: Message) -> MessageState:
    """What becomes of it when nobody is left who holds it."""
    if message.state is not MessageState.DELIVERED:
        return message.state
    return MessageState.CANCELLED if message.flags & MessageFlag.CANCEL else MessageState.READY


def test_a_file_that_was_deleted_since() -> None:
    """Its writer moved what is needed and deleted the rest: payloads come from where they are now."""
    files = SimFiles()
    queue = written(files)
    queue.put_many([b"stays", b"ends"])
    for number in range(8):
        queue.put_many([b"%d" % number * 600])
    with looked(files) as look, looked(files) as other:
        lease = queue.lease(100)
        assert lease is not None
        queue.ack(lease, lease.ids[1:])
        queue.release(lease)
        assert queue.compact()
        assert [(message.seq, message.body) for message in look.peek(3)] == [(0, b"stays")]
        found = list(other.messages(bodies=True))
        assert [(message.seq, message.body, message.damage) for message in found[:2]] == [
            (0, b"stays", ""),
            (1, b"ends", ""),
        ]
        bodies = [message.body for message in found]
        assert None in bodies, "they ended meanwhile"
        assert all(body == b"%d" % at * 600 for at, body in enumerate(bodies[2:]) if body is not None), (
            "or are there yet"
        )


@pytest.mark.parametrize("deeds", ["ack, put, compact", "put, compact", "ack, put", "ack, put, unlink later"])
@pytest.mark.parametrize("moment", range(1, 14))
def test_a_writer_that_is_faster(monkeypatch: pytest.MonkeyPatch, moment: int, deeds: str) -> None:
    """It puts, acknowledges and deletes between two looks at a directory: what is seen is whole, of then or of now."""
    files = SimFiles()
    queue = written(files)
    for number in range(8):
        queue.put_many([b"%d" % number * 600])
    queue.compact()
    queue.lease(1)
    queue.compact()  # from here on a segment may go without another snapshot
    eye, calls = files.also(), []
    list_dir = eye.list_dir

    def meddled(path: str) -> list[str]:
        calls.append(path)
        if len(calls) == moment:
            if "later" in deeds:  # RETIRED is written, and the files are there yet
                monkeypatch.setattr(files, "unlink", lambda path: None)
            if "ack" in deeds:
                queue.lease(5)
                queue.settle(0, [Report(0, 6)])
            queue.put(b"new" * 1200)
            if "compact" in deeds:
                queue.compact()
        return list_dir(path)

    monkeypatch.setattr(eye, "list_dir", meddled)
    with ReadOnlyQueue("/queue", files=eye) as look:
        monkeypatch.undo()
        assert look.report.whole, look.report
        found = list(look.messages(bodies=True))
        seen = [message.seq for message in found]
        assert seen in ([*range(8)], [*range(9)], [6, 7, 8])
        assert not any(message.damage for message in found)
        assert [message.body for message in found if message.seq in (6, 7)] == [b"6" * 600, b"7" * 600]
        if 8 in seen:
            assert found[-1].body == b"new" * 1200
    if moment > len(calls):
        assert seen == [*range(8)], "it was not meddled with"


def test_one_whose_files_always_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gives up in the end, with an error of ours."""
    files = SimFiles()
    queue = written(files)
    queue.put(b"x")
    queue.lease(1)
    eye = files.also()
    tries: list[str] = []
    there = eye.open

    def vanish(path: str) -> int:
        if not path.endswith(".idx"):
            return there(path)
        tries.append(path)
        raise FileNotFoundError(2, "No such file or directory", path)

    look = ReadOnlyQueue("/queue", files=eye)
    monkeypatch.setattr(eye, "open", vanish)
    with pytest.raises(AccessError, match="its writer deletes files faster than they can be read"):
        look.refresh()
    assert len(tries) == 10


def test_damage_is_named_and_the_rest_is_served() -> None:
    """A payload with a flipped bit has no body and a reason; on_damage="raise" is for what opening notices."""
    files = SimFiles()
    queue = written(files)
    queue.put_many([b"good"])
    queue.put_many([b"rotten", b"too"])
    queue.close()
    path, data = next((path, data) for path, data in files.tree().items() if b"rotten" in data)
    files.edit(path, data.replace(b"rotten", b"rotteN"))
    with looked(files) as look:
        first, *others = look.peek(3)
        assert (first.body, first.damage) == (b"good", "")
        assert [message.body for message in others] == [None, None]
        assert all(path in message.damage for message in others)
    files.edit(path, data[:100])
    with looked(files) as look:
        assert not look.report.whole
    with pytest.raises(DamagedLog):
        ReadOnlyQueue("/queue", files=files.also(), on_damage="raise")


def test_it_is_what_it_was_until_refreshed() -> None:
    """A snapshot of the moment; closed, it says so."""
    files = SimFiles()
    queue = written(files)
    look = looked(files)
    queue.put_many([b"a", b"b"])
    assert look.stats().puts == 0
    look.refresh()
    assert look.stats().puts == 2
    iterator = look.messages(bodies=True)
    first = next(iterator)
    look.refresh()
    assert [first.body, next(iterator).body] == [b"a", b"b"], "who iterates goes on"
    look.close()
    look.close()
    for use in (look.stats, look.peek, look.refresh, look.messages, look.dead_letters, lambda: look.result(0)):
        with pytest.raises(ClosedError):
            use()


def test_what_is_refused() -> None:
    """Nothing there, empty, a file, a plain log, another queue, a newer format, a shared directory, a wrong word."""
    files = SimFiles()
    written(files).close()
    with SegmentedLog("/log", files=files) as log:
        log.append(b"x")
    files.make_dir("/empty")
    before = files.tree()

    def refused(error: type[StorageError], text: str, path: str = "/queue", **options: object) -> None:
        with pytest.raises(error, match=text) as caught:
            ReadOnlyQueue(path, files=files.also(), **options)  # type: ignore[arg-type]
        assert caught.value.path == path

    refused(NotAQueue, "there is nothing", "/nowhere")
    refused(NotAQueue, "it is empty", "/empty")
    refused(NotAQueue, "it is a file", "/queue/FORMAT")
    refused(NotAQueue, "index is missing", "/log")
    refused(NotAQueue, "it is .*, not 01010101", uuid=b"\1" * 16)
    with pytest.raises(ValueError, match="on_damage"):
        ReadOnlyQueue("/queue", files=files, on_damage="ignore")  # type: ignore[arg-type]
    assert files.tree() == before
    stranger = files.also()
    stranger.user = 7
    with pytest.raises(UnsafeDirectory):
        ReadOnlyQueue("/queue", files=stranger)
    ReadOnlyQueue("/queue", files=stranger, allow_shared=True).close()
    files.edit("/queue/FORMAT", encode_file_header(FileHeader(FileKind.FORMAT, bytes(16), 0, 0, 0, major=2)))
    refused(FormatError, "format 2.0, this version reads 1.0")


def test_a_requeued_message() -> None:
    """It is in its next life, with its own payload again."""
    files = SimFiles()
    queue = written(files)
    bodies = [b"first", b"second"]
    queue.admit([Batch(2, b"".join(bodies), lengths_column(bodies), client=7, first=30, keep=Keep.KEEP)])
    lease = queue.lease(2)
    assert lease is not None
    queue.nack(lease, text="boom")
    queue.requeue([(7, 31)])
    with looked(files) as look:
        found: dict[int, Message] = {message.seq: message for message in look.messages(bodies=True)}
        assert found[0].state is MessageState.FAILED
        assert found[1][:4] == (1, MessageState.READY, 7, 31)
        assert (found[1].life, found[1].body, found[1].attempts) == (1, b"second", 0)
