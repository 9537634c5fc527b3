"""`python -m daskqueue_storage`: what each command says and changes, its exit codes, its one line for what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from daskqueue_core.batch import Batch, Keep, Kind
from daskqueue_storage.command_line import main
from daskqueue_storage.command_line.text import plain, when
from daskqueue_storage.errors import FencedError
from daskqueue_storage.format import FileHeader, FileKind, RecordType, encode_file_header
from daskqueue_storage.log import SegmentedLog
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import SimFiles

NOBODY = 65534
COMMANDS = ("stats", "verify", "dump", "dead", "requeue", "compact", "unlock")


class Shell:
    """Runs commands on one disk. `out` and `err` are those of the last one."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.files = SimFiles()
        self._capsys = capsys

    def run(self, *words: str, files: SimFiles | None = None) -> int:
        """A command by another process; its exit code."""
        self._capsys.readouterr()
        try:
            code = main(words, files=files or self.files.also())
        except SystemExit as ended:
            code = int(ended.code or 0)
        self.out, self.err = self._capsys.readouterr()
        return code

    def says(self, *words: str) -> list[Any]:
        """What a command says to programs; it must be done well."""
        assert self.run(*words, "--json") == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    """A disk with a queue that was closed, and a log."""
    made = Shell(capsys)
    with DurableQueue("/queue", files=made.files) as queue:
        queue.put_many([b"dies", b"dies, too", b"held", b"ready"])
        queue.admit([Batch(2, b"calls", kind=Kind.CALL, client=7, first=30, keep=Keep.KEEP, keys=("one", "two"))])
        lease = queue.lease(3, owner="worker")
        assert lease is not None
        queue.nack(lease, [0, 1], error=b"pickle", text="ValueError: no\nreally")
    with SegmentedLog("/log", files=made.files) as log:
        log.append_many([b"one", b"two"])
    return made


def test_stats(shell: Shell) -> None:
    """Counts and sizes of a queue and of a log, and who had it open last."""
    [queue] = shell.says("stats", "/queue")
    assert (queue["path"], queue["kind"]) == ("/queue", "queue")
    assert (queue["queue"]["ready"], queue["queue"]["failed"], queue["queue"]["delivered"]) == (3, 2, 1)
    assert queue["lock"] == {"epoch": 1, "state": "released", "owner": "", "host": "sim", "pid": 100}
    assert queue["found"]["whole"] is True
    assert queue["size_bytes"] > 0
    [log] = shell.says("stats", "/log")
    assert (log["kind"], log["messages"], log["end"], log["segments"]) == ("log", 2, 2, 1)
    assert shell.run("stats", "/queue") == 0
    assert "queue.failed                2\n" in shell.out
    assert "lock.state                  released\n" in shell.out


def test_verify(shell: Shell) -> None:
    """Whole: 0. Damaged: 1, and the place is named, relative to the directory."""
    [said] = shell.says("verify", "/queue")
    assert said["whole"] is True
    assert said["problems"] == []
    assert (said["log"]["messages"], said["index"]["events"]) == (6, 2)
    assert said["index"]["snapshots"] > 0
    assert shell.says("verify", "/log")[0]["index"] is None
    path = next(path for path in shell.files.tree() if path.startswith("/queue/log/"))
    shell.files.edit(path, shell.files.tree()[path].replace(b"ready", b"reads"))
    assert shell.run("verify", "/queue") == 1
    assert re.search(
        rf"^! {path[7:]} at byte 136: \d+ bytes are not what was written; lost: 1 record$", shell.out, re.M
    )
    assert f"! {path[7:]} at byte 136: messages 0 to 3: " in shell.out
    assert shell.run("verify", "--json", "/queue") == 1
    assert json.loads(shell.out)["problems"][0]["path"] == path[7:]
    assert shell.run("verify", "--quick", "/queue") == 0, "opening does not look there"


