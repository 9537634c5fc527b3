"""daskqueue.worker.verdicts: whether a failure is tried again, and what a dead letter brings along."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from daskqueue.wire.calls import decode_values, encode_args, encode_block, encode_item, encode_items, encode_lengths
from daskqueue.wire.control import Control, ControlLoadError, encode_control
from daskqueue.wire.errors import ArgumentLoadError, FunctionLoadError, TaskFailure, UnpicklableResult, decode_error
from daskqueue.wire.functions import Style, encode_function
from daskqueue.worker.async_loop import PrivateLoop
from daskqueue.worker.runners import Job, Loaded
from daskqueue_core.outcomes import FailureReason
from daskqueue_core.retry import Reject, Retry, RetryPolicy

LIMIT = 30
SECOND = 10**9


@pytest.fixture
def private_loop() -> Iterator[PrivateLoop]:
    """For coroutines."""
    loop = PrivateLoop()
    yield loop
    assert loop.close(LIMIT)


def raises(error: BaseException) -> None:
    """A task that fails as it is told."""
    raise error


async def raises_async(error: BaseException) -> None:
    """The same on the loop."""
    await asyncio.sleep(0)
    raise error


def fails(_: object) -> None:
    """A task that fails."""
    raise ValueError


def job_of(fn: Any, elements: Any, *, style: Style = Style.ARGS, **options: Any) -> Job:
    """A block of calls."""
    body = encode_block(elements, fn, style)
    return Job.of_calls(encode_function(fn, style).shared, body, None, 0, len(elements), **options)


def verdicts_of(fn: Any, errors: list[BaseException], **options: Any) -> list[tuple[float | None, int]]:
    """Seconds until the next attempt, None: never, and why not."""
    failures = job_of(fn, errors, style=Style.COLUMN, **options).run().failures
    assert [failure.position for failure in failures] == list(range(len(errors)))
    return [(f.retry_in / SECOND if f.retry_in >= 0 else None, f.reason) for f in failures]


STEADY = RetryPolicy(max_attempts=3, jitter=False, retry_on=(OSError, Exception), never_on=KeyError)
FAILED, REJECTED = FailureReason.FAILED, FailureReason.REJECTED


@pytest.mark.parametrize("fn", [raises, raises_async])
def test_the_policy_judges(private_loop: PrivateLoop, fn: Any) -> None:
    """By error and by the attempts so far, one byte each."""
    errors = [ValueError(), ValueError(), ValueError(), KeyError(), Reject(), Retry(7), Retry(7), SystemExit()]
    expected = [
        (1.0, FAILED), (2.0, FAILED), (None, FAILED), (None, REJECTED), (None, REJECTED), (7.0, FAILED),
        (None, FAILED), (None, FAILED),
    ]  # fmt: skip
    assert (
        verdicts_of(fn, errors, retry=STEADY, attempts=bytes([0, 1, 2, 0, 0, 1, 2, 0]), private_loop=private_loop)
        == expected
    )


def test_the_batch_s_policy_comes_first() -> None:
    """Before the consumer's; one that gives only a timeout leaves that in force."""
    batch = encode_control(Control(retry=RetryPolicy(max_attempts=9, backoff=5.0, jitter=False)))
    assert verdicts_of(raises, [KeyError()], retry=STEADY, control=batch) == [(5.0, FAILED)]
    assert verdicts_of(raises, [ValueError()], retry=STEADY, control=encode_control(Control(60.0))) == [(1.0, FAILED)]


def test_without_a_policy() -> None:
    """Only the task itself asks; without a delay it waits as a policy says by default, with jitter."""
    assert verdicts_of(raises, [ValueError(), Retry(3)]) == [(None, FAILED), (3.0, FAILED)]
    ((delay, _),) = verdicts_of(raises, [Retry()])
    assert delay is not None
    assert 0 <= delay <= 1


def test_what_the_function_did_not_raise_is_final() -> None:
    """A function, arguments, options or a result that cannot travel: trying again cannot help."""
    options: dict[str, Any] = {"retry": STEADY}
    job = Job.of_calls(encode_function(raises).shared[:-5], encode_block([(1,)], raises), None, 0, 1, **options)
    assert shown(job.run().failures) == [FunctionLoadError]
    job = Job.of_calls(encode_function(raises).shared, b"damaged", None, 0, 2, **options)
    assert shown(job.run().failures) == [ArgumentLoadError, ArgumentLoadError]
    job = job_of(lambda: threading.Lock(), [()], **options)
    assert shown(job.run().failures) == [UnpicklableResult]
    job = job_of(raises, [(ValueError(),)] * 2, control=b"\x01damaged", **options)
    assert shown(job.run().failures) == [ControlLoadError, ControlLoadError]


def shown(failures: tuple[TaskFailure, ...]) -> list[type]:
    """Their types; all are final."""
    assert all(failure.retry_in < 0 and failure.reason == FAILED for failure in failures)
    return [type(decode_error(failure.blob, failure.text)) for failure in failures]


