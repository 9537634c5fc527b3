"""Durable queues in real processes: killed at any moment, stopped, out of room, another user's. What was said holds.

Few rounds by default, many if DASKQUEUE_STORAGE_ROUNDS asks for it.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskqueue_storage.errors import LockedError
from daskqueue_storage.queue import DurableQueue

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes"),
    pytest.mark.timeout(1800),  # with many rounds
]

Kill = Callable[["subprocess.Popen[Any]"], None]

# Works for ever. `how`: "work"; "compact" spends most of its time copying and deleting, "snapshot" writing those.
WORKER = """
import sys
from daskqueue_core.batch import Batch, Keep, lengths_column
from daskqueue_core.outcomes import Report
from daskqueue_storage.queue import DurableQueue

path, sync, how, n = *sys.argv[1:4], int(sys.argv[4])
sync = sync if sync in ("none", "batch") else float(sync)
queue = DurableQueue(path, sync=sync, segment_bytes=16384, wait=60.0, lock_ttl=10.0, result_ttl=None)
print("open", flush=True)
round = 0
while True:
    round += 1
    bodies = [b"%d " % (n + i) + bytes((n * 37 + i) % 700) for i in range(20)]
    queue.admit([Batch(20, b"".join(bodies), lengths_column(bodies), client=7, first=n, keep=Keep.KEEP)])
    print("put", n, n + 20, flush=True)
    n += 20
    lease = queue.lease(15)
    for part in lease.parts:
        print("try", part.first, part.first + part.count, flush=True)
        queue.settle(lease.id, [Report(part.start, part.stop, b"values of %d" % part.first)])
        print("done", part.first, part.first + part.count, flush=True)
    if how == "compact" or round % 7 == 6:
        queue.compact()
    if how == "snapshot":
        for _ in range(5):
            queue._snapshot()
"""


def start(script: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """A Python process that runs `script` and talks to us by lines."""
    words = [sys.executable, "-u", "-c", script, *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options)


class Told:
    """What children said so far, by number of the message."""

    def __init__(self) -> None:
        self.of: dict[str, set[int]] = {"put": set(), "try": set(), "done": set()}

    def take(self, line: str) -> None:
        """A line of a child; the last may be cut."""
        words = line.split()
        if line.endswith("\n") and words[0] in self.of:
            self.of[words[0]].update(range(int(words[1]), int(words[2])))

    def check(self, queue: DurableQueue) -> None:
        """I1 to I3 and I5, for queues whose processes were killed: then not even what is lazy may be lost."""
        put, tried, done = self.of["put"], self.of["try"], self.of["done"]
        assert queue.report.whole, queue.report
        queue.validate()
        results = Counter[int]()
        after = 0
        while after >= 0:
            after, outcomes = queue.read_kept(after)
            for _, outcome in outcomes:
                assert bytes(outcome.values).startswith(b"values of ")
                for first, stop in outcome.runs:
                    results.update(range(outcome.first + outcome.index + first, outcome.first + outcome.index + stop))
        assert max(results.values(), default=1) == 1, "two results of one message"
        assert done <= set(results), f"results lost: {sorted(done - set(results))}"
        left: list[int] = []
        leases: list[int] = []
        while (lease := queue.lease(1000, owner="check")) is not None:
            for part in lease.parts:
                for at, body in enumerate(part.bodies()):
                    number = part.first + at
                    assert bytes(body).rstrip(b"\0") == b"%d " % number, "a wrong payload"
                    left.append(number)
            leases.append(lease.id)
        for each in leases:  # only now: what goes back is leased first
            queue.release(each)
        assert len(set(left)) == len(left), "there twice"
        assert not done & set(left), f"done, and delivered again: {sorted(done & set(left))}"
        lost = put - set(results) - set(left)
        assert not lost, f"put and lost: {sorted(lost)}"
        assert set(results) <= tried, "a result that nobody gave"


@pytest.mark.parametrize(
    ("sync", "how"),
    [("batch", "work"), ("none", "work"), ("0.5", "work"), ("batch", "compact"), ("none", "snapshot")],
)
def test_sigkill(tmp_path: Path, sync: str, how: str, rounds: int, kill: Kill) -> None:
    """One directory, many lives, each killed at a random moment."""
    path, chance, told = tmp_path / "queue", random.Random(sync + how), Told()
    for _ in range((2 if how == "work" else 1) * rounds):
        with start(WORKER, path, sync, how, max(told.of["put"], default=-1) + 1000) as worker:
            assert worker.stdout is not None
            for line in range(chance.randint(1, 40)):
                said = worker.stdout.readline()
                assert said, f"the child died by itself before line {line}"
                told.take(said)
            kill(worker)
            for rest in worker.stdout:
                told.take(rest)
        with DurableQueue(path, sync="none", wait=60.0, result_ttl=None) as queue:
            told.check(queue)


STOPPED = """
import sys
from daskqueue_storage import FencedError
from daskqueue_storage.queue import DurableQueue

