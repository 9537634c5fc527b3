"""How often an operation is tried whose queue answers with an error.

Such an error says nothing of what the queue holds: what failed once may work a moment later. What fails again and again
ends where it was asked for.
"""

from __future__ import annotations

import asyncio
from typing import Final

from daskqueue.utils import logger

__all__ = ["Trials"]

TRIALS: Final = 5
PAUSE_S: Final = 0.25  # before the second; twice as long before each one after it


class Trials:
    """Those of one operation, since it last worked. `what` names it in the log."""

    def __init__(self, what: str) -> None:
        self._what = what
        self.failed = 0

    def worked(self) -> None:
        """Begin anew."""
        self.failed = 0

    async def again(self, error: Exception) -> bool:
        """It failed with `error`: waits, and is true if it is to be tried again."""
        self.failed += 1
        if self.failed >= TRIALS:
            return False
        logger.warning("%s failed, and is tried again (%d of %d): %r", self._what, self.failed + 1, TRIALS, error)
        await asyncio.sleep(PAUSE_S * 2 ** (self.failed - 1))
        return True
