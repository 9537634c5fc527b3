"""Core's random walk over a durable queue that is closed, opened, snapshot and compacted on the way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis.stateful import rule

from daskqueue_core.stats import QueueStats
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.queue_machine import CLIENTS, HOUR, SECOND, queue_machine
from daskqueue_storage.queue import DurableQueue
from daskqueue_storage.testing import SimFiles


class Walked(DurableQueue):
    """A queue that can say what a process that opens its directory after a kill would hold."""

    def __init__(self, files: SimFiles, **options: Any) -> None:
        self.files = files
        self.options = options
        super().__init__(
            "/queue",
            files=files,
            segment_bytes=4096,
            wait=100.0,
            sync="none",
            result_ttl=HOUR,
            result_max_bytes=None,
            **options,
        )

    def again(self, files: SimFiles) -> Walked:
        """The same directory, or a copy of it."""
        holders = self._ledger.owners()
        return Walked(files, clock=self._clock, owners=holders)

    def rebuilt(self) -> Walked:
        """Killed, and opened by somebody else."""
        return self.again(self.files.crash("kill"))

    def stats(self) -> QueueStats:
        """Without the count of numbers: an unclean end skips some."""
        return super().stats()._replace(puts=0, bytes=0, segments=0)


class DurableMachine(queue_machine()):  # type: ignore[misc]  # made by a function
    """The walk, with what only a directory can do."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ManualClock(1_000 * SECOND)
        self.queue = Walked(SimFiles(), clock=self.clock)

    @rule()
    def close_and_open(self) -> None:
        """Nothing is changed by that."""
        for client in CLIENTS:  # what is not acknowledged is told again
            self.poll(client, True)
            self.poll(client, True)
        queue = self.queue
        holders = queue.owners()
        before = queue.stats()
        queue.close()
        self.queue = Walked(queue.files, clock=self.clock, owners=holders)
        assert self.queue.report.clean
        assert self.queue.report.whole
        after = self.queue.stats()
        left_out = {"stale": 0, "undelivered_outcomes": 0}
        assert after._replace(**left_out) == before._replace(**left_out)

    @rule()
    def snapshot(self) -> None:
        """Replaying begins here from now on."""
        self.queue._snapshot()

    @rule()
    def compact(self) -> None:
        """What is needed moves, the rest goes."""
        self.queue.compact()


TestDurableMachine = DurableMachine.TestCase
TestDurableMachine.settings = settings(max_examples=settings().max_examples // 8, stateful_step_count=25, deadline=None)
TestDurableMachine.pytestmark = [pytest.mark.timeout(1800)]  # hundreds of examples under the profile "properties"
