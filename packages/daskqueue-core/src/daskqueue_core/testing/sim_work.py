"""What the messages of a simulation do, and the share of a lease that one slot of a simulated consumer works on.

A message says by number which `SimWork` it is; a report is made of what has run as the adapter's is: one pickle of
values for each run of a batch, and a blob for each failure.
"""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from daskqueue_core.batch import Part, Run, merge_runs
from daskqueue_core.outcomes import Failure, FailureReason, Report
from daskqueue_core.pacing import OVERSTAY_S
from daskqueue_core.queue import Lease
from daskqueue_core.retry import Reject, Retry
from daskqueue_core.testing.simulation import Timer

__all__ = ["SimChunk", "SimDone", "SimTodo", "SimWork", "Start", "decode_work", "encode_work", "todo_of"]


class SimWork(NamedTuple):
    """What a message of the simulation does: takes time, then has a value, which may be made by a function.

    The function may be a coroutine function. `holds_gil`: nothing else on its worker runs meanwhile.
    """

    seconds: float = 0.0
    value: Any = None
    run: Callable[[], Any] | None = None
    holds_gil: bool = False


class Start(NamedTuple):
    """A message began to run."""

    at: float
    worker: str
    queue: str  # its uuid
    lease: int


def encode_work(number: int) -> bytes:
    """The body of a message that does work `number`, or the block of a batch that does it and those after it."""
    return number.to_bytes(8, "little")


def decode_work(part: Part) -> Iterator[int]:
    """The work of each message of `part`."""
    if part.lengths:
        return (int.from_bytes(body, "little") for body in part.bodies())
    first = int.from_bytes(part.body or b"", "little") + part.offset
    return iter(range(first, first + part.count))


class SimTodo(NamedTuple):
    """A message that has not begun."""

    seq: int
    base: int  # of its batch: a report does not cross it
    work: int


class SimDone(NamedTuple):
    """A message that has run."""

    seq: int
    base: int
    value: Any
    error: BaseException | None


class SimChunk:
    """One slot's share of a lease."""

    def __init__(self, index: int, uuid: str, lease: int, function: bytes, todo: list[SimTodo]) -> None:
        self.index = index
        self.uuid = uuid
        self.lease = lease
        self.function = function
        self.todo = deque(todo)
        self.done: list[SimDone] = []
        self.timer: Timer | None = None
        self.patience = OVERSTAY_S
        self.is_ending = False
        self.prefetch: Timer | None = None

    def take_rest(self, cancelled: Sequence[Run] | None = None) -> list[Run]:
        """Take away what has not begun: all of it, or what was cancelled."""
        taken = [item for item in self.todo if cancelled is None or any(lo <= item.seq < hi for lo, hi in cancelled)]
        self.todo = deque(item for item in self.todo if item not in taken) if cancelled is not None else deque()
        return list(merge_runs([(item.seq, item.seq + 1) for item in taken]))

    def reports(self) -> list[Report]:
        """What to say of what has run."""
        out: list[Report] = []
        for _, same_batch in groupby(enumerate(self.done), lambda pair: (pair[1].base, pair[1].seq - pair[0])):
            some = [done for _, done in same_batch]
            errors = tuple(_failure(at, done.error) for at, done in enumerate(some) if done.error is not None)
            values = pickle.dumps([done.value for done in some])
            out.append(Report(some[0].seq, some[-1].seq + 1, values, errors))
        return out


def _failure(index: int, error: BaseException) -> Failure:
    """A task that raises `Retry` is run again, every other error is final."""
    retry_in = round((error.delay or 0.0) * 1e9) if isinstance(error, Retry) else -1
    reason = FailureReason.REJECTED if isinstance(error, Reject) else FailureReason.FAILED
    return Failure(index, pickle.dumps(error), repr(error), retry_in, reason=reason)


def todo_of(lease: Lease) -> list[SimTodo]:
    """The messages of a lease, in its order."""
    return [
        SimTodo(seq, part.base, work)
        for part in lease.parts
        for seq, work in zip(range(part.start, part.stop), decode_work(part), strict=True)
    ]
