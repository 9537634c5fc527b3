"""What the chapters of the conformance suite share: the hook, and short ways to say batch and outcome.

Not a chapter: it has no tests. Nothing here imports pytest; a test that cannot be run raises `unittest.SkipTest`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Final
from unittest import SkipTest

from daskqueue_core.batch import Batch, Keep, Kind, Run, lengths_column
from daskqueue_core.outcomes import Cursor, End, Failure, Outcome, Outcomes, Report
from daskqueue_core.queue import Accepted, Lease, PutAnswer, Queue
from daskqueue_core.states import MessageState
from daskqueue_core.testing.clock import ManualClock

__all__ = ["CLIENT", "SECOND", "SuiteBase", "calls", "ends", "refused", "singles"]

CLIENT: Final = 0xC11E27
SECOND: Final = 10**9


class SuiteBase:
    """The hook, and the test's own queue."""

    manual_clock: ClassVar[bool] = True
    """Whether `make_queue` obeys its clock and options. If not, the tests that need them are skipped."""

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """An empty queue with a life of its own.

        `options`: `result_ttl` (nanoseconds), `result_max_bytes`, `maxsize`, `max_bytes`.
        """
        raise NotImplementedError("a conformance class says how its queue is made: override make_queue")

    @cached_property
    def clock(self) -> ManualClock:
        """This test's time."""
        return ManualClock(1_000 * SECOND)

    @cached_property
    def queue(self) -> Queue:
        """This test's queue."""
        return self.make_queue(self.clock)

    def teardown_method(self) -> None:
        """Let go of the queue."""
        if "queue" in self.__dict__:
            self.queue.close()

    def timed_queue(self, **options: Any) -> Queue:
        """This test's queue, with options, on a clock that can be advanced."""
        if not self.manual_clock:
            raise SkipTest("the queue has a clock of its own: manual_clock is False")
        if options:
            self.__dict__["queue"] = self.make_queue(self.clock, **options)
        return self.queue

    def wait(self, nanoseconds: int) -> None:
        """So much time passes."""
        self.clock.set(self.clock() + nanoseconds)

    def admit(self, *batches: Batch, **numbered: int) -> range:
        """Put batches that must be admitted; their numbers."""
        answer: PutAnswer = self.queue.admit(batches, **numbered)
        assert isinstance(answer, Accepted), f"not admitted: {answer}"
        return range(answer.base, answer.base + answer.count)

    def lease(self, limit: int = 1_000, **options: Any) -> Lease:
        """A lease that must be granted."""
        lease = self.queue.lease(limit, **options)
        assert lease is not None, "nothing was ready"
        return lease

    def lease_all(self, **options: Any) -> list[list[int]]:
        """The messages of one lease after the other, until nothing is ready; each has an owner of its own."""
        out: list[list[int]] = []
        owner = options.pop("owner", "all")
        while (lease := self.queue.lease(1_000, owner=f"{owner} {len(out)}", **options)) is not None:
            out.append(lease.ids)
        return out

    def not_begun(self, owner: str, *leases: Lease) -> None:
        """The owner says that it has begun nothing: should it be lost, no message is suspected for that."""
        self.queue.heartbeat(owner, {lease.id: (0, 0) for lease in leases}, [], 0)

    def poll(self, cursor: Cursor | None = None, client: int = CLIENT) -> Outcomes:
        """The client's outcomes after `cursor`."""
        return self.queue.poll(client, cursor)

    def ended(self) -> list[tuple[int, str]]:
        """What the client hears that it has not acknowledged: its numbers and how they ended."""
        return ends(self.poll().outcomes)

    def kept(self) -> list[tuple[int, str]]:
        """What can be read of kept results."""
        return ends(outcome for _, outcome in self.queue.read_kept()[1])

    def count(self, state: MessageState) -> int:
        """How many messages are in `state`."""
        return int(getattr(self.queue.stats(), state.name.lower()))

    def settle(self, lease: Lease, *reports: Report) -> int:
        """Report what ran."""
        return self.queue.settle(lease.id, reports)

    def fail(self, lease: Lease, text: str = "Boom", **options: Any) -> int:
        """Report that all of a lease failed, for the same reason."""
        parts = lease.parts
        reports = [
            Report(each.start, each.stop, errors=tuple(Failure(n, b"E", text, **options) for n in range(each.count)))
            for each in parts
        ]
        return self.queue.settle(lease.id, reports)


def calls(first: int, count: int, *, keep: int = Keep.STREAM, **options: Any) -> Batch:
    """A block of calls: the client's numbers `first` to `first + count`."""
    fields: dict[str, Any] = {"body": b"arguments", "kind": Kind.CALL, "function": b"f", "client": CLIENT}
    return Batch(count, **{**fields, "first": first, "keep": keep, **options})


def singles(*bodies: bytes, **options: Any) -> Batch:
    """A batch of singles."""
    return Batch(len(bodies), b"".join(bodies), lengths_column(list(bodies)), **options)


def ends(outcomes: Iterable[Outcome]) -> list[tuple[int, str]]:
    """The client's numbers that ended, and how: "ok", an error's text, or the name of an `End`."""
    out: list[tuple[int, str]] = []
    for outcome in outcomes:
        errors = {index: text for index, _, text in outcome.errors}
        for index in _numbers(outcome.runs):
            how = "ok" if outcome.end == End.RUN else End(outcome.end).name
            out.append((outcome.first + outcome.index + index, errors.get(index, how)))
    return out


def _numbers(runs: Sequence[Run]) -> list[int]:
    return [number for start, stop in runs for number in range(start, stop)]


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """`call` must raise a ValueError."""
    try:
        answer = call(*args, **kwargs)
    except ValueError:
        return
    raise AssertionError(f"no ValueError, but {answer!r}")
