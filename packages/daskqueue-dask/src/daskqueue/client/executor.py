"""`QueueExecutor`: a queue pool and its consumers as a `concurrent.futures.Executor`."""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

from distributed import Client, LocalCluster

from daskqueue.client.consumer_pool import ConsumerPool
from daskqueue.client.futures import TaskFuture
from daskqueue.client.options import POOL_DEFAULTS, Durability, reject_unknown
from daskqueue.client.queue_pool import QueuePool
from daskqueue.client.task_door import PoolView
from daskqueue.client.task_options import TaskOptions, choose
from daskqueue_core.batch import Keep

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["QueueExecutor"]

_with_clusters: Final[set[QueueExecutor]] = set()  # not shut down
_CONSUMER_OPTIONS: Final = ("executor", "batch_size", "early_ack", "retries", "tags", "drain_before", "walltime")


class QueueExecutor(Executor):
    """Runs calls on the workers of a Dask cluster, with the interface of the standard library.

    Parameters
    ----------
    client: the Dask client; default: a LocalCluster of its own, which ends with the executor.
    max_workers: how many calls run at once, in the whole cluster (`n_consumers` is accepted); default: one on each
        thread of each worker, those that join later too.
    name, options: as for `QueuePool` and `ConsumerPool`.

    Results are not kept for other readers: they stream back to this executor's futures. With a cluster of its own the
    process does not end before its calls have, as in the standard library, also if nobody shuts it down; with a
    client, they go on as long as their pool and its cluster do.
    """

    def __init__(
        self,
        client: Client | None = None,
        max_workers: int | None = None,
        *,
        n_consumers: int | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        workers = max_workers if max_workers is not None else n_consumers
        if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int)):
            raise TypeError(f"max_workers must be a whole number, not {workers!r}")
        if workers is not None and workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        reject_unknown("QueueExecutor", options, {*POOL_DEFAULTS, "n_queues", *_CONSUMER_OPTIONS})
        consumer_options = {option: options.pop(option) for option in _CONSUMER_OPTIONS if option in options}
        self._owned: list[Client | LocalCluster] = []
        if client is None:
            client = self._own_cluster()
        elif not isinstance(client, Client):
            raise TypeError(f"client must be a dask.distributed.Client, not {client!r}")
        elif client.asynchronous:
            raise TypeError("an Executor blocks: with an asynchronous Dask client use QueuePool and ConsumerPool")
        pool: QueuePool | None = None
        try:
            pool = self._pool = QueuePool(client, name=name, **options)
            concurrency = None if workers is None else 1
            self._consumers = ConsumerPool(
                client, self._pool, n_consumers=workers, concurrency=concurrency, **consumer_options
            )
            self._consumers.start()
        except BaseException:
            if pool is not None and name is None and pool._connection.options["durability"] != Durability.DURABLE:
                pool._leave()  # others may work with one that has a name or a directory
            self._close_owned()
            raise

    def _own_cluster(self) -> Client:
        cluster = LocalCluster(
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": ":0"},  # else it warns when another cluster has the default port
        )
        client = Client(cluster, set_as_default=False)
        self._owned = [client, cluster]
        _with_clusters.add(self)
        return client

    def _close_owned(self) -> None:
        owned, self._owned = self._owned, []
        _with_clusters.discard(self)
        for thing in owned:
            thing.close()

    def __repr__(self) -> str:
        return f"<QueueExecutor of {self._pool!r}>"

    @property
    def queue_pool(self) -> QueuePool:
        """The queues behind it."""
        return self._pool

    def options(self, **options: Unpack[TaskOptions]) -> PoolView:
        """The same calls with options for their tasks: `executor.options(timeout=60).submit(fn, x)`; see
        `QueuePool.options`. What has a key of its own is kept for other readers."""
        return PoolView(self._pool, choose(options), stream=True)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """Run `fn(*args, **kwargs)` on a worker."""
        return self._pool._submit(fn, args, kwargs, Keep.STREAM)

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """`fn` of the items side by side, values in order; see `QueuePool.map`."""
        values: Iterator[Any] = self._pool.map(
            fn, *iterables, timeout=timeout, chunksize=chunksize, buffersize=buffersize
        )
        return values

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; with `wait` return when all have ended. `cancel_futures` cancels what has not begun."""
        if not self._owned:
            self._pool.shutdown(wait, cancel_futures)
        elif wait:
            self._pool.shutdown(True, cancel_futures)
            self._close_owned()
        else:
            self._pool._connection.refuse()
            _with_clusters.discard(self)
            # not a daemon: as in the standard library, the process ends when the work is done
            closing = threading.Thread(target=self.shutdown, kwargs={"cancel_futures": cancel_futures})
            closing.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        """Wait for all calls; after an interrupt cancel what has not begun, and wait for nothing that runs."""
        if kind is not None and not issubclass(kind, Exception):
            if self._owned:
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._close_owned()
            else:
                self._pool._leave(wait=False)
        else:
            self.shutdown(wait=True)
        return False


def _shut_down_all() -> None:
    """The interpreter ends: finish what was submitted to clusters that end with it."""
    for executor in list(_with_clusters):
        executor.shutdown()


# where `concurrent.futures` waits for its executors: before `atexit`, when Dask closes clusters
getattr(threading, "_register_atexit", atexit.register)(_shut_down_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_with_clusters.clear)  # they are the parent's
