"""How a consumer pool says when the jobs of its workers end: as `(how, seconds)`, plain values."""

from __future__ import annotations

from typing import Final

__all__ = ["AFTER", "AT", "AUTO", "NEVER"]

AUTO: Final = "auto"
"""What the worker's environment says."""
NEVER: Final = "never"
AFTER: Final = "after"
"""So many seconds after the worker's process began."""
AT: Final = "at"
"""At that time, in seconds of the epoch."""
