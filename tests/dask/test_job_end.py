"""When a worker's job ends: what its environment says, and what was given instead. No cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import dask
import pytest

from daskqueue.client.options import check_drain_before, check_walltime
from daskqueue.wire.walltime import AFTER, AT, AUTO, NEVER
from daskqueue.worker.job_end import JobEnd, end_of_job

NOW = 1_000_000.0
NAN, INF = float("nan"), float("inf")


class FakeProcess:
    """A process that began `age` seconds ago, and those before it."""

    def __init__(self, age: float, environ: dict[str, str] | None = None, *parents: FakeProcess) -> None:
        self.age, self._environ, self._parents = age, environ, list(parents)

    def create_time(self) -> float:
        """When it began."""
        return NOW - self.age

    def parents(self) -> list[FakeProcess]:
        """Nearest first."""
        return self._parents

    def environ(self) -> dict[str, str]:
        """Of others it cannot be read."""
        if self._environ is None:
            raise PermissionError
        return self._environ


def left(environ: dict[str, str], lifetime: float | None = None, process: Any = None) -> float | None:
    """Seconds until the end that an environment says."""
    end = end_of_job((AUTO, 0.0), process or FakeProcess(100.0), lifetime, environ, lambda: NOW)
    return None if end is None else end - NOW


@pytest.mark.parametrize(
    ("environ", "lifetime", "expected"),
    [
        ({}, None, None),
        ({"SLURM_JOB_END_TIME": "1000600"}, None, 600),
        ({"SLURM_JOB_END_TIME": "1000600", "SLURM_JOB_ID": "7"}, 4000, 600),
        ({"SLURM_JOB_END_TIME": "1000600"}, 300, 200),
        ({}, 300, 200),
        ({"DASKQUEUE_JOB_END_TIME": "1000050.5"}, None, 50.5),
        ({"DASKQUEUE_JOB_END_TIME": ""}, None, None),
        ({"PBS_JOBID": "7.host", "PBS_WALLTIME": "3600"}, None, 3500),
        ({"PBS_JOBID": "7.host", "PBS_WALLTIME": "01:00:00"}, None, 3500),
        ({"PBS_WALLTIME": "3600"}, None, None),
        ({"PBS_JOBID": "7.host"}, None, None),
    ],
)
def test_what_the_environment_says(environ: dict[str, str], lifetime: float | None, expected: float | None) -> None:
    """The first of the ends that are known; PBS and lifetimes count from the start, here 100 s ago."""
    assert left(environ, lifetime) == expected


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_JOB_END_TIME": "999999"},
        {"SLURM_JOB_END_TIME": "Unknown"},
        {"SLURM_JOB_END_TIME": "nan"},
        {"PBS_JOBID": "7", "PBS_WALLTIME": "1:2:3:4"},
        {"PBS_JOBID": "7", "PBS_WALLTIME": "60"},
    ],
)
def test_what_cannot_be_is_ignored(environ: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    """No number, or an end that has passed: who works is not over. It is said."""
    with caplog.at_level(logging.WARNING):
        assert left(environ) is None
    assert "ignored" in caplog.text
    assert left({**environ, "DASKQUEUE_JOB_END_TIME": "1000001"}) == 1


def test_a_job_is_as_old_as_its_first_process() -> None:
    """A worker that is started again by its nanny has no more time by that; another job's processes do not count."""
    of_job, other = {"PBS_JOBID": "7"}, {"PBS_JOBID": "6"}
    environ = {"PBS_JOBID": "7", "PBS_WALLTIME": "3600"}
    parents = [FakeProcess(200, of_job), FakeProcess(900, of_job)]
    assert left(environ, process=FakeProcess(10, of_job, *parents)) == 2700
    assert left(environ, process=FakeProcess(10, of_job, *parents, FakeProcess(5000, other))) == 2700
    assert left(environ, process=FakeProcess(10, of_job, *parents, FakeProcess(5000))) == 2700


def test_what_was_given() -> None:
    """It holds, whatever the environment says."""
    environ = {"SLURM_JOB_END_TIME": "1000600"}
    process = FakeProcess(100)
    assert end_of_job((NEVER, 0.0), process, 300, environ, lambda: NOW) is None
    assert end_of_job((AFTER, 7200.0), process, 300, environ, lambda: NOW) == NOW + 7100
    assert end_of_job((AT, 5.0), process, 300, environ, lambda: NOW) == 5.0


def test_checked_walltime() -> None:
    """Durations, times, words; `dask.config` speaks for who says nothing."""
    day = datetime(2030, 1, 1, tzinfo=timezone.utc)
    assert check_walltime(None) == (NEVER, 0.0)
    assert check_walltime("auto") == (AUTO, 0.0)
    assert check_walltime("2h") == check_walltime(7200) == check_walltime(timedelta(hours=2)) == (AFTER, 7200.0)
    assert check_walltime(day) == (AT, day.timestamp())
    assert check_drain_before(None) == 0.0
    assert check_drain_before("5m") == 300.0
    with dask.config.set({"daskqueue.drain-before": "1m", "daskqueue.walltime": "1h"}):
        assert (check_drain_before(None), check_walltime("auto"), check_walltime(None)) == (
            60,
            (AFTER, 3600),
            (NEVER, 0),
        )
        assert check_drain_before(0) == 0


@pytest.mark.parametrize(
    ("value", "error"),
    [
        *[(value, ValueError) for value in ("soon", -1, NAN, INF, "-2h", "", 1e300)],
        *[(value, TypeError) for value in (True, b"2h", [2])],
    ],
)
def test_bad_times(value: Any, error: type[Exception]) -> None:
    """Each names the option."""
    with pytest.raises(error, match="walltime"):
        check_walltime(value)
    with pytest.raises(error, match="drain_before"):
        check_drain_before(value)
    with pytest.raises(ValueError, match="None says that there is no end"):
        check_walltime(0)


def worker(lifetime: float | None = None) -> Any:
    """What of a worker is looked at."""
    began = SimpleNamespace(create_time=time.time, parents=list)
    return SimpleNamespace(monitor=SimpleNamespace(proc=began), lifetime=lifetime)


def test_near_once() -> None:
    """A timer goes off so long before the end; the time left goes on falling."""

    async def run() -> None:
        near = asyncio.Event()
        end = JobEnd(worker(), (AT, time.time() + 100.05), 100.0, near.set)
        assert not end.is_near
        await asyncio.wait_for(near.wait(), 60)
        assert end.is_near
        assert end.time_left is not None
        assert end.time_left <= 100.0

    asyncio.run(run())


def test_not_near() -> None:
    """Without `drain_before` nobody leaves, and without an end there is nothing to leave for."""

    async def run() -> None:
        def never() -> None:
            raise AssertionError("nobody was to leave")

        past = JobEnd(worker(), (AT, time.time() - 5), 0.0, never)
        assert (past.is_near, past.time_left is not None and past.time_left < 0) == (False, True)
        endless = JobEnd(worker(), (NEVER, 0.0), 300.0, never)
        assert (endless.is_near, endless.time_left) == (False, None)
        late = JobEnd(worker(), (AT, time.time() + 5), 300.0, never)
        assert late.is_near
        late.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(run())
