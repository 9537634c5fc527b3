"""One writer at a time, also on a shared file system: locks with numbers, a heartbeat, and fencing.

Acquiring is a compare-and-swap on a number. Who finds `lock-N` released, its owner provably dead, or its heartbeat
standing still for the owner's time to live on *our* clock, links `lock-<N+1>` into place. Exactly one can; no lock is
ever deleted to be broken, so there is no moment in which two believe it is free. The number is the writer's epoch.

No file lock (missing or a no-op on many cluster file systems), no comparison of two hosts' clocks, no modification
times. What a holder must do to be safe: write, sync, `verify`, then acknowledge; sync, `verify`, then destroy.

Invariants:
- A lease is extended only by a heartbeat that is on disk before the lease lapses; one that lapsed never comes back. Its
  holder may take the next number, if nobody else has.
- Nobody takes `lock-<N+1>` less than the time to live after N's last heartbeat began, and N believes in its lease for a
  tenth less than that, so that clocks may run up to 10 % apart.
- In one process a directory is held once (`_held`): a lock of our own process that is not in there is a dead one.
"""

from __future__ import annotations

import logging
import re
import threading
import weakref
from collections.abc import Callable
from struct import Struct, error
from typing import Final, NamedTuple
from zlib import crc32

from daskqueue_storage.directory import highest_epoch
from daskqueue_storage.errors import FencedError, LockedError
from daskqueue_storage.files import Files, Identity, remove_quietly, write_fully

__all__ = ["Lease", "LockContent", "acquire", "closed_by", "decode_lock", "encode_lock", "holder_of"]

_MAGIC: Final = b"DQLK"
_LOCK = Struct("<4sIIIQQ16sQQII64s116s")
_CRC = Struct("<I")
_NAME = re.compile(r"lock-([0-9a-f]{8})")
_TEMPORARY = re.compile(r"lock-([0-9a-f]{8})\.[0-9a-f]+\.tmp")
_VERSION: Final = 1
_HELD: Final = 1
_RELEASED: Final = 2
_FAILED: Final = 1
"""A flag: the owner could not sync. What is cached of its last segment may not be on disk."""
_CLEAN: Final = 2
"""A flag: the owner ended what it wrote with CLOSE. If that is not found, something is missing."""
_LOOKS: Final = 4
"""A lock must look the same this many times, opened anew, over its time to live: network file systems cache."""

_UNSETTLED: Final = 4
"""A flag: an owner before was replaced without having let go, and nothing was written since that would fence it."""
_POLL_S: Final = 0.5

_log = logging.getLogger("daskqueue_storage")
_held: weakref.WeakValueDictionary[tuple[int, ...], Lease] = weakref.WeakValueDictionary()
_held_lock = threading.Lock()


class LockContent(NamedTuple):
    """The 256 bytes of a lock."""

    epoch: int
    state: int
    counter: int  # of heartbeats
    ttl_ms: int
    identity: Identity
    flags: int
    owner: str

    @property
    def released(self) -> bool:
        """Its owner gave it back."""
        return self.state == _RELEASED

    @property
    def holder(self) -> str:
        """For people."""
        return f"{self.owner or 'process'} (pid {self.identity.pid} on {self.identity.host})"


def encode_lock(content: LockContent) -> bytes:
    """The 256 bytes."""
    who = content.identity
    packed = _LOCK.pack(
        _MAGIC,
        _VERSION,
        content.epoch,
        content.state,
        content.counter,
        content.ttl_ms,
        who.boot_id,
        who.pid,
        who.started,
        who.namespace,
        content.flags,
        who.host.encode()[:64],
        content.owner.encode()[:116],
    )
    return packed + _CRC.pack(crc32(packed))


def decode_lock(data: bytes) -> LockContent | None:
    """The content, or None if it does not verify."""
    try:
        if _CRC.unpack_from(data, _LOCK.size)[0] != crc32(data[: _LOCK.size]):
            return None
        magic, version, epoch, state, counter, ttl_ms, boot, pid, started, space, flags, host, owner = (
            _LOCK.unpack_from(data)
        )
    except error:
        return None
    if magic != _MAGIC or version != _VERSION:
        return None
    texts = [text.rstrip(b"\0").decode(errors="replace") for text in (host, owner)]
    return LockContent(epoch, state, counter, ttl_ms, Identity(boot, pid, started, space, texts[0], 0), flags, texts[1])


