"""One slot's share of a lease: jobs that run one after the other, in one executor call or on the private loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from math import inf

from daskqueue.wire import nested
from daskqueue.wire.errors import encode_error
from daskqueue.worker.runners import Job, JobReport
from daskqueue_core.batch import Run
from daskqueue_core.outcomes import Failure, Report
from daskqueue_core.pacing import OVERSTAY_S
from daskqueue_core.runs import clean, intersection

__all__ = ["Chunk", "Share", "failed"]

Share = tuple[int, int, "Job | None"]
"""First message, how many, and the job that runs them; no job: nothing is to be done."""


class Chunk:
    """Jobs of one function, of one lease. `run` or `run_async` once; `take_rest` any time, from the event loop."""

    def __init__(self, index: int, uuid: str, lease: int, function: bytes, shares: Sequence[Share]) -> None:
        self.index = index
        self.uuid = uuid
        self.lease = lease
        self.function = function
        self.is_ending = False  # the next lease may be fetched
        self.timer: asyncio.TimerHandle | None = None  # when it has overstayed
        self.patience = OVERSTAY_S  # until it is looked at again, once it has: doubles
        self.prefetch: asyncio.TimerHandle | None = None
        self.began_at = inf  # by the event loop's clock
        self.executed = 0
        self.seconds = 0.0
        self.nbytes = 0  # of values
        self._shares = shares
        self._at = 0  # the share that runs
        self._reports: deque[Report] = deque()  # not handed out yet
        self._harvested = (0, 0)  # share and element up to which it was
        self._taken: dict[int, int] = {}  # share -> how many messages went back

    def stop_timers(self) -> None:
        """It has ended."""
        for timer in (self.timer, self.prefetch):
            if timer is not None:
                timer.cancel()

    @property
    def count(self) -> int:
        """How many messages it began with."""
        return sum(count for _, count, _ in self._shares)

    @property
    def is_async(self) -> bool:
        """Whether it belongs on the private loop."""
        job = self._shares[0][2]
        return job is not None and job.is_async

    @property
    def has_news(self) -> bool:
        """Whether something has ended that `harvest` did not see; never of one message: the chunk would be over."""
        return self.count > 1 and self._progress() != self._harvested

    def _progress(self) -> tuple[int, int]:
        at = self._at
        job = self._shares[at][2] if at < len(self._shares) else None
        return at, job.finished if job is not None else 0

    def run(self) -> list[Report]:
        """Run all in this thread; returns what was not harvested meanwhile. Does not raise."""
        with nested.task():
            for at, (_, _, job) in enumerate(self._shares):
                self._ended(at, job.run() if job else None)
        nested.flush()
        return self._take_reports()

    async def run_async(self) -> list[Report]:
        """Run all on the private loop; as `run`."""
        with nested.task():
            for at, (_, _, job) in enumerate(self._shares):
                self._ended(at, await job.run_async() if job else None)
        if nested.unflushed():
            await asyncio.to_thread(nested.flush)
        return self._take_reports()

    def harvest(self) -> list[Report]:
        """What has ended so far of a chunk that still runs; from another thread."""
        if nested.unflushed():
            return []  # what these tasks submitted must be there before they are said to be done
        self._harvested = at, _ = self._progress()
        if at < len(self._shares):
            job = self._shares[at][2]
            report = job.harvest() if job is not None else None
            if report is not None:
                self._add(at, report)
        return self._take_reports()

    def _ended(self, at: int, report: JobReport | None) -> None:
        start, count, _ = self._shares[at]
        if report is None:
            self._reports.append(Report(start, start + count))
        else:
            self._add(at, report)
            self.executed += report.start + report.executed
            self.seconds += report.seconds
            self.nbytes += len(report.values)
        self._at = at + 1

    def _add(self, at: int, report: JobReport) -> None:
        if report.executed:
            start = self._shares[at][0] + report.start
            errors = tuple(map(Failure._make, report.failures))
            self._reports.append(Report(start, start + report.executed, report.values, errors))

    def _take_reports(self) -> list[Report]:
        reports: list[Report] = []
        while self._reports:
            reports.append(self._reports.popleft())
        return reports

    def take_rest(self) -> list[Run]:
        """Take away what has not begun; these messages are to be given back."""
        runs: list[Run] = []
        for at, (start, count, job) in enumerate(self._shares):
            left = count - self._taken.get(at, 0)
            taken = job.take_rest() if job is not None else 0
            if taken:
                runs.append((start + left - taken, start + left))
                self._taken[at] = self._taken.get(at, 0) + taken
        return runs

    def cancel(self, runs: Sequence[Run]) -> None:
        """These messages are to be cancelled: those that have not begun do not, those that run are told."""
        for start, count, job in self._shares:
            mine = intersection([(start, start + count)], clean(runs)) if job is not None else []
            if job is not None and mine:
                job.cancel([(lo - start, hi - start) for lo, hi in mine])

    def fail(self, error: BaseException | None) -> list[Report]:
        """What to report if running it failed as a whole: every message that was not given back, with that error.

        But for those with which nothing is to be done.
        """
        error = error if error is not None else RuntimeError("the chunk ended without a result")
        reports: list[Report] = []
        for at, (start, count, job) in enumerate(self._shares):
            left = count - self._taken.get(at, 0)
            if left:
                reports.append(Report(start, start + left) if job is None else failed(start, left, error))
        return reports


def failed(start: int, count: int, error: BaseException) -> Report:
    """What to say of messages that could not be run: each failed with `error`."""
    blob, text = encode_error(error)
    return Report(start, start + count, errors=tuple(Failure(at, blob, text) for at in range(count)))