def test_dump_of_records(shell: Shell) -> None:
    """Every record of both logs, decoded; bytes only if asked for; damage is a row and exit code 1."""
    rows = shell.says("dump", "/queue")
    kinds = [row["type"] for row in rows]
    assert kinds[:7] == ["EPOCH", "PUT", "PUT", "CLOSE", "EPOCH", "DELIVERED", "FAILED"]
    assert set(kinds[7:]) == {"ROLL", "SNAPSHOT", "CLOSE"}
    assert rows[1]["messages"] == [{"bytes": 4}, {"bytes": 9}, {"bytes": 4}, {"bytes": 5}]
    assert (rows[2]["keys"], rows[2]["block"]) == (["one", "two"], {"bytes": 5})
    assert rows[5]["runs"] == [[0, 3]]
    assert (rows[6]["reason"], rows[6]["failures"][1]["text"]) == ("retry", "ValueError: no\nreally")
    snapshot = rows[kinds.index("SNAPSHOT")]
    assert (snapshot["batches"], snapshot["dead_letters"], snapshot["covered"]) == (2, 2, 3)
    full = shell.says("dump", "--bodies", "/queue")
    assert full[1]["messages"][0] == {"bytes": 4, "base64": "ZGllcw=="}
    assert [row["messages"] for row in shell.says("dump", "/log") if row["type"] == "PUT"] == [[{"bytes": 3}] * 2]
    assert shell.run("dump", "/queue") == 0
    assert len(shell.out.splitlines()) == len(rows)
    assert " DELIVERED  at=" in shell.out
    path = next(path for path in shell.files.tree() if path.startswith("/queue/log/"))
    data = shell.files.tree()[path]
    shell.files.edit(path, data.replace(b"ready", b"reads").replace(b"DQR1", b"DQR2", 1))
    assert shell.run("dump", "/queue") == 1
    assert f"{path[7:]} @64  ! no record up to byte 136" in shell.out
    assert "do not verify" in shell.out


def test_dump_of_messages(shell: Shell) -> None:
    """As they are now, all or those in one state; a log's with their offsets."""
    rows = shell.says("dump", "--messages", "/queue")
    assert [(row["seq"], row["state"]) for row in rows] == [
        (0, "FAILED"),
        (1, "FAILED"),
        (2, "DELIVERED"),
        (3, "READY"),
        (4, "READY"),
        (5, "READY"),
    ]
    assert (rows[2]["owner"], rows[5]["key"]) == ("worker", "two")
    assert all("body" not in row for row in rows)
    rows = shell.says("dump", "--state", "ready", "--bodies", "/queue")
    assert [row["seq"] for row in rows] == [3, 4, 5]
    assert rows[0]["body"]["base64"] == "cmVhZHk="
    assert [row.get("offset") for row in rows] == [None, 0, 1]
    rows = shell.says("dump", "--messages", "--bodies", "/log")
    assert [(row["offset"], row["message"]["base64"]) for row in rows] == [(0, "b25l"), (1, "dHdv")]
    assert shell.run("dump", "--state", "lost", "/queue") == 2
    assert "it is one of scheduled, ready, delivered" in shell.err
    assert shell.run("dump", "--state", "ready", "/log") == 2
    assert "its messages have no state" in shell.err
    path = next(path for path in shell.files.tree() if path.startswith("/queue/log/"))
    shell.files.edit(path, shell.files.tree()[path].replace(b"ready", b"reads"))
    assert shell.run("dump", "--messages", "--bodies", "/queue") == 1
    assert "damage=" in shell.out


def test_dead(shell: Shell) -> None:
    """One line each, never unpickled."""
    rows = shell.says("dead", "/queue")
    assert [(row["seq"], row["attempts"], row["error"]) for row in rows] == [(0, 1, {"bytes": 6}), (1, 1, {"bytes": 6})]
    assert [row["seq"] for row in shell.says("dead", "/queue", "--after", "1")] == [1]
    assert len(shell.says("dead", "/queue", "--limit", "1")) == 1
    assert shell.run("dead", "/queue") == 0
    assert shell.out.splitlines()[1].endswith(
        "failed  attempts=1  crashes=0  task=1  owner=worker  ValueError: no really"
    )


