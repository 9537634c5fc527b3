"""A progress bar over a pool's work, for terminals and notebooks."""

from __future__ import annotations

from types import TracebackType

from tqdm.auto import tqdm

__all__ = ["Progress"]


class Progress:
    """Shows how many tasks have ended; `update` takes totals."""

    def __init__(self, description: str, *, unit: str = "task") -> None:
        self._bar = tqdm(desc=description, unit=unit)

    def update(self, done: int, total: int) -> None:
        """`done` of `total` have ended."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()
