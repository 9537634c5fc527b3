"""QueueActor as a native Dask actor, in a worker process: the same promises, and all that travels pickles."""

import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import cloudpickle
import pytest
from distributed import Client, LocalCluster

from daskqueue.worker.queue_actor import QueueActor
from daskqueue_core.queue import Queue
from daskqueue_core.testing.clock import ManualClock
from daskqueue_core.testing.conformance import QueueConformance

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the worker does not find the tests


class Facade:
    """Each call waits for its ActorFuture."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._actor, name)
        return lambda *args, **kwargs: method(*args, **kwargs).result()


def _shorten_the_wait_of_early_puts() -> None:
    from daskqueue.worker import puts

    puts.EARLY_WAIT_S = 0.01  # type: ignore[misc]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """One worker process for the module."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        client.run(_shorten_the_wait_of_early_puts)
        yield client


class TestNativeActor(QueueConformance):
    """The suite without what needs the test's clock: the actor makes its queue, with the worker's."""

    manual_clock = False

    @pytest.fixture(autouse=True)
    def _client(self, client: Client) -> None:
        self.client = client

    def make_queue(self, clock: ManualClock, **options: Any) -> Queue:
        """An actor of its own for each test."""
        return cast(Queue, Facade(self.client.submit(QueueActor, actor=True, pure=False).result()))
