"""When the job ends that a worker runs in, as far as that can be known, and the timer that goes off before it does.

What is known is a time of the wall clock. It is read once, when consumers begin, and counted from there by the event
loop's clock: nothing is polled, and a step of the wall clock changes nothing.

`walltime` is what `ConsumerPool` sends: `(how, seconds)`, see `wire.walltime`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from distributed import Worker

from daskqueue.wire.compat import Process, process_of
from daskqueue.wire.walltime import AFTER, AT, AUTO, NEVER

__all__ = ["JobEnd", "end_of_job"]

logger = logging.getLogger(__name__)

END_VARIABLES: Final = ("DASKQUEUE_JOB_END_TIME", "SLURM_JOB_END_TIME")
"""Seconds of the epoch: for any batch system, set in the job's script, and what Slurm sets in each job."""


def end_of_job(
    walltime: tuple[str, float],
    process: Process,
    lifetime: float | None = None,
    environ: Mapping[str, str] = os.environ,
    now: Callable[[], float] = time.time,
) -> float | None:
    """When a worker's job ends, in seconds of the epoch; None: never, as far as is known.

    `lifetime`: after so many seconds Dask closes the worker by itself.
    """
    how, seconds = walltime
    if how == NEVER:
        return None
    if how == AT:
        return seconds
    if how == AFTER:
        return process.create_time() + seconds
    assert how == AUTO, how
    ends = dict(_known_ends(process, lifetime, environ))
    for source, end in list(ends.items()):
        if end <= now():  # a time limit that was extended, or a variable from another job
            logger.warning("%s says that this job is over, which it is not: ignored", source)
            del ends[source]
    return min(ends.values(), default=None)


def _known_ends(process: Process, lifetime: float | None, environ: Mapping[str, str]) -> Iterator[tuple[str, float]]:
    if lifetime:
        yield "the worker's lifetime", process.create_time() + lifetime
    for name in END_VARIABLES:
        if environ.get(name):
            end = _number(name, environ[name])
            if end is not None:
                yield name, end
    job, walltime = environ.get("PBS_JOBID"), environ.get("PBS_WALLTIME")
    if job and walltime:
        seconds = _number("PBS_WALLTIME", walltime)
        if seconds is not None:
            yield "PBS_WALLTIME", _began(process, "PBS_JOBID", job) + seconds


def _number(name: str, text: str) -> float | None:
    """Seconds, or hours, minutes and seconds with colons."""
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    if not 1 <= len(parts) <= 3 or not all(0 <= part < 1e12 for part in parts):
        logger.warning("%s=%r is no number of seconds: ignored", name, text)
        return None
    seconds = 0.0
    for part in parts:
        seconds = 60 * seconds + part
    return seconds


def _began(process: Process, name: str, job: str) -> float:
    """When the oldest of the processes began that started this one and belong to the same job."""
    began = process.create_time()
    for parent in process.parents():
        try:
            if parent.environ().get(name) != job:
                break
            began = parent.create_time()
        except Exception:  # somebody else's, or gone: psutil has a type for each
            break
    return began


class JobEnd:
    """The end of a worker's job, for one consumer pool. `near` is called once, `drain_before` seconds before.

    With 0 nothing is called: consumers work as long as they are let.
    """

    def __init__(self, worker: Worker, walltime: tuple[str, float], drain_before: float, near: Callable[[], None]):
        self._loop = asyncio.get_running_loop()
        self._drain_before = drain_before
        self._timer: asyncio.TimerHandle | None = None
        self._ends_at: float | None = None
        end = end_of_job(walltime, process_of(worker), worker.lifetime)
        if end is None:
            return
        self._ends_at = self._loop.time() + end - time.time()
        if drain_before:
            self._timer = self._loop.call_at(self._ends_at - drain_before, near)

    @property
    def time_left(self) -> float | None:
        """Seconds until the end, negative after it; None: there is none."""
        return None if self._ends_at is None else self._ends_at - self._loop.time()

    @property
    def is_near(self) -> bool:
        """Whether it is time to leave."""
        left = self.time_left
        return left is not None and bool(self._drain_before) and left <= self._drain_before

    def close(self) -> None:
        """It does not matter any more."""
        if self._timer is not None:
            self._timer.cancel()
