"""daskqueue-core: the scheduler-agnostic heart of daskqueue.

Messages and their status state machine, both sides of the queue protocol, the directory, pacing and balancing, and a
queue in memory. Pure: no clock, no I/O, no threads; they come in as arguments.
"""

from __future__ import annotations

from daskqueue_core.__about__ import __version__

__all__ = ["__version__"]
