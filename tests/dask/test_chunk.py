"""`Chunk`: what is to be said of a share of a lease, in one piece or bit by bit."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest

from daskqueue.wire import nested
from daskqueue.worker.chunk import Chunk, failed
from daskqueue.worker.runners import Job, Loaded
from daskqueue_core.errors import PoolClosed
from daskqueue_core.outcomes import FailureReason


class Watched:
    """A chunk whose elements look at it while they run."""

    def __init__(self, *counts: int) -> None:
        self.news: list[bool] = []
        self.harvested: list[int] = []
        first, shares = 0, []
        for count in counts:
            shares.append((first, count, Job(self.load(count), count, name="task", is_async=False)))
            first += count
        self.chunk = Chunk(0, "u", 1, b"f", shares)

    def load(self, count: int) -> Any:
        """As a job does."""
        return lambda: Loaded(self.task, range(count), False)

    def task(self, n: int) -> None:
        """Look twice: after a harvest nothing is new."""
        self.news.append(self.chunk.has_news)
        self.harvested += [message for report in self.chunk.harvest() for message in range(report.start, report.stop)]
        assert not self.chunk.has_news


def test_news_are_what_ended_since_the_last_harvest() -> None:
    """Also across jobs; the rest is in the chunk's own report."""
    watched = Watched(2, 1)
    rest = watched.chunk.run()
    assert watched.news == [False, True, True]
    assert watched.harvested == [0, 1]
    assert [(report.start, report.stop) for report in rest] == [(2, 3)]


def test_one_message_is_never_news() -> None:
    """When it has ended, the chunk has."""
    watched = Watched(1)
    assert [(report.start, report.stop) for report in watched.chunk.run()] == [(0, 1)]
    assert watched.news == [False]


def test_failed() -> None:
    """Each message with the error."""
    report = failed(7, 2, ValueError("damaged"))
    assert (report.start, report.stop) == (7, 9)
    assert [failure.index for failure in report.errors] == [0, 1]
    assert "damaged" in report.errors[0][2]


def test_fail_leaves_out_what_was_given_back() -> None:
    """That is somebody else's."""
    chunk = Watched(3, 2).chunk
    assert chunk.take_rest() == [(0, 3), (3, 5)]
    assert chunk.fail(ValueError("no")) == []
    assert pickle.dumps(chunk.fail(None))


def test_fail_of_what_nothing_is_to_be_done_with() -> None:
    """That is done, whatever becomes of the rest."""
    job = Job(lambda: Loaded(abs, range(2), False), 2, name="task", is_async=False)
    reports = Chunk(0, "u", 1, b"f", [(0, 3, None), (3, 2, job)]).fail(ValueError("no"))
    assert [(report.start, report.stop, len(report.errors)) for report in reports] == [(0, 3, 0), (3, 5, 2)]


def test_cancel_reaches_the_jobs_it_concerns() -> None:
    """Messages of the queue become positions of a job; those that have not begun are reported as cancelled."""
    ran: list[int] = []
    jobs = [Job(lambda: Loaded(ran.append, [10, 11, 12], False), 3, name="a", is_async=False),
            Job(lambda: Loaded(ran.append, [20, 21], False), 2, name="b", is_async=False)]  # fmt: skip
    chunk = Chunk(0, "u", 1, b"f", [(100, 3, jobs[0]), (200, 2, jobs[1]), (300, 1, None)])
    chunk.cancel([(201, 202), (102, 103), (300, 301), (999, 1000)])
    reports = chunk.run()
    assert ran == [10, 11, 20]
    failures = [(report.start + failure.index, failure.reason) for report in reports for failure in report.errors]
    assert failures == [(102, FailureReason.CANCELLED), (201, FailureReason.CANCELLED)]
    assert [(report.start, report.stop) for report in reports] == [(100, 103), (200, 202), (300, 301)]


def test_what_tasks_submitted_cannot_be_flushed(caplog: pytest.LogCaptureFixture) -> None:
    """Its pool was shut down, say: that is no failure of the tasks, and the other pools are flushed."""
    caplog.set_level(logging.WARNING)
    flushed: list[str] = []

    class Pool:
        buffered = True

        def flush_now(self) -> None:
            self.buffered = False
            flushed.append("tried")
            raise PoolClosed("pool p was shut down")

    pools = [Pool(), Pool()]
    for pool in pools:
        nested.register(pool)
    chunk = Chunk(0, "u", 1, b"f", [(0, 2, Job(lambda: Loaded(abs, [1, 2], False), 2, name="a", is_async=False))])
    (report,) = chunk.run()
    assert (report.start, report.stop, report.errors) == (0, 2, ())
    assert flushed == ["tried", "tried"]
    assert "pool p was shut down" in caplog.text
