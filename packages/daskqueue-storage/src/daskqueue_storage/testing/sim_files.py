"""A file system in memory that forgets, fails and crashes on demand.

For each file it keeps the bytes that are durable and the writes since, for each directory the same of its names. What
is read is what a page cache would show. From that a crash makes one of the images a real disk may hold:

- `kill`: the process is gone, the machine goes on: all writes survive, though they are no more durable than before.
- `ordered`: power loss on a file system that keeps the order of operations: a prefix of them, the last perhaps torn.
- `chaos`: power loss, and only what POSIX promises: of the writes any subset of 512-byte sectors, the last torn at any
  byte, the file longer or not, its new bytes zeros or garbage; of the names any subset.

Every changing call has a number, `ops`: `crash_at(n)`, `fail(n, errno)`, `before(n, action)` and `after(n, action)`
name one. Time stands
still unless `advance` or `pause` moves it, and what `every` was given runs then. Not a model of speed, permissions or
hard disks.
"""

from __future__ import annotations

import errno as errors
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

from daskqueue_storage.files import Identity, Stat
from daskqueue_storage.testing.sim_disk import (
    SimCut,
    SimDir,
    SimFile,
    SimName,
    SimWrite,
    apply,
    count_links,
    image,
    pending_orders,
    survivor,
)

__all__ = ["CRASH_MODES", "SimCrash", "SimFiles"]

CRASH_MODES: Final = ("kill", "ordered", "chaos")
_DYING: Final = (0, -1)
_devices = itertools.count(1)


class SimCrash(BaseException):
    """The process ends here. No `except Exception` may survive it, and nothing it would still do has an effect."""


class _Timer(NamedTuple):
    due: int
    order: int
    interval: int
    action: Callable[[], bool]


Method = TypeVar("Method", bound=Callable[..., Any])


def _interruptible(method: Method) -> Method:
    """A changing call, before or after which somebody else may run."""

    @wraps(method)
    def call(self: SimFiles, *args: Any) -> Any:
        for action in self._interruptions.pop((self.ops + 1, False), ()):
            action()
        result = method(self, *args)
        for action in self._interruptions.pop((self.ops, True), ()):
            action()
        return result

    return cast(Method, call)