queue = DurableQueue(sys.argv[1], lock_ttl=0.6)
queue.put_many([b"first", b"second"])
lease = queue.lease(1)
print("leased")
sys.stdin.readline()
for what in (
    lambda: queue.lease(1),
    lambda: queue.ack(lease),
    lambda: queue.put(b"late"),
    lambda: queue.compact(),
    lambda: queue.sync(),
):
    try:
        what()
        print("did it")
    except FencedError as problem:
        print("fenced", problem)
"""


def test_a_stopped_owner_is_fenced(tmp_path: Path) -> None:
    """SIGSTOP for longer than its lease, another process takes over; awake, it acknowledges nothing more."""
    path = tmp_path / "queue"
    worker = start(STOPPED, path)
    assert worker.stdout is not None
    assert worker.stdout.readline() == "leased\n"
    with pytest.raises(LockedError, match=f"pid {worker.pid}"):
        DurableQueue(path)
    worker.send_signal(signal.SIGSTOP)
    try:
        with DurableQueue(path, wait=5, lock_ttl=60) as queue:
            assert queue.epoch == 2
            queue.put(b"third")
            worker.send_signal(signal.SIGCONT)
            said, _ = worker.communicate("go on\n", timeout=60)
            assert [line.split()[0] for line in said.splitlines()] == ["fenced"] * 5, said
            assert "replaced by 2" in said
            lease = queue.lease(9)
            assert lease is not None
            assert [bytes(body) for part in lease.parts for body in part.bodies()] == [b"first", b"second", b"third"]
    finally:
        worker.kill()
    with DurableQueue(path, create=False) as queue:
        assert queue.report.whole


FULL = """
import resource, sys
from daskqueue_core.outcomes import Report
from daskqueue_storage import DiskFullError
from daskqueue_storage.queue import DurableQueue

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

queue = DurableQueue(sys.argv[1], lock_ttl=600)
queue.put_many([b"a" * 100, b"b" * 100])
lease = queue.lease(2)
limit(2000)
for what in (
    lambda: queue.put(b"c" * 5000),
    lambda: queue.settle(lease.id, [Report(0, 1, b"v" * 5000)]),
    lambda: queue.put(b"c" * 5000),
):
    try:
        what()
    except DiskFullError:
        print("full", queue.stats().puts, queue.stats().delivered)
queue.put(b"small")
limit(resource.RLIM_INFINITY)
queue.put(b"d" * 5000)
queue.ack(lease, [0])
queue.close()
"""


def test_a_file_size_limit(tmp_path: Path) -> None:
    """RLIMIT_FSIZE gives short writes and then EFBIG, of the log and of the index: nothing changed, and it goes on."""
    worker = start(FULL, tmp_path / "queue")
    said, _ = worker.communicate(timeout=60)
    assert (said, worker.returncode) == ("full 2 2\n" * 3, 0)
    with DurableQueue(tmp_path / "queue") as queue:
        assert queue.report.clean
        assert queue.report.whole
        lease = queue.lease(9)
        assert lease is not None
        bodies = [bytes(body) for part in lease.parts for body in part.bodies()]
        assert bodies == [b"b" * 100, b"small", b"d" * 5000]


OPENER = """
import errno, os, sys
from daskqueue_storage.queue import DurableQueue  # before the user changes: the interpreter may be root's alone
os.setgid(65534)
os.setuid(65534)
ours, new = sys.argv[1:]
for path, shared in ((ours, False), (ours, True), (new, False)):
    try:
        DurableQueue(path, allow_shared=shared).close()
        print("opened")
    except Exception as problem:
        print("EACCES" if getattr(problem, "errno", 0) == errno.EACCES else type(problem).__name__)
"""


def contents(path: Path) -> dict[str, bytes]:
    """Every file below, by name."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to change its user")
def test_whose_directory_it_is(open_path: Path) -> None:
    """Theirs, one that others may write to, one without permission: refused unless shared, and nothing changed.

    Root takes what it is given.
    """
    ours = open_path / "ours"
    with DurableQueue(ours) as queue:
        queue.put(b"private")
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    before = contents(ours)
    said, _ = start(OPENER, ours, open_path / "new").communicate(timeout=60)
    assert said.split() == ["UnsafeDirectory", "EACCES", "EACCES"]
    assert not (open_path / "new").exists()
    ours.chmod(0o777)
    os.chown(ours, 65534, 65534)
    said, _ = start(OPENER, ours, ours / "log").communicate(timeout=60)
    assert said.split()[0] == "UnsafeDirectory"
    assert contents(ours) == before
    with DurableQueue(ours) as queue:
        assert queue.stats().ready == 1
