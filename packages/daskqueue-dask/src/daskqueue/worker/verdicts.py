"""What is said of an element that did not succeed: its error, whether it is tried again, and its own payload if not.

Only the failing path comes here, one element at a time. The retry policy judges what the function raised, and a
timeout; what never reached the function (arguments or function not loaded) or came after it (a result that cannot
travel) fails at once.

The payload is pickled from a second reading of the block: the first one went through the function, which may have
changed its arguments, and a dead letter that is tried again must get what its submitter gave.

Not here: running (`runners`); counting attempts and keeping dead letters (the queue).

Invariant: nothing here raises, whatever the user's exceptions, their metaclasses or `__reduce__` do.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import random
from collections.abc import Container, Sequence
from typing import Any

from daskqueue.wire.buffers import whole
from daskqueue.wire.calls import Unloadable, encode_args, encode_item
from daskqueue.wire.errors import TaskFailure, encode_error
from daskqueue.worker.loading import Load, Loaded
from daskqueue_core.errors import TaskTimeout
from daskqueue_core.outcomes import FailureReason
from daskqueue_core.retry import Reject, RetryPolicy

__all__ = ["Verdicts"]

_CANCELLED = (asyncio.CancelledError, concurrent.futures.CancelledError)


class Verdicts:
    """Of the elements of one job.

    `elements`: as they were run, None if the function could not be loaded. `asked`: which were asked to stop, live.
    `load_again`: reads the block once more, None if they came as singles, which the queue has.
    """

    def __init__(
        self,
        name: str,
        policy: RetryPolicy,
        *,
        elements: Sequence[Any] | None,
        attempts: bytes,
        timeout: float | None,
        asked: Container[int],
        load_again: Load | None,
    ) -> None:
        self._name = name
        self._policy = policy
        self._elements = elements
        self._attempts = attempts
        self._timeout = timeout
        self._asked = asked
        self._load_again = load_again
        self._original: Loaded | None = None

    def failed(self, index: int, error: BaseException) -> TaskFailure:
        """It ended with `error`."""
        if isinstance(error, _CANCELLED) and index in self._asked:
            return TaskFailure(index, *encode_error(error), reason=FailureReason.CANCELLED)
        if isinstance(error, StopIteration):  # as in a generator; and `extend` may have taken it for the end
            error = RuntimeError(f"{self._name} raised StopIteration")
        if self._elements is None or type(self._elements[index]) is Unloadable:
            return TaskFailure(index, *encode_error(error))
        return self._judged(index, error, FailureReason.FAILED)

    def timed_out(self, index: int, raised: BaseException | None) -> TaskFailure:
        """It was struck, and `raised` is what came of that: None if it returned all the same, or has not ended."""
        if isinstance(raised, _CANCELLED) and index in self._asked:
            return self.failed(index, raised)
        error = TaskTimeout(f"the task {self._name!r} ran longer than its timeout of {self._timeout:g} s")
        if isinstance(raised, (TaskTimeout, *_CANCELLED)):
            error.__traceback__ = raised.__traceback__  # our strike: the text shows where it was
        else:
            error.__cause__ = raised
        return self._judged(index, error, FailureReason.TIMEOUT)

    def unpicklable(self, failure: TaskFailure) -> TaskFailure:
        """It returned something that cannot travel; the same failure, complete."""
        return failure._replace(body=self._body(failure.position))

    def _judged(self, index: int, error: BaseException, reason: FailureReason) -> TaskFailure:
        failure = TaskFailure(index, *encode_error(error), reason=reason)
        attempt = 1 + (self._attempts[index] if self._attempts else 0)
        try:
            delay = self._policy.next_delay(error, attempt, random.random)
            if delay is not None:
                return failure._replace(retry_in=round(delay * 1e9))
            if isinstance(error, (Reject, *self._policy.never_on)):
                failure = failure._replace(reason=FailureReason.REJECTED)
        except BaseException:  # a metaclass's __instancecheck__: a policy that cannot be asked grants nothing
            pass
        return failure._replace(body=self._body(index))

    def _body(self, index: int) -> bytes:
        """The element as a single; empty if the queue has it as one, or if it cannot be pickled again."""
        if self._load_again is None:
            return b""
        try:
            if self._original is None:
                self._original = self._load_again()
            fn, elements, spread = self._original
            element = elements[index]
            if type(element) is Unloadable:
                return b""
            return encode_args(element, None, fn) if spread else encode_item(whole(element))
        except BaseException:  # unpickling and pickling run what the classes say, sys.exit too
            return b""
