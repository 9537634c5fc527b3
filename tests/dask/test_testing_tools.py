"""The tools for chaos do what they say: processes end, faults strike once and where they should, connections break."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue.testing import Nursery, Oracle, ProcessCluster, Proxy, Striking

LIMIT = 60
FORK = {"DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD": "fork"}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where this module's processes come from."""
    nursery = Nursery()
    yield nursery
    nursery.close()


def is_there(pid: int) -> bool:
    """Whether a process exists and is not one that has ended and waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def identity(n: int) -> int:
    """A task."""
    return n


def test_a_line_that_is_being_written(tmp_path: Path) -> None:
    """It is none before its end is there: who reads meanwhile sees no half of it."""
    oracle = Oracle(tmp_path / "oracle")
    assert oracle.lines() == []
    oracle.mark("end", 1)
    with open(oracle.path, "a") as file:
        file.write("end")
        file.flush()
        assert oracle.lines() == ["end 1"]
        file.write(" 2\n")
    assert oracle.lines() == ["end 1", "end 2"]


# ------------------------------------------------------------------------------------------------------- the cluster


def test_members_by_role(nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """Who hosts, who consumes; after the host is killed it is another one, and the dead one is not found any more."""
    with ProcessCluster(3, nursery=nursery) as cluster:
        pool = QueuePool(cluster.client)
        ConsumerPool(cluster.client, pool).start()
        [host] = cluster.find("host", pool)
        [consumer] = cluster.find("consumer", pool.name)
        assert host is not consumer
        assert cluster.find("both", pool) == [host, consumer]
        assert set(cluster.find("everything")) == {cluster.scheduler, *cluster.workers}
        assert host.pid == host.leader
        assert host.kill()
        assert host.wait(LIMIT) == -signal.SIGKILL
        assert not host.alive
        assert host.pid is None
        assert not host.kill(), "there is nobody to kill"
        assert pool.submit(identity, 3).result(LIMIT) == 3
        [other] = eventually(lambda: cluster.find("host", pool))
        assert other is not host
        assert host not in cluster.find("workers")
        with pytest.raises(TypeError, match="a pool"):
            cluster.find("host")


def test_terminated_worker_leaves(nursery: Nursery) -> None:
    """SIGTERM is an end with time to leave: exit code 0."""
    with ProcessCluster(1, nursery=nursery) as cluster:
        [worker] = cluster.workers
        assert worker.terminate()
        assert worker.wait(LIMIT) == 0


def test_frozen_worker_goes_on(nursery: Nursery, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """A frozen process does nothing, and goes on where it was."""
    oracle = Oracle(tmp_path / "oracle")
    with ProcessCluster(1, nursery=nursery) as cluster:
        [worker] = cluster.workers
        future = cluster.client.submit(Striking(identity, 7, oracle, signal.SIGSTOP), 7)
        eventually(lambda: oracle.lines())
        eventually(lambda: Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        assert not future.done()
        assert worker.go_on()
        assert future.result(LIMIT) == 7


def test_nanny_brings_it_back(nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """With a nanny the worker that is killed comes back as another process of the same member."""
    with ProcessCluster(1, nanny=True, nursery=nursery, env=FORK) as cluster:
        [worker] = cluster.workers
        first = worker.pid
        assert first not in (None, worker.leader)
        assert worker.kill()
        eventually(lambda: worker.pid not in (None, first))
        assert worker.alive
        cluster.wait_for(worker)
        second = worker.pid
        assert worker.kill(nanny=True)
        assert worker.wait(LIMIT) == -signal.SIGKILL
        assert second is not None
        eventually(lambda: not is_there(second))


def test_all_end_with_the_context(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """After an exception, and with one of them frozen; the logs stay where they were asked for, scratch folders go."""
    pids: list[int] = []
    with pytest.raises(LookupError):
        with ProcessCluster(1, folder=tmp_path / "kept") as cluster:
            cluster.add(1, nanny=True, env=FORK)
            cluster.run(lambda client: threading.Event().wait())
            for member in cluster.find("everything"):
                pids += [pid for pid in (member.leader, member.pid) if pid is not None]
            assert len(set(pids)) == 5
            assert cluster.workers[0].freeze()
            raise LookupError
    assert not [pid for pid in pids if is_there(pid)]
    assert "Registered to" in (tmp_path / "kept" / "worker-0.log").read_text()
    cluster.close()


def test_none_outlives_a_killed_test(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """If the process with the context is killed itself, its cluster ends, too."""
    path = tmp_path / "pids"
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from daskqueue.testing import ProcessCluster\n"
        "cluster = ProcessCluster(1, folder=sys.argv[2])\n"
        "Path(sys.argv[1]).write_text(' '.join(str(each.pid) for each in cluster.find('everything')) + ' .')\n"
        "threading.Event().wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(path), str(tmp_path / "cluster")])
    try:
        eventually(lambda: path.exists() and path.read_text().endswith("."))
        pids = [int(word) for word in path.read_text().split()[:-1]]
        assert len(pids) == 2
        assert all(map(is_there, pids))
    finally:
        process.kill()
        process.wait()
    eventually(lambda: not any(map(is_there, pids)))


def test_ids_are_used_again(nursery: Nursery, eventually: Callable[..., Any]) -> None:
    """A process that has the id of one that ended is another one: it lives, and the dead one is not signalled."""
    with ProcessCluster(0, nursery=nursery) as cluster:
        dead = cluster.run(identity)
        assert dead.wait(LIMIT) == 0
        eventually(lambda: nursery.is_over(dead._birth))
        for _ in range(100):  # others may be quicker
            try:
                Path("/proc/sys/kernel/ns_last_pid").write_text(str(dead.leader - 1))
            except OSError:
                pytest.skip("here nobody may say which process id is next")
            heir = cluster.run(lambda client: threading.Event().wait())
            if heir.leader == dead.leader:
                break
            heir.kill()
        assert heir.leader == dead.leader
        assert (heir.alive, dead.alive) == (True, False)
        assert not dead.kill(nanny=True)
        assert not dead.kill()
        assert not dead.terminate()
        assert heir.alive
        assert heir.kill()
        assert heir.wait(LIMIT) == -signal.SIGKILL


def test_a_nursery_that_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for its processes, or for another one, is told; what an import prints there is no answer of it."""
    start = subprocess.Popen

    def printing(words: list[str], **options: Any) -> Any:
        return start([*words[:-1], "print('hello', 5, flush=True); print(5, flush=True); " + words[-1]], **options)

    monkeypatch.setattr("daskqueue.testing.nursery.subprocess.Popen", printing)
    nursery = Nursery()
    try:
        birth = nursery.start("dask_scheduler", ["--port", "0", "--no-dashboard"], tmp_path / "log", {})
        assert not nursery.has_ended(birth)
        nursery._process.kill()
        with pytest.raises(RuntimeError, match="nursery has ended"):
            nursery.wait(birth, None)
        with pytest.raises(RuntimeError, match="nursery has ended"):
            nursery.start("dask_scheduler", [], tmp_path / "log", {})
        os.killpg(birth.pid, signal.SIGKILL)
    finally:
        nursery.close()