class SimFiles:
    """A `Files`. Made with an empty root directory `/`; thread-safe as the real one is.

    `host`, `pid`, `user` are who we are; `also(pid=...)` is another process on the same machine.
    """

    def __init__(self, *, seed: int = 0, host: str = "sim", user: int = 1000) -> None:
        self.random = random.Random(seed)
        self.host = host
        self.user = user
        self.pid = 100
        self.boot_id = self.random.randbytes(16)
        self.living = {self.pid}
        self.clock = [1_000_000_000, 1_700_000_000_000_000_000]  # boot, wall; shared between processes
        self.free: int | None = None
        self.can_allocate = True
        self.ops = 0
        self.crashed = False
        self.history: list[str] = []
        self._device = next(_devices)
        self._numbers = itertools.count(1)
        self._pids = itertools.count(self.pid + 1)
        self._order = [0]  # one counter for all processes of a disk
        self._root = SimDir(next(self._numbers), user)
        self._handles: dict[int, SimFile] = {}
        self._next_handle = itertools.count(3)
        self._plans: dict[int, tuple[int, int | None]] = {}
        self._interruptions: dict[tuple[int, bool], list[Callable[[], None]]] = {}
        self._crash_at: int | None = None
        self._timers: list[_Timer] = []
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------------------ the experiment

    def crash_at(self, op: int | None) -> None:
        """The process dies in the `op`-th changing call from the beginning; a write is then done in part."""
        self._crash_at = op

    def fail(self, op: int, errno: int, *, partial: int | None = None) -> None:
        """The `op`-th changing call fails. With `partial` a write comes short by itself, and the one after it fails."""
        self._plans[op] = (errno, partial)

    def after(self, op: int, action: Callable[[], None]) -> None:
        """When the `op`-th changing call is done, `action` happens before its caller goes on: another process runs."""
        self._interruptions.setdefault((op, True), []).append(action)

    def before(self, op: int, action: Callable[[], None]) -> None:
        """The same, when its caller has decided to make that call and it is not begun."""
        self._interruptions.setdefault((op, False), []).append(action)

    def also(self, *, host: str | None = None) -> SimFiles:
        """Another process: same disk and clock, its own handles. On another host if one is named.

        Two hosts share the disk as over a network: what one writes the other sees when it is synced; names at once.
        """
        other = SimFiles(host=host or self.host, user=self.user)
        shared = (
            "random",
            "clock",
            "living",
            "boot_id",
            "free",
            "can_allocate",
            "_root",
            "_numbers",
            "_order",
            "_pids",
            "_device",
            "_lock",
        )
        other.__dict__.update({name: self.__dict__[name] for name in shared})
        if host is not None:
            other.boot_id = self.random.randbytes(16)
            other.living = set()
        other.pid = next(self._pids)
        other.living.add(other.pid)
        return other

    def die(self) -> None:
        """The process is gone, as after SIGKILL; others of the same machine go on."""
        self.crashed = True
        self.living.discard(self.pid)

    def crash(self, mode: str, seed: int = 0) -> SimFiles:
        """What a new process finds on the disk after a crash now. `self` stays as it is: crash it again, otherwise."""
        chance = random.Random(seed)
        after = SimFiles(seed=seed, host=self.host, user=self.user)
        after.random = random.Random(f"{mode} {seed} {self.pid} {self.ops}")
        after.boot_id = after.random.randbytes(16)
        after.free = self.free
        after.pid = next(self._pids)
        after._pids = itertools.count(after.pid + 1)
        after.living = {after.pid}
        after.clock = list(self.clock)
        copies: dict[int, SimFile | SimDir] = {}
        if mode == "kill":
            after.boot_id = self.boot_id
            after._root = survivor(self._root, copies)
        else:
            after.clock[0] = 1_000_000_000
            cut = chance.choice([0, *pending_orders(self._root)]) if mode == "ordered" else None
            after._root = image(self._root, copies, chance, cut)
        after._numbers = itertools.count(next(self._numbers))
        after._order = list(self._order)
        count_links(after._root)
        return after

    def advance(self, seconds: float) -> None:
        """Time passes; what is due runs."""
        until = self.clock[0] + round(seconds * 1e9)
        while due := [timer for timer in self._timers if timer.due <= until]:
            timer = min(due)
            self._timers.remove(timer)
            self._pass(max(0, timer.due - self.clock[0]))
            if not self.crashed and timer.action():
                self._timers.append(timer._replace(due=timer.due + timer.interval))
        self._pass(until - self.clock[0])

    def suspend(self, seconds: float) -> None:
        """Time passes, and this process does not see it: no timer runs."""
        self._pass(round(seconds * 1e9))

    def tree(self) -> dict[str, bytes]:
        """Every file by path, as a reader sees it."""
        found: dict[str, bytes] = {}
        pending: list[tuple[str, SimFile | SimDir]] = [("", self._root)]
        while pending:
            path, node = pending.pop()
            if isinstance(node, SimFile):
                found[path] = bytes(node.cache)
            else:
                pending += [(f"{path}/{name}", child) for name, child in node.names.items()]
        return found

    def used(self) -> int:
        """Bytes that are taken, by what is in the files or reserved for them. `free` limits it."""
        nodes: list[SimFile | SimDir] = [self._root]
        taken = 0
        while nodes:
            node = nodes.pop()
            if isinstance(node, SimFile):
                taken += _taken(node)
            else:
                nodes += node.names.values()
        return taken

    def edit(self, path: str, data: bytes | None) -> None:
        """Replace a file's bytes behind everybody's back, durably; None: remove it."""
        parent, name = self._parent(path)
        if data is None:
            parent.names.pop(name, None)
            parent.durable.pop(name, None)
            return
        node = parent.names.get(name)
        if not isinstance(node, SimFile):
            node = SimFile(next(self._numbers))
            node.links = 1
            parent.names[name] = parent.durable[name] = node
        node.durable[:] = node.cache[:] = data
        node.pending.clear()

    def _pass(self, ns: int) -> None:
        self.clock[0] += ns
        self.clock[1] += ns

    # -------------------------------------------------------------------------------------------------- the machinery

    def _changing(self, what: str) -> tuple[int, int | None] | None:
        """Count a changing call. Crash or fail here, if that is the plan; what is returned is a planned short write."""
        if self.crashed:
            raise SimCrash
        self.ops += 1
        self.history.append(what)
        if self.ops == self._crash_at:
            if not what.startswith("append"):
                self.die()
                raise SimCrash
            return _DYING
        plan = self._plans.pop(self.ops, None)
        if plan is None:
            return None
        if plan[1] is not None and what.startswith("append"):
            return plan
        if what.startswith("sync "):
            return plan
        raise OSError(plan[0], f"planned failure of operation {self.ops}: {what}")

    def _tick(self) -> int:
        self._order[0] += 1
        return self._order[0]

    def _alive(self) -> None:
        if self.crashed:
            raise SimCrash

    def _node(self, path: str) -> SimFile | SimDir | None:
        self._alive()
        node: SimFile | SimDir | None = self._root
        for part in path.strip("/").split("/"):
            if part:
                node = node.names.get(part) if isinstance(node, SimDir) else None
        return node

    def _parent(self, path: str) -> tuple[SimDir, str]:
        head, _, name = path.rpartition("/")
        node = self._node(head)
        if not isinstance(node, SimDir):
            raise FileNotFoundError(errors.ENOENT, "no such directory", head)
        return node, name

    def _dir(self, path: str) -> SimDir:
        node = self._node(path)
        if not isinstance(node, SimDir):
            raise FileNotFoundError(errors.ENOENT, "no such directory", path)
        return node

    def _seen(self, node: SimFile) -> bytearray:
        """What a read shows. Of another host's writes only what is synced, as on a network file system."""
        if node.host in ("", self.host):
            return node.cache
        data = bytearray(node.durable)
        for op in node.pending:
            if op.host == self.host:
                apply(data, op)
        return data

    def _enter(self, parent: SimDir, name: str, node: SimFile | SimDir | None) -> None:
        if node is None:
            del parent.names[name]
        else:
            parent.names[name] = node
        parent.pending.append(SimName(self._tick(), name, node))

    # ----------------------------------------------------------------------------------------------------- the `Files`

    @_interruptible
    def create(self, path: str) -> int:
        with self._lock:
            self._changing(f"create {path}")
            parent, name = self._parent(path)
            if name in parent.names:
                raise FileExistsError(errors.EEXIST, "file exists", path)
            node = SimFile(next(self._numbers))
            node.links = 1
            node.mtime_ns = self.clock[1]
            self._enter(parent, name, node)
            handle = next(self._next_handle)
            self._handles[handle] = node
            return handle

    def open(self, path: str) -> int:
        with self._lock:
            node = self._node(path)
            if node is None:
                raise FileNotFoundError(errors.ENOENT, "no such file", path)
            if isinstance(node, SimDir):
                raise IsADirectoryError(errors.EISDIR, "is a directory", path)
            handle = next(self._next_handle)
            self._handles[handle] = node
            return handle

    def close(self, handle: int) -> None:
        self._handles.pop(handle, None)

    def size(self, handle: int) -> int:
        self._alive()
        return len(self._seen(self._handles[handle]))

    def read_at(self, handle: int, size: int, offset: int) -> bytes:
        with self._lock:
            self._alive()
            return bytes(self._seen(self._handles[handle])[offset : offset + size])

    @_interruptible
    def append(self, handle: int, buffers: Sequence[bytes | memoryview], offset: int) -> int:
        with self._lock:
            data = b"".join(buffers)
            node = self._handles[handle]
            plan = self._changing(f"append {len(data)} at {offset}")
            if plan is _DYING:
                self._write(node, offset, data[: self.random.randint(0, len(data))])
                self.die()
                raise SimCrash
            if plan is not None and plan[1] is not None:
                data = data[: plan[1]]
                if plan[0]:
                    self._plans[self.ops + 1] = (plan[0], None)
            if self.free is not None:
                room = max(0, self.free - self.used()) + max(0, _taken(node) - offset)
                if not room and data:
                    raise OSError(errors.ENOSPC, "no space left on device")
                data = data[:room]
            self._write(node, offset, data)
            return len(data)

    def _write(self, node: SimFile, offset: int, data: bytes) -> None:
        if data:
            op = SimWrite(self._tick(), self.host, offset, data)
            self._write_op(node, op)
            node.mtime_ns = self.clock[1]

    def _write_op(self, node: SimFile, op: SimWrite | SimCut) -> None:
        if node.host != self.host:
            node.cache, node.host = bytearray(self._seen(node)), self.host
        apply(node.cache, op)
        node.pending.append(op)

    @_interruptible
    def truncate(self, handle: int, size: int) -> None:
        with self._lock:
            self._changing(f"truncate {size}")
            node = self._handles[handle]
            op = SimCut(self._tick(), self.host, size)
            self._write_op(node, op)
            node.reserved = 0

    @_interruptible
    def allocate(self, handle: int, offset: int, size: int) -> bool:
        with self._lock:
            self._changing(f"allocate {size} at {offset}")
            node = self._handles[handle]
            if not self.can_allocate:
                return False
            if self.free is not None and self.used() + offset + size - _taken(node) > self.free:
                raise OSError(errors.ENOSPC, "no space left on device")
            node.reserved = max(node.reserved, offset + size)
            return True

    @_interruptible
    def sync(self, handle: int) -> None:
        with self._lock:
            node = self._handles[handle]
            plan = self._changing(f"sync {handle}")
            if plan is not None:
                # The pages are marked clean though they are lost: reads still show them, and a retry succeeds.
                node.pending.clear()
                raise OSError(plan[0], f"planned failure of operation {self.ops}: sync")
            for op in node.pending:
                if op.host == self.host:
                    apply(node.durable, op)
            node.pending[:] = [op for op in node.pending if op.host != self.host]

    def forget_cached(self, handle: int) -> None:
        with self._lock:
            self._alive()
            node = self._handles[handle]
            node.cache[:] = node.durable
            for op in node.pending:
                apply(node.cache, op)

    def resolve(self, path: object) -> str:
        return "/" + str(path).strip("/")

    @_interruptible
    def make_dir(self, path: str) -> None:
        with self._lock:
            self._changing(f"make_dir {path}")
            parent, name = self._parent(path)
            if name in parent.names:
                raise FileExistsError(errors.EEXIST, "file exists", path)
            self._enter(parent, name, SimDir(next(self._numbers), self.user))

    def list_dir(self, path: str) -> list[str]:
        with self._lock:
            return list(self._dir(path).names)

    @_interruptible
    def sync_dir(self, path: str) -> None:
        with self._lock:
            self._changing(f"sync_dir {path}")
            node = self._dir(path)
            node.durable = dict(node.names)
            node.pending.clear()

    @_interruptible
    def link(self, source: str, target: str) -> None:
        with self._lock:
            self._changing(f"link {target}")
            node = self._node(source)
            parent, name = self._parent(target)
            if not isinstance(node, SimFile):
                raise FileNotFoundError(errors.ENOENT, "no such file", source)
            if name in parent.names:
                raise FileExistsError(errors.EEXIST, "file exists", target)
            node.links += 1
            self._enter(parent, name, node)

    @_interruptible
    def unlink(self, path: str) -> None:
        with self._lock:
            self._changing(f"unlink {path}")
            parent, name = self._parent(path)
            node = parent.names.get(name)
            if node is None:
                raise FileNotFoundError(errors.ENOENT, "no such file", path)
            if isinstance(node, SimFile):
                node.links -= 1
            self._enter(parent, name, None)

    def stat(self, path: str) -> Stat | None:
        with self._lock:
            node = self._node(path)
            if node is None:
                return None
            key = (-self._device, node.number)
            if isinstance(node, SimDir):
                return Stat(True, 0, node.mode, node.uid, 2, 0, key)
            return Stat(False, len(node.cache), 0o600, self.user, node.links, node.mtime_ns, key)

    def free_bytes(self, path: str) -> int:
        return 1 << 40 if self.free is None else max(0, self.free - self.used())

    def wall_ns(self) -> int:
        return self.clock[1]

    def boot_ns(self) -> int:
        return self.clock[0]

    def pause(self, seconds: float) -> None:
        self._alive()
        self.advance(seconds)

    def every(self, interval_s: float, action: Callable[[], bool]) -> Callable[[], None]:
        interval = max(1, round(interval_s * 1e9))
        timer = _Timer(self.clock[0] + interval, self._tick(), interval, action)
        self._timers.append(timer)

        def stop() -> None:
            self._timers[:] = [kept for kept in self._timers if kept.order != timer.order]

        return stop

    def soon(self, action: Callable[[], None]) -> bool:
        """Never: what is not synced is what this is about."""
        return False

    def identity(self) -> Identity:
        return Identity(self.boot_id, self.pid, self.pid * 7, 1, self.host, self.user)

    def process(self) -> int:
        return self.pid

    def process_start(self, pid: int) -> int | None:
        return pid * 7 if pid in self.living else None

    def random_bytes(self, size: int) -> bytes:
        return self.random.randbytes(size)


def _taken(node: SimFile) -> int:
    return max(len(node.cache), node.reserved)
