"""What opening a durable queue has found."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Recovery"]


class Recovery(NamedTuple):
    """Of one queue, when its host opened it last. As text: in words."""

    waiting: int
    """Messages that had not begun, or were to be tried again, and those that were taken back."""
    running: int
    """Leased to workers that are still here."""
    taken_back: int
    """Were leased to workers that are gone: they run again."""
    results: int
    """Succeeded, and their result is kept."""
    dead_letters: int
    clean: bool
    """Whether it had been closed; else its host was killed."""
    whole: bool
    """Whether nothing is damaged or missing."""
    report: str
    """What is, in words."""
    seconds: float
    """That opening took."""

    def __str__(self) -> str:
        left = "closed" if self.clean else "left by a process that was killed"
        return (
            f"{left}; {self.waiting} waiting, of which {self.taken_back} had been begun, {self.running} running, "
            f"{self.results} result(s) kept, {self.dead_letters} dead letter(s); files: {self.report}"
        )
