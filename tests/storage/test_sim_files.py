"""The simulated file system forgets what a real one may forget, and nothing else."""

import errno

import pytest

from daskqueue_storage.testing import CRASH_MODES, SimCrash, SimFiles


def written(*, sync: bool, sync_dir: bool) -> SimFiles:
    """A file of three sectors."""
    files = SimFiles()
    handle = files.create("/f")
    files.append(handle, [b"a" * 1536], 0)
    if sync:
        files.sync(handle)
    if sync_dir:
        files.sync_dir("/")
    return files


def images(files: SimFiles, mode: str) -> set[bytes | None]:
    """What may be found afterwards."""
    return {files.crash(mode, seed).tree().get("/f") for seed in range(200)}


@pytest.mark.parametrize("mode", CRASH_MODES)
def test_what_is_synced_with_its_name_survives(mode: str) -> None:
    """Always, and completely."""
    assert images(written(sync=True, sync_dir=True), mode) == {b"a" * 1536}


def test_a_synced_file_may_have_no_name() -> None:
    """fsync of the file is not fsync of its directory."""
    assert images(written(sync=True, sync_dir=False), "chaos") == {b"a" * 1536, None}


def test_unsynced_bytes_come_in_every_shape() -> None:
    """All, none, a torn end, holes, zeros and garbage; after a kill simply all."""
    found = images(written(sync=False, sync_dir=True), "chaos")
    assert {b"", b"a" * 1536} <= found
    assert any(image is not None and 0 < len(image) < 1536 and len(image) % 512 for image in found)
    assert any(image is not None and b"a" * 512 in image and b"\0" * 512 in image for image in found)
    assert images(written(sync=False, sync_dir=False), "kill") == {b"a" * 1536}


def test_ordered_is_a_prefix() -> None:
    """No later operation without all earlier ones."""
    files = SimFiles()
    handle = files.create("/f")
    files.append(handle, [b"1" * 600], 0)
    files.append(handle, [b"2" * 600], 600)
    other = files.create("/g")
    files.append(other, [b"3"], 0)
    for seed in range(100):
        tree = files.crash("ordered", seed).tree()
        whole = b"1" * 600 + b"2" * 600
        assert whole.startswith(tree.get("/f", b""))
        assert "/g" not in tree or tree["/f"] == whole


def test_a_kill_makes_nothing_durable() -> None:
    """What survived a kill in the cache can still be lost by a power cut after it."""
    killed = written(sync=False, sync_dir=True).crash("kill")
    assert killed.tree()["/f"] == b"a" * 1536
    assert b"" in {killed.crash("chaos", seed).tree()["/f"] for seed in range(50)}


def test_a_failed_sync_loses_pages_and_shows_them() -> None:
    """Reads still see them, the next sync succeeds, and they are not there afterwards."""
    files = written(sync=False, sync_dir=True)
    handle = files.open("/f")
    files.fail(files.ops + 1, errno.EIO)
    with pytest.raises(OSError, match="planned"):
        files.sync(handle)
    assert files.read_at(handle, 3, 0) == b"aaa"
    files.sync(handle)
    assert images(files, "chaos") == {b""}
    files.forget_cached(handle)
    assert files.read_at(handle, 3, 0) == b""


def test_short_writes_then_the_error() -> None:
    """As on a disk that is nearly full."""
    files = SimFiles()
    handle = files.create("/f")
    files.fail(2, errno.ENOSPC, partial=2)
    assert files.append(handle, [b"abc", b"def"], 0) == 2
    with pytest.raises(OSError, match="planned"):
        files.append(handle, [b"cdef"], 2)
    assert files.append(handle, [b"cdef"], 2) == 4
    files.free = 10
    assert files.append(handle, [b"0123456789"], 6) == 4
    with pytest.raises(OSError, match="no space"):
        files.append(handle, [b"x"], 10)
    assert files.free_bytes("/") == 0
    files.truncate(handle, 1)
    assert files.free_bytes("/") == 9
    assert files.tree()["/f"] == b"a"


def test_the_dead_do_nothing() -> None:
    """After its crash a process has no effect, whatever its handlers try."""
    files = SimFiles()
    handle = files.create("/f")
    files.crash_at(2)
    with pytest.raises(SimCrash):
        files.append(handle, [b"x" * 100], 0)
    before = files.tree()
    for deed in (lambda: files.append(handle, [b"y"], 0), lambda: files.unlink("/f"), lambda: files.stat("/f")):
        with pytest.raises(SimCrash):
            deed()
    assert files.tree() == before
    assert files.process_start(files.pid) is None


def test_unlinked_files_and_truncations_may_come_back() -> None:
    """Until their directory, or they themselves, are synced."""
    files = written(sync=True, sync_dir=True)
    files.truncate(files.open("/f"), 10)
    assert images(files, "chaos") == {b"a" * 1536, b"a" * 10}
    files.unlink("/f")
    assert None in images(files, "chaos")
    assert b"a" * 10 in images(files, "chaos")
    files.sync_dir("/")
    assert images(files, "chaos") == {None}


def test_time_and_other_processes() -> None:
    """Timers run when time passes in the open; processes share disk and clock, hosts have a boot of their own."""
    files = SimFiles()
    calls: list[int] = []
    stop = files.every(1.0, lambda: not calls.append(files.boot_ns()))
    files.advance(3.5)
    files.suspend(100)
    assert len(calls) == 3
    files.pause(0)
    assert len(calls) > 3
    stop()
    files.advance(50)
    total = len(calls)
    files.advance(50)
    assert len(calls) == total
    other, elsewhere = files.also(), files.also(host="elsewhere")
    files.create("/f")
    assert other.stat("/f") == elsewhere.stat("/f")
    assert other.boot_ns() == files.boot_ns()
    assert other.process_start(files.pid) == files.identity().started
    assert elsewhere.identity().boot_id != files.identity().boot_id
    files.die()
    assert other.process_start(files.pid) is None


def test_somebody_runs_between_two_operations() -> None:
    """`after` lets another process in where it is most inconvenient."""
    files = SimFiles()
    seen: list[list[str]] = []
    files.after(2, lambda: seen.append(sorted(files.list_dir("/"))))
    for name in "abc":
        files.create(f"/{name}")
    assert seen == [["a", "b"]]