# ----------------------------------------------------------------------------------------------------------- acquire


def acquire(
    files: Files, root: str, *, ttl_s: float = 30.0, owner: str = "", wait_s: float = 0.0, force: bool = False
) -> Lease:
    """The lease of a directory, or `LockedError`: at once, or after watching the holder for `wait_s`.

    `force`: somebody knows that the holder is dead, or wants it fenced if it is not.
    """
    key = _key(files, root)
    with _held_lock:
        held = _held.get(key)
        if held is not None and held.alive:
            raise LockedError(root, "this process already", host=files.identity().host, pid=files.identity().pid)
        lease = Lease(files, root, key, ttl_s, owner)
        _held[key] = lease  # from here on a second thread is refused
    try:
        lease._acquire(wait_s, force)
    except BaseException:
        lease._drop()
        raise
    return lease


def closed_by(files: Files, root: str) -> int:
    """The epoch of the last writer, if it closed cleanly and nobody writes now; else 0."""
    number = _highest(files, root)
    found = decode_lock(_look(files, root, number))
    if found is None or found.state != _RELEASED or not found.flags & _CLEAN:
        return 0
    return number if number >= highest_epoch(files, root) else 0  # else the last lock was deleted


def holder_of(files: Files, root: str) -> tuple[int, LockContent | None]:
    """The highest lock, and what it says: None if it does not verify. (0, None): there is none."""
    number = _highest(files, root)
    return number, decode_lock(_look(files, root, number)) if number else None


def _key(files: Files, root: str) -> tuple[int, ...]:
    """A directory, whatever its name, in this process: the child of a fork inherits `_held` and holds nothing."""
    found = files.stat(root)
    if found is None:
        raise FileNotFoundError(root)
    return (*found.key, files.identity().pid)


