"""At the door: what the operating system refuses is one of our errors, and locks that somebody deleted harm nothing."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from daskqueue_storage.access import at_the_door, refusals
from daskqueue_storage.errors import AccessError, DiskFullError, FencedError, LockedError, NotAQueue, StorageError
from daskqueue_storage.lock import acquire, holder_of
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.read_only import ReadOnlyQueue
from daskqueue_storage.testing import SimFiles
from daskqueue_storage.verify import verify

OPENERS = (SegmentedLog, DurableQueue, ReadOnlyQueue, verify)


@pytest.mark.skipif(os.name != "posix", reason="paths as POSIX has them")
@pytest.mark.parametrize("opener", OPENERS)
def test_no_way_in(tmp_path: Path, opener: Callable[[Path], object]) -> None:
    """A parent that is missing or a file, no permission: a `StorageError` that names the path and what to do."""
    file = tmp_path / "file"
    file.write_bytes(b"")
    expected = NotAQueue if opener in (ReadOnlyQueue, verify) else AccessError
    for path in (tmp_path / "no" / "parent", file / "below"):
        with pytest.raises(expected) as caught:
            opener(path)
        assert caught.value.path == str(path)
        if isinstance(caught.value, AccessError):
            assert "create the directory above it first" in str(caught.value)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    inside = closed / "queue"
    DurableQueue(inside).close()
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    else:
        closed.chmod(0)
    try:
        with pytest.raises(AccessError) as caught:
            opener(inside)
    finally:
        if is_root:
            os.seteuid(0)
        closed.chmod(0o700)
    assert caught.value.errno == errno.EACCES
    assert isinstance(caught.value, OSError)


def test_what_is_turned_into_what() -> None:
    """No room is a full disk, other refusals are access; what is ours already, or no refusal, passes."""
    for number, kind in ((errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, AccessError)):
        with pytest.raises(kind, match="/there") as caught, refusals("/there"):
            raise OSError(number, os.strerror(number))
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(NotAQueue), refusals("/there"):
        raise NotAQueue("/there", "it is not")
    with pytest.raises(ValueError), refusals("/there"):
        raise ValueError

    class Opener:
        @at_the_door
        def __init__(self, path: object, *, size: int = 0) -> None:
            """Refused if it has a size."""
            if size:
                raise PermissionError(errno.EACCES, "Permission denied", "/there/FORMAT")

    Opener("/there")
    with pytest.raises(AccessError, match=r"/there cannot be opened: Permission denied \(/there/FORMAT\); this user"):
        Opener("/there", size=1)


@pytest.mark.parametrize("opener", [SegmentedLog, DurableQueue])
def test_a_disk_that_fails_at_each_operation_of_creation(opener: type[SegmentedLog] | type[DurableQueue]) -> None:
    """Whatever call fails, and whatever for: an error of ours or none, and opening again works."""
    counting = SimFiles()
    opener("/there", files=counting).close()
    for number in (errno.EIO, errno.ENOSPC, errno.EACCES):
        for op in range(1, counting.ops + 1):
            files = SimFiles()
            files.fail(op, number)
            with suppress(StorageError):  # nothing else
                opener("/there", files=files).close()
            opener("/there", files=files, wait=100.0).close()


# ------------------------------------------------------------------------------------------------------- deleted locks


def without_locks(files: SimFiles, keep: int = 0) -> None:
    """Somebody removed the lock files, but for the `keep` oldest."""
    locks = sorted(path for path in files.tree() if "/lock-" in path)
    for path in locks[keep:]:
        files.edit(path, None)


@pytest.mark.parametrize("keep", [0, 1])
def test_locks_that_were_deleted(keep: int) -> None:
    """The next writer has a later epoch than all that wrote, so what it acknowledges is not stale."""
    files = SimFiles()
    for number in range(3):
        with SegmentedLog("/log", files=files) as log:
            log.append(b"%d" % number)
    without_locks(files, keep)
    with SegmentedLog("/log", mode="ro", files=files.also()) as reader:
        assert reader.report.whole
    with SegmentedLog("/log", files=files, wait=100.0) as log:
        assert log.stats().epoch == 4
        log.append(b"new")
    with SegmentedLog("/log", files=files) as log:
        assert [data for _, data in log.scan()] == [b"0", b"1", b"2", b"new"]
        assert log.report == log.report._replace(clean=True, stale_files=(), damaged=(), missing_files=())


def test_a_deleted_lock_says_nothing_of_how_it_ended() -> None:
    """Of two, the later one is gone: the older one's word that it closed cleanly is not the last."""
    files = SimFiles()
    SegmentedLog("/log", files=files).close()
    with SegmentedLog("/log", files=files) as log:
        log.append(b"one")
    writer = SegmentedLog("/log", files=files)
    writer.append(b"two")
    files = files.crash("kill")
    path = max(path for path in files.tree() if path.endswith(".log"))
    files.edit(path, files.tree()[path][:-4])
    without_locks(files, keep=1)
    assert holder_of(files, "/log")[0] == 2
    with SegmentedLog("/log", mode="ro", files=files.also()) as reader:
        assert reader.report.whole, "a torn tail"
    with SegmentedLog("/log", files=files) as log:
        assert log.report.whole
        assert log.report.tail_bytes > 0


def test_a_living_writer_whose_lock_was_deleted() -> None:
    """Whoever opens the log beside it fences it: it acknowledges nothing more."""
    files = SimFiles()
    writer = SegmentedLog("/log", files=files.also())
    writer.append(b"one")
    without_locks(files)
    with SegmentedLog("/log", files=files) as log:
        assert log.stats().epoch == 2
        log.append(b"two")
        writer._files.advance(100)  # type: ignore[attr-defined]
        with pytest.raises(FencedError):
            writer.append(b"late")
        assert [data for _, data in log.scan()] == [b"one", b"two"]


def test_taking_a_lock_by_force() -> None:
    """Nobody is watched, and the next owner hears that the one before may still wake up."""
    files = SimFiles()
    files.make_dir("/log")
    held = acquire(files.also(host="far"), "/log", owner="far away")
    with pytest.raises(LockedError):
        acquire(files, "/log")
    before = files.clock[0]
    lease = acquire(files, "/log", owner="me", force=True)
    assert files.clock[0] == before
    assert (lease.epoch, lease.after_release) == (2, False)
    lease.release()
    number, content = holder_of(files, "/log")
    assert content is not None
    assert (number, content.released, content.owner) == (2, True, "me")
    held.heartbeat()
    with pytest.raises(FencedError, match="replaced by 2 of me"):
        held.verify()
    assert not acquire(files, "/log").after_release
