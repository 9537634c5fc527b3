"""CPython's own tests of executors, `wait` and `as_completed`, on a QueueExecutor (where the interpreter has them)."""

import time
from typing import Any, ClassVar

import pytest
from distributed import Client, LocalCluster

from daskqueue import QueueExecutor

suite: Any = pytest.importorskip("test.test_concurrent_futures.executor", reason="this Python comes without its tests")
wait_suite: Any = pytest.importorskip("test.test_concurrent_futures.test_wait")
completed_suite: Any = pytest.importorskip("test.test_concurrent_futures.test_as_completed")
util: Any = pytest.importorskip("test.test_concurrent_futures.util")

pytestmark = pytest.mark.slow


class OnAQueue:
    """What CPython's mixins ask of an executor under test."""

    worker_count = 4
    executor_type = QueueExecutor
    cluster: ClassVar[LocalCluster]

    @classmethod
    def setUpClass(cls) -> None:
        """One cluster for all."""
        super().setUpClass()  # type: ignore[misc]
        cls.cluster = LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None)

    @classmethod
    def tearDownClass(cls) -> None:
        """The cluster goes."""
        cls.cluster.close()
        super().tearDownClass()  # type: ignore[misc]

    def setUp(self) -> None:
        """An executor for each test."""
        super().setUp()  # type: ignore[misc]
        self.client = Client(self.cluster)
        self.executor: Any = QueueExecutor(self.client, max_workers=self.worker_count)
        self.t1 = time.monotonic()

    def tearDown(self) -> None:
        """It ends, whatever the test did."""
        self.executor.shutdown(wait=True)
        self.executor = None
        self.client.close()
        super().tearDown()  # type: ignore[misc]


class TestExecutor(OnAQueue, suite.ExecutorTest, util.BaseTestCase):  # type: ignore[misc]
    """submit, map, stale references, frozen futures ..."""


class TestWait(OnAQueue, wait_suite.WaitTests, util.BaseTestCase):  # type: ignore[misc]
    """wait, in its three ways."""


class TestAsCompleted(OnAQueue, completed_suite.AsCompletedTests, util.BaseTestCase):  # type: ignore[misc]
    """as_completed."""
