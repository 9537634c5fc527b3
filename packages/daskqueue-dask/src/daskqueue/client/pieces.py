"""Outcomes as they are read: bytes until somebody asks for a value.

The values of a run are one pickle; it is read once, when the first of them is asked for, by whoever asks.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any, Final

from daskqueue.wire.calls import decode_values
from daskqueue.wire.errors import RemoteError, RemoteTraceback, decode_error
from daskqueue_core.batch import Buffer
from daskqueue_core.errors import DamagedPayload, DuplicateKey, TaskExpired, WorkerCrashed
from daskqueue_core.outcomes import End, Outcome

__all__ = ["LostPiece", "Piece", "error_of"]

_DAMAGED: Final = f"{DamagedPayload.__name__}: "


def error_of(blob: bytes, text: str) -> BaseException:
    """The exception that a queue keeps of a failed task, of which only the text may be left."""
    if blob:
        return decode_error(blob, text)
    if text.startswith(_DAMAGED):  # said by the store, which pickles nothing
        return DamagedPayload(text.removeprefix(_DAMAGED))
    lines = text.strip().splitlines()
    error = RemoteError(f"{lines[-1] if lines else 'it failed'} (its queue had no room left for the exception itself)")
    error.__cause__ = RemoteTraceback(text)
    return error


class Values:
    """Values of a run: one pickle, read when the first of them is asked for."""

    __slots__ = ("_blob", "_values")

    def __init__(self, blob: Buffer) -> None:
        self._blob: Buffer | None = blob
        self._values: list[Any] | None = None

    def get(self, index: int) -> Any:
        """The value at `index`; raises ResultLoadError."""
        return self.all()[index]

    def all(self) -> list[Any]:
        """All of them."""
        blob = self._blob  # looked at first: another thread that finds it gone finds the values
        values = self._values
        if values is None:
            values = self._values = decode_values(blob if blob is not None else b"")
            self._blob = None
        return values

    def let_go(self, index: int) -> None:
        """The value at `index` is not asked for again."""
        if self._values is not None:
            self._values[index] = None


class Piece:
    """An outcome with its values shared by all who read it.

    Of one that is `given`, each value is asked for by one reader, who keeps it and then lets go of it here: so nobody
    holds a value because he holds another of the same run.
    """

    __slots__ = ("_attempts", "_errors", "_values", "end", "given", "life", "retried")

    def __init__(self, outcome: Outcome, *, given: bool = False, discard: bool = False) -> None:
        self.end = outcome.end
        self.given = given
        self.life = outcome.life
        self._attempts = outcome.attempts
        self.retried = bool(outcome.attempts or outcome.life)
        self._errors = {index: (blob, text) for index, blob, text in outcome.errors} if outcome.errors else {}
        self._values = Values(outcome.values) if outcome.values and not discard else None

    def attempts(self, index: int) -> int:
        """How often message `index` was tried."""
        if self._attempts:
            return self._attempts[index] if index < len(self._attempts) else 1
        return int(self.end in _TRIED)

    def failed(self, index: int) -> bool:
        """Whether message `index` of the outcome has no value."""
        return self.end != End.RUN or index in self._errors

    def text(self, index: int) -> str | None:
        """The remote traceback."""
        error = self._errors.get(index)
        return None if error is None else error[1]

    def error(self, index: int, key: str = "") -> BaseException | None:
        """What message `index` failed with; `key` names it in what is said of it."""
        if self.end == End.RUN:
            error = self._errors.get(index)
            return None if error is None else error_of(*error)
        return self._other_end(index, f"task {key}" if key else "this task")

    def _other_end(self, index: int, task: str) -> BaseException:
        """It ended otherwise than by running."""
        if self.end == End.CRASHED:
            return WorkerCrashed(
                f"the worker died while it may have run {task}, at attempt {self.attempts(index)}. It is not retried: "
                "it was alone on too many workers that died (RetryPolicy.max_crashes), or its consumer acknowledges "
                "early (early_ack). dead_letters() says which worker it was and how many it has cost"
            )
        if self.end == End.EXPIRED:
            return TaskExpired(f"{task} was not begun before it expired")
        if self.end == End.DUPLICATE:
            return DuplicateKey(
                f"{task} was not put: a task with that key is unfinished, or its result is kept; on_duplicate='return' "
                "waits for that one, 'replace' takes its place"
            )
        return CancelledError()

    def value(self, index: int) -> Any:
        """The value of message `index`, which has one."""
        return None if self._values is None else self._values.get(index)

    def let_go(self, index: int) -> None:
        """The reader of message `index` has its value."""
        if self._values is not None:
            self._values.let_go(index)

    def values(self, lo: int, hi: int) -> list[Any] | None:
        """Values of messages `lo` to `hi` if they all have one."""
        if self.end != End.RUN or (self._errors and any(lo <= index < hi for index in self._errors)):
            return None
        return [None] * (hi - lo) if self._values is None else self._values.all()[lo:hi]


_TRIED: Final = (End.RUN, End.CRASHED)


class LostPiece(Piece):
    """Stands for messages that were lost with their queue."""

    __slots__ = ("_why",)

    def __init__(self, why: BaseException) -> None:
        super().__init__(Outcome(0, 0, 0))
        self._why = why
        self.end = End.CANCELLED if isinstance(why, CancelledError) else -1

    def error(self, index: int, key: str = "") -> BaseException:
        return self._why
