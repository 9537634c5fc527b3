"""Clusters for the tests of the adapter, and what is outside of it: an oracle, a file to which tasks append lines; a
gate, at which tasks wait until the test opens it; a meeting, which tasks leave together.

No test may depend on how fast the machine is: what must still run waits at a gate, what must run at once meets, and
what will be so is asked for with `eventually`. `PATIENCE_S` only says when to give up.

One cluster of two workers is shared by the session; tests that kill, stop or add workers make one of their own
(`new_cluster`: nannies bring a killed worker back; `new_workers`: bare processes, gone when killed).

What this module defines travels to the workers by value, so that no worker needs to find the tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import cloudpickle
import dask
import pytest
from distributed import Client, LocalCluster
from distributed.utils import get_mp_context

from daskqueue.testing import Oracle

cloudpickle.register_pickle_by_value(sys.modules[__name__])

# Workers are forked from a process that has imported everything, which is most of what starting one takes. Those of
# the examples' scripts, and of `spawn`, start as users' do.
dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
get_mp_context().set_forkserver_preload(["distributed.cli.dask_worker", "daskqueue.client.install"])

PATIENCE_S = 60.0
STARTED_S = 60


# These test how things pickle, by name among others.
_BY_NAME = {"test_calls", "test_compat", "test_errors", "test_functions", "test_pickles", "test_runners"}


@pytest.fixture(autouse=True)
def _by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Functions and classes of a test module travel by value while its tests run."""
    if request.module.__name__.rpartition(".")[2] in _BY_NAME:
        yield
        return
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


def wait_until(condition: Callable[[], Any], timeout: float = PATIENCE_S) -> Any:
    """Ask until `condition()` is true, and return what it said; fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{condition} was not true within {timeout} s")
        time.sleep(0.005)
    return value


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`eventually(condition, timeout=60)`."""
    return wait_until


@pytest.fixture
def oracle(tmp_path: Path) -> Oracle:
    """A fresh one."""
    return Oracle(tmp_path / "oracle")


class Gate:
    """Tasks pass it once it is open; it writes down who came and who left. Travels to the workers."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self, value: Any = None) -> Any:
        """Come, wait, leave; returns `value`."""
        self._write("came", value)
        pause, until = Event(), time.monotonic() + 2 * PATIENCE_S
        while not self.is_open:
            if time.monotonic() > until:
                raise TimeoutError(f"nobody opened the gate for {value!r}")
            pause.wait(0.005)
        self._write("left", value)
        return value

    def _write(self, what: str, value: object) -> None:
        Oracle(Path(self.path, what)).mark(value)

    @property
    def is_open(self) -> bool:
        """Whether all may pass."""
        return os.path.exists(os.path.join(self.path, "open"))

    def open(self) -> None:
        """Let all pass, from now on."""
        Path(self.path, "open").touch()

    def count(self, what: str) -> int:
        """How many came, or left."""
        return len(Oracle(Path(self.path, what)).lines())


@pytest.fixture
def new_gate(tmp_path: Path) -> Iterator[Callable[[], Gate]]:
    """`new_gate()`: a closed one; open at the end, so that no task outlives its test.

    Take it after the pool: then it opens before the pool ends.
    """
    gates: list[Gate] = []

    def make() -> Gate:
        path = tmp_path / f"gate-{len(gates)}"
        path.mkdir()
        gates.append(Gate(path))
        return gates[-1]

    yield make
    for gate in gates:
        gate.open()


@pytest.fixture
def gate(new_gate: Callable[[], Gate]) -> Gate:
    """The only one of a test."""
    return new_gate()


class Meeting:
    """A task that ends when `count` of its kind run at once; it returns its process id. Travels to the workers."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = str(path)
        self.count = count

    def __call__(self, *_: object) -> int:
        """Come, and wait for the others."""
        Oracle(Path(self.path)).mark("")
        pause, until = Event(), time.monotonic() + PATIENCE_S
        while (came := os.stat(self.path).st_size) < self.count:
            if time.monotonic() > until:
                raise TimeoutError(f"{came} of {self.count} tasks ran at once")
            pause.wait(0.005)
        return os.getpid()


@pytest.fixture
def meeting(tmp_path: Path) -> Callable[[int], Meeting]:
    """`meeting(3)`: of three tasks, and whoever comes later."""
    return lambda count: Meeting(tmp_path / f"meeting-{count}", count)


def quiet_cluster(**options: Any) -> LocalCluster:
    """Worker processes of one thread each, without dashboards."""
    options = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, "processes": True} | options
    return LocalCluster(
        dashboard_address=None,
        scheduler_kwargs={"dashboard_address": ":0"},  # else it warns when another cluster has the default port
        silence_logs=logging.CRITICAL,
        **options,
    )


@pytest.fixture(scope="session")
def cluster() -> Iterator[LocalCluster]:
    """The shared one: two worker processes of one thread each."""
    with quiet_cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_client(cluster: LocalCluster) -> Iterator[Client]:
    """The shared cluster's client."""
    with Client(cluster) as client:
        yield client


@pytest.fixture
def client(shared_client: Client) -> Client:
    """The shared client, on a cluster that has its two workers."""
    shared_client.wait_for_workers(2, timeout=STARTED_S)
    return shared_client


