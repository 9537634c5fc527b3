"""The durable queue, in a directory and on the simulated disk."""

from pathlib import Path
from typing import Any

import pytest

from daskqueue_core.queue import Queue
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.conformance import QueueConformance
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import SimFiles


class TestDurableQueue(QueueConformance):
    """All of the suite."""

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        """Where it is."""
        self.path = tmp_path / "queue"

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """A queue in this process."""
        return DurableQueue(self.path, clock=clock, sync="none", **options)


class TestDurableQueueOnSimulatedFiles(QueueConformance):
    """All of the suite again, where every write is one of `SimFiles`."""

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """A queue on a disk of its own, with segments so small that it looks after them all the time."""
        return DurableQueue("/queue", clock=clock, files=SimFiles(), segment_bytes=4096, **options)
