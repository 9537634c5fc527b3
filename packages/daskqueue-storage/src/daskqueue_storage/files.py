"""The only door to the operating system: files, directories, clocks, processes, timers, chance.

`Files` is what the store needs of it, `OsFiles` the real one, `testing.SimFiles` one that forgets, fails and crashes on
demand. No other module may import os, io, socket or time. Nothing here knows what is in the files.

What a caller may count on, and what it must not (this is what `SimFiles` takes away):
- `append` may write less than it was given, and says how much. A write is durable after a `sync` that began after it.
- A name is durable after a `sync_dir` of its directory that began after it; syncing the file does not do that.
- A failed `sync` may have lost any of the unsynced bytes, and the next one may succeed nevertheless.
- `link` is atomic, also on a network file system, where its answer may be lost: then the link count tells.

Weaker elsewhere than on Linux: no room is kept for later; macOS syncs with F_FULLFSYNC; without pwritev (Windows) a
batch is joined and written; without /proc no foreign process is ever known to be dead.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Final, NamedTuple, Protocol

__all__ = [
    "FULL_DISK",
    "Files",
    "Identity",
    "OsFiles",
    "Stat",
    "read_fully",
    "read_or_zeros",
    "remove_quietly",
    "write_fully",
    "write_rest",
]

_log = logging.getLogger("daskqueue_storage")
_SECTOR: Final = 512
_BOOT_CLOCK: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The errors of a write that mean no room, rather than a broken disk."""


class Stat(NamedTuple):
    """What is known of a path."""

    is_dir: bool
    size: int
    mode: int  # permission bits
    uid: int
    links: int
    mtime_ns: int
    key: tuple[int, int]  # device and inode: the same file, whatever its name


class Identity(NamedTuple):
    """This process, so that another one on the same host can tell whether it lives."""

    boot_id: bytes  # 16 bytes, another one after each boot; zeros: unknown
    pid: int
    started: int  # of the process, in ticks since boot; 0: unknown
    namespace: int  # pids mean something in here only
    host: str
    user: int


class Files(Protocol):
    """The operating system as the store sees it. Handles are small integers; errors are `OSError`."""

    # Files by handle.
    def create(self, path: str) -> int:
        """A new file, open for reading and writing; `FileExistsError` if the name is taken."""
        ...

    def open(self, path: str) -> int:
        """An existing file, open for reading."""
        ...

    def close(self, handle: int) -> None:
        """Never raises: there is nothing to be done about it."""
        ...

    def size(self, handle: int) -> int:
        """How long the file is."""
        ...

    def read_at(self, handle: int, size: int, offset: int, /) -> bytes:
        """Up to `size` bytes."""
        ...

    def append(self, handle: int, buffers: Sequence[bytes | memoryview], offset: int, /) -> int:
        """Write the buffers one after the other from `offset` on. How many bytes were written: perhaps not all."""
        ...

    def truncate(self, handle: int, size: int) -> None:
        """Cut the file."""
        ...

    def allocate(self, handle: int, offset: int, size: int) -> bool:
        """Room on the disk for these bytes, whatever else fills it, until a `truncate`; the file gets no longer.

        False: this file system cannot. `OSError`: there is no such room.
        """
        ...

    def sync(self, handle: int) -> None:
        """Everything written to the file, through whatever handle, becomes durable; its name does not."""
        ...

    def forget_cached(self, handle: int) -> None:
        """The next read comes from the disk. Best effort."""
        ...

    # Names.
    def resolve(self, path: object) -> str:
        """The absolute path without links."""
        ...

    def make_dir(self, path: str) -> None:
        """A directory for us alone (0700)."""
        ...

    def list_dir(self, path: str) -> list[str]:
        """Names, in any order."""
        ...

    def sync_dir(self, path: str) -> None:
        """The names in it become durable."""
        ...

    def link(self, source: str, target: str) -> None:
        """A second name; `FileExistsError` if it is taken."""
        ...

    def unlink(self, path: str) -> None:
        """One name less."""
        ...

    def stat(self, path: str) -> Stat | None:
        """None if there is nothing."""
        ...

    def free_bytes(self, path: str) -> int:
        """Room left for us on that disk."""
        ...

    # Time, processes, chance.
    def wall_ns(self) -> int:
        """What people call the time; may jump."""
        ...

    def boot_ns(self) -> int:
        """Never jumps, goes on while the machine sleeps."""
        ...

    def pause(self, seconds: float) -> None:
        """Let time pass."""
        ...

    def every(self, interval_s: float, action: Callable[[], bool]) -> Callable[[], None]:
        """Call `action` in the background until it says False, or what is returned is called.

        What it raises is logged, and it is called again.
        """
        ...

    def soon(self, action: Callable[[], None]) -> bool:
        """Call `action` once in the background; False: that cannot be done now."""
        ...

    def identity(self) -> Identity:
        """Who we are. Another one after a fork."""
        ...

    def process(self) -> int:
        """The `pid` of `identity`, which is asked for at every operation."""
        ...

    def process_start(self, pid: int) -> int | None:
        """When that process of this host started, as in `Identity.started`; None if it is not there."""
        ...

    def random_bytes(self, size: int) -> bytes:
        """Chance."""
        ...


