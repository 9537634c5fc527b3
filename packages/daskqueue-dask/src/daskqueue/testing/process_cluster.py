"""A Dask cluster of real processes: what can be killed, frozen and cut off is outside of the test's own process.

Not for production, where Dask's own ways to start clusters are. Members are found by what they do for a pool (`find`),
so a test says "the host of the queue" and not a process id.

Invariant: every process ends with the context, also frozen ones, also after an exception, also if the test's process
itself is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

import cloudpickle
from distributed import Client, Nanny, Scheduler
from distributed.core import Status

from daskqueue.testing.birth import FOLDER
from daskqueue.testing.member import Member, Program
from daskqueue.testing.nursery import Nursery
from daskqueue.testing.proxy import Proxy

__all__ = ["ProcessCluster", "Role"]

STARTED_S: Final = 60.0
LOOK_S: Final = 0.01

Role = Literal["host", "consumer", "both", "workers", "scheduler", "programs", "everything"]


class ProcessCluster:
    """A scheduler and its workers.

    Parameters
    ----------
    workers, threads: how many processes, and the threads of each.
    nanny: whether each worker has one, which brings it back when it ends.
    env: for all processes; Dask's configuration goes here, as `DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL`.
    folder: for logs and scratch files, kept; default: a temporary one, which goes with the cluster.
    nursery: where processes come from; clusters that share one (`Nursery()`) start sooner. Its owner closes it.
    """

    def __init__(
        self,
        workers: int = 2,
        *,
        threads: int = 1,
        nanny: bool = False,
        env: Mapping[str, str] | None = None,
        folder: str | os.PathLike[str] | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self.threads = threads
        self.nanny = nanny
        self.workers: list[Member] = []
        """All that were started, also those that have ended."""
        self.programs: list[Program] = []
        self._end = contextlib.ExitStack()
        with self._end:  # closed here if the rest fails, else by `close`
            self.folder = Path(tempfile.mkdtemp(prefix="daskqueue-cluster-") if folder is None else folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            if folder is None:
                self._end.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._proxies: dict[str, Proxy] = {}
            self._env = {FOLDER: str(self.folder), **(env or {})}
            self._nursery = Nursery() if nursery is None else nursery
            self._end.callback(self._kill_everybody if nursery is not None else self._nursery.close)
            self._client: Client | None = None
            self.scheduler = self._start_scheduler()
            self.address: str = self._wait_for(self._scheduler_address, "the scheduler")
            self.add(workers)
            self._end = self._end.pop_all()

    # -- who there is

    @property
    def client(self) -> Client:
        """A client in this process, made when it is first asked for, closed with the cluster."""
        if self._client is None:
            self._client = Client(self.address, set_as_default=False)
        return self._client

    def add(
        self,
        count: int = 1,
        *,
        wait: bool = True,
        proxy: bool = False,
        nanny: bool | None = None,
        env: Mapping[str, str] | None = None,
    ) -> list[Member]:
        """Start more workers. `proxy`: others reach each through a `Proxy` of its own (`proxy_of`)."""
        with_nanny = self.nanny if nanny is None else nanny
        added = []
        for _ in range(count):
            name = f"worker-{len(self.workers)}"
            words = [self.address, "--name", name, "--nthreads", str(self.threads)]
            words += ["--no-dashboard", "--memory-limit", "0", "--death-timeout", str(int(STARTED_S))]
            words += ["--local-directory", str(self.folder), "--preload", "daskqueue.testing.birth"]
            words += ["--nanny" if with_nanny else "--no-nanny"]
            if proxy:
                words += ["--listen-address", "tcp://127.0.0.1:0", "--contact-address", self._new_proxy(name).address]
            else:
                words += ["--host", "127.0.0.1"]
            birth = self._nursery.start("dask_worker", words, self._log(name), {**self._env, **(env or {})})
            added.append(Member(name, birth, with_nanny, self.folder, self._nursery))
            self.workers.append(added[-1])
        if wait:
            self.wait_for(*added)
        return added

    def wait_for(self, *workers: Member) -> None:
        """Until these workers are known to the scheduler; all that have not ended, if none is named."""
        names = {worker.name for worker in workers or self.workers if workers or worker.alive}
        self._wait_for(lambda: names <= self._known(), f"workers {sorted(names)}")

    def _known(self) -> set[str]:
        """Names of those that are up. A nanny does not bring a worker back before it knows that it had come."""
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        with_nanny = [address for address, worker in workers.items() if worker["nanny"]]
        said = self.client.run(_status, workers=with_nanny, nanny=True, on_error="ignore") if with_nanny else {}
        return {
            str(worker["name"])
            for address, worker in workers.items()
            if not worker["nanny"] or said.get(address) == Status.running.name
        }

    def find(self, role: Role, pool: Any = None, index: int = 0) -> list[Member]:
        """The living members of that role.

        "host": of queue `index` of `pool` (a `QueuePool` or its name); "consumer": one that hosts no queue of it;
        "both": one of each. "workers", "scheduler", "programs": all of them; "everything": these three.

        The roles at a pool are asked of the scheduler. A list without a member: there is none at this moment.
        """
        workers: list[Member] = [worker for worker in self.workers if worker.alive]
        if role in ("host", "consumer", "both"):
            if pool is None:
                raise TypeError(f"the role {role!r} is one at a pool: find({role!r}, pool)")
            places = self.client.run_on_scheduler(_hosts, pool if isinstance(pool, str) else pool.name)
            hosts = [worker for worker in workers if worker.name == places[index]]
            consumers = [worker for worker in workers if worker.name not in places and worker.pid is not None]
            return (hosts if role != "consumer" else []) + (consumers[:1] if role != "host" else [])
        found: dict[Role, list[Member]] = {
            "scheduler": [self.scheduler] if self.scheduler.alive else [],
            "workers": workers,
            "programs": [program for program in self.programs if program.alive],
        }
        found["everything"] = [member for members in found.values() for member in members]
        return found[role]

    def run(self, function: Callable[..., object], *arguments: Any, env: Mapping[str, str] | None = None) -> Program:
        """Call `function(client, *arguments)` in a process of its own: a client that can be killed.

        Its exit code is 0, or 1 after an exception, which is then in its `log`.
        """
        name = f"program-{len(self.programs)}"
        path = self.folder / f"{name}.pickle"
        path.write_bytes(cloudpickle.dumps((function, arguments)))
        environment = {**self._env, **(env or {})}
        birth = self._nursery.start("program", [str(path), self.address], self._log(name), environment)
        self.programs.append(Program(name, birth, self.folder, self._nursery))
        return self.programs[-1]

    # -- connections

    def proxy(self) -> Proxy:
        """A new one in front of the scheduler, for clients and workers that are given its `address`."""
        return self._end.enter_context(Proxy(self.address))

    def proxy_of(self, worker: Member) -> Proxy:
        """The one that is in front of a worker (`add(proxy=True)`)."""
        return self._proxies[worker.name]

    def _new_proxy(self, name: str) -> Proxy:
        def listens() -> str | None:
            return next((worker.listens for worker in self.workers if worker.name == name), None)

        proxy = self._proxies[name] = self._end.enter_context(Proxy(listens))
        return proxy

    # -- the end

    def close(self) -> None:
        """End all processes. Calling it again does nothing."""
        client, self._client = self._client, None
        with self._end:
            if client is not None:
                with contextlib.suppress(asyncio.TimeoutError, OSError):  # a TimeoutError of its own before 3.11
                    client.close(timeout=1 if self.scheduler.alive else 0)

    def __enter__(self) -> ProcessCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _kill_everybody(self) -> None:
        everybody: list[Member] = [*self.workers, *self.programs]
        if hasattr(self, "scheduler"):
            everybody.append(self.scheduler)
        for member in everybody:
            member.kill(nanny=True)
        for member in everybody:
            member.wait(STARTED_S)
            member.kill(nanny=True)  # what a nanny was just starting

    # -- hands

    def _start_scheduler(self) -> Member:
        words = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
        words += ["--scheduler-file", str(self.folder / "scheduler.json")]
        birth = self._nursery.start("dask_scheduler", words, self._log("scheduler"), self._env)
        return Member("scheduler", birth, False, self.folder, self._nursery)

    def _scheduler_address(self) -> str | None:
        try:
            return str(json.loads((self.folder / "scheduler.json").read_text())["address"])
        except (FileNotFoundError, ValueError):  # half of it is there
            return None

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _wait_for(self, look: Callable[[], Any], who: str) -> Any:
        deadline = time.monotonic() + STARTED_S
        while not (found := look()):
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in self.folder.glob("*.log"))
                raise TimeoutError(f"{who} did not start within {STARTED_S} s; the logs say:\n{logs}")
            time.sleep(LOOK_S)
        return found


def _status(dask_worker: Nanny) -> str:
    return dask_worker.status.name


def _hosts(pool: str, dask_scheduler: Scheduler) -> list[str | None]:
    """The names of the workers that serve a pool's queues; None where there is none now."""
    plugin: Any = dask_scheduler.plugins["daskqueue"]
    record = plugin.directory.pools[pool]
    workers = dask_scheduler.workers
    return [str(workers[place.address].name) if place.address in workers else None for place in record.places]
