"""`ConsumerPool`: who does the work of a queue pool."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any

import cloudpickle
from distributed import Client

from daskqueue.client.options import check_count, check_drain_before, check_retries, check_tags, check_walltime
from daskqueue.client.queue_pool import QueuePool
from daskqueue.consumers import ConsumerBaseClass, GeneralConsumer
from daskqueue.progress import Progress
from daskqueue.wire.operations import OK
from daskqueue_core.errors import DaskQueueError, PoolClosed

__all__ = ["ConsumerPool"]


class ConsumerPool:
    """Consumers on the workers, serving every queue of a pool.

    Parameters
    ----------
    client, queue_pool: whose work. The consumers live with the pool, not with this object.
    ConsumerClass: `GeneralConsumer` runs submitted functions; a subclass of `ConsumerBaseClass` takes items.
    n_consumers: in all, round robin over the workers; None: one on each worker, those that join later too.
    concurrency: calls at once for each consumer (`max_concurrency` is accepted); default: the worker's threads shared
        among its consumers. More than the worker has threads is for I/O-bound work, and gets threads of its own.
    executor: a name in `worker.executors`, or a function without arguments that makes an executor on the worker.
    tags: what these consumers have: they take work whose tags are all among them, and work without tags.
    batch_size: at most so many messages in a lease for each call at once; default: about 90 ms of measured work.
    retries: how often a task is tried again that brings no policy (`options(retry=)`, `QueuePool(retry=)`).
    early_ack: never run a message again: if its worker dies, it has failed.
    drain_before: so long before the end of its job a worker's consumers lease nothing more, give back what has not
        begun, and finish what runs; with n_consumers, others take their place. Seconds, a timedelta, or text such as
        "5m"; default: `daskqueue.drain-before` of `dask.config`, or 0: they work as long as they are let.
    walltime: when a worker's job ends. "auto": `daskqueue.walltime` of `dask.config`, or what the worker knows of
        SLURM_JOB_END_TIME, PBS_WALLTIME, DASKQUEUE_JOB_END_TIME and `dask worker --lifetime`; a duration counts from
        the start of the worker's process; a datetime (without time zone: local time); None: no end.
    """

    def __init__(
        self,
        client: Client | None,
        queue_pool: QueuePool,
        ConsumerClass: type[ConsumerBaseClass] = GeneralConsumer,  # noqa: N803  # as in 0.2.0
        n_consumers: int | None = None,
        *,
        concurrency: int | None = None,
        executor: str | Callable[[], Executor] = "default",
        tags: Iterable[str] = (),
        batch_size: int | None = None,
        retries: int = 0,
        early_ack: bool = False,
        drain_before: float | str | timedelta | None = None,
        walltime: float | str | timedelta | datetime | None = "auto",
        max_concurrency: int | None = None,
    ) -> None:
        if not isinstance(queue_pool, QueuePool):
            raise TypeError(f"queue_pool must be a QueuePool, not {queue_pool!r}")
        if client is not None and not isinstance(client, Client):
            raise TypeError(f"client must be a dask.distributed.Client, not {client!r}")
        if not (isinstance(ConsumerClass, type) and issubclass(ConsumerClass, ConsumerBaseClass)):  # type: ignore[redundant-expr]
            raise TypeError(f"ConsumerClass must be a subclass of ConsumerBaseClass, not {ConsumerClass!r}")
        if concurrency is not None and max_concurrency is not None:
            raise TypeError("concurrency and max_concurrency are the same option: give one of them")
        concurrency = max_concurrency if concurrency is None else concurrency
        for name, value in (("n_consumers", n_consumers), ("concurrency", concurrency), ("batch_size", batch_size)):
            if value is not None:
                check_count(name, value)
        if not isinstance(executor, str) and not callable(executor):
            raise TypeError(f"executor must be a name or a function that makes one, not {executor!r}")
        if not isinstance(early_ack, bool):
            raise TypeError(f"early_ack must be True or False, not {early_ack!r}")
        self.queue_pool = queue_pool
        self.n_consumers = n_consumers
        self.id = uuid.uuid4().hex
        self._kinds = tuple(int(kind) for kind in ConsumerClass.kinds)
        self._spec = {
            "consumer_class": cloudpickle.dumps(ConsumerClass),
            "concurrency": concurrency,
            "executor": executor if isinstance(executor, str) else cloudpickle.dumps(executor),
            "batch_size": batch_size,
            "early_ack": early_ack,
            "retries": check_retries(retries),
            "tags": check_tags(tags),
            "drain_before": check_drain_before(drain_before),
            "walltime": check_walltime(walltime),
        }
        self._name = ConsumerClass.__name__
        self._session = queue_pool._session
        self._started = False
        self._ended = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "running" if self._started else "not started"
        return f"<ConsumerPool of {self._name} for {self.queue_pool.name}, {state}>"

    def __len__(self) -> int:
        """How many consumers: as asked, or one for each worker of the cluster now."""
        if self.n_consumers is not None:
            return self.n_consumers
        return len(self._session.client.scheduler_info(n_workers=-1)["workers"])

    def __getitem__(self, index: int) -> Any:
        """The address of the worker on which consumer `index` is now; IndexError beyond the last that has one."""
        return self._session.sync(self._address(index))

    def __iter__(self) -> Iterator[str]:
        """Where they are now. With an asynchronous client: `await consumers[i]`."""
        if self._session.asynchronous:
            raise TypeError("with an asynchronous client the consumers are read one by one: await consumers[i]")
        return iter(self._session.run(self._addresses()))

    async def _address(self, index: int) -> str:
        addresses = await self._addresses()
        try:
            return addresses[index]
        except IndexError:
            raise IndexError(f"{self!r} has {len(addresses)} consumer(s) on workers now, and no {index}") from None

    async def _addresses(self) -> list[str]:
        self._check()
        answer = await self._session.ask("places", pool=self.queue_pool.name, consumers=self.id)
        if answer[0] != OK:
            raise DaskQueueError(f"the scheduler does not say where the consumers of {self._name} are: {answer[2]}")
        return [str(address) for address in answer[1]]

    def start(self) -> Any:
        """Begin to consume, on the workers that are here and, as asked, on those that join."""
        return self._session.sync(self._start())

    async def _start(self) -> None:
        self._check()
        if self._started:
            return
        answer = await self._session.ask(
            "consume",
            pool=self.queue_pool.name,
            id=self.queue_pool._connection.route.id,
            consumers=self.id,
            spec={**self._spec, "lease_timeout": self.queue_pool._connection.options["lease_timeout"]},
            count=self.n_consumers,
            kinds=self._kinds,
            early_ack=self._spec["early_ack"],
        )
        if answer[0] != OK:
            error = PoolClosed if answer[1] == PoolClosed.__name__ else DaskQueueError
            raise error(f"the consumers of {self.queue_pool.name} did not start: {answer[2]}")
        self._started = True

    def join(
        self, timestep: Any = None, print_timestep: Any = None, *, timeout: float | None = None, progress: bool = False
    ) -> Any:
        """Wait until all work of the queue pool is done. The consumers stay usable.

        Raises `RuntimeError` before `start`, `TimeoutError` after `timeout` seconds. `progress` shows a bar.
        """
        if timestep is not None or print_timestep is not None:
            warnings.warn(
                "timestep and print_timestep do nothing any more: join waits without polling; use progress=True",
                DeprecationWarning,
                stacklevel=2,
            )
        if not self._started:
            raise RuntimeError("join() before start(): nothing would ever be done; call start() first")
        if not progress:
            return self.queue_pool.join(timeout=timeout)
        session = self._session
        deadline = None if timeout is None else session.loop.time() + timeout
        return session.sync(self._join_with_progress(deadline))

    async def _join_with_progress(self, deadline: float | None) -> None:
        pool = self.queue_pool
        joining = asyncio.ensure_future(pool._connection.join(deadline))
        with Progress(pool.name) as bar:
            while not joining.done():
                await asyncio.wait([joining], timeout=0.2)
                if not joining.done() or joining.exception() is None:
                    stats = await pool._connection.stats()
                    bar.update(sum(queue.finished for queue in stats), sum(queue.puts for queue in stats))
        await joining

    def results(self, *, raise_on_error: bool = False) -> Any:
        """As `QueuePool.results`."""
        return self.queue_pool.results(raise_on_error=raise_on_error)

    def failures(self) -> Any:
        """As `QueuePool.failures`."""
        return self.queue_pool.failures()

    def drain(self, timeout: float | None = None) -> Any:
        """Lease nothing more, finish what runs, give the rest back. False: it still ran after `timeout` seconds, and
        goes on to its end; with 0 nobody waits to hear of that."""
        return self._session.sync(self._stop(drain=True, timeout=timeout))

    def cancel(self) -> Any:
        """End the consumers. What runs is finished and reported; nobody waits for it, the rest goes back."""
        return self._session.sync(self._stop(drain=False, timeout=None))

    async def _stop(self, *, drain: bool, timeout: float | None) -> bool:
        if not self._started or self._ended or not self._session.alive:
            return True
        self._ended = True
        asked = self._session.ask("stop", pool=self.queue_pool.name, consumers=self.id, drain=drain)
        stopping = self._session.spawn(asked)  # it goes on after the timeout, and is begun also if that is 0
        done, _ = await asyncio.wait([stopping], timeout=timeout)
        if done:
            stopping.result()
        return bool(done)

    def _check(self) -> None:
        if self._ended:
            raise PoolClosed(f"{self!r} was cancelled or drained: make a new ConsumerPool")
        self.queue_pool._connection.check()

    def __enter__(self) -> ConsumerPool:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the work and end the consumers; after an exception, only end them."""
        with contextlib.suppress(PoolClosed):  # somebody shut it down: nothing to wait for
            if kind is None:
                self.join()
        self.cancel()

    async def __aenter__(self) -> ConsumerPool:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(PoolClosed):
            if kind is None:
                await self.join()
        await self._stop(drain=False, timeout=None)
