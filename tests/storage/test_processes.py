"""The real thing: killed children, stopped ones, full disks, other users, races.

Few rounds by default, many if DASKQUEUE_STORAGE_ROUNDS asks for it.
"""

import os
import random
import resource
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daskqueue_storage.errors import LockedError
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.verify import verify

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX processes"),
    pytest.mark.timeout(1800),  # with many rounds
]


Kill = Callable[["subprocess.Popen[Any]"], None]


def child(script: str, *arguments: object, **options: object) -> subprocess.Popen:
    """A Python process that runs `script` and talks to us by lines."""
    words = [sys.executable, "-u", "-c", textwrap.dedent(script), *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, **options)


WRITER = """
    import sys
    from daskqueue_storage import SegmentedLog
    path, sync = sys.argv[1:]
    log = SegmentedLog(path, sync=sync if sync in ("none", "batch") else float(sync), segment_bytes=20_000, wait=0)
    n = max((int(payload[:8]) for _, payload in log.scan()), default=-1) + 1
    print("go")
    while True:
        sizes = [(n * 37 + i) % 900 for i in range(n % 7 + 1)]
        batch = [b"%08d" % (n + i) + bytes(size) for i, size in enumerate(sizes)]
        offsets = log.append_many(batch)
        print(n, len(batch), offsets.start)
        n += len(batch)
        if n % 50 == 0:
            log.truncate_before(offsets.start - 200)
"""


@pytest.mark.parametrize("sync", ["none", "0.5", "batch"])
def test_sigkill_loses_nothing_acknowledged(tmp_path: Path, sync: str, rounds: int, kill: Kill) -> None:
    """Killed while appending, rolling and truncating, again and again: every acknowledged message is there."""
    chance = random.Random(sync)
    given: dict[int, int] = {}
    for _ in range(3 * rounds):
        writer = child(WRITER, tmp_path / "log", sync)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "go\n"
        # Killed after some number of answers, at whatever it is doing then.
        lines = [writer.stdout.readline() for _ in range(chance.randint(0, 80))]
        kill(writer)
        lines += writer.stdout.read().splitlines()
        writer.wait()
        for line in lines:
            words = line.split()
            if len(words) == 3:  # the last line may be cut
                number, count, offset = map(int, words)
                given.update({offset + at: number + at for at in range(count)})
        report = verify(tmp_path / "log")
        assert report.whole, report
        with SegmentedLog(tmp_path / "log", mode="ro") as log:
            found = {offset: int(payload[:8]) for offset, payload in log.scan()}
            first = log.stats().first
        assert {offset: found.get(offset) for offset in given if offset >= first} == {
            offset: number for offset, number in given.items() if offset >= first
        }
        numbers = list(found.values())
        assert numbers == sorted(set(numbers))


def test_a_stopped_writer_is_fenced(tmp_path: Path) -> None:
    """SIGSTOP for longer than its lease, another process takes over; awake, it acknowledges nothing more."""
    writer = child(
        """
        import sys
        from daskqueue_storage import FencedError, SegmentedLog
        log = SegmentedLog(sys.argv[1], lock_ttl=0.6)
        print(log.append(b"first"))
        sys.stdin.readline()
        try:
            print(log.append(b"late"))
        except FencedError as problem:
            print("fenced", problem)
        """,
        tmp_path / "log",
    )
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "0\n"
    with pytest.raises(LockedError, match=f"pid {writer.pid}"):
        SegmentedLog(tmp_path / "log")
    writer.send_signal(signal.SIGSTOP)
    try:
        with SegmentedLog(tmp_path / "log", wait=5, lock_ttl=5) as log:
            assert log.stats().epoch == 2
            assert [payload for _, payload in log.scan()] == [b"first"]
            log.append(b"second")
            writer.send_signal(signal.SIGCONT)
            said, _ = writer.communicate("go on\n", timeout=30)
            assert said.startswith("fenced")
            assert "replaced by 2" in said
            assert [payload for _, payload in log.scan()] == [b"first", b"second"]
    finally:
        writer.kill()
    assert verify(tmp_path / "log").whole


def test_openers_racing(tmp_path: Path, rounds: int) -> None:
    """Two processes open the same directory at the same moment, again and again: one has it, the other is told."""
    racer = """
        import sys
        from daskqueue_storage import LockedError, SegmentedLog
        for line in sys.stdin:
            path = line.strip()
            try:
                log = SegmentedLog(path)
            except LockedError:
                print("locked")
                continue
            print("open", log.stats().epoch)
            sys.stdin.readline()
            log.close()
            print("closed")
    """
    racers = [child(racer), child(racer)]
    try:
        for turn in range(30 * rounds):
            for one in racers:
                one.stdin.write(f"{tmp_path / str(turn % 5)}\n")
                one.stdin.flush()
            answers = [one.stdout.readline().strip() for one in racers]
            opened = [(one, answer) for one, answer in zip(racers, answers) if answer.startswith("open")]
            assert len(opened) == 1, answers
            assert "locked" in answers
            opened[0][0].stdin.write("\n")
            opened[0][0].stdin.flush()
            assert opened[0][0].stdout.readline() == "closed\n"
    finally:
        for one in racers:
            one.communicate(timeout=30)


