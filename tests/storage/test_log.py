"""The API of `SegmentedLog`: what is put in comes out, whole segments go, readers follow, bad input says so."""

import threading
from pathlib import Path

import pytest

from daskqueue_storage.errors import ClosedError, OffsetError, ReadOnlyError, RecordTooLarge
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import SimFiles

SMALL = {"segment_bytes": 4096}


@pytest.fixture(name="files")
def _files() -> SimFiles:
    return SimFiles()


def test_on_a_real_disk(tmp_path: Path) -> None:
    """Append, read, scan, close, open again: with a Path, a str, and a thread for the heartbeat."""
    with SegmentedLog(tmp_path / "log") as log:
        assert log.append(b"one") == 0
        assert log.append_many([b"two", b"", b"three" * 1000]) == range(1, 4)
        assert log.read(0) == [b"one"]
        assert log.read(1, 10) == [b"two", b"", b"three" * 1000]
        assert log.read(4) == []
    with SegmentedLog(str(tmp_path / "log")) as log:
        assert list(log.scan()) == [(0, b"one"), (1, b"two"), (2, b""), (3, b"three" * 1000)]
        assert log.append(b"four") == 4
        assert log.report.clean
        assert log.stats().epoch == 2


def test_any_bytes_and_empty_batches(files: SimFiles) -> None:
    """bytearray and memoryview are bytes; an empty batch writes nothing; text and single bytes are mistakes."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        assert log.append(bytearray(b"ab")) == 0
        assert log.append_many([memoryview(b"cd"), b"e"]) == range(1, 3)
        ops = files.ops
        assert log.append_many([]) == range(3, 3)
        assert files.ops == ops
        assert log.read(0, 9) == [b"ab", b"cd", b"e"]
        for wrong in (b"abc", "abc", bytearray(b"abc")):
            with pytest.raises(TypeError, match="sequence of bytes"):
                log.append_many(wrong)
        with pytest.raises(TypeError):
            log.append("text")


def test_read_stops_where_it_must(files: SimFiles) -> None:
    """Across records and segments; at a gap; never past the end; not at all for negative numbers."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        for at in range(30):
            log.append_many([b"%d" % at, bytes(500)])
        assert log.stats().segments > 3
        found = log.read(7, 40)
        assert len(found) == 40
        assert found[1::2] == [b"%d" % at for at in range(4, 24)]
        assert log.read(59, 100) == [bytes(500)]
        assert log.read(3, 0) == []
        for wrong in ((-1, 1), (0, -1)):
            with pytest.raises(ValueError, match="not negative"):
                log.read(*wrong)
        with pytest.raises(ValueError, match="not negative"):
            log.scan(-1)


def test_scan_starts_anywhere_and_tells_times(files: SimFiles) -> None:
    """In the middle of a record too; timestamps are those of the append and never go back."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        log.append_many([b"a", b"b", b"c"])
        first = files.wall_ns()
        files.advance(5)
        log.append_many([b"d", b"e"])
        files.clock[1] -= 3_600_000_000_000  # somebody set the clock back
        log.append(b"f")
        assert [offset for offset, _ in log.scan(1)] == [1, 2, 3, 4, 5]
        later = first + 5_000_000_000
        assert list(log.scan(2, timestamps=True)) == [
            (2, b"c", first),
            (3, b"d", later),
            (4, b"e", later),
            (5, b"f", later),
        ]
        assert list(log.scan(6)) == []


def test_a_scan_ends_at_the_end_of_its_beginning(files: SimFiles) -> None:
    """Messages appended while somebody scans are for the next scan."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        log.append_many([b"a", b"b"])
        seen = []
        for _, payload in log.scan():
            seen.append(payload)
            log.append(payload)
        assert seen == [b"a", b"b"]


def test_truncation_goes_by_whole_segments(files: SimFiles) -> None:
    """What is asked for goes as far as segments allow; what went is a LookupError that says where to go on."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        for at in range(20):
            log.append(b"%02d" % at + bytes(900))
        first = log.truncate_before(10)
        assert 0 < first <= 10
        assert log.stats().first == first
        assert log.read(first)[0][:2] == b"%02d" % first
        with pytest.raises(OffsetError, match="truncated") as caught:
            log.read(first - 1)
        assert (caught.value.offset, caught.value.next_offset) == (first - 1, first)
        assert [offset for offset, _ in log.scan()] == list(range(first, 20))
        assert log.truncate_before(first) == first
        last = log.truncate_before(10**9)
        assert log.append(b"more") == 20
        assert last <= 20
    with SegmentedLog("/log", files=files, **SMALL) as log:
        assert log.report.whole
        assert log.truncate_before(10**9) == 21
        assert list(log.scan()) == []
        assert log.append(b"next") == 21
    with SegmentedLog("/log", files=files, **SMALL) as log:
        assert list(log.scan()) == [(21, b"next")]


def test_a_scan_goes_on_behind_what_was_truncated(files: SimFiles) -> None:
    """Truncated under its feet: it goes on with what there is."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        for at in range(40):
            log.append(b"%02d" % at + bytes(900))
        scan = log.scan()
        assert next(scan)[0] == 0
        first = log.truncate_before(30)
        rest = [offset for offset, _ in scan]
        assert rest[-1] == 39
        assert set(range(first, 40)) <= set(rest)


