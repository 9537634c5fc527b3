"""Outcomes as they are read: bytes until somebody asks for a value.

The values of a run are one pickle; it is read once, when the first of them is asked for, by whoever asks.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from typing import Any

from daskqueue.wire.calls import decode_values
from daskqueue.wire.errors import decode_error
from daskqueue_core.batch import Buffer
from daskqueue_core.errors import WorkerCrashed
from daskqueue_core.outcomes import End, Outcome

__all__ = ["LostPiece", "Piece"]


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

    __slots__ = ("_errors", "_values", "end", "given")

    def __init__(self, outcome: Outcome, *, given: bool = False) -> None:
        self.end = outcome.end
        self.given = given
        self._errors = {index: (blob, text) for index, blob, text in outcome.errors} if outcome.errors else {}
        self._values = Values(outcome.values) if outcome.values else None

    def failed(self, index: int) -> bool:
        """Whether message `index` of the outcome has no value."""
        return self.end != End.RUN or index in self._errors

    def text(self, index: int) -> str | None:
        """The remote traceback."""
        error = self._errors.get(index)
        return None if error is None else error[1]

    def error(self, index: int) -> BaseException | None:
        """What message `index` failed with."""
        if self.end == End.CANCELLED:
            return CancelledError()
        if self.end == End.CRASHED:
            return WorkerCrashed("the worker died while it may have run this task; not retried: early_ack")
        error = self._errors.get(index)
        return None if error is None else decode_error(*error)

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


class LostPiece(Piece):
    """Stands for messages that were lost with their queue."""

    __slots__ = ("_why",)

    def __init__(self, why: BaseException) -> None:
        super().__init__(Outcome(0, 0, 0))
        self._why = why
        self.end = End.CANCELLED if isinstance(why, CancelledError) else -1

    def error(self, index: int) -> BaseException:
        return self._why
