"""Record numbers, rolls and the order of durable things, seen from the operations of the disk."""

from collections.abc import Callable

import pytest

from daskqueue_storage import writer
from daskqueue_storage.body import Draft
from daskqueue_storage.errors import RecordTooLarge
from daskqueue_storage.format import MAX_BODY, RecordHeader, RecordType, record_salt
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.scan import scan
from daskqueue_storage.testing import SimFiles
from daskqueue_storage.writer import check_sync

OPTIONS = {"segment_bytes": 4096}


def records(files: SimFiles) -> list[RecordHeader]:
    """All records of a log, in the order of its segments."""
    tree = files.tree()
    uuid = tree["/log/FORMAT"][16:32]
    found: list[RecordHeader] = []
    for path in sorted(path for path in tree if path.endswith(".log")):
        segno, epoch = (int(part, 16) for part in path.rpartition("/")[2][:-4].split("-"))
        data = tree[path]
        found += scan(lambda size, at, data=data: data[at : at + size], 64, len(data), record_salt(uuid, segno, epoch))
    return found


def test_records_are_numbered_without_a_gap() -> None:
    """Through rolls, retirements, closes and epochs; positions, times and message numbers rise."""
    files = SimFiles()
    for _ in range(3):
        with SegmentedLog("/log", files=files, **OPTIONS) as log:
            for _ in range(6):
                log.append_many([b"x" * 700, b"y"])
                files.advance(1)
            log.sync()
    found = records(files)
    assert [record.rno for record in found] == list(range(len(found)))
    assert [record.time for record in found] == sorted(record.time for record in found)
    puts = [record for record in found if record.type == RecordType.PUT]
    assert [record.base for record in puts] == list(range(0, 36, 2))
    kinds = {record.type for record in found}
    assert kinds == {RecordType.EPOCH, RecordType.PUT, RecordType.ROLL, RecordType.CLOSE}
    assert [record.epoch for record in found] == sorted(record.epoch for record in found)


@pytest.mark.parametrize("sync", ["none", "batch"])
def test_a_segment_is_finished_before_the_next_one_begins(sync: str) -> None:
    """ROLL, sync, create, header, sync, sync of the directory, and only then the record: whatever the policy."""
    files = SimFiles()
    with SegmentedLog("/log", files=files, sync=sync, **OPTIONS) as log:
        log.append(bytes(3000))
        before = files.ops
        log.append(bytes(3000))
        words = [entry.split()[0] for entry in files.history[before:]]
        assert words[:7] == ["append", "sync", "create", "append", "sync", "sync_dir", "append"]
        assert words[7:] == (["sync"] if sync == "batch" else [])


class Prompt(SimFiles):
    """Does at once what may be done in the background."""

    def soon(self, action: Callable[[], None]) -> bool:
        """Now."""
        action()
        return True


@pytest.mark.parametrize(("sync", "words"), [("none", "aasaasa"), (1.0, "aasaasa"), ("batch", "asasasasas")])
def test_much_that_is_not_synced_is_synced_in_the_background(
    sync: str | float, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the end of the segment need not wait for all of it. Where everybody syncs there is never much."""
    monkeypatch.setattr(writer, "FLUSH_BYTES", 2000)
    files = Prompt()
    with SegmentedLog("/log", files=files, sync=sync) as log:
        log.append(b"the first begins the segment")
        log.sync()
        before = files.ops
        for _ in range(5):
            log.append(bytes(1000))
        assert "".join(entry[0] for entry in files.history[before:]) == words
        assert log.read(1, 9) == [bytes(1000)] * 5


def test_nothing_is_created_before_there_is_something_to_write() -> None:
    """After a clean end. After an unclean one the seal comes first, before anything is served."""
    files = SimFiles()
    SegmentedLog("/log", files=files, **OPTIONS).close()
    assert not records(files)
    log = SegmentedLog("/log", files=files, **OPTIONS)
    log.append(b"a")
    after = files.crash("kill")
    log = SegmentedLog("/log", files=after, **OPTIONS)
    assert [record.type for record in records(after)] == [RecordType.EPOCH, RecordType.PUT, RecordType.EPOCH]
    log.close()


def test_a_body_has_limits() -> None:
    """2 GiB less one byte: refused before anything is written."""
    files = SimFiles()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        log.append(b"a")
        before = files.tree()
        writer = log._writer
        assert writer is not None
        with pytest.raises(RecordTooLarge) as caught:
            writer.append(Draft(RecordType.PUT, 0x41, 0, 1, 0, 0, (), MAX_BODY + 1, 0))
        assert (caught.value.size, caught.value.limit) == (MAX_BODY + 1, MAX_BODY)
        assert files.tree() == before


def test_sync_policies() -> None:
    """Two words and positive numbers."""
    assert [check_sync(policy) for policy in ("none", "batch", 1, 0.5)] == ["none", "batch", 1.0, 0.5]
    for wrong in ("", "often", 0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="seconds"):
            check_sync(wrong)