def test_a_worker_that_cannot_start(nursery: Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error shows its log, and nothing is left."""
    monkeypatch.setattr("daskqueue.testing.process_cluster.STARTED_S", 1.0)
    with pytest.raises(TimeoutError, match="No module named 'nowhere'"):
        ProcessCluster(1, nursery=nursery, env={"DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["nowhere"]'})


def test_a_program(nursery: Nursery, tmp_path: Path) -> None:
    """It has a client of its own; its exit code and its log say how it ended; it can be killed."""
    oracle = Oracle(tmp_path / "oracle")

    def good(client: Client, n: int) -> None:
        oracle.mark(client.submit(identity, n).result(LIMIT), os.getpid())

    def bad(client: Client) -> None:
        raise LookupError("nothing there")

    with ProcessCluster(1, nursery=nursery) as cluster:
        program = cluster.run(good, 5)
        assert program.wait(LIMIT) == 0
        assert oracle.lines() == [f"5 {program.leader}"]
        failing = cluster.run(bad)
        assert failing.wait(LIMIT) == 1
        assert "LookupError: nothing there" in failing.log
        endless = cluster.run(lambda client: threading.Event().wait())
        assert cluster.find("programs") == [endless]
        endless.kill()
        assert endless.wait(LIMIT) == -signal.SIGKILL
        assert cluster.find("programs") == []


def test_strikes_once(nursery: Nursery, tmp_path: Path) -> None:
    """The worker is killed while it runs task k; the second time k runs to its end."""
    oracle = Oracle(tmp_path / "oracle")
    with ProcessCluster(2, nursery=nursery) as cluster:
        pool = QueuePool(cluster.client)
        ConsumerPool(cluster.client, pool).start()
        striking = Striking(identity, 20, oracle)
        assert striking.struck is None
        assert [pool.submit(striking, n) for n in range(40)][39].result(LIMIT) == 39
        pool.join(timeout=LIMIT)
        assert list(pool.results().values()) == list(range(40))
        [dead] = [worker for worker in cluster.workers if worker.leader == striking.struck]
        assert dead.wait(LIMIT) == -signal.SIGKILL
        assert len(cluster.find("workers")) == 1


# --------------------------------------------------------------------------------------------------------- the proxy


class Echo:
    """A server that answers each connection with what it says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "tcp://{}:{}".format(*self.listener.getsockname())
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                side, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(side,), daemon=True).start()

    def _answer(self, side: socket.socket) -> None:
        with side, contextlib.suppress(ConnectionResetError):
            while block := side.recv(1000):
                side.sendall(block)