class Lease:
    """The right to write, for as long as `verify` says so. Thread-safe.

    Its heartbeat runs in the background until `release`, or until nobody refers to the lease.
    """

    epoch: int
    after_failure: bool
    """The previous owner could not sync: what is cached of its last segment must not be trusted."""
    after_clean: bool
    """The previous owner closed the log: it must end so."""
    after_release: bool
    """The previous owner gave the lock back, or there was none: nobody is left who might still write."""

    def __init__(self, files: Files, root: str, key: tuple[int, ...], ttl_s: float, owner: str) -> None:
        self._files = files
        self._root = root
        self._held_key = key
        self._ttl_ms = max(1, round(ttl_s * 1e3))
        self._owner = owner
        self._who = files.identity()
        self._pid = self._who.pid
        self._process, self._boot_ns = files.process, files.boot_ns  # asked at every operation
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._counter = 0
        self._flags = 0
        self._valid_until = 0
        self._fenced = ""
        self._stop: Callable[[], None] = lambda: None
        self.epoch = 0
        self.after_failure = False
        self.after_clean = False
        self.after_release = True
        self.alive = True

    # ------------------------------------------------------------------------------------------------ for the holder

    def verify(self) -> bool:
        """Whether the lease holds: no I/O. False: it lapsed, `retake` may get the next one. `FencedError`: lost."""
        if self._fenced:
            raise FencedError(self._root, self._fenced)
        process, boot_ns = self._process, self._boot_ns
        if process() != self._pid:
            raise FencedError(self._root, f"opened by process {self._pid}, used in a fork of it")
        return boot_ns() < self._valid_until

    def retake(self) -> int:
        """After a lapse: the next epoch, if nobody took it. `FencedError` if somebody did."""
        with self._lock:
            if self._fenced:
                raise FencedError(self._root, self._fenced)
            highest = _highest(self._files, self._root)
            if highest != self.epoch or not self._take(highest + 1):
                self._lose()
                raise FencedError(self._root, self._fenced)
            _log.warning("%s: the lease lapsed and nobody else took it; going on as epoch %d", self._root, self.epoch)
            return self.epoch

    def begun(self) -> None:
        """What the predecessor left word of is dealt with: not to be handed on."""
        with self._lock:
            self._flags &= ~(_FAILED | _CLEAN | _UNSETTLED)

    def failed(self) -> None:
        """Leave word for the next owner that a sync failed. Best effort: the disk may refuse that too."""
        with self._lock:
            if not self._flags & _FAILED:
                self._flags |= _FAILED
                self._try_write(_HELD)

    def heartbeat(self) -> bool:
        """Show life; whether to go on. An owner that lapsed does not: its successor may have begun."""
        with self._lock:
            if not self.alive or self._fenced:
                return False
            start = self._files.boot_ns()
            if start >= self._valid_until:
                return True  # lapsed: the next operation retakes it or is fenced
            self._counter += 1
            if not self._try_write(_HELD):
                return True  # next time, perhaps
            try:
                if _highest(self._files, self._root) > self.epoch:
                    self._lose()
                    return False
            except OSError as problem:  # a stale handle, say: nobody knows, so nothing is extended
                _log.warning("%s: cannot look for a lock after lock-%08x: %s", self._root, self.epoch, problem)
                return True
            if self._files.boot_ns() < self._valid_until:
                self._valid_until = self._until(start)
            return True

    def release(self, *, clean: bool = False) -> None:
        """Give it back: the next owner need not wait. `clean`: the log was closed."""
        with self._lock:
            self._stop()
            if self._handle is not None:
                if not self._fenced and self._files.boot_ns() < self._valid_until:
                    self._counter += 1
                    self._flags |= _CLEAN if clean else 0
                    self._try_write(_RELEASED)
                self._files.close(self._handle)
                self._handle = None
            self._fenced = self._fenced or "closed"
            self._drop()

    def __del__(self) -> None:
        if self._handle is not None:
            self._files.close(self._handle)

    # ------------------------------------------------------------------------------------------------- the machinery

    def _acquire(self, wait_s: float, force: bool) -> None:
        # A little more than was said: who waits for exactly the time to live means to see the end of it.
        give_up = self._files.boot_ns() + round(wait_s * 1.1e9)
        while True:
            highest = _highest(self._files, self._root)
            # Locks that people deleted: the segments know the epochs that were. One of them again would be stale.
            last = max(highest, highest_epoch(self._files, self._root))
            self.after_failure = self.after_clean = False
            self.after_release = not last
            self._flags = _UNSETTLED if last else 0
            if highest and not self._is_free(highest) and not force:
                self._watch(highest, give_up)
            if highest < last:  # and nothing is known of the last owner
                self._flags = self._flags & ~_CLEAN | _UNSETTLED
                self.after_clean = self.after_release = False
            if self._take(last + 1):
                break
        self._remove_garbage()
        me = weakref.ref(self)

        def beat() -> bool:
            lease = me()
            return lease is not None and lease.heartbeat()

        self._stop = self._files.every(self._ttl_ms / 3e3, beat)

    def _remove_garbage(self) -> None:
        """Locks before the last, and files of crashed openers: a number that is taken is never linked again."""
        for name in self._files.list_dir(self._root):
            lock, temporary = _NAME.fullmatch(name), _TEMPORARY.fullmatch(name)
            if (lock and int(lock[1], 16) < self.epoch - 1) or (temporary and int(temporary[1], 16) <= self.epoch):
                remove_quietly(self._files, f"{self._root}/{name}")

    def _is_free(self, number: int) -> bool:
        """Released, or its owner provably dead."""
        found = decode_lock(_look(self._files, self._root, number))
        if found is None:
            return False
        self._hear(found)
        if found.state == _RELEASED:
            return True
        who, me = found.identity, self._who
        if not any(who.boot_id) or (who.boot_id, who.namespace) != (me.boot_id, me.namespace):
            return False  # another host, another boot, a container: its pid says nothing here
        if who.pid == me.pid and who.started == me.started:
            return True  # it is us, and we do not hold it (see `_held`)
        return self._files.process_start(who.pid) != who.started

    def _hear(self, predecessor: LockContent) -> None:
        """What the previous owner left word of."""
        released = predecessor.state == _RELEASED
        # Ours too until `begun`: whoever follows an opening that came to nothing must know it as well.
        self._flags = predecessor.flags if released else predecessor.flags & ~_CLEAN | _UNSETTLED
        self.after_failure = bool(self._flags & _FAILED)
        self.after_release = not self._flags & _UNSETTLED
        self.after_clean = released and bool(self._flags & _CLEAN)

    def _watch(self, number: int, give_up: int) -> None:
        """Return when the holder of `number` showed no sign of life for its time to live."""
        first = _look(self._files, self._root, number)
        known = decode_lock(first)
        ttl_ms = known.ttl_ms if known is not None else self._ttl_ms
        since = self._files.boot_ns()
        looks = 1
        while True:
            now = self._files.boot_ns()
            due = since + ttl_ms * 1_000_000
            if now >= due and looks >= _LOOKS:
                return
            if max(now, due) > give_up:
                raise self._locked(number, known)
            self._files.pause(min(_POLL_S, ttl_ms / 1e3 / (_LOOKS - 1)))
            if _highest(self._files, self._root) != number:
                return  # somebody was faster; the caller looks again
            seen = _look(self._files, self._root, number)
            looks += 1
            if seen != first:
                known = decode_lock(seen)
                if known is not None and known.state == _RELEASED:
                    self._hear(known)
                    return
                first, since, looks = seen, self._files.boot_ns(), 1

    def _locked(self, number: int, known: LockContent | None) -> LockedError:
        found = self._files.stat(f"{self._root}/lock-{number:08x}")
        age = None if found is None else max(0.0, (self._files.wall_ns() - found.mtime_ns) / 1e9)
        seen = "" if age is None else f", last sign of life {age:.1f} s ago"
        if known is None:
            return LockedError(self._root, f"somebody whose lock-{number:08x} is damaged{seen}", age_s=age)
        who = known.identity
        return LockedError(self._root, f"{known.holder}{seen}", host=who.host, pid=who.pid, age_s=age)

    def _take(self, number: int) -> bool:
        """Link `lock-<number>` into place; False if somebody else did."""
        files, target = self._files, f"{self._root}/lock-{number:08x}"
        temporary = f"{target}.{files.random_bytes(4).hex()}.tmp"
        start = files.boot_ns()
        handle = files.create(temporary)
        won = False
        try:
            write_fully(files, handle, [encode_lock(self._content(number, _HELD))], 0)
            files.sync(handle)
            try:
                files.link(temporary, target)
                won = True
            except OSError as problem:
                # On a network file system the answer of a link that worked may be lost; the link count is not.
                found = files.stat(temporary)
                won = found is not None and found.links == 2
                # The temporary file is gone if the owner of that number, or a higher one, has cleaned up.
                if not won and not isinstance(problem, (FileExistsError, FileNotFoundError)):
                    raise
            if won:
                files.sync_dir(self._root)
        except BaseException:
            files.close(handle)
            remove_quietly(files, temporary)
            raise
        remove_quietly(files, temporary)
        if not won:
            files.close(handle)
            return False
        if self._handle is not None:
            files.close(self._handle)
        self._handle = handle
        self.epoch = number
        self._valid_until = self._until(start)
        return True

    def _content(self, epoch: int, state: int) -> LockContent:
        return LockContent(epoch, state, self._counter, self._ttl_ms, self._who, self._flags, self._owner)

    def _try_write(self, state: int) -> bool:
        if self._handle is None:
            return False
        try:
            write_fully(self._files, self._handle, [encode_lock(self._content(self.epoch, state))], 0)
            self._files.sync(self._handle)
        except OSError as problem:
            _log.warning("%s: cannot write lock-%08x: %s", self._root, self.epoch, problem)
            return False
        return True

    def _until(self, start: int) -> int:
        return start + self._ttl_ms * 900_000

    def _lose(self) -> None:
        self._valid_until = 0  # first: it is lost, also if who has it cannot be read
        highest = _highest(self._files, self._root)
        found = decode_lock(_look(self._files, self._root, highest))
        self._fenced = f"epoch {self.epoch} was replaced by {highest} of {found.holder if found else 'somebody'}"

    def _drop(self) -> None:
        self.alive = False
        with _held_lock:
            if _held.get(self._held_key) is self:
                del _held[self._held_key]


def _numbers(files: Files, root: str) -> list[int]:
    return [int(match[1], 16) for name in files.list_dir(root) if (match := _NAME.fullmatch(name))]


def _highest(files: Files, root: str) -> int:
    return max(_numbers(files, root), default=0)


def _look(files: Files, root: str, number: int) -> bytes:
    """The bytes of a lock, opened anew: network file systems revalidate then."""
    try:
        handle = files.open(f"{root}/lock-{number:08x}")
    except FileNotFoundError:
        return b""
    try:
        return files.read_at(handle, _LOCK.size + _CRC.size, 0)
    finally:
        files.close(handle)
