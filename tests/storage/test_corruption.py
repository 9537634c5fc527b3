"""Bytes that changed behind our back: every bit of a small directory, cuts, swapped, missing and foreign files."""

import pytest

from daskqueue_storage.errors import DamagedLog, DamagedRecord, FormatError, NotAQueue, StorageError
from daskqueue_storage.format import FileHeader, FileKind, RecordHeader, encode_file_header, encode_header, record_salt
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import LogTrial, SimFiles
from daskqueue_storage.verify import verify

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 10.0}


def small_directory() -> tuple[SimFiles, LogTrial]:
    """Two epochs, four segments, both forms of lengths, closed cleanly."""
    files, trial = SimFiles(), LogTrial()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.append_many(log, [8, 9, 8])
        trial.append_many(log, [16, 16])
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.append_many(log, [20])
        trial.append_many(log, [3900])
        trial.append_many(log, [40])
    return files, trial


def opened(files: SimFiles, trial: LogTrial) -> tuple[list[tuple[int, bytes]], bool]:
    """What a reader finds, and whether it was told of damage."""
    with SegmentedLog("/log", mode="ro", files=files, **OPTIONS) as log:
        found = trial.check(log, damaged=True)
        return found, bool(log.stats().damaged) or not log.report.whole


def flip(bits: int) -> None:
    """Flip some bits of every byte: never a crash, never a wrong payload, and any change of a covered byte is found."""
    files, trial = small_directory()
    whole = dict(trial.acknowledged)
    unnoticed = 0
    for path, data in files.tree().items():
        if "lock" in path:
            continue  # no data in there
        for at in range(len(data)):
            if 300 < at < len(data) - 100 and at % (97 if bits == 1 else 7):
                continue  # payloads mostly: some of their bytes are as good as all
            for bit in range(at % 8, at % 8 + bits):
                broken = bytearray(data)
                broken[at] ^= 1 << bit % 8
                files.edit(path, bytes(broken))
                trial.acknowledged = dict(whole)
                report = verify("/log", files=files)
                found, told = opened(files, trial)
                lost = len(whole) - len(found)
                assert lost in (0, 1, 2, 3)  # the messages of one record
                assert told or not lost
                if report.whole:
                    assert not lost
                    assert data[at] == 0, f"{path} byte {at}"
                    unnoticed += 1
        files.edit(path, data)
    # The padding of three records is not covered by anything, and holds nothing.
    assert unnoticed <= bits * 7 * 3
    assert verify("/log", files=files).whole


def test_every_flipped_byte() -> None:
    """One bit of each byte of a small directory."""
    flip(1)


@pytest.mark.slow
def test_every_flipped_bit() -> None:
    """Every bit of it."""
    flip(8)


