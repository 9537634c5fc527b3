"""QueueActor in this process, in memory and on disk: the same promises behind asynchronous methods."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from daskqueue.worker import puts
from daskqueue.worker.durable_actor import DurableActor
from daskqueue.worker.hosted_queue import HostedQueue
from daskqueue.worker.queue_actor import QueueActor
from daskqueue_core.queue import Queue, TransientQueue
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.conformance import QueueConformance


class Facade:
    """Each call runs the event loop until it is answered."""

    def __init__(self, loop: asyncio.AbstractEventLoop, actor: QueueActor) -> None:
        self._loop = loop
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._actor, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))


class TestQueueActor(QueueConformance):
    """All of the suite: the actor's queue has the test's clock."""

    @pytest.fixture(autouse=True)
    def _impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Early puts are refused after a moment rather than half a minute."""
        monkeypatch.setattr(puts, "EARLY_WAIT_S", 0.01)

    def setup_method(self) -> None:
        """An event loop for each test."""
        self.loop = asyncio.new_event_loop()

    def teardown_method(self) -> None:
        """It runs until the queue is closed."""
        super().teardown_method()
        self.loop.close()

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """An actor over a queue in this process."""
        return self.serve(QueueActor, TransientQueue(clock=clock, **options))

    def serve(self, kind: Callable[[Any], QueueActor], queue: TransientQueue) -> Queue:
        """`queue`, behind an actor."""

        async def make() -> QueueActor:
            return kind(queue)

        return cast(Queue, Facade(self.loop, self.loop.run_until_complete(make())))


class TestDurableActor(TestQueueActor):
    """All of the suite again: every operation is in a thread."""

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        """Where the queue is."""
        self.path = tmp_path / "queue"

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """An actor over a queue in a directory."""
        return self.serve(DurableActor, HostedQueue(self.path, clock=clock, sync="none", **options))