def test_retention_by_size_and_by_age(files: SimFiles) -> None:
    """Old segments go after each new one: as many bytes, or as much time, as was asked for remain."""
    with SegmentedLog("/size", files=files, retain_bytes=10_000, **SMALL) as log:
        for _ in range(100):
            log.append(bytes(900))
        assert 10_000 <= log.stats().size_bytes < 10_000 + 2 * 4096
        assert len(list(log.scan())) == log.stats().messages
    with SegmentedLog("/age", files=files, retain_s=60, **SMALL) as log:
        for _ in range(100):
            log.append(bytes(900))
            files.advance(5)
        assert 12 <= log.stats().messages < 12 + 10
    for path in ("/size", "/age"):
        with SegmentedLog(path, files=files, **SMALL) as log:
            assert log.report.whole


def test_numbers_are_skipped_after_an_unclean_end(files: SimFiles) -> None:
    """2**20 of them, and a reader of the gap is told where to go on; after a clean one none."""
    log = SegmentedLog("/log", files=files, **SMALL)
    log.append(b"a")
    after = files.crash("kill")
    with SegmentedLog("/log", files=after, **SMALL) as log:
        assert log.append(b"b") == 1 + 2**20
        assert log.read(0, 5) == [b"a"]
        with pytest.raises(OffsetError) as caught:
            log.read(1)
        assert caught.value.next_offset == 1 + 2**20
        assert list(log.scan(1)) == [(1 + 2**20, b"b")]
    with SegmentedLog("/log", files=after, **SMALL) as log:
        assert log.append(b"c") == 2 + 2**20


def test_no_more_numbers_are_at_risk_than_are_skipped(files: SimFiles) -> None:
    """Without syncs of its own a log syncs before 2**20 messages are not durable; one batch holds no more."""
    log = SegmentedLog("/log", files=files, sync="none")
    log.append_many([b""] * 2**19)
    syncs = log.stats().syncs
    log.append_many([b""] * 2**19)
    assert log.stats().syncs == syncs
    log.append_many([b""])
    assert log.stats().syncs == syncs + 1
    with pytest.raises(RecordTooLarge, match="split it"):
        log.append_many([b""] * (2**20 + 1))
    assert log.stats().end == 2**20 + 1
    log.close()


def test_readers_follow_without_a_lock(files: SimFiles) -> None:
    """Beside the writer: they see what is appended, new segments, truncation and new writers, and write nothing."""
    log = SegmentedLog("/log", files=files, **SMALL)
    log.append(b"0")
    other = files.also()
    reader = SegmentedLog("/log", mode="ro", files=other)
    assert reader.read(0, 9) == [b"0"]
    for at in range(1, 12):
        log.append(b"%d" % at + bytes(900))
        assert reader.read(at)[0].strip(b"\0") == b"%d" % at
        assert reader.stats().end == at + 1
    first = log.truncate_before(8)
    assert first > 1
    assert [offset for offset, _ in reader.scan()] == list(range(first, 12))
    log.close()
    with SegmentedLog("/log", files=files, **SMALL) as log:
        assert log.append(b"12") == 12
        assert reader.read(12) == [b"12"]
    assert reader.report.whole
    assert reader.stats().epoch == 0
    assert other.ops == 0
    for deed in (lambda: reader.append(b""), reader.sync, lambda: reader.truncate_before(3)):
        with pytest.raises(ReadOnlyError):
            deed()
    reader.close()


def test_a_reader_stops_at_what_is_not_whole_yet(files: SimFiles) -> None:
    """Half a record is not damage, it is not there yet."""
    log = SegmentedLog("/log", files=files, **SMALL)
    log.append(b"whole")
    path = next(path for path in files.tree() if path.endswith(".log"))
    before = files.tree()[path]
    log.append(b"also whole")
    after = files.tree()[path]
    for cut in range(len(before), len(after)):
        files.edit(path, after[:cut])
        reader = SegmentedLog("/log", mode="ro", files=files)
        assert [payload for _, payload in reader.scan()] == [b"whole"]
        assert reader.report.whole
        files.edit(path, after)
        assert [payload for _, payload in reader.scan()] == [b"whole", b"also whole"]