def test_a_writer_notices_flips_too_and_goes_on() -> None:
    """Opening for writing reports what it must look at, appends behind the damage and loses nothing else."""
    for bit in range(0, 8 * 4300, 61):
        files, trial = small_directory()
        path = max(path for path in files.tree() if path.endswith(".log"))
        data = bytearray(files.tree()[path])
        if bit // 8 >= len(data):
            break
        data[bit // 8] ^= 1 << bit % 8
        files.edit(path, bytes(data))
        with SegmentedLog("/log", files=files, **OPTIONS) as log:
            trial.check(log, damaged=True)
            trial.append_many(log, [30])
            trial.check(log, damaged=True)


def test_every_cut_of_the_newest_segment() -> None:
    """A file that became shorter loses what was cut, says so, and serves the rest."""
    files, trial = small_directory()
    whole = dict(trial.acknowledged)
    for path in [path for path in files.tree() if path.endswith(".log")]:
        data = files.tree()[path]
        for cut in [*range(0, min(len(data), 400), 8), *range(400, len(data), 401), len(data) - 1]:
            files.edit(path, data[:cut])
            trial.acknowledged = dict(whole)
            with SegmentedLog("/log", files=files.crash("kill"), **OPTIONS) as log:
                trial.check(log, damaged=True)
                assert not log.report.whole or log.stats().damaged
        files.edit(path, data)


def test_damage_costs_what_it_covers_and_is_counted() -> None:
    """One record in the middle of a sealed segment: its messages, the exact place, one lost record."""
    files, trial = SimFiles(), LogTrial()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        for _ in range(5):
            trial.append_many(log, [30, 30])
    path = next(path for path in files.tree() if path.endswith(".log"))
    data = bytearray(files.tree()[path])
    at = data.find(b"00000004")
    data[at] ^= 1
    files.edit(path, bytes(data))
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert log.report.whole  # a clean close is believed until somebody reads
        assert log.read(0, 10) == list(trial.acknowledged.values())[:4]
        with pytest.raises(DamagedRecord) as caught:
            log.read(4)
        assert (caught.value.offset, caught.value.next_offset, caught.value.path) == (4, 6, path)
        assert log.read(6, 10) == list(trial.acknowledged.values())[6:]
        assert [(item.path, item.lost) for item in log.stats().damaged] == [(path, 1)]
        assert len(list(log.scan())) == 8
    with SegmentedLog("/log", files=files, on_damage="raise", **OPTIONS) as log:
        with pytest.raises(DamagedRecord):
            list(log.scan())
    report = verify("/log", files=files)
    assert (report.messages, report.lost_records, report.whole) == (8, 1, False)


def test_a_damaged_header_in_an_unclean_tail_is_damage_not_a_tear() -> None:
    """Records behind it verify, so it was not the crash: counted, skipped, the rest is served."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    for _ in range(5):
        trial.append_many(log, [30])
    path = next(path for path in files.tree() if path.endswith(".log"))
    data = bytearray(files.tree()[path])
    data[data.find(b"00000002") - 50] ^= 1
    files.edit(path, bytes(data))
    after = files.crash("kill")
    with pytest.raises(DamagedLog):
        SegmentedLog("/log", files=after, on_damage="raise", **OPTIONS)
    with SegmentedLog("/log", files=after, **OPTIONS) as log:
        assert len(trial.check(log, damaged=True)) == 4
        assert log.report.lost_records == 1
        assert [item.lost for item in log.report.damaged] == [1]
        assert "1 records lost" in str(log.report)


@pytest.mark.parametrize("which", range(4))
def test_a_missing_segment_is_noticed(which: int) -> None:
    """First, middle or newest: named, its records counted where that is possible."""
    files, trial = small_directory()
    segments = sorted(path for path in files.tree() if path.endswith(".log"))
    records = [4, 3, 2, 0]  # EPOCH, ROLL and CLOSE included; what the newest held, nobody knows
    files.edit(segments[which], None)
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log, damaged=True)
        assert len(log.report.missing_files) == 1
        assert log.report.lost_records == records[which]
        trial.append_many(log, [30])


def test_segments_that_changed_places() -> None:
    """Records know their segment: swapped files hold none, and that is damage."""
    files, trial = small_directory()
    first, second, *_ = sorted(path for path in files.tree() if path.endswith(".log"))
    contents = files.tree()
    files.edit(first, contents[second])
    files.edit(second, contents[first])
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert len(trial.check(log, damaged=True)) == 2
        assert not log.report.whole


def test_a_segment_of_another_log() -> None:
    """Under the right name and all: not one of its records is taken for ours."""
    files, trial = small_directory()
    other, _ = small_directory()
    other_files = SimFiles(seed=99)
    with SegmentedLog("/log", files=other_files, **OPTIONS) as log:
        log.append_many([b"not ours"] * 3)
    path = min(path for path in files.tree() if path.endswith(".log"))
    files.edit(path, other_files.tree()[path])
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert len(trial.check(log, damaged=True)) == 3
        assert log.report.lost_records
    assert verify("/log", files=other).whole


def test_a_log_inside_a_payload_stays_there() -> None:
    """A whole segment as a message, and the record around it damaged: nothing of it comes to life."""
    files, _ = small_directory()
    inner = files.tree()[max(path for path in files.tree() if path.endswith(".log"))]
    log = SegmentedLog("/outer", files=files, **OPTIONS)
    log.append(inner)
    log.append(b"after")
    path = max(path for path in files.tree() if path.startswith("/outer/log/"))
    data = bytearray(files.tree()[path])
    data[64 + 72 + 16] ^= 1
    files.edit(path, bytes(data))
    with SegmentedLog("/outer", files=files.crash("kill"), **OPTIONS) as log:
        assert [payload for _, payload in log.scan()] == [b"after"]


def test_format_file_lost_or_damaged() -> None:
    """The segments repeat what it says: reported, served, and a missing one is written again."""
    files, trial = small_directory()
    original = files.tree()["/log/FORMAT"]
    files.edit("/log/FORMAT", None)
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log, damaged=True)
        assert log.report.missing_files == ("/log/FORMAT",)
    assert files.tree()["/log/FORMAT"] == original
    files.edit("/log/FORMAT", bytes(64))
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log, damaged=True)
        assert log.report.damaged[0].path == "/log/FORMAT"
    assert files.tree()["/log/FORMAT"] == bytes(64)  # never overwritten


def test_newer_formats_are_refused_politely() -> None:
    """A greater major, an unknown feature, an unknown record type: FormatError, nothing changed. Ignorable: skipped."""
    files, trial = small_directory()
    uuid = files.tree()["/log/FORMAT"][16:32]
    original = files.tree()
    for header in (
        FileHeader(FileKind.FORMAT, uuid, 0, 0, 0, major=2),
        FileHeader(FileKind.FORMAT, uuid, 0, 0, 0, features=2),
    ):
        files.edit("/log/FORMAT", encode_file_header(header))
        before = files.tree()
        for mode in ("rw", "ro"):
            with pytest.raises(FormatError, match="newer daskqueue-storage"):
                SegmentedLog("/log", mode=mode, files=files, **OPTIONS)
        assert files.tree() == before
    files.edit("/log/FORMAT", original["/log/FORMAT"])

    path = max(path for path in original if path.endswith(".log"))
    data = original[path]
    for flags, refused in ((0, True), (0x80, False)):
        record = RecordHeader(77, flags, 0, 0, len(data), 99, 0, 1, 2, 0, 0, 0)
        files.edit(path, data + encode_header(record, record_salt(uuid, 4, 2)))
        after = files.crash("kill")
        if refused:
            with pytest.raises(FormatError, match="type 77"):
                SegmentedLog("/log", files=after, **OPTIONS)
        else:
            with SegmentedLog("/log", files=after, **OPTIONS) as log:
                trial.check(log, damaged=True)


def test_not_a_log() -> None:
    """A foreign directory, an empty one with create=False, nothing at all, another uuid: refused, nothing changed."""
    files, _ = small_directory()
    files.make_dir("/photos")
    files.edit("/photos/cat.jpg", b"meow")
    files.make_dir("/empty")
    before = files.tree()
    for path, options, why in (
        ("/photos", {}, "cat.jpg"),
        ("/photos/cat.jpg", {}, "file"),
        ("/empty", {"create": False}, "empty"),
        ("/nothing", {"create": False}, "nothing"),
        ("/nothing", {"mode": "ro"}, "nothing"),
        ("/empty", {"mode": "ro"}, "empty"),
        ("/log", {"uuid": bytes(16)}, "00000000-0000-0000"),
        ("/log", {"uuid": bytes(16), "mode": "ro"}, "00000000-0000-0000"),
    ):
        with pytest.raises(NotAQueue, match=why):
            SegmentedLog(path, files=files, **options)
    for path in ("/nothing", "/empty"):
        with pytest.raises(NotAQueue):
            verify(path, files=files)
    files.make_dir("/odd")
    files.edit("/odd/FORMAT", b"something else")
    with pytest.raises(NotAQueue, match="FORMAT"):
        SegmentedLog("/odd", files=files)
    files.edit("/odd/FORMAT", None)
    assert files.tree() == before


def test_a_log_without_its_segments_directory() -> None:
    """FORMAT says that there is one: refused, not created anew."""
    files = SimFiles()
    files.make_dir("/log")
    files.edit("/log/FORMAT", encode_file_header(FileHeader(FileKind.FORMAT, bytes(16), 0, 0, 0)))
    for mode in ("rw", "ro"):
        with pytest.raises(NotAQueue, match="directory log is missing"):
            SegmentedLog("/log", mode=mode, files=files)


def test_foreign_files_in_a_log_are_left_alone() -> None:
    """Named in the report, never touched: network file systems leave some of their own."""
    files, trial = small_directory()
    files.edit("/log/log/.nfs0001", b"theirs")
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log)
        assert log.report.foreign_files == ("/log/log/.nfs0001",)
    assert files.tree()["/log/log/.nfs0001"] == b"theirs"


def test_all_errors_are_ours() -> None:
    """Every error of the store derives from StorageError and keeps its path."""
    error = DamagedRecord("/p", 1, 2, 3)
    assert isinstance(error, StorageError)
    assert error.path == "/p"
