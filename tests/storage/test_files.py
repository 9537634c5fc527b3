"""The real `Files`, and the helpers that make whole reads and writes out of partial ones."""

import logging
import os
import threading
from pathlib import Path

import pytest

from daskqueue_storage.files import OsFiles, read_fully, remove_quietly, write_fully
from daskqueue_storage.testing import SimFiles


class Slow(OsFiles):
    """Reads and writes three bytes at a time."""

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        """A part of it."""
        return super().read_at(handle, min(size, 3), offset)

    def append(self, handle: int, buffers, offset: int) -> int:
        """A part of it."""
        return super().append(handle, [b"".join(buffers)[:3]], offset)


def test_partial_reads_and_writes_are_completed(tmp_path: Path) -> None:
    """Whatever the system gives at a time."""
    files = Slow()
    handle = files.create(str(tmp_path / "file"))
    write_fully(files, handle, [b"hello ", b"world"], 0)
    assert read_fully(files, handle, 100, 0) == b"hello world"
    assert read_fully(files, handle, 5, 6) == b"world"
    assert read_fully(files, handle, 5, 50) == b""
    files.close(handle)


def test_files_and_names(tmp_path: Path) -> None:
    """Create refuses what exists, links count, modes are private, missing things are None or FileNotFoundError."""
    files = OsFiles()
    root = files.resolve(tmp_path / "here" / ".." / "there")
    assert root == str(tmp_path.resolve() / "there")
    assert files.stat(root) is None
    files.make_dir(root)
    found = files.stat(root)
    assert found is not None
    assert (found.is_dir, found.mode, found.uid) == (True, 0o700, os.geteuid())
    path = f"{root}/a"
    handle = files.create(path)
    with pytest.raises(FileExistsError):
        files.create(path)
    files.append(handle, [b"12345"], 0)
    files.truncate(handle, 3)
    assert files.size(handle) == 3
    files.sync(handle)
    files.forget_cached(handle)
    files.sync_dir(root)
    files.link(path, f"{root}/b")
    found = files.stat(path)
    assert found is not None
    assert (found.links, found.size, found.mode) == (2, 3, 0o600)
    assert found.key == files.stat(f"{root}/b").key
    assert sorted(files.list_dir(root)) == ["a", "b"]
    with pytest.raises(FileExistsError):
        files.link(path, f"{root}/b")
    files.close(handle)
    files.close(handle)  # nothing to be done about it
    remove_quietly(files, path)
    remove_quietly(files, path)
    assert files.list_dir(root) == ["b"]
    remove_quietly(files, root)  # a directory cannot be unlinked: logged, not raised
    assert files.free_bytes(root) > 0
    with pytest.raises(FileNotFoundError):
        files.open(path)
    with pytest.raises(TypeError):
        files.resolve(7)


def test_who_we_are() -> None:
    """This process lives, a missing one does not, and a zombie counts as missing."""
    files = OsFiles()
    me = files.identity()
    assert (me.pid, me.user) == (os.getpid(), os.geteuid())
    assert files.identity() is me
    assert files.process_start(me.pid) == me.started
    assert files.process_start(2**22 + 1) is None
    if os.path.exists("/proc/self/stat"):
        assert len(me.boot_id) == 16
        assert any(me.boot_id)
        pid = os.posix_spawn("/bin/true", ["true"], {})
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert files.process_start(pid) is None
        os.waitpid(pid, 0)


def test_clocks_and_timers() -> None:
    """Clocks rise; a timer runs until it says no, and until it is stopped."""
    files = OsFiles()
    assert files.boot_ns() <= files.boot_ns()
    assert files.wall_ns() > 1_600_000_000 * 10**9
    start = files.boot_ns()
    files.pause(0.001)
    assert files.boot_ns() - start >= 1_000_000
    done = threading.Event()
    calls: list[int] = []

    def act() -> bool:
        calls.append(1)
        if len(calls) == 3:
            done.set()
        return len(calls) < 3

    stop = files.every(0.001, act)
    assert done.wait(30)
    stop()
    assert len(calls) == 3
    assert len({files.random_bytes(8) for _ in range(9)}) == 9


def test_a_timer_goes_on_though_what_it_calls_raises(caplog: pytest.LogCaptureFixture) -> None:
    """It is called again, and the log says so."""
    caplog.set_level(logging.ERROR)
    done = threading.Event()
    calls: list[int] = []

    def act() -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("a glitch")
        done.set()
        return False

    OsFiles().every(0.001, act)
    assert done.wait(30)
    assert "a glitch" in caplog.text


def test_both_say_the_same_about_names(tmp_path: Path) -> None:
    """The simulated system and the real one raise the same errors."""
    for files, root in ((OsFiles(), str(tmp_path)), (SimFiles(), "")):
        path = f"{root}/x"
        files.close(files.create(path))
        for deed, error in (
            (lambda f=files, p=path: f.create(p), FileExistsError),
            (lambda f=files, p=path: f.open(p + "y"), FileNotFoundError),
            (lambda f=files, p=path: f.unlink(p + "y"), FileNotFoundError),
            (lambda f=files, p=path: f.link(p + "y", p + "z"), FileNotFoundError),
            (lambda f=files, p=path: f.link(p, p), FileExistsError),
            (lambda f=files, r=root: f.list_dir(r + "/none"), FileNotFoundError),
            (lambda f=files, r=root: f.create(r + "/none/x"), FileNotFoundError),
        ):
            with pytest.raises(error):
                deed()
        files.make_dir(f"{root}/d")
        with pytest.raises(FileExistsError):
            files.make_dir(f"{root}/d")


def test_what_is_done_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """In another thread; where none can be had its caller is told."""
    files, done = OsFiles(), threading.Event()
    assert files.soon(done.set)
    assert done.wait(30)

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert not files.soon(done.set)
