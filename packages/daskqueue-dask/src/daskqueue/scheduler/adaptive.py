"""`cluster.adapt` sees the queues: how many workers their work is for, and which workers must stay.

Dask's scheduler knows nothing of our messages, so by itself it closes workers that run them. What is to be done comes
with the workers' heartbeats (`worker.load`); how much that is, is reckoned as Dask does for its own tasks: enough
workers to be done in `target-duration`, but no more than there are messages for. While a pool is open there is one
worker at least, which can host its queues: else a durable pool would wait on disk for ever.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from math import ceil
from time import monotonic
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler
from distributed.scheduler import WorkerState

from daskqueue.wire.compat import metric_of, raise_adaptive_target
from daskqueue.wire.operations import METRIC
from daskqueue_core.directory import Directory, PoolRecord
from daskqueue_core.stats import QueueDepth

__all__ = ["QueueScaling", "needed_workers", "wanted_workers"]

Loads = Mapping[str, Mapping[str, Any]]
"""What each worker said last, by address."""


class QueueScaling:
    """What the queues of a cluster want of `cluster.adapt`."""

    def __init__(self, scheduler: Scheduler, directory: Directory) -> None:
        self._scheduler = scheduler
        self._directory = directory
        self._awaited = 0
        raise_adaptive_target(scheduler, self._wanted_now)

    @contextlib.contextmanager
    def awaiting_a_worker(self) -> Iterator[None]:
        """Something cannot go on without a worker."""
        self._awaited += 1
        try:
            yield
        finally:
            self._awaited -= 1

    def closable(self, workers: list[WorkerState]) -> list[WorkerState]:
        """Those of `workers` that nothing runs on, that host no work, and that are not the last to host anything."""
        needed = needed_workers(self._directory, self._loads())
        return [worker for worker in workers if worker.address not in needed]

    def _wanted_now(self, target_duration: Any = None) -> int:
        if target_duration is None:
            target_duration = dask.config.get("distributed.adaptive.target-duration")
        wanted = wanted_workers(
            self._directory,
            self._loads(),
            target_s=parse_timedelta(target_duration),
            unknown_s=parse_timedelta(dask.config.get("distributed.scheduler.unknown-task-duration")),
            now=monotonic(),
        )
        return max(wanted, min(1, self._awaited))

    def _loads(self) -> Loads:
        said = {address: metric_of(worker, METRIC) for address, worker in self._scheduler.workers.items()}
        return {address: load for address, load in said.items() if load}


def wanted_workers(directory: Directory, loads: Loads, *, target_s: float, unknown_s: float, now: float) -> int:
    """How many workers the open pools have work for, one at least; 0 if no pool is open."""
    if not directory.pools:
        return 0
    return max(
        1, sum(_wanted_by(directory, pool, loads, target_s, unknown_s, now) for pool in directory.pools.values())
    )


def _wanted_by(
    directory: Directory, pool: PoolRecord, loads: Loads, target_s: float, unknown_s: float, now: float
) -> int:
    consumers = directory.served(pool.name, now)
    messages = 0
    for depth in _depths(pool, loads):
        served = [
            count for kind, tags, count in depth.waiting if any(each.serve(kind, tags, soon=True) for each in consumers)
        ]
        messages += depth.delivered + min(depth.ready, sum(served))
    if not messages:
        return 0
    here = [rest for load in loads.values() for name, *rest in load["consumers"] if name == pool.name]
    times = [seconds for _, _, seconds in here if seconds is not None]
    slots = [size for size, _, _ in here if size]
    each_s = sum(times) / len(times) if times else unknown_s
    at_once = min(messages, ceil(messages * each_s / target_s))
    wanted = ceil(at_once / (sum(slots) / len(slots))) if slots else 1
    counts = [each.count for each in pool.consumers.values()]
    most = sum(count for count in counts if count is not None)
    return wanted if None in counts else min(wanted, most)


def needed_workers(directory: Directory, loads: Loads) -> set[str]:
    """Workers that run messages, that host unfinished ones or outcomes nobody has heard, and one that hosts at all."""
    needed = {address for address, load in loads.items() if any(running for _, _, running, _ in load["consumers"])}
    hosts: Counter[str] = Counter()
    for pool in directory.pools.values():
        for place in pool.places:
            if place.address:
                hosts[place.address] += 1
                depth = _depth(place.uuid, loads.get(place.address))
                unheard = 0 if pool.durable else depth.undelivered_outcomes  # on disk they wait for years
                if depth.ready or depth.delivered or depth.scheduled or unheard:
                    needed.add(place.address)
    if hosts and not needed & set(hosts):
        needed.add(min(hosts, key=lambda address: (-hosts[address], address)))
    return needed


def _depths(pool: PoolRecord, loads: Loads) -> Iterator[QueueDepth]:
    for place in pool.places:
        yield _depth(place.uuid, loads.get(place.address))


def _depth(uuid: str, load: Mapping[str, Any] | None) -> QueueDepth:
    said = load["queues"].get(uuid) if load is not None else None
    return QueueDepth() if said is None else QueueDepth(*said)
