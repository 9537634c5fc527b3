"""`DeadTask`: a task that failed for good, as its pool shows it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Final

from daskqueue.client.naming import item_key, task_key
from daskqueue.client.pieces import error_of
from daskqueue.wire.errors import RemoteError, message_of
from daskqueue_core.dead_letters import DeadLetter
from daskqueue_core.errors import WorkerCrashed
from daskqueue_core.outcomes import End

__all__ = ["DeadTask", "dead_tasks"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True, slots=True)
class DeadTask:
    """A task that failed for good. `QueuePool.requeue([key])` runs it again, in a new life."""

    key: str
    #: what it raised, as its future does; a RemoteError if the class is missing here
    error: BaseException
    #: the name of the exception's class
    error_type: str
    message: str
    #: the remote traceback, as text
    traceback: str
    #: how often it ran and failed
    attempts: int
    #: how many workers died with it alone on them
    crashes: int
    #: address of the worker that had it last
    worker: str
    submitted_at: datetime
    failed_at: datetime
    #: why it is not tried again: "failed" (no attempts left), "rejected", "timeout", "crashed", "early ack" or
    #: "damaged" (its bytes are not on the disk as they were written)
    reason: str


def dead_tasks(letters: Iterable[tuple[str, DeadLetter]]) -> list[DeadTask]:
    """Letters with the life of their queue, read: unpickling the exceptions is other people's code."""
    return [_dead_task(uuid, letter) for uuid, letter in letters]


def _dead_task(uuid: str, letter: DeadLetter) -> DeadTask:
    error: BaseException = WorkerCrashed(letter.text) if letter.end != End.RUN else error_of(letter.blob, letter.text)
    if letter.key is not None:
        key = letter.key
    else:
        key = task_key(letter.client, letter.number) if letter.client else item_key(uuid, letter.seq)
    return DeadTask(
        key=key,
        error=error,
        error_type=_type_name(error),
        message=_message(error),
        traceback=letter.text,
        attempts=letter.attempts,
        crashes=letter.crashes,
        worker=letter.owner.partition("#")[0],
        submitted_at=_when(letter.put_at),
        failed_at=_when(letter.failed_at),
        reason=letter.reason,
    )


def _type_name(error: BaseException) -> str:
    if isinstance(error, RemoteError) and error.type_name:
        return error.type_name
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, RemoteError) else message_of(error)


def _when(nanoseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=nanoseconds // 1000)
