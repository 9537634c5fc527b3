"""The scheduler plugin: drives core's directory and carries out its orders. No message of a queue passes here.

It learns of workers when their plugin says hello, and of their loss when Dask removes them. Orders to workers run in
tasks of their own: the scheduler gathers what its hooks return, and nothing slow may hold it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
import weakref
from collections.abc import Iterable
from typing import Any, Final

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler, SchedulerPlugin

from daskqueue.wire.link import new_connection_pool
from daskqueue.wire.operations import ERROR, HANDLER, OK, PROTOCOL
from daskqueue_core.directory import Consume, Directory, Drop, Host, Order, Release, StopConsuming, differences

__all__ = ["DaskQueueScheduler"]

logger = logging.getLogger(__name__)

ORDER_TIMEOUT_S: Final = 30.0
ORDER_AGAIN_S: Final = 0.1
RESOLVE_WAIT_S: Final = 1.0
HELLO_WAIT_S: Final = 10.0
REHOST_PAUSE_S: Final = 0.5

Answer = tuple[Any, ...]


class DaskQueueScheduler(SchedulerPlugin):
    """The directory of one cluster."""

    name = "daskqueue"
    idempotent = True

    def __init__(self) -> None:
        self.protocol = PROTOCOL

    def start(self, scheduler: Scheduler) -> None:  # type: ignore[override]
        """Must not await: between Dask's check for a plugin of that name and adding it, another client could come."""
        self.scheduler = scheduler
        self.directory = Directory(lambda: uuid.uuid4().hex)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._leaving: dict[str, asyncio.TimerHandle] = {}
        self._turns: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._connections = new_connection_pool(scheduler.connection_args)
        self._connected = self._spawn(self._connections.start())
        scheduler.handlers[HANDLER] = self.handle

    async def close(self) -> None:
        """The scheduler ends."""
        for timer in self._leaving.values():
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()
        await self._connections.close()

    # -- hooks of Dask

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """A worker is gone: its queues and consumers move. Orders that it has not answered end."""
        self._connections.remove(worker)
        self._carry_out(self.directory.worker_left(worker))

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        """A client came, or came back."""
        timer = self._leaving.pop(client, None)
        if timer is not None:
            timer.cancel()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Dask calls this on any loss of the connection, and clients reconnect: they get a grace."""
        if any(client in pool.clients for pool in self.directory.pools.values()):
            grace = parse_timedelta(dask.config.get("daskqueue.client-grace", default="60s"))
            self._leaving[client] = asyncio.get_running_loop().call_later(grace, self._client_left, client)

    def _client_left(self, client: str) -> None:
        self._leaving.pop(client, None)
        self._carry_out(self.directory.client_left(client))

    # -- operations

    async def handle(self, do: str, **message: Any) -> Answer:
        """The one handler."""
        operation = getattr(self, f"do_{do}", None)
        if operation is None:
            return ERROR, "UnknownOperation", do
        try:
            return OK, await operation(**message)
        except _Refused as refusal:
            return ERROR, refusal.kind, refusal.detail
        except Exception as error:
            logger.exception("the directory failed at %s", do)
            return ERROR, type(error).__name__, str(error)

    async def do_hello(self, address: str, owner: str, nthreads: int, protocol: int) -> None:
        """A worker's plugin is ready."""
        self._check_protocol(protocol, f"worker {address}")
        self._carry_out(self.directory.worker_joined(address, owner, nthreads))

    async def do_open(
        self, name: str, options: dict[str, Any], n_queues: int, client: str, owned: bool, protocol: int
    ) -> Answer:
        """Create a pool, or attach to the one of that name if its options are equal. Answers its places."""
        self._check_protocol(protocol, f"client {client}")
        record = self.directory.attach(name, client)
        if record is None:
            await self._expect_workers()
            record = self.directory.attach(name, client)
        if record is None:
            self._carry_out(self.directory.open(name, options, n_queues, client=client, owned=owned))
        else:
            differ = differences({**record.options, "n_queues": len(record.places)}, {**options, "n_queues": n_queues})
            if differ:
                raise _Refused("PoolExists", differ)
        return await self._up(name)

    async def do_attach(self, name: str, client: str, protocol: int) -> Answer | None:
        """Take part in a pool. Answers its options and places, None if there is no such pool."""
        self._check_protocol(protocol, f"client {client}")
        record = self.directory.attach(name, client)
        return None if record is None else (record.options, await self._up(name))

    async def do_resolve(self, pool: str) -> Answer | None:
        """Where the pool's queues are; waits a little for one that has no host."""
        if pool not in self.directory.pools:
            return None
        return await self._up(pool)

    async def do_consume(
        self,
        pool: str,
        consumers: str,
        spec: dict[str, Any],
        count: int | None,
        kinds: tuple[int, ...],
        early_ack: bool,
    ) -> None:
        """Start a consumer pool; an error of a worker (it cannot load the class) is an error here."""
        if pool not in self.directory.pools:
            raise _Refused("PoolClosed", pool)
        orders = self.directory.start_consumers(pool, consumers, spec, count=count, kinds=kinds, early_ack=early_ack)
        failures = [failure for failure in await asyncio.gather(*self._carry_out(orders)) if failure is not None]
        if failures:
            self._carry_out(self.directory.stop_consumers(pool, consumers, drain=False))
            raise _Refused("ConsumerFailed", failures[0])

    async def do_stop(self, pool: str, consumers: str, drain: bool) -> None:
        """End a consumer pool; returns when its workers have stopped."""
        await asyncio.gather(*self._carry_out(self.directory.stop_consumers(pool, consumers, drain=drain)))

    async def do_served(self, pool: str) -> Answer:
        """Which kinds of work the pool's consumers take, whether one of them acknowledges early, who they are in
        detail (`ConsumersOf`), and how many workers there are."""
        consumers = self.directory.served(pool)
        record = self.directory.pools.get(pool)
        kinds = sorted({kind for each in consumers for kind in each.kinds})
        early_ack = record is not None and record.early_ack
        return tuple(kinds), early_ack, tuple(map(tuple, consumers)), len(self.directory.workers)

    async def do_close(self, pool: str) -> None:
        """The pool is over."""
        await asyncio.gather(*self._carry_out(self.directory.close(pool)))

    def _check_protocol(self, protocol: int, who: str) -> None:
        if protocol != self.protocol:
            raise _Refused(
                "NotInstalled",
                f"{who} speaks daskqueue protocol {protocol}, the scheduler {self.protocol}: "
                "install the same version of daskqueue-dask everywhere",
            )

    async def _expect_workers(self) -> None:
        """A pool needs workers with our plugin; without any worker at all it waits for the first."""
        deadline = asyncio.get_running_loop().time() + HELLO_WAIT_S
        while self.scheduler.workers and not self.directory.workers:
            if asyncio.get_running_loop().time() > deadline:
                raise _Refused(
                    "NotInstalled",
                    f"none of the {len(self.scheduler.workers)} workers answers: "
                    "is daskqueue-dask installed in their environment?",
                )
            await self._await_change(RESOLVE_WAIT_S)

    async def _up(self, pool: str) -> Answer:
        """The pool's places, after a little time for those that are not up."""
        deadline = asyncio.get_running_loop().time() + RESOLVE_WAIT_S
        while True:
            record = self.directory.pools.get(pool)
            places = tuple(map(tuple, record.places)) if record is not None else ()
            left = deadline - asyncio.get_running_loop().time()
            if all(place[3] for place in places) or left <= 0:
                return places
            await self._await_change(left)

    async def _await_change(self, seconds: float) -> None:
        changed = self._changed
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # -- orders

    def _spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _carry_out(self, orders: Iterable[Order]) -> list[asyncio.Task[Any]]:
        tasks = [self._spawn(self._do(order)) for order in orders]
        self._notify()
        return tasks

    async def _do(self, order: Order) -> str | None:
        """Carry out one order; returns what went wrong.

        Consumers of one pool on one worker are resized in the order that was decided, each answered before the next.
        """
        if not isinstance(order, Consume):
            return await self._obey(order)
        async with self._turns.setdefault((order.address, order.consumers), asyncio.Lock()):
            return None if self._outdated(order) else await self._obey(order)

    async def _obey(self, order: Order) -> str | None:
        """A worker that cannot be reached is asked again until it is gone: then the directory has dealt with it."""
        while True:
            try:
                await self._tell(order)
            except Exception as error:
                failure = f"worker {order.address}: {error}"
                if isinstance(order, Host):
                    logger.warning("worker %s did not host queue %s: %s", order.address, order.uuid, error)
                    await asyncio.sleep(REHOST_PAUSE_S)  # if no worker can, they are not asked all the time
                    self._carry_out(self.directory.host_failed(order.pool, order.uuid))
                    return failure
                if not isinstance(error, OSError) or isinstance(error, asyncio.TimeoutError):
                    if isinstance(order, Consume):
                        logger.error("consumers did not start, others take their place if there are any: %s", failure)
                        self._carry_out(self.directory.consume_failed(order.pool, order.consumers, order.address))
                    return failure
            else:
                if isinstance(order, Host):
                    self.directory.hosted(order.pool, order.uuid)
                    self._notify()
                return None
            await asyncio.sleep(ORDER_AGAIN_S)
            if self._outdated(order):
                return None

    def _outdated(self, order: Order) -> bool:
        """Whether an order that could not be given need not be given any more."""
        if order.address not in self.directory.workers:
            return True
        if not isinstance(order, Consume):
            return False
        record = self.directory.pools.get(order.pool)
        consumers = record.consumers.get(order.consumers) if record is not None else None
        return consumers is None or consumers.placed.get(order.address) != order.count

    async def _tell(self, order: Order) -> None:
        if isinstance(order, Host):
            await self._order(
                order.address,
                "host",
                queue=order.uuid,
                epoch=order.epoch,
                options=order.options,
                expected=order.expected,
            )
        elif isinstance(order, Drop):
            await self._order(order.address, "drop", queue=order.uuid)
        elif isinstance(order, Release):
            await self._order(order.address, "lost", owner=order.owner)
        elif isinstance(order, StopConsuming):
            await self._order(order.address, "stop", consumers=order.consumers, drain=order.drain)
        else:
            assert isinstance(order, Consume)
            record = self.directory.pools.get(order.pool)
            await self._order(
                order.address,
                "consume",
                pool=order.pool,
                consumers=order.consumers,
                count=order.count,
                spec=order.spec,
                places=() if record is None else tuple(map(tuple, record.places)),
            )

    async def _order(self, address: str, do: str, **message: Any) -> None:
        await self._connected
        call = getattr(self._connections(address), HANDLER)(do=do, **message)
        patience = None if do in ("consume", "stop") else ORDER_TIMEOUT_S  # the user's setup and tasks take their time
        answer = await asyncio.wait_for(call, patience)
        if not isinstance(answer, (list, tuple)) or answer[0] != OK:
            raise RuntimeError(f"{do} failed: {answer!r}" if not answer else f"{do} failed: {': '.join(answer[1:])}")


class _Refused(Exception):
    def __init__(self, kind: str, detail: Any) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
