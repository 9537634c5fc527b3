"""The queue in memory, called directly."""

from typing import Any

from daskqueue_core.queue import Queue, TransientQueue
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.conformance import QueueConformance


class TestTransientQueue(QueueConformance):
    """All of the suite."""

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """A queue in this process."""
        return TransientQueue(clock=clock, **options)