def _pace(target: float, overstay: float) -> tuple[float, float]:
    from daskqueue_core import pacing

    before = pacing.TARGET_S, pacing.OVERSTAY_S
    pacing.TARGET_S, pacing.OVERSTAY_S = target, overstay  # type: ignore[misc]
    return before


@pytest.fixture
def unpaced(client: Client) -> Iterator[None]:
    """However slow a machine is: a lease is as large as it may be, and only what the test does brings its tail back."""
    before = max(client.run(_pace, 1e3, 1e6).values())
    yield
    client.run(_pace, *before)


@pytest.fixture
def new_client() -> Iterator[Callable[..., Client]]:
    """`new_client(cluster or address)`: one more client, closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(where: Any, **options: Any) -> Client:
            return stack.enter_context(Client(where, set_as_default=False, **options))

        yield make


@pytest.fixture
def new_cluster(new_client: Callable[..., Client]) -> Iterator[Callable[..., tuple[LocalCluster, Client]]]:
    """`new_cluster(n_workers=2, ...)`: a cluster of the test's own, with nannies, and its client."""
    with contextlib.ExitStack() as stack:
        # Dask gives a nanny up whose worker is between two lives just 15 s after it lost another one
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"}))

        def make(**options: Any) -> tuple[LocalCluster, Client]:
            cluster = quiet_cluster(**options)
            stack.callback(_close, cluster)
            return cluster, stack.enter_context(Client(cluster, set_as_default=False))

        yield make


def _close(cluster: LocalCluster) -> None:
    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # Dask waits for nannies of workers that were killed
        cluster.close(timeout=20)


class Workers:
    """A scheduler in this process and bare worker processes without a nanny: a killed one stays dead."""

    def __init__(self, count: int, *, env: dict[str, str] | None = None, wait: bool = True) -> None:
        self.cluster = quiet_cluster(n_workers=0)
        self.client = Client(self.cluster, set_as_default=False)
        self.processes: list[Any] = []
        self.add(count, env=env, wait=wait)

    def add(self, count: int, *, env: dict[str, str] | None = None, wait: bool = True) -> None:
        """Start more of them."""
        address = self.cluster.scheduler_address
        self.processes += [spawn("dask_worker", address, env=env) if env else fork(address) for _ in range(count)]
        if wait:
            self.client.wait_for_workers(len(self.processes), timeout=STARTED_S)

    def close(self) -> None:
        """End everything."""
        self.client.close()
        self.cluster.close()
        end(*self.processes)


_BARE_WORKER = [
    *("--no-dashboard", "--no-nanny", "--nthreads", "1", "--memory-limit", "0", "--death-timeout", str(STARTED_S))
]
_FORKED = """
import os
from distributed.cli.dask_worker import main
for stream in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
main(arguments)
"""


def fork(address: str) -> Any:
    """A `dask worker` without a nanny, sooner than by `spawn`."""
    process = get_mp_context().Process(target=exec, args=(_FORKED, {"arguments": [address, *_BARE_WORKER]}))
    process.start()
    return process


def spawn(command: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A `dask scheduler` or a `dask worker`."""
    options = _BARE_WORKER if command == "dask_worker" else ["--no-dashboard"]
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{command}", *arguments, *options],
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def end(*processes: Any) -> None:
    """Kill those that live."""
    for process in processes:
        process.kill()
    for process in processes:
        (process.wait if isinstance(process, subprocess.Popen) else process.join)()


@pytest.fixture
def new_workers() -> Iterator[Callable[..., Workers]]:
    """`new_workers(2)`: bare worker processes of the test's own."""
    with contextlib.ExitStack() as stack:

        def make(count: int, **options: Any) -> Workers:
            workers = Workers(count, **options)
            stack.callback(workers.close)
            return workers

        yield make


@pytest.fixture
def processes() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`processes("dask_worker", address, env=...)`: Dask's own commands, killed at the end."""
    running: list[subprocess.Popen[bytes]] = []

    def start(command: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        running.append(spawn(command, *arguments, env=env))
        return running[-1]

    yield start
    end(*running)


class Victims:
    """Who hosts what, by process id."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def pids(self) -> dict[str, int]:
        """Process ids of the workers, by address."""
        return dict(self.client.run(os.getpid))

    def host(self, pool: Any, index: int = 0) -> str:
        """The address of the worker that hosts a queue of `pool`."""
        places = self.client.run_on_scheduler(_addresses, pool.name)
        return str(places[index])

    def others(self, pool: Any) -> list[str]:
        """Addresses of the workers that host no queue of `pool`."""
        places = self.client.run_on_scheduler(_addresses, pool.name)
        return [address for address in self.pids() if address not in places]

    def kill(self, address: str, signum: int = signal.SIGKILL) -> int:
        """Signal the worker at `address`; returns its process id."""
        pid = self.pids()[address]
        os.kill(pid, signum)
        return pid


def _addresses(pool: str, dask_scheduler: Any = None) -> list[str]:
    directory = dask_scheduler.plugins["daskqueue"].directory
    return [place.address for place in directory.pools[pool].places]


@pytest.fixture
def victims() -> type[Victims]:
    """`victims(client)`."""
    return Victims
