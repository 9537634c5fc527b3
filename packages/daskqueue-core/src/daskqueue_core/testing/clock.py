"""A clock that moves when it is told to."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Call it for the time, `now`, in nanoseconds as the core wants it."""

    def __init__(self, now: int = 0) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self.now / 1e9

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.set(self.now + round(seconds * 1e9))

    def set(self, now: int) -> None:
        """It is `now`, in nanoseconds, and not earlier than before."""
        if now < self.now:
            raise ValueError(f"the clock shows {self.now} ns and cannot be set back to {now}")
        self.now = now