def read_fully(files: Files, handle: int, size: int, offset: int) -> bytes:
    """`size` bytes, fewer only at the end of the file."""
    data = files.read_at(handle, size, offset)
    while 0 < len(data) < size:
        more = files.read_at(handle, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_or_zeros(files: Files, handle: int, size: int, offset: int) -> bytes:
    """`read_fully`; sectors the disk cannot read any more are zeros, which are never a record: damage, not an error."""
    try:
        return read_fully(files, handle, size, offset)
    except OSError as problem:
        if problem.errno != errno.EIO:
            raise
    if size <= _SECTOR:
        return bytes(size)
    pieces = range(offset, offset + size, _SECTOR)
    return b"".join(read_or_zeros(files, handle, min(_SECTOR, offset + size - at), at) for at in pieces)


def write_fully(files: Files, handle: int, buffers: Sequence[bytes | memoryview], offset: int) -> None:
    """All of it, or `OSError`."""
    written = files.append(handle, buffers, offset)
    write_rest(files, handle, buffers, offset, written)


def write_rest(files: Files, handle: int, buffers: Sequence[bytes | memoryview], offset: int, written: int) -> None:
    """What an `append` left over. That is normal when a disk is nearly full: go on until it takes no more."""
    size = sum(map(len, buffers))
    while written < size:
        rest = b"".join(buffers)[written:]
        more = files.append(handle, [rest], offset + written)
        if more <= 0:
            raise OSError(errno.ENOSPC, "nothing more was written")
        written += more


def remove_quietly(files: Files, path: str) -> None:
    """Remove a file that is of no use any more. If it cannot be, the next opener tries again."""
    try:
        files.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as problem:
        _log.warning("%s cannot be removed: %s", path, problem)


def _joined_append(handle: int, buffers: Sequence[bytes | memoryview], offset: int, /) -> int:
    return os.pwrite(handle, b"".join(buffers), offset)


_append: Callable[[int, Sequence[bytes | memoryview], int], int] = getattr(os, "pwritev", _joined_append)


class OsFiles:
    """The real one. Without state but for what it looks up once; one instance serves all threads."""

    def create(self, path: str) -> int:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | _BINARY, 0o600)

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDONLY | _BINARY)

    def close(self, handle: int) -> None:
        try:
            os.close(handle)
        except OSError:
            pass

    def size(self, handle: int) -> int:
        return os.fstat(handle).st_size

    def read_at(self, handle: int, size: int, offset: int, /) -> bytes:
        return os.pread(handle, size, offset)

    def truncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def allocate(self, handle: int, offset: int, size: int) -> bool:
        fallocate = _fallocate()
        while fallocate is not None and (code := fallocate(handle, offset, size)):
            if code in FULL_DISK:
                raise OSError(code, os.strerror(code))
            if code != errno.EINTR:
                return False
        return fallocate is not None

    def sync(self, handle: int) -> None:
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(handle)  # the size is part of what is needed to read the data, so it is synced too

    def forget_cached(self, handle: int) -> None:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)

    def resolve(self, path: object) -> str:
        return os.path.realpath(os.fsdecode(path))  # type: ignore[arg-type]  # what is no path is a TypeError

    def make_dir(self, path: str) -> None:
        os.mkdir(path, 0o700)

    def list_dir(self, path: str) -> list[str]:
        return os.listdir(path)

    def sync_dir(self, path: str) -> None:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def stat(self, path: str) -> Stat | None:
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Stat(
            stat.S_ISDIR(found.st_mode),
            found.st_size,
            stat.S_IMODE(found.st_mode),
            found.st_uid,
            found.st_nlink,
            found.st_mtime_ns,
            (found.st_dev, found.st_ino),
        )

    def free_bytes(self, path: str) -> int:
        found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    # These at every operation: not a call of ours more than is needed.
    append = staticmethod(_append)
    wall_ns = staticmethod(time.time_ns)
    boot_ns = staticmethod(partial(time.clock_gettime_ns, _BOOT_CLOCK))
    process = staticmethod(os.getpid)

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def every(self, interval_s: float, action: Callable[[], bool]) -> Callable[[], None]:
        stop = threading.Event()

        def loop() -> None:
            while not stop.wait(interval_s):
                try:
                    if not action():
                        return
                except Exception:
                    _log.exception("what runs in the background failed; it runs again in %g s", interval_s)

        threading.Thread(target=loop, name="daskqueue-storage", daemon=True).start()
        return stop.set

    def soon(self, action: Callable[[], None]) -> bool:
        try:
            threading.Thread(target=action, name="daskqueue-storage", daemon=True).start()
        except RuntimeError:  # no thread can be had, or Python is about to end
            return False
        return True

    def identity(self) -> Identity:
        pid, user = os.getpid(), os.geteuid()
        known = _known.get("pid")
        if known is None or known.pid != pid:
            started = self.process_start(pid) or 0
            known = _known["pid"] = Identity(_boot_id(), pid, started, _namespace(), socket.gethostname(), user)
        # The user may change (a daemon drops its rights), the rest may not.
        return known if known.user == user else known._replace(user=user)

    def process_start(self, pid: int) -> int | None:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()  # the name before it may hold anything
        except OSError:
            return None
        return None if fields[0] in (b"Z", b"X") else int(fields[19])  # a zombie writes nothing any more

    def random_bytes(self, size: int) -> bytes:
        return secrets.token_bytes(size)


_BINARY = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_KEEP_SIZE: Final = 1
_known: dict[str, Identity] = {}


@cache
def _fallocate() -> Callable[[int, int, int], int] | None:
    """Linux's own, since what POSIX has makes the file longer. It answers with the number of an error, or 0."""
    try:
        import ctypes
    except ImportError:  # a Python that was built without
        return None
    library = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    found = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if found is None:
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    def call(handle: int, offset: int, size: int) -> int:
        return ctypes.get_errno() if found(handle, _KEEP_SIZE, offset, size) else 0

    return call


def _boot_id() -> bytes:
    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            return bytes.fromhex(file.read().decode().strip().replace("-", ""))
    except OSError:
        return bytes(16)


def _namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino & 0xFFFFFFFF
    except OSError:
        return 0