@pytest.fixture
def echo() -> Iterator[Echo]:
    """One."""
    echo = Echo()
    yield echo
    echo.listener.shutdown(socket.SHUT_RDWR)
    echo.listener.close()


def call(proxy: Proxy) -> socket.socket:
    """A connection through it."""
    host, port = proxy.address.removeprefix("tcp://").split(":")
    side = socket.create_connection((host, int(port)), timeout=LIMIT)
    side.settimeout(LIMIT)
    return side


def assert_refused(proxy: Proxy) -> None:
    """A new connection is reset: before `connect` returns or after, as the threads happen to run."""
    with pytest.raises(ConnectionResetError), call(proxy) as side:
        side.recv(1000)


def test_proxy_passes_stalls_and_drops(echo: Echo, eventually: Callable[..., Any]) -> None:
    """What is said while it stalls arrives when it is restored; what it drops is reset, what it refuses as well."""
    with Proxy(echo.address) as proxy:
        with call(proxy) as side:
            side.sendall(b"one")
            assert side.recv(1000) == b"one"
            assert proxy.connections == 1
            proxy.stall()
            side.sendall(b"two")
            side.settimeout(0.2)
            with pytest.raises(TimeoutError):
                side.recv(1000)
            side.settimeout(LIMIT)
            proxy.restore()
            assert side.recv(1000) == b"two"
            assert proxy.drop() == 1
            with pytest.raises(ConnectionResetError):
                side.recv(1000)
        with call(proxy) as side:
            side.sendall(b"three")
            assert side.recv(1000) == b"three"
            assert proxy.drop(refuse=True) == 1
        assert_refused(proxy)
        proxy.restore()
        with call(proxy) as side:
            side.sendall(b"four")
            side.shutdown(socket.SHUT_WR)
            assert side.recv(1000) == b"four"
            assert side.recv(1000) == b""
        eventually(lambda: proxy.connections == 0)


def test_proxy_without_a_target(echo: Echo) -> None:
    """Callers are refused until there is somebody to call."""
    target: list[str] = []
    with Proxy(lambda: target[0] if target else None) as proxy:
        assert_refused(proxy)
        target.append(echo.address)
        with call(proxy) as side:
            side.sendall(b"one")
            assert side.recv(1000) == b"one"


def test_client_behind_a_proxy(nursery: Nursery, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """Its connection breaks; it reconnects, and its pool and futures live on: nothing runs twice."""
    oracle = Oracle(tmp_path / "oracle")

    def task(n: int) -> int:
        oracle.mark(n)
        threading.Event().wait(0.005)
        return n

    with ProcessCluster(2, nursery=nursery) as cluster:
        proxy = cluster.proxy()
        with Client(proxy.address, set_as_default=False) as client:
            pool = QueuePool(client)
            ConsumerPool(client, pool).start()
            futures = [pool.submit(task, n) for n in range(300)]
            eventually(lambda: futures[20].done())
            assert proxy.drop() > 0
            assert [future.result(LIMIT) for future in futures] == list(range(300))
            assert pool.submit(task, 300).result(LIMIT) == 300
            pool.join(timeout=LIMIT)
            pool.shutdown()
    assert oracle.counts() == {str(n): 1 for n in range(301)}


def test_host_behind_a_proxy(nursery: Nursery, tmp_path: Path, eventually: Callable[..., Any]) -> None:
    """All connections to a queue's host break, twice, and stall for a while: each call is repeated, no task is."""
    oracle = Oracle(tmp_path / "oracle")

    def task(n: int) -> int:
        oracle.mark(n)
        threading.Event().wait(0.002)
        return n

    with ProcessCluster(0, nursery=nursery) as cluster:
        [host] = cluster.add(proxy=True)
        pool = QueuePool(cluster.client)
        cluster.add(1)
        ConsumerPool(cluster.client, pool).start()
        assert cluster.find("host", pool) == [host]
        proxy = cluster.proxy_of(host)
        assert host.listens != proxy.address
        futures = [pool.submit(task, n) for n in range(600)]
        for n in (20, 200):
            eventually(lambda n=n: futures[n].done())
            assert proxy.drop() > 0
        eventually(lambda: futures[300].done())
        proxy.stall()
        threading.Timer(0.3, proxy.restore).start()
        assert [future.result(LIMIT) for future in futures] == list(range(600))
        assert cluster.find("host", pool) == [host]
        pool.join(timeout=LIMIT)
        pool.shutdown()
    assert oracle.counts() == {str(n): 1 for n in range(600)}