def test_a_file_size_limit(tmp_path: Path) -> None:
    """RLIMIT_FSIZE gives short writes and then EFBIG: DiskFullError, nothing changed, and it goes on afterwards."""
    writer = child(
        """
        import resource, sys
        from daskqueue_storage import DiskFullError, SegmentedLog
        log = SegmentedLog(sys.argv[1], lock_ttl=600)
        log.append(b"a" * 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        for _ in range(3):
            try:
                log.append(b"b" * 5000)
            except DiskFullError as problem:
                print("full", len(log.read(0, 9)))
        log.append(b"c" * 100)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.append(b"d" * 5000)
        log.close()
        """,
        tmp_path / "log",
    )
    said, _ = writer.communicate(timeout=60)
    assert (said, writer.returncode) == ("full 1\n" * 3, 0)
    with SegmentedLog(tmp_path / "log") as log:
        assert log.report.clean
        assert [payload[:1] for _, payload in log.scan()] == [b"a", b"c", b"d"]


def test_the_child_of_a_fork_may_not_write(tmp_path: Path) -> None:
    """It is told so, and the parent's log is untouched."""
    forker = child(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from daskqueue_storage import FencedError, LockedError, SegmentedLog
        log = SegmentedLog(sys.argv[1])
        log.append(b"parent")
        pid = os.fork()
        if not pid:
            try:
                log.append(b"child")
            except FencedError:
                pass
            else:
                os._exit(1)
            try:
                SegmentedLog(sys.argv[1])
            except LockedError:
                os._exit(7)
            os._exit(2)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        """,
        tmp_path / "log",
    )
    assert forker.communicate(timeout=60)[0] == "7\n"


ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="needs to change its user")

OPENER = """
    import errno, os, sys
    from daskqueue_storage import SegmentedLog, verify  # before the user changes: the interpreter may be root's alone
    os.setgid(65534)
    os.setuid(65534)
    for case in sys.argv[2:]:
        shared, mode = case.split()
        try:
            SegmentedLog(sys.argv[1], allow_shared=shared == "shared", mode=mode).close()
            print("opened")
        except Exception as problem:
            print("EACCES" if getattr(problem, "errno", 0) == errno.EACCES else type(problem).__name__)
"""


def nobody_gets(path: Path, *cases: str) -> list[str]:
    """What a process of another user gets, one after the other: "mine" or "shared", and the mode."""
    said, _ = child(OPENER, path, *cases).communicate(timeout=60)
    return said.split()


def contents(path: Path) -> dict[str, bytes]:
    """Every file below, by name."""
    return {str(file): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@ROOT_ONLY
def test_another_users_directory_is_refused(open_path: Path) -> None:
    """Theirs, one that others may write to, one without permission: refused unless shared, and nothing changed."""
    ours = open_path / "ours"
    with SegmentedLog(ours) as log:
        log.append(b"private")
    assert stat.S_IMODE(ours.stat().st_mode) == 0o700
    before = contents(ours)
    cases = ("mine rw", "shared rw", "mine ro", "shared ro")
    assert nobody_gets(ours, *cases) == ["UnsafeDirectory", "EACCES", "UnsafeDirectory", "EACCES"]
    assert nobody_gets(open_path / "new", "mine rw") == ["EACCES"]
    assert not (open_path / "new").exists()
    assert contents(ours) == before
    theirs = open_path / "theirs"
    theirs.mkdir(0o700)
    os.chown(theirs, 65534, 65534)
    assert nobody_gets(theirs, "mine rw") == ["opened"]
    theirs.chmod(0o777)
    before = contents(theirs)
    assert nobody_gets(theirs, "mine rw", "mine ro", "shared rw") == ["UnsafeDirectory", "UnsafeDirectory", "opened"]
    assert contents(theirs).keys() >= before.keys()
    SegmentedLog(theirs).close()  # we are root


def test_the_soft_limit_of_files_is_enough(tmp_path: Path) -> None:
    """Hundreds of segments are read with a few dozen open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with SegmentedLog(tmp_path / "log", sync="none", segment_bytes=4096) as log:
        for at in range(120):
            log.append(b"%05d" % at + bytes(3900))
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 40, hard))
        try:
            assert [int(payload[:5]) for _, payload in log.scan()] == list(range(120))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