class Unaskable(type):
    """A metaclass that makes `isinstance` fail."""

    def __instancecheck__(cls, instance: object) -> bool:
        raise SystemExit("no")


class Unanswered(Exception, metaclass=Unaskable):
    """An exception class that cannot be asked about."""


def test_a_policy_that_cannot_be_asked() -> None:
    """It grants nothing and harms nobody."""
    policy = RetryPolicy(max_attempts=3, retry_on=(Unanswered,))
    assert verdicts_of(raises, [ValueError(), KeyError()], retry=policy) == [(None, FAILED), (None, FAILED)]


@pytest.mark.parametrize("error", [asyncio.CancelledError(), concurrent.futures.CancelledError()])
@pytest.mark.parametrize("asked", [True, False])
def test_an_agreed_cancel_is_no_failure(error: BaseException, asked: bool) -> None:
    """A thread that was asked to stop may say so with either CancelledError; unasked, it is a failure as any."""

    def process(_: int) -> None:
        if asked:
            job.cancel([(0, 1)])
        raise error

    job = Job.of_items(process, encode_items([0]), None, 0, 1)
    (failure,) = job.run().failures
    assert failure.reason == (FailureReason.CANCELLED if asked else FAILED)
    assert bool(failure.body) is not asked, "nobody runs it again"


# --------------------------------------------------------------------------------------------------------------- bodies


def test_a_dead_letter_brings_its_own_payload() -> None:
    """Of a block, whatever its style: as a single that runs as the element would have, as it was submitted."""

    def changes(values: list[int], *, more: int = 0) -> None:
        values.append(more)
        raise ValueError(values)

    cases: list[tuple[Style, list[Any]]] = [
        (Style.ARGS, [([1],), ([2],), ([3],)]),
        (Style.KWARGS, [(([1],), {}), (([2],), {"more": 5}), (([3],), {})]),
        (Style.COLUMN, [[1], [2], [3]]),
    ]
    for style, elements in cases:
        shared = encode_function(changes, style).shared
        block = encode_block(elements, changes, style)
        failures = Job.of_calls(shared, block, None, 1, 3).run().failures
        bodies = [failure.body for failure in failures]
        again = Job.of_calls(shared, b"".join(bodies), encode_lengths(bodies), 0, 2).run().failures
        assert [failure.blob for failure in again] == [failure.blob for failure in failures]
        assert [failure.body for failure in again] == [b"", b""], "the queue has singles"


def test_a_dead_letter_of_large_bytes() -> None:
    """Which were not read from the block but where they are."""
    elements = [bytes([n]) * 50_000 for n in range(3)]
    failures = job_of(fails, elements, style=Style.COLUMN).run().failures
    assert [failure.body for failure in failures] == list(map(encode_item, elements))


def test_items_bring_theirs() -> None:
    """As put would have written them."""
    (failure,) = Job.of_items(fails, encode_items([(1, 2)]), None, 0, 1).run().failures
    assert failure.body == encode_item((1, 2))


def test_only_the_last_failure_brings_it() -> None:
    """What is tried again is still in the queue."""
    failures = job_of(raises, [(ValueError(),)] * 2, retry=STEADY, attempts=b"\x01\x02").run().failures
    assert [bool(failure.body) for failure in failures] == [False, True]


def test_a_result_that_cannot_travel_brings_it_too() -> None:
    """It is a dead letter as any other, also when it is harvested."""
    harvested: list[Any] = []

    def process(i: int) -> object:
        harvested.append(job.harvest())
        return threading.Lock()

    job = Job.of_items(process, encode_items(range(2)), None, 0, 2, keep_values=True)
    (last,) = job.run().failures
    assert (last.position, last.body) == (0, encode_item(1))
    (first,) = harvested[1].failures
    assert first.body == encode_item(0)


class OneWay:
    """Unpickles as something that does not pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return threading.Lock, ()


def test_an_argument_that_pickles_only_once() -> None:
    """No payload then: the queue keeps the block."""
    (failure,) = job_of(lambda _: 1 / 0, [(OneWay(),)]).run().failures
    assert failure.body == b""
    assert isinstance(decode_error(failure.blob, failure.text), ZeroDivisionError)


def test_the_block_is_read_again_once() -> None:
    """However many fail."""
    loads = []

    def load() -> Loaded:
        loads.append(1)
        return Loaded(fails, range(50), False)

    report = Job(load, 50, name="fails", is_async=False, in_block=True).run()
    assert [failure.body for failure in report.failures] == [encode_item(i) for i in range(50)]
    assert len(loads) == 2


def test_singles_fail_without_a_body() -> None:
    """The queue has each."""
    bodies = [encode_args((ValueError(),), None, raises)] * 2
    report = Job.of_calls(encode_function(raises).shared, b"".join(bodies), encode_lengths(bodies), 0, 2).run()
    assert [failure.body for failure in report.failures] == [b"", b""]
    assert decode_values(report.values) == [None, None]