def test_a_reader_with_a_segment_deleted_under_it(files: SimFiles) -> None:
    """It looks again at what there is."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        for at in range(12):
            log.append(b"%d" % at + bytes(900))
        reader = SegmentedLog("/log", mode="ro", files=files.also())
        scan = reader.scan()
        next(scan)
        first = log.truncate_before(11)
        assert next(scan)[0] in (1, 2, 3, first)
        assert list(scan)[-1][0] == 11


def test_background_sync(files: SimFiles) -> None:
    """sync=seconds: durable after that time, without anybody asking; nothing to do when nothing was written."""
    log = SegmentedLog("/log", files=files, sync=0.5, **SMALL)
    log.append(b"a")
    assert log.stats().syncs == 0
    files.advance(0.6)
    assert log.stats().syncs == 1
    files.advance(5)
    assert log.stats().syncs == 1
    found = files.crash("ordered", 1)
    log.close()
    with SegmentedLog("/log", files=found, wait=30, **SMALL) as log:
        assert [payload for _, payload in log.scan()] == [b"a"]


def test_threads_share_syncs(tmp_path: Path) -> None:
    """Eight threads, one message each at a time: every offset once, all read back, fewer syncs than messages."""
    with SegmentedLog(tmp_path / "log", segment_bytes=20_000) as log:
        given: dict[int, bytes] = {}

        def work(name: int) -> None:
            for at in range(40):
                payload = b"%d:%d" % (name, at) + bytes(50)
                given[log.append(payload)] = payload

        threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dict(log.scan()) == given
        assert sorted(given) == list(range(320))
        assert log.stats().syncs < 320
    with SegmentedLog(tmp_path / "log") as log:
        assert dict(log.scan()) == given


def test_a_closed_log_says_so(files: SimFiles) -> None:
    """Every call but close, which may be repeated; also in a scan that had begun."""
    log = SegmentedLog("/log", files=files, **SMALL)
    log.append(b"a")
    log.close()
    log.close()
    for deed in (
        lambda: log.append(b""),
        lambda: log.append_many([]),
        lambda: log.read(0),
        lambda: list(log.scan()),
        log.sync,
        log.stats,
        lambda: log.truncate_before(0),
    ):
        with pytest.raises(ClosedError, match="open it again"):
            deed()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "w"},
        {"sync": "always"},
        {"sync": 0},
        {"sync": -1.0},
        {"sync": float("nan")},
        {"segment_bytes": 100},
        {"lock_ttl": 0},
        {"lock_ttl": float("nan")},
        {"wait": -1},
        {"on_damage": "ignore"},
        {"uuid": b"short"},
    ],
)
def test_wrong_options_are_named(files: SimFiles, options: dict) -> None:
    """ValueError with the value, and nothing created."""
    with pytest.raises(ValueError, match=r"not|is"):
        SegmentedLog("/log", files=files, **options)
    assert files.tree() == {}


def test_opening_and_closing_leaves_nothing_behind(files: SimFiles) -> None:
    """A log that is opened a hundred times for nothing has no hundred segments."""
    for _ in range(100):
        SegmentedLog("/log", files=files, **SMALL).close()
    assert len(files.tree()) == 3  # FORMAT and two locks


def test_the_uuid_can_be_given_and_expected(files: SimFiles) -> None:
    """Given at creation, checked afterwards."""
    uuid = bytes(range(16))
    SegmentedLog("/log", files=files, uuid=uuid).close()
    with SegmentedLog("/log", files=files, uuid=uuid) as log:
        assert log.stats().uuid == "00010203-0405-0607-0809-0a0b0c0d0e0f"


def test_records_larger_than_a_segment(files: SimFiles) -> None:
    """Get a segment of their own."""
    with SegmentedLog("/log", files=files, **SMALL) as log:
        log.append_many([b"a", bytes(50_000), b"b"])
        log.append(bytes(9000))
        assert [len(payload) for _, payload in log.scan()] == [1, 50_000, 1, 9000]


def test_disk_bytes_per_message(files: SimFiles) -> None:
    """Batches of 1,000 equal messages of 100 bytes take 100.1 bytes each."""
    with SegmentedLog("/log", files=files) as log:
        for _ in range(10):
            log.append_many([bytes(100)] * 1000)
        assert log.stats().size_bytes / 10_000 < 100.1