def test_requeue(shell: Shell) -> None:
    """By number, by key, or all; leases stay with those who have them."""
    assert shell.says("requeue", "/queue", "1", "3") == [{"path": "/queue", "requeued": 1}]
    assert [row["seq"] for row in shell.says("dead", "/queue")] == [0]
    assert shell.says("requeue", "/queue", "--all")[0]["requeued"] == 1
    assert shell.says("dead", "/queue") == []
    assert [row["owner"] for row in shell.says("dump", "--state", "delivered", "/queue")] == ["worker"]
    with DurableQueue("/queue", files=shell.files, owners=["worker"]) as queue:
        lease = queue.lease(9, owner="worker")
        assert lease is not None
        queue.nack(lease, [4], text="boom")
    assert shell.says("requeue", "/queue", "--key", "one", "--key", "unknown")[0]["requeued"] == 1
    for words in ((), ("1", "--all"), ("--key", "x", "--all")):
        assert shell.run("requeue", "/queue", *words) == 2
        assert "by number or --key, or say --all" in shell.err


def test_compact(shell: Shell) -> None:
    """Says what went; what is needed is there afterwards, leases too. Of segments that are small, small ones count."""
    for _ in range(3):
        with DurableQueue("/queue", files=shell.files, segment_bytes=1 << 20, owners=["worker"]) as queue:
            large = []
            for _ in range(3):
                queue.put_many([b"small"])
                large.append(queue.put(b"x" * 9000))
            lease = queue.lease(100, owner="other")
            assert lease is not None
            queue.ack(lease, large)
            queue.release(lease)
    before = shell.says("stats", "/queue")[0]["size_bytes"]
    [said] = shell.says("compact", "--max-bytes", "100000", "/queue")
    assert said["bytes_before"] == before
    assert said["deleted_segments"] > 0
    assert said["bytes_after"] < before - 20_000
    rows = shell.says("dump", "--messages", "--bodies", "/queue")
    assert [row["body"]["bytes"] for row in rows if row["state"] == "READY"] == [5] * 12
    assert [row["seq"] for row in rows if row["state"] == "DELIVERED"] == [2]
    assert shell.says("verify", "/queue")[0]["whole"]


def test_reading_changes_nothing(shell: Shell) -> None:
    """No byte and no file, whatever is asked; not even an operation that could."""
    before = shell.files.tree()
    eye = shell.files.also()
    for command in ("stats", "verify", "dump", "dead"):
        assert shell.run(command, "/queue", files=eye) == 0
    assert shell.run("dump", "--messages", "--bodies", "/queue", files=eye) == 0
    assert shell.run("unlock", "/queue", files=eye) == 0
    assert "it is not locked" in shell.out
    assert eye.ops == 0
    assert shell.files.tree() == before


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_refused(shell: Shell, command: str) -> None:
    """Exit code 2, nothing on stdout, one line that says what, where and what to do; nothing is changed."""
    shell.files.make_dir("/empty")
    shell.files.make_dir("/other")
    shell.files.create("/other/file")
    before = shell.files.tree()
    more = ["--all"] if command == "requeue" else ["--yes"] if command == "unlock" else []

    def refused(path: str, text: str, files: SimFiles | None = None) -> None:
        assert shell.run(command, path, *more, files=files) == 2
        assert shell.out == ""
        assert shell.err.count("\n") == 1
        assert shell.err.startswith(f"daskqueue_storage {command}: {path}"), shell.err
        assert text in shell.err
        assert shell.files.tree() == before

    refused("/nowhere", "there is nothing")
    refused("/empty", "it is empty")
    refused("/other", "it has no FORMAT, and holds file")
    refused("/log/FORMAT", "it is a file")
    if command in ("dead", "requeue", "compact"):
        refused("/log", f"is a plain log, and {command} needs a queue")
    stranger = shell.files.also()
    stranger.user = 7
    refused("/queue", "belongs to user 1000, this process runs as 7", stranger)
    assert "--allow-shared" in shell.err
    assert shell.run(command, "/queue", *more, "--allow-shared", files=stranger) == 0
    newer = encode_file_header(FileHeader(FileKind.FORMAT, bytes(16), 0, 0, 0, major=2))
    shell.files.edit("/queue/FORMAT", newer)
    before = shell.files.tree()
    refused("/queue", "format 2.0, this version reads 1.0; open it with a newer daskqueue-storage")


