"""A clock that moves when it is told to."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Call it for the time, in nanoseconds as the core wants it. It never steps back."""

    def __init__(self, now: int = 0) -> None:
        self._now = now

    def __call__(self) -> int:
        return self._now

    @property
    def seconds(self) -> float:
        """The time in seconds."""
        return self._now / 1e9

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass."""
        self.set(self._now + round(seconds * 1e9))

    def set(self, now: int) -> None:
        """It is `now`, in nanoseconds."""
        if now < self._now:
            raise ValueError(f"the clock shows {self._now} ns and cannot be set back to {now}")
        self._now = now
