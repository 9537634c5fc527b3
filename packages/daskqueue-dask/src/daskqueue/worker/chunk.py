"""One slot's share of a lease: jobs that run one after the other, in one executor call or on the private loop."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from daskqueue.wire import nested
from daskqueue.wire.errors import encode_error
from daskqueue.worker.runners import Job, JobReport
from daskqueue_core.batch import Run
from daskqueue_core.outcomes import Report

__all__ = ["Chunk", "Share"]

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
        self.prefetch: asyncio.TimerHandle | None = None
        self.executed = 0
        self.seconds = 0.0
        self._shares = shares
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

    def run(self) -> list[Report]:
        """Run all in this thread. Does not raise."""
        reports = [self._report(start, count, job.run() if job else None) for start, count, job in self._shares]
        nested.flush()
        return [report for report in reports if report.stop > report.start]

    async def run_async(self) -> list[Report]:
        """Run all on the private loop."""
        reports = [
            self._report(start, count, await job.run_async() if job else None) for start, count, job in self._shares
        ]
        if nested.unflushed():
            await asyncio.to_thread(nested.flush)
        return [report for report in reports if report.stop > report.start]

    def _report(self, start: int, count: int, report: JobReport | None) -> Report:
        if report is None:
            return Report(start, start + count)
        self.executed += report.executed
        self.seconds += report.seconds
        errors = tuple((failure.position, failure.blob, failure.text) for failure in report.failures)
        return Report(start, start + report.executed, report.values, errors)

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

    def fail(self, error: BaseException | None) -> list[Report]:
        """What to report if running it failed as a whole: every message that was not given back, with that error."""
        blob, text = encode_error(error if error is not None else RuntimeError("the chunk ended without a result"))
        reports = []
        for at, (start, count, _) in enumerate(self._shares):
            left = count - self._taken.get(at, 0)
            if left:
                reports.append(Report(start, start + left, errors=tuple((i, blob, text) for i in range(left))))
        return reports