@pytest.mark.parametrize("words", [(), ("frobnicate", "/queue"), ("stats",), ("dead", "/queue", "--limit", "many")])
def test_wrong_use(shell: Shell, words: tuple[str, ...]) -> None:
    """The usual message of argparse, and 2."""
    assert shell.run(*words) == 2
    assert "usage: python -m daskqueue_storage" in shell.err


@pytest.mark.parametrize("command", ["requeue", "compact"])
def test_beside_a_living_writer(shell: Shell, command: str) -> None:
    """What would change the queue is refused, and says by whom it is open; what looks does not care."""
    with DurableQueue("/queue", files=shell.files, owner="the pool"):
        words = ["--all"] if command == "requeue" else []
        assert shell.run(command, "/queue", *words) == 2
        assert "/queue is open for writing by the pool (pid 100 on sim), last sign of life" in shell.err
        assert "python -m daskqueue_storage unlock /queue" in shell.err
        assert shell.run("verify", "/queue") == 0
        assert shell.says("stats", "/queue")[0]["lock"]["state"] == "held"


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize("command", ["stats", "verify", "compact"])
def test_no_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    """On a real disk, by a user who may not look into the directory."""
    DurableQueue(tmp_path / "queue").close()
    shared = ["--allow-shared"]
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
        try:
            code = main([command, str(tmp_path / "queue"), *shared])
        finally:
            os.seteuid(0)
    else:
        (tmp_path / "queue").chmod(0)
        code = main([command, str(tmp_path / "queue"), *shared])
        (tmp_path / "queue").chmod(0o700)
    assert code == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Permission denied" in err
    assert "this user needs the right to read it" in err


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
def test_writable_by_others(open_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a real disk, by a user who is not root."""
    DurableQueue(open_path / "queue").close()
    (open_path / "queue").chmod(0o777)
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(open_path / "queue", NOBODY, NOBODY)
        os.seteuid(NOBODY)
    try:
        assert main(["dead", str(open_path / "queue")]) == 2
    finally:
        if is_root:
            os.seteuid(0)
    assert "may be written by others (mode 0777)" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------------- unlock


def left_locked(shell: Shell) -> DurableQueue:
    """A writer on another host, of whom nothing is known."""
    return DurableQueue("/queue", files=shell.files.also(host="far"), owner="the pool", lock_ttl=20.0)


def test_unlock(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says whose lock it is, watches it for half of its time to live, asks, takes it; the next may write at once."""
    writer = left_locked(shell)
    monkeypatch.setattr(sys, "stdin", io.StringIO("no\n"))
    assert shell.run("unlock", "/queue") == 2
    assert shell.out.splitlines()[:2] == ["lock 2 is held by the pool (pid 101 on far)", "watching it for 10.0 s"]
    assert "/queue stays locked: say --yes if that writer is known to be dead" in shell.err
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    before = shell.files.clock[0]
    assert shell.run("unlock", "/queue") == 0
    assert shell.files.clock[0] - before == 10 * 10**9
    assert "unlocked" in shell.out
    with DurableQueue("/queue", files=shell.files, owners=["worker"]) as queue:
        assert queue.epoch == 4
        assert queue.report.whole
    assert writer.uuid == queue.uuid
    assert shell.run("unlock", "/queue") == 0
    assert shell.out == "it is not locked\n"


def test_unlock_for_programs(shell: Shell) -> None:
    """--yes does not ask, --json says what was and what became of it."""
    writer = left_locked(shell)
    [said] = shell.says("unlock", "--yes", "/queue")
    assert said["unlocked"] is True
    assert (said["lock"]["state"], said["lock"]["owner"], said["lock"]["host"]) == ("held", "the pool", "far")
    assert shell.says("unlock", "/queue") == [
        {"path": "/queue", "lock": shell.says("stats", "/queue")[0]["lock"], "unlocked": False}
    ]
    assert writer.epoch == 2


def test_unlock_refuses_the_living(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is renewed is not taken without --force; with it, its owner is fenced and harms nothing."""
    far = shell.files.also(host="far")
    writer = DurableQueue("/queue", files=far, owner="the pool", lock_ttl=20.0, owners=["worker"])
    eye = shell.files.also()
    monkeypatch.setattr(eye, "pause", far.advance)  # its heartbeat runs meanwhile
    assert shell.run("unlock", "--yes", "/queue", files=eye) == 2
    assert "the pool (pid 101 on far) renews its lock, so it lives" in shell.err
    writer.put(b"still there")
    assert shell.run("unlock", "--force", "/queue", files=eye) == 0
    far.advance(30)
    with pytest.raises(FencedError, match="was replaced by 3 of unlock"):
        writer.put(b"fenced")
    with DurableQueue("/queue", files=shell.files, owners=["worker"]) as queue:
        assert queue.report.whole
        lease = queue.lease(9)
        assert lease is not None
        assert b"still there" in lease.payloads


# ---------------------------------------------------------------------------------------------------------- the rest


def test_as_a_program(tmp_path: Path) -> None:
    """`python -m` on a real disk: code, stdout and stderr; nobody minds a reader that has seen enough."""
    with SegmentedLog(tmp_path / "log") as log:
        log.append_many([b"many"] * 5000)
    program = [sys.executable, "-m", "daskqueue_storage"]
    done = subprocess.run([*program, "verify", str(tmp_path / "log")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "log.messages    5000" in done.stdout
    with subprocess.Popen(
        [*program, "dump", "--messages", str(tmp_path / "log")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as head:
        assert head.stdout is not None
        assert head.stderr is not None
        assert head.stdout.readline().startswith(b"offset=0")
        head.stdout.close()
        assert head.stderr.read() == b""
        assert head.wait(60) == 0


def test_nothing_is_unpickled(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even loaded: the commands import no pickle of their own, and use none."""
    import pickle

    def never(*_: object, **__: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "loads", never)
    monkeypatch.setattr(pickle, "Unpickler", never)
    for command in ("stats", "verify", "dump", "dead", "compact"):
        assert shell.run(command, "/queue") == 0


def test_plain_values() -> None:
    """What JSON has no word for; a time that is none is a number."""
    assert plain({1: (b"ab", RecordType.PUT, range(2))}) == {"1": [{"bytes": 2}, "PUT", [0, 1]]}
    assert plain(b"ab", bodies=True) == {"bytes": 2, "base64": "YWI="}
    assert when(1_700_000_000_123_000_000) == "2023-11-14 22:13:20.123Z"
    assert when(2**80) == str(2**80)


def test_a_newer_record_among_ours(shell: Shell) -> None:
    """dump names a type that it does not know, if that may be ignored."""
    from daskqueue_storage.body import draft
    from daskqueue_storage.format import RecordHeader, encode_header, record_salt

    files = SimFiles()
    log = SegmentedLog("/log", files=files, uuid=bytes(16))
    log.append(b"x")
    [path] = [path for path in files.tree() if path.endswith(".log")]
    data = files.tree()[path]
    made = draft(RecordType.PUT, block=b"new", ignorable=True)
    head = RecordHeader(77, made.flags, 0, 0, len(data), 2, 0, 0, 1, made.blen, made.bcrc, 0)
    files.edit(path, data + encode_header(head, record_salt(bytes(16), 1, 1)) + b"new".ljust(8, b"\0"))
    assert shell.run("dump", "--json", "/log", files=files) == 0, shell.err
    last = json.loads(shell.out.splitlines()[-1])
    assert (last["type"], last["body"]) == ("77", {"bytes": 3})


def test_beside_a_writer_that_deletes(tmp_path: Path) -> None:
    """On a real disk, while another thread puts, acknowledges and compacts: every look is whole."""
    stop = threading.Event()
    with DurableQueue(tmp_path / "queue", sync="none", segment_bytes=4096) as queue:

        def work() -> None:
            while not stop.wait(0.005):
                queue.put_many([b"x" * 700] * 5)
                lease = queue.lease(4)
                if lease is not None:
                    queue.ack(lease)
                queue.compact()

        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(4):
                for command in ("stats", "verify", "dead"):
                    assert main([command, "--json", str(tmp_path / "queue")]) == 0
                assert main(["dump", "--messages", "--bodies", str(tmp_path / "queue")]) == 0
                assert main(["dump", str(tmp_path / "queue")]) == 0
        finally:
            stop.set()
            worker.join()
