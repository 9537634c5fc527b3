"""One writer: who gets the lock, who must wait, who is fenced, and that no interleaving loses what was acknowledged."""

import errno
import gc
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from typing import NoReturn

import pytest

from daskqueue_storage.errors import DiskFullError, FencedError, LockedError, WriterFailedError
from daskqueue_storage.files import Identity
from daskqueue_storage.lock import LockContent, acquire, closed_by, decode_lock, encode_lock
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.testing import LogTrial, SimCrash, SimFiles

OPTIONS = {"segment_bytes": 4096, "lock_ttl": 10.0}


@pytest.fixture(name="files")
def _files() -> SimFiles:
    files = SimFiles()
    files.make_dir("/q")
    files.sync_dir("/")
    return files


def test_content_round_trips_and_no_flip_verifies() -> None:
    """256 bytes, each covered."""
    content = LockContent(7, 1, 99, 30_000, Identity(bytes(range(16)), 12, 34, 56, "host", 0), 3, "owner")
    packed = encode_lock(content)
    assert len(packed) == 256
    assert decode_lock(packed) == content
    assert "owner (pid 12 on host)" in content.holder
    for bit in range(8 * 256):
        broken = bytearray(packed)
        broken[bit // 8] ^= 1 << bit % 8
        assert decode_lock(bytes(broken)) is None
    assert decode_lock(packed[:255]) is None
    assert decode_lock(b"") is None


def test_long_names_are_cut() -> None:
    """A host of 64 bytes and an owner of 116 fit, in whatever script; more is cut."""
    content = LockContent(1, 1, 0, 1, Identity(bytes(16), 1, 1, 1, "h" * 99, 0), 0, "\N{EURO SIGN}" * 50)
    found = decode_lock(encode_lock(content))
    assert found is not None
    assert len(found.identity.host) == 64
    assert found.owner.startswith("\N{EURO SIGN}" * 38)


def test_the_numbers_rise_and_two_locks_remain(files: SimFiles) -> None:
    """Each opening takes the next number; older files go, the last two stay; no other process is looked at."""
    for epoch in range(1, 6):
        lease = acquire(files, "/q", ttl_s=10)
        assert lease.epoch == epoch
        assert lease.verify()
        lease.release()
    assert sorted(files.list_dir("/q")) == ["lock-00000004", "lock-00000005"]


def test_a_second_opener_is_told_who_holds_it(files: SimFiles) -> None:
    """Another process: at once, with host, pid and the age of the last sign of life. The same process: too."""
    lease = acquire(files, "/q", ttl_s=10, owner="the first")
    files.advance(1.5)
    before = files.tree()
    with pytest.raises(LockedError, match=r"the first \(pid 100 on sim\), last sign of life 1.5 s ago") as caught:
        acquire(files.also(), "/q", ttl_s=10)
    assert (caught.value.host, caught.value.pid, caught.value.age_s) == ("sim", 100, 1.5)
    with pytest.raises(LockedError, match="this process already"):
        acquire(files, "/q", ttl_s=10)
    assert files.tree() == before
    lease.release()
    acquire(files.also(), "/q").release()


def test_a_dead_owner_is_replaced_at_once(files: SimFiles) -> None:
    """Same boot, same namespace, no such process: proof enough. A pid that was given again is another process."""
    acquire(files, "/q", ttl_s=10)
    files.die()
    other = files.also()
    other.living.add(files.pid)  # the pid is in use again
    other.process_start = lambda pid: pid * 7 + (pid == files.pid)  # type: ignore[method-assign]
    lease = acquire(other, "/q", ttl_s=10)
    assert lease.epoch == 2


@pytest.mark.parametrize("why", ["another host", "another boot", "damaged"])
def test_an_owner_that_may_live_must_be_watched(files: SimFiles, why: str) -> None:
    """Not provably dead: LockedError at once, and with wait >= ttl when its heartbeat stood still that long."""
    acquire(files, "/q", ttl_s=10)
    other = files.also(host="sim" if why == "another boot" else "elsewhere")  # both have another boot id
    if why == "damaged":
        files.edit("/q/lock-00000001", b"?" * 256)
    with pytest.raises(LockedError):
        acquire(other, "/q", ttl_s=10)
    with pytest.raises(LockedError):
        acquire(other, "/q", ttl_s=10, wait_s=9)
    files.die()
    start = other.boot_ns()
    lease = acquire(other, "/q", ttl_s=10, wait_s=10)
    assert lease.epoch == 2
    assert other.boot_ns() - start >= 10e9


def test_a_living_owner_is_never_replaced(files: SimFiles) -> None:
    """However long somebody waits: every heartbeat starts the watch anew."""
    lease = acquire(files, "/q", ttl_s=10)
    other = files.also(host="elsewhere")

    def both(seconds: float) -> None:
        files.suspend(seconds)
        if files.boot_ns() % 3_000_000_000 < 1_000_000_000:
            lease.heartbeat()

    other.pause = both  # type: ignore[method-assign]
    with pytest.raises(LockedError):
        acquire(other, "/q", ttl_s=10, wait_s=100)
    assert lease.verify()


def test_waiting_ends_when_the_owner_lets_go(files: SimFiles) -> None:
    """No need to wait for the time to live then."""
    lease = acquire(files, "/q", ttl_s=1000)
    other = files.also(host="elsewhere")
    other.pause = lambda seconds: (files.suspend(seconds), lease.release())  # type: ignore[method-assign]
    start = files.boot_ns()
    assert acquire(other, "/q", ttl_s=10, wait_s=2000).epoch == 2
    assert files.boot_ns() - start < 2e9


def test_the_heartbeat_keeps_the_lease(files: SimFiles) -> None:
    """As long as time passes in the open, it holds; the counter rises."""
    lease = acquire(files, "/q", ttl_s=10)
    for _ in range(20):
        files.advance(5)
        assert lease.verify()
    content = decode_lock(files.tree()["/q/lock-00000001"])
    assert content is not None
    assert content.counter >= 20


def test_a_lapsed_lease_never_comes_back(files: SimFiles) -> None:
    """Away for too long: not valid, though nobody took it, and a late heartbeat does not change that."""
    lease = acquire(files, "/q", ttl_s=10)
    files.suspend(9.5)
    assert not lease.verify()
    assert lease.heartbeat()
    assert not lease.verify()
    assert lease.retake() == 2
    assert lease.verify()


@pytest.mark.parametrize("step", ["append", "sync"])
def test_a_heartbeat_that_ends_too_late_extends_nothing(files: SimFiles, step: str) -> None:
    """Begun in time, stopped in the middle until after the lapse: a taker may have looked before it was on disk."""
    lease = acquire(files, "/q", ttl_s=10)
    files.suspend(8)
    files.after(files.ops + (1 if step == "append" else 2), lambda: files.suspend(1.5))
    assert lease.heartbeat()
    assert not lease.verify()


def test_who_was_replaced_is_fenced(files: SimFiles) -> None:
    """retake finds the higher number; from then on everything is FencedError, and release leaves its lock alone."""
    lease = acquire(files, "/q", ttl_s=10)
    files.suspend(20)
    other = files.also(host="elsewhere")
    taken = acquire(other, "/q", ttl_s=10, wait_s=10, owner="the second")
    with pytest.raises(FencedError, match="replaced by 2 of the second"):
        lease.retake()
    with pytest.raises(FencedError):
        lease.verify()
    with pytest.raises(FencedError):
        lease.retake()
    assert not lease.heartbeat()
    lease.release()
    assert taken.verify()


def test_a_heartbeat_finds_out_too(files: SimFiles) -> None:
    """An unlock by hand, or clocks that were further apart than promised: the next heartbeat sees the higher number."""
    lease = acquire(files, "/q", ttl_s=10)
    other = files.also()
    other.living.discard(files.pid)
    acquire(other, "/q", ttl_s=10)
    assert not lease.heartbeat()
    with pytest.raises(FencedError):
        lease.verify()


def test_a_heartbeat_that_cannot_be_written_extends_nothing(files: SimFiles) -> None:
    """A disk that refuses makes the lease lapse; one refusal alone does not."""
    lease = acquire(files, "/q", ttl_s=9)
    files.fail(files.ops + 1, 5)
    files.advance(3)
    assert lease.verify()
    files.advance(3)
    assert lease.verify()
    for op in range(1, 20):
        files.fail(files.ops + op, 5)
    files.advance(9)
    assert not lease.verify()


def test_a_heartbeat_that_cannot_look_around_extends_nothing(files: SimFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be listed for a moment: the next heartbeat comes, and until then nothing is extended."""
    stale = OSError(errno.ESTALE, "Stale file handle")
    lease = acquire(files, "/q", ttl_s=9)
    with monkeypatch.context() as context:
        context.setattr(files, "list_dir", _raising(stale))
        files.advance(3)
        assert lease.heartbeat()
    files.advance(3)
    assert lease.verify()
    files.advance(6)
    assert lease.verify(), "the heartbeats go on"
    with monkeypatch.context() as context:
        context.setattr(files, "list_dir", _raising(stale))
        files.advance(9)
        assert not lease.verify()


def test_who_was_replaced_and_cannot_see_by_whom(files: SimFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease is over at once; it is fenced when the lock can be read."""
    lease = acquire(files, "/q", ttl_s=10)
    other = files.also()
    other.living.discard(files.pid)
    acquire(other, "/q", ttl_s=10)
    with monkeypatch.context() as context:
        context.setattr(files, "open", _raising(OSError(errno.EIO, "Input/output error")))
        assert lease.heartbeat()
        assert not lease.verify()
    with pytest.raises(FencedError):
        lease.retake()
    assert not lease.heartbeat()


def _raising(error: OSError) -> Callable[[str], NoReturn]:
    def refuse(path: str) -> NoReturn:
        raise error

    return refuse


def test_a_fork_may_not_write(files: SimFiles) -> None:
    """The child of a fork has our memory, not our rights."""
    lease = acquire(files, "/q", ttl_s=10)
    files.pid += 1
    with pytest.raises(FencedError, match="fork"):
        lease.verify()


def test_a_lease_nobody_refers_to_ends(files: SimFiles) -> None:
    """Dropped without release: no heartbeat any more, and this process may open again at once."""
    lease = acquire(files, "/q", ttl_s=10)
    del lease
    gc.collect()
    files.advance(100)
    content = decode_lock(files.tree()["/q/lock-00000001"])
    assert content is not None
    assert content.counter == 0
    assert acquire(files, "/q", ttl_s=10).epoch == 2


def test_exactly_one_wins_a_number(files: SimFiles) -> None:
    """Two openers, the second let in after each operation of the first: one lock, one LockedError or two epochs."""
    for op in range(1, 12):
        disk = SimFiles()
        disk.make_dir("/q")
        first, second = disk.also(), disk.also()
        got = []

        def let_in(second: SimFiles = second, got: list = got) -> None:
            try:
                got.append(acquire(second, "/q", ttl_s=10))
            except LockedError:
                got.append(None)

        first.after(first.ops + op, let_in)
        try:
            got.append(acquire(first, "/q", ttl_s=10))
        except LockedError:
            got.append(None)
        if len(got) == 1:
            break
        assert len([lease for lease in got if lease is not None]) == 1
    else:
        raise AssertionError("an acquisition of 12 operations")
    assert op > 5


def test_an_answer_of_link_that_was_lost(files: SimFiles) -> None:
    """The link is there and its caller was told it is not: the link count tells."""
    link = files.link

    def lossy(source: str, target: str) -> None:
        link(source, target)
        raise OSError(5, "timed out")

    files.link = lossy  # type: ignore[method-assign]
    assert acquire(files, "/q", ttl_s=10).epoch == 1


def test_garbage_of_crashed_openers_goes(files: SimFiles) -> None:
    """Crash at every operation of an acquisition: the next one succeeds and leaves two files at most."""
    for op in range(1, 9):
        files.crash_at(files.ops + 1 + op)
        try:
            acquire(files, "/q", ttl_s=10)
        except SimCrash:
            pass
        files = files.crash("kill", op)
        acquire(files, "/q", ttl_s=10).release()
        assert len(files.list_dir("/q")) <= 2


def test_word_is_left_for_the_next(files: SimFiles) -> None:
    """A failed sync and a clean end are told to the successor."""
    lease = acquire(files, "/q", ttl_s=10)
    lease.failed()
    files.die()
    other = files.also()
    lease = acquire(other, "/q", ttl_s=10)
    assert (lease.after_failure, lease.after_clean) == (True, False)
    assert closed_by(other, "/q") == 0
    lease.begun()
    lease.release(clean=True)
    assert closed_by(other, "/q") == 2
    lease = acquire(other, "/q", ttl_s=10)
    assert (lease.after_failure, lease.after_clean) == (False, True)


def test_word_survives_an_opening_that_came_to_nothing(files: SimFiles) -> None:
    """Crashed or given up before it began: the one after it still hears of the failed sync, or of the clean end."""
    lease = acquire(files, "/q", ttl_s=10)
    lease.failed()
    files.die()
    second = files.also()
    acquire(second, "/q", ttl_s=10)
    second.die()
    third = second.also()
    lease = acquire(third, "/q", ttl_s=10)
    assert (lease.after_failure, lease.after_release) == (True, False)
    lease.release()  # not begun
    lease = acquire(third, "/q", ttl_s=10)
    assert (lease.after_failure, lease.after_release) == (True, False)
    lease.begun()
    lease.release(clean=True)
    for _ in range(2):
        lease = acquire(third, "/q", ttl_s=10)
        assert (lease.after_failure, lease.after_clean, lease.after_release) == (False, True, True)
        lease.release()  # not begun: still clean
    lease = acquire(third, "/q", ttl_s=10)
    lease.begun()
    lease.release()
    assert not acquire(third, "/q", ttl_s=10).after_clean


def test_threads_racing_in_one_process() -> None:
    """One of eight gets it."""
    files = SimFiles()
    files.make_dir("/q")
    got: list[object] = []
    gate = threading.Barrier(8)

    def open_it() -> None:
        gate.wait()
        try:
            got.append(acquire(files, "/q", ttl_s=10))
        except LockedError as problem:
            got.append(problem)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([item for item in got if isinstance(item, LockedError)]) == 7


# ------------------------------------------------------------------------------- the whole writer against a usurper


def test_a_writer_that_is_stopped_anywhere_acknowledges_nothing_more() -> None:
    """Stop the writer after each operation for longer than its lease, let another take over and write, wake it up.

    What the stopped one acknowledges afterwards must be in the other's log; the rest must not come back.
    """
    outcomes = set()
    for sync, when in product(("batch", "none"), ("before", "after")):
        for op in range(1, 60):
            disk = SimFiles(seed=op)
            with SegmentedLog("/log", files=disk, **OPTIONS) as log:
                log.append(b"before")
            # Another host sees what is synced; without syncs only the same host sees what was acknowledged.
            second = disk.also(host="elsewhere" if sync == "batch" else None)
            first, trial = disk.also(), LogTrial(sync)
            slow = SegmentedLog("/log", files=first, sync=sync, **OPTIONS)
            seen: list[bytes] = []
            took_over: list[SegmentedLog] = []

            def usurp(first=first, second=second, seen=seen, took_over=took_over) -> None:
                first.suspend(30)
                log = SegmentedLog("/log", files=second, wait=10, **OPTIONS)
                seen.extend(payload for _, payload in log.scan())
                log.append(b"usurper")
                took_over.append(log)

            acknowledged: list[bytes] = []
            getattr(first, when)(first.ops + op, usurp)
            try:
                for size in (10, 2000, 1500, 1500, 3000, 20):
                    trial.append_many(slow, [size])
                    acknowledged += trial.batches[-1]
                outcomes.add("went on")
            except FencedError:
                outcomes.add("fenced")
            if not took_over:
                assert acknowledged == [payload for batch in trial.batches for payload in batch]
                break
            assert set(acknowledged) <= set(seen), f"acknowledged and not seen by the successor, operation {op}"
            with pytest.raises(FencedError):
                slow.append(b"00000000")
            slow.close()
            took_over[0].close()
            with SegmentedLog("/log", files=disk.also(), mode="ro") as log:
                assert [payload for _, payload in log.scan()] == [*seen, b"usurper"]
        else:
            raise AssertionError("60 operations for six records")
    assert outcomes == {"went on", "fenced"}


def test_a_usurper_that_is_overtaken_by_the_writer_sees_it_all() -> None:
    """The writer wakes up after each operation of the taker, writes and tries to acknowledge."""
    for op, when in product(range(1, 60), ("before", "after")):
        disk = SimFiles(seed=op)
        first, second = disk.also(), disk.also(host="elsewhere")
        slow = SegmentedLog("/log", files=first, **OPTIONS)
        slow.append(b"before")
        acknowledged = [b"before"]
        woke: list[bool] = []

        def wake(slow=slow, acknowledged=acknowledged, woke=woke) -> None:
            woke.append(True)
            try:
                slow.append(b"late")
                acknowledged.append(b"late")
            except FencedError:
                pass

        first.suspend(30)
        getattr(second, when)(second.ops + op, wake)
        try:
            log = SegmentedLog("/log", files=second, wait=20, **OPTIONS)
        except LockedError:
            assert acknowledged == [b"before", b"late"]  # the writer took its own lease again, first
            continue
        if not woke:
            break
        assert set(acknowledged) <= {payload for _, payload in log.scan()}
        log.close()
    else:
        raise AssertionError("an opening of 60 operations")


def test_a_writer_that_was_away_goes_on_in_a_new_epoch() -> None:
    """A laptop that slept: nobody took over, so the next append renews the lease and loses nothing."""
    files, trial = SimFiles(), LogTrial()
    log = SegmentedLog("/log", files=files, **OPTIONS)
    trial.append_many(log, [10])
    for _ in range(3):
        files.suspend(3600)
        trial.append_many(log, [10])
    assert log.stats().epoch == 4
    assert log.stats().segments == 3  # the first record after a nap is still written where the last one was
    trial.check(log)
    log.close()
    for mode in ("kill", "chaos"):
        with SegmentedLog("/log", files=files.crash(mode), wait=10, **OPTIONS) as log:
            assert log.report.clean
            trial.check(log)


def test_waking_up_on_a_full_disk_loses_nothing() -> None:
    """The new epoch needs a segment; where there is no room it is begun later, and never skipped."""
    for op in range(1, 26):
        files, trial = SimFiles(seed=op), LogTrial()
        log = SegmentedLog("/log", files=files, **OPTIONS)
        trial.append_many(log, [10])
        files.suspend(3600)
        files.fail(files.ops + op, errno.ENOSPC, partial=3)
        for _ in range(4):
            with suppress(DiskFullError, WriterFailedError):
                trial.append_many(log, [10])
        trial.check(log)
        after = files.crash("chaos", op)
        with SegmentedLog("/log", files=after, wait=10, **OPTIONS) as log:
            trial.check(log, power_lost=True)
