"""One process that has imported Dask, and forks every other one of a `ProcessCluster` from itself.

Not a manager: it starts what it is told to, says who has ended, and ends everything with itself. It is told on its
standard input, a line of JSON each, and answers on its standard output. A fork is twenty times as quick as a new
interpreter, and what it forks is no child of the test, whose own processes it cannot disturb.

Invariants: each process is the leader of a group of its own, so that a nanny's worker ends with it; nobody outlives the
standard input, which closes with the test's process however that ends. Processes are known by their numbers here: the
system gives the id of one that has ended to another, sooner or later, so nothing is signalled once a group is over.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

__all__ = ["Birth", "Nursery"]

STARTED_S: Final = 60.0
ENDED_S: Final = 30.0
GONE: Final = "the nursery has ended, which starts and watches all: see the standard error of this process"

# They come to the whole group of the test's process, which then closes our input: we end when all others have.
_OURS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Birth(NamedTuple):
    """A process that was started."""

    number: int
    """Which one of the nursery; no other has it."""
    pid: int


class Nursery:
    """The end of whoever wants processes."""

    def __init__(self) -> None:
        words = [sys.executable, "-c", "from daskqueue.testing import nursery; nursery.main()"]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._changed = threading.Condition()
        self._born: dict[int, Birth] = {}
        self._ended: dict[int, int] = {}
        self._over: set[int] = set()
        self._gone = False
        self._asked = 0
        self._reader = threading.Thread(target=self._read, name="daskqueue-nursery", daemon=True)
        self._reader.start()

    def start(self, what: str, arguments: list[str], log: Path, env: dict[str, str]) -> Birth:
        """Fork one. `what`: "dask_scheduler", "dask_worker" or "program"."""
        with self._changed:
            self._asked += 1
            number = self._asked
            request = {"number": number, "what": what, "arguments": arguments, "log": str(log), "env": env}
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps(request) + "\n")
            if not self._changed.wait_for(lambda: number in self._born or self._gone, STARTED_S):
                raise RuntimeError(f"no process for {what} in {STARTED_S} s: see the standard error of this process")
            if number not in self._born:
                raise RuntimeError(f"no process for {what}: {GONE}")
            return self._born[number]

    def wait(self, birth: Birth, timeout: float | None) -> int | None:
        """The exit code of one that was started, negative for a signal; None if it still runs after `timeout`.

        `RuntimeError` if the nursery itself has ended and has not said.
        """
        with self._changed:
            self._changed.wait_for(lambda: birth.number in self._ended or self._gone, timeout)
            if self._gone and birth.number not in self._ended:
                raise RuntimeError(f"nobody knows of process {birth.pid}: {GONE}")
            return self._ended.get(birth.number)

    def has_ended(self, birth: Birth) -> bool:
        """Whether the process that was started is known to have ended."""
        with self._changed:
            return birth.number in self._ended

    def is_over(self, birth: Birth) -> bool:
        """Whether it has ended, and all that it left behind in its group."""
        with self._changed:
            return birth.number in self._over

    def close(self) -> None:
        """End everything, and wait for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(ENDED_S)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                news = json.loads(line)
                number = news["number"]
            except (ValueError, TypeError, KeyError):  # what somebody's import prints
                sys.stderr.write(line)
                continue
            with self._changed:
                if "pid" in news:
                    self._born[number] = Birth(number, news["pid"])
                elif "code" in news:
                    self._ended[number] = news["code"]
                else:
                    self._over.add(number)
                self._changed.notify_all()
        with self._changed:
            self._gone = True
            self._changed.notify_all()


# ------------------------------------------------------------------------------------------- in the process itself


def _serve() -> dict[str, Any] | None:
    """Fork as told. Returns twice for each fork: here when all is over, with None; in the child with its request."""
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    handlers = {signum: signal.signal(signum, signal.SIG_IGN) for signum in _OURS}
    living: dict[int, int] = {}  # numbers, by process id
    orphaned: dict[int, int] = {}  # the same, of leaders that have ended, while others of their group live
    rest = b""
    while True:
        readable, _, _ = select.select([0, wake], [], [])
        if wake in readable:
            os.read(wake, 4096)
            _reap(living, orphaned)
        if 0 not in readable:
            continue
        read = os.read(0, 1 << 16)
        if not read:
            break
        *lines, rest = (rest + read).split(b"\n")
        for line in lines:
            request = json.loads(line)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for signum, handler in handlers.items():
                    signal.signal(signum, handler)
                os.close(wake)
                os.close(woken)
                return dict(request)
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.setpgid(pid, pid)  # by both, whoever is first: a signal to the group must not come too soon
            living[pid] = request["number"]
            _say(number=request["number"], pid=pid)
    deadline = time.monotonic() + ENDED_S / 2
    while (living or orphaned) and time.monotonic() < deadline:  # again: a nanny may have been starting a worker
        for group in [*living, *orphaned]:
            _signal_group(group, signal.SIGKILL)
        _reap(living, orphaned)
        time.sleep(0.005)
    return None


def _signal_group(group: int, signum: int) -> bool:
    """Returns whether there is anybody."""
    try:
        os.killpg(group, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _reap(living: dict[int, int], orphaned: dict[int, int]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            break
        number = orphaned[pid] = living.pop(pid)
        _say(number=number, code=os.waitstatus_to_exitcode(status))
    for group, number in list(orphaned.items()):
        if not _signal_group(group, 0):
            del orphaned[group]
            _say(number=number, over=True)


def _say(**news: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(1, (json.dumps(news) + "\n").encode())


def _become(request: dict[str, Any]) -> None:
    """The rest of a child's life."""
    with contextlib.suppress(PermissionError):
        os.setpgid(0, 0)
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(request["env"])
    import dask

    dask.config.refresh()
    if request["what"] == "program":
        from daskqueue.testing.program import main

        main(*request["arguments"])
    elif request["what"] == "dask_scheduler":
        from distributed.cli.dask_scheduler import main as schedule

        schedule(request["arguments"])
    else:
        from distributed.cli.dask_worker import main as work

        work(request["arguments"])


def main() -> None:
    """All of its life, and that of each child."""
    import distributed.cli.dask_scheduler
    import distributed.cli.dask_worker  # noqa: F401

    import daskqueue.client.consumer_pool
    import daskqueue.client.install
    import daskqueue.testing.program  # noqa: F401

    request = _serve()
    if request is not None:
        _become(request)
