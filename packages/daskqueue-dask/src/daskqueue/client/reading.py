"""Kept results as their readers want them: by key, in order of submission for each client.

Unpickling is other people's code, so what is here runs in the caller's thread, or in one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from daskqueue.client.futures import FoundFuture
from daskqueue.client.naming import task_key
from daskqueue.client.pieces import Piece
from daskqueue_core.outcomes import Outcome

__all__ = ["Kept", "KeptTask", "read_errors", "read_values"]


class KeptTask(NamedTuple):
    """A task's key, its outcome, and its place in that."""

    key: str
    piece: Piece
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record


class Kept(NamedTuple):
    """What was read from a pool, as bytes."""

    outcomes: Sequence[tuple[int, Outcome]]
    key_of: Callable[[int, int], str | None]
    """Explicit keys, of a client and its number of a task."""
    wanted: Collection[str] | None = None
    found: Sequence[FoundFuture] = ()
    """Tasks that were asked for by their keys."""

    def tasks(self) -> list[KeptTask]:
        """In order of submission for each client; of one key the last."""
        found: dict[tuple[int, int], tuple[Piece, int, str]] = {}
        for client, outcome in self.outcomes:
            piece = Piece(outcome)
            for lo, hi in outcome.runs:
                for index in range(lo, hi):
                    key = outcome.keys[index] if outcome.keys else ""
                    found.setdefault((client, outcome.first + outcome.index + index), (piece, index, key))
        tasks: dict[str, KeptTask] = {}
        for client, number in sorted(found):
            piece, index, key = found[client, number]
            key = key or self.key_of(client, number) or task_key(client, number)
            if self.wanted is None or key in self.wanted:
                tasks[key] = KeptTask(key, piece, index)
        for future in self.found:
            if future._piece is not None:
                tasks[future.key] = KeptTask(future.key, future._piece, future._index)
        return list(tasks.values())


def read_values(tasks: Iterable[KeptTask], *, raise_on_error: bool) -> dict[str, Any]:
    """Values by key; a failed task is left out, or its exception raised."""
    values: dict[str, Any] = {}
    for key, piece, index in tasks:
        error = piece.error(index, key) if piece.failed(index) else None
        if error is None:
            values[key] = piece.value(index)
        elif raise_on_error:
            raise error
    return values


def read_errors(tasks: Iterable[KeptTask]) -> dict[str, BaseException]:
    """Exceptions by key, of those that failed."""
    errors = {key: piece.error(index, key) for key, piece, index in tasks if piece.failed(index)}
    return {key: error for key, error in errors.items() if error is not None}
