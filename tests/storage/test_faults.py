"""Each operation fails once, in each way a disk can: errors are declared ones, nothing acknowledged is lost."""

import errno

import pytest

from daskqueue_storage.errors import DiskFullError, FencedError, StorageError, WriterFailedError
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import LogTrial, SimCrash, SimFiles

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0, "wait": 10.0}
SIZES = ([8, 8, 8], [100], [600, 20, 700], [2000], [900] * 3, [9], [1500, 1500], [30])


def reopen_until_it_works(files: SimFiles, sync: str | float) -> SegmentedLog:
    """One operation fails at most once, so the second try succeeds."""
    for _ in range(3):
        try:
            return SegmentedLog("/log", files=files, sync=sync, **OPTIONS)
        except (StorageError, OSError):
            pass
    raise AssertionError("cannot be opened any more")


def stubborn(files: SimFiles, trial: LogTrial) -> list[type[Exception]]:
    """Append everything, whatever happens; what was raised on the way."""
    raised: list[type[Exception]] = []
    log = reopen_until_it_works(files, trial.sync)
    for step, sizes in enumerate(SIZES):
        for _ in range(3):
            try:
                if step == 5:
                    trial.truncate_before(log, max(trial.acknowledged, default=0))
                trial.append_many(log, sizes)
                break
            except DiskFullError as problem:
                raised.append(type(problem))
            except (WriterFailedError, FencedError) as problem:
                raised.append(type(problem))
                with pytest.raises(StorageError):
                    log.append(b"00000000")
                trial.check(log)
                log.close()
                log = reopen_until_it_works(files, trial.sync)
                trial.check(log, power_lost=True)
        else:
            raise AssertionError("one failure, and three refusals")
    trial.check(log)
    log.close()
    return raised


FAULTS = {
    "no space": (errno.ENOSPC, None),
    "short write, then no space": (errno.ENOSPC, 5),
    "short write": (0, 5),
    "file too large": (errno.EFBIG, 0),
    "broken": (errno.EIO, None),
    "short write, then broken": (errno.EIO, 70),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_fails_once(fault: str) -> None:
    """Whatever fails, the log goes on, at the latest when it is opened again, and survives a power cut after that."""
    code, partial = FAULTS[fault]
    seen: set[type[Exception]] = set()
    for at in range(1, 200):
        files, trial = SimFiles(seed=at), LogTrial()
        files.fail(at, code, partial=partial)
        seen.update(stubborn(files, trial))
        after = files.crash("chaos", at)
        with SegmentedLog("/log", files=after, **OPTIONS) as log:
            trial.check(log, power_lost=True)
        if at in files._plans:
            break
    else:
        raise AssertionError("the scenario has no end")
    if code:
        assert (WriterFailedError if code == errno.EIO else DiskFullError) in seen


def test_a_failed_sync_poisons_the_writer() -> None:
    """No retry on that file, waiting and later puts fail, reads go on; opened again, the truth comes from the disk."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    trial.append_many(log, [20, 20])
    syncs = [entry for entry in files.history if entry.startswith("sync ")]
    files.fail(files.ops + 2, errno.EIO)  # append, then sync
    with pytest.raises(WriterFailedError, match="open it again"):
        trial.append_many(log, [20])
    assert len([entry for entry in files.history if entry.startswith("sync ")]) == len(syncs) + 2  # and the lock's
    with pytest.raises(WriterFailedError):
        trial.append_many(log, [20])
    with pytest.raises(WriterFailedError):
        log.sync()
    assert [offset for offset, _ in trial.check(log)] == [0, 1]
    log.close()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert [offset for offset, _ in trial.check(log, power_lost=True)] == [0, 1]
        assert log.report.whole


def test_the_cache_is_not_believed_after_a_failed_sync() -> None:
    """Pages that a failed sync dropped still show in the cache: served now, they would be gone after a power cut."""
    files = SimFiles()
    log = SegmentedLog("/log", files=files, sync="none", **OPTIONS)
    log.append(b"not on disk")
    files.fail(files.ops + 1, errno.EIO)
    with pytest.raises(WriterFailedError):
        log.sync()
    log.close()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        served = list(log.scan())
    with SegmentedLog("/log", files=files.crash("ordered", 1), **OPTIONS) as log:
        assert list(log.scan()) == served == []


def test_a_full_disk_changes_nothing() -> None:
    """DiskFullError at every free space; when there is room again the same object goes on."""
    for room in range(0, 1800, 24):
        files, trial = SimFiles(), LogTrial()
        log = SegmentedLog("/log", files=files, **OPTIONS)
        trial.append_many(log, [8])
        files.free = sum(map(len, files.tree().values())) + room
        full = False
        for size in (8, 300, 100, 500, 900, 8, 8):
            before = files.tree()
            try:
                trial.append_many(log, [size])
            except DiskFullError:
                full = True
                assert files.tree() == before
            trial.check(log)
        assert full
        files.free = None
        trial.append_many(log, [10])
        trial.check(log)
        log.close()
        with SegmentedLog("/log", files=files, **OPTIONS) as log:
            assert log.report.clean
            trial.check(log)


def test_a_full_disk_can_be_emptied() -> None:
    """Truncating works when there is no room for the record that says so."""
    files, trial = SimFiles(), LogTrial()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        for _ in range(12):
            last = trial.append_many(log, [1000])
        files.free = sum(map(len, files.tree().values()))
        trial.truncate_before(log, last.start)
        assert log.stats().first > 0
        trial.append_many(log, [1000])
        trial.check(log)
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        trial.check(log)


def test_a_segment_that_cannot_be_cut_is_given_up() -> None:
    """A write fails and so does the truncate: the next record goes to a new segment, and the rest is never read."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    trial.append_many(log, [50])
    files.fail(files.ops + 1, errno.ENOSPC, partial=90)
    files.fail(files.ops + 3, errno.EIO)  # short write, no space, truncate
    with pytest.raises(DiskFullError):
        trial.append_many(log, [200])
    trial.append_many(log, [60])
    trial.check(log)
    assert log.stats().segments == 2
    log.close()
    with SegmentedLog("/log", files=files, **OPTIONS) as log:
        assert log.report.clean
        assert len(trial.check(log)) == 2


def test_a_crash_with_a_short_write_before_it() -> None:
    """The bytes of an unfinished record are a torn tail, whatever their number."""
    for partial in range(0, 128, 8):
        files, trial = SimFiles(), LogTrial()
        log = SegmentedLog("/log", files=files, **OPTIONS)
        trial.append_many(log, [50])
        files.fail(files.ops + 1, 0, partial=partial)
        files.crash_at(files.ops + 2)
        with pytest.raises(SimCrash):
            trial.append_many(log, [64])
        with SegmentedLog("/log", files=files.crash("kill"), **OPTIONS) as log:
            trial.check(log)
