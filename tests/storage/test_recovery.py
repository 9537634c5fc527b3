"""What opening decides: seals, stale files, torn tails, what it says of them, and that it decides the same twice."""

import errno

import pytest

from daskqueue_storage.directory import list_segments, segment_path
from daskqueue_storage.errors import WriterFailedError
from daskqueue_storage.format import FILE_HEADER_SIZE
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.recovery import survey
from daskqueue_storage.testing import LogTrial, SimFiles

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 10.0}


def described(files: SimFiles) -> tuple[object, ...]:
    """A survey, without its clock."""
    uuid = files.tree()["/log/FORMAT"][16:32]
    found = survey(files, "/log", "log", uuid, owner=False)
    segments = [(info.segno, info.valid, info.first_seq, info.next_seq, info.sealed) for info in found.segments]
    return segments, found.origin, found.report._replace(seconds=0)


def left_behind() -> tuple[SimFiles, LogTrial]:
    """A log that was killed with three records and half of a fourth."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    for _ in range(3):
        trial.append_many(log, [30])
    path = max(path for path in files.tree() if path.endswith(".log"))
    files.edit(path, files.tree()[path] + b"DQR1 and then the power went")
    return files.crash("kill"), trial


def test_a_torn_tail_is_told_and_left() -> None:
    """Its bytes are counted, stay on disk, and are ignored for ever: also when more is written behind them."""
    files, trial = left_behind()
    path = max(path for path in files.tree() if path.endswith(".log"))
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert log.report.tail_bytes == 28
        assert log.report.whole
        assert str(log.report) == "a torn tail of 28 bytes"
        trial.check(log)
        trial.append_many(log, [30])
    assert files.tree()[path].endswith(b"power went")
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert (log.report.clean, log.report.tail_bytes) == (True, 0)
        assert len(trial.check(log)) == 4


def test_surveys_change_nothing_and_agree() -> None:
    """Twice the same, before and after a recovery that came to nothing."""
    files, _ = left_behind()
    before = files.tree()
    first = described(files)
    assert described(files) == first
    assert files.tree() == before


def test_records_behind_a_seal_do_not_count() -> None:
    """A stopped writer wakes up and appends to its own file: the EPOCH of its successor said where that ends.

    Also where the EPOCH is lost: the header of the next segment says which record numbers are its own.
    """
    for damaged in (False, True):
        files = SimFiles()
        stale, other = files.also(), files.also(host="elsewhere")
        log = SegmentedLog("/log", files=stale, **OPTIONS)
        log.append(b"counts")
        stale.suspend(60)
        successor = SegmentedLog("/log", files=other, **OPTIONS)
        successor.append(b"counts too")
        for _ in range(3):
            with pytest.raises(Exception, match="replaced"):
                log.append(b"does not")
        successor.close()
        if damaged:
            path = max(path for path in files.tree() if path.endswith(".log"))
            data = bytearray(files.tree()[path])
            data[FILE_HEADER_SIZE + 70] ^= 1
            files.edit(path, bytes(data))
        with SegmentedLog("/log", files=files.also(), **OPTIONS) as log:
            assert [payload for _, payload in log.scan()] == [b"counts", b"counts too"]


def test_segments_of_replaced_writers_are_stale() -> None:
    """Named like the successor's, or above: ignored, reported, never touched; retired with what stood there."""
    files, trial = SimFiles(), LogTrial()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.append_many(log, [30])
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.append_many(log, [30])
    first = files.tree()[segment_path("/log", "log", 1, 1)]
    stale = [segment_path("/log", "log", segno, 1) for segno in (2, 3, 9)]
    for path in stale:
        files.edit(path, first)
    listing = list_segments(files, "/log", "log")
    assert [name.path for name in listing.stale] == stale
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert log.report.stale_files == tuple(stale)
        trial.check(log)
        trial.append_many(log, [30])
        assert log.stats().segments == 3
        trial.truncate_before(log, 2)
    assert list_segments(files, "/log", "log").current[-1].segno == 10
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log)
        assert log.report.whole


def test_a_disk_that_cannot_read_a_sector() -> None:
    """EIO costs the records in that sector, as damage does; any other error of a read is raised."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    for _ in range(8):
        trial.append_many(log, [400])
    after = files.crash("kill")
    read_at = after.read_at
    code = errno.EIO

    def broken(handle: int, size: int, offset: int) -> bytes:
        if after.size(handle) > 3000 and offset < 2048 + 512 and offset + size > 2048:
            raise OSError(code, "cannot read")
        return read_at(handle, size, offset)

    after.read_at = broken  # type: ignore[method-assign]
    with SegmentedLog("/log", files=after, **OPTIONS) as log:
        found = trial.check(log, damaged=True)
        assert 5 <= len(found) <= 7
        assert log.report.lost_records == 8 - len(found)
        path = log.report.damaged[0].path
    code = errno.EACCES
    with pytest.raises(OSError, match="cannot read"):
        SegmentedLog("/log", files=after.crash("kill"), **OPTIONS).close() or after.read_at(after.open(path), 9, 2048)


def test_a_disk_that_cannot_sync_is_not_believed() -> None:
    """What a killed process left in the cache cannot be made durable: opening fails rather than serve it."""
    files, _ = left_behind()
    log_syncs = None
    for op in range(1, 30):
        probe = files.crash("kill", op)
        probe.fail(op, errno.EIO)
        try:
            SegmentedLog("/log", files=probe, **OPTIONS).close()
        except WriterFailedError as problem:
            if "made durable" in str(problem):
                log_syncs = op
        except OSError:
            pass
    assert log_syncs
