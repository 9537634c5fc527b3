"""Gives the directory's orders to the workers, and tells the directory what came of them.

Each order is carried out in a task of its own: the scheduler gathers what its hooks return, and nothing slow may hold
it. A worker that cannot be reached is told again until it is gone.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Coroutine, Iterable
from math import inf
from time import monotonic as now
from typing import Any, Final

from daskqueue.wire.link import new_connection_pool
from daskqueue.wire.operations import HANDLER, OK, REFUSED
from daskqueue_core.directory import Consume, Directory, Drop, Host, Order, Release, StopConsuming, TakeOver

__all__ = ["Answer", "Orders"]

logger = logging.getLogger(__name__)

Answer = tuple[Any, ...]

ORDER_TIMEOUT_S: Final = 30.0
ORDER_AGAIN_S: Final = 0.1
REHOST_PAUSE_S: Final = 0.5


class Orders:
    """The orders of one directory. Event loop only."""

    def __init__(self, directory: Directory, connection_args: dict[str, Any]) -> None:
        self._directory = directory
        self._tasks: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._turns: weakref.WeakValueDictionary[tuple[str, str], asyncio.Lock] = weakref.WeakValueDictionary()
        self._connections = new_connection_pool(connection_args)
        self._connected = self.spawn(self._connections.start())

    async def close(self) -> None:
        """Nothing more is ordered."""
        for task in list(self._tasks):
            task.cancel()
        await self._connections.close()

    def disconnect(self, worker: str) -> None:
        """That worker is gone: orders that it has not answered end."""
        self._connections.remove(worker)

    async def await_change(self, seconds: float) -> None:
        """Wait until something in the directory may have changed, but no longer than `seconds`."""
        changed = self._changed
        try:
            await asyncio.wait_for(changed.wait(), seconds)
        except asyncio.TimeoutError:
            pass

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run a coroutine that nobody has to wait for."""
        task: asyncio.Task[Any] = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def carry_out(self, orders: Iterable[Order]) -> list[asyncio.Task[Any]]:
        """Begin to; each task says what went wrong, None if nothing did."""
        tasks = [self.spawn(self._do(order)) for order in orders]
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
                answer = await self._tell(order)
            except Exception as error:
                if isinstance(order, Host):
                    return await self._host_failed(order, error)
                if not isinstance(error, OSError) or isinstance(error, asyncio.TimeoutError):
                    return self._failed(order, error)
            else:
                if isinstance(order, Host):
                    self.carry_out(self._directory.hosted(order.pool, order.uuid, order.epoch))
                elif isinstance(order, TakeOver):
                    self.carry_out(self._directory.moved(order.pool, order.uuid, order.epoch, answer))
                return None
            await asyncio.sleep(ORDER_AGAIN_S)
            if self._outdated(order):
                return None

    async def _host_failed(self, order: Host, error: Exception) -> str:
        logger.log(_level(error), "worker %s did not host queue %s: %s", order.address, order.uuid, error)
        await asyncio.sleep(REHOST_PAUSE_S)  # if no worker can, they are not asked all the time
        trouble = (error.kind, error.text) if isinstance(error, _NotDone) else ("", str(error))
        self.carry_out(self._directory.host_failed(order.pool, order.uuid, order.epoch, trouble))
        return _failure(order, error)

    def _failed(self, order: Order, error: Exception) -> str:
        failure = _failure(order, error)
        if isinstance(order, Consume):
            logger.error("consumers did not start, others take their place if there are any: %s", failure)
            self.carry_out(self._directory.consume_failed(order.pool, order.consumers, order.address))
        elif isinstance(order, TakeOver):
            logger.log(_level(error), "queue %s was not taken over by %s", order.uuid, failure)
            self.carry_out(self._directory.move_failed(order.pool, order.uuid, order.epoch))
        return failure

    def _outdated(self, order: Order) -> bool:
        """Whether an order that could not be given need not be given any more."""
        if order.address not in self._directory.workers:
            return True
        if not isinstance(order, Consume):
            return False
        record = self._directory.pools.get(order.pool)
        consumers = record.consumers.get(order.consumers) if record is not None else None
        return consumers is None or consumers.placed.get(order.address) != order.count

    async def _tell(self, order: Order) -> Any:
        if isinstance(order, Host):
            return await self._order(
                order.address,
                "host",
                queue=order.uuid,
                epoch=order.epoch,
                pool=order.pool,
                index=order.index,
                options=order.options,
                expected=order.expected,
                owners=order.owners,
                lost=order.lost,
                leaving=order.leaving,
            )
        if isinstance(order, TakeOver):
            return await self._order(
                order.address,
                "take_over",
                queue=order.uuid,
                epoch=order.epoch,
                pool=order.pool,
                index=order.index,
                source=order.source,
                options=order.options,
            )
        if isinstance(order, Drop):
            return await self._order(order.address, "drop", queue=order.uuid, epoch=order.epoch)
        if isinstance(order, Release):
            return await self._order(order.address, "lost", owner=order.owner)
        if isinstance(order, StopConsuming):
            return await self._order(order.address, "stop", consumers=order.consumers, drain=order.drain)
        record = self._directory.pools.get(order.pool)
        if record is None or order.consumers not in record.consumers:
            return None
        time_left = await self._order(
            order.address,
            "consume",
            pool=order.pool,
            id=record.id,
            consumers=order.consumers,
            count=order.count,
            spec=order.spec,
            places=tuple(map(tuple, record.places)),
        )
        left = inf if time_left is None else time_left
        self._directory.consumers_began(order.pool, order.consumers, order.address, left, now())
        return None

    async def _order(self, address: str, do: str, **message: Any) -> Any:
        answer = await self.ask(address, do, **message)
        if answer[0] != OK:
            raise _NotDone(*answer[1:])
        return answer[1]

    async def ask(self, address: str, do: str, **message: Any) -> Answer:
        """Ask a worker; returns its answer. Raises OSError, of which TimeoutError is one."""
        await self._connected
        call = getattr(self._connections(address), HANDLER)(do=do, **message)
        slow = (
            do in ("consume", "prepare")
            or message.get("drain")
            or message.get("options", {}).get("dirpath") is not None
        )
        patience = None if slow else ORDER_TIMEOUT_S  # the user's setup and tasks take their time, and so do disks
        answer = await asyncio.wait_for(call, patience)
        if not isinstance(answer, (list, tuple)) or not answer:
            raise RuntimeError(f"{do} failed: {answer!r}")
        return tuple(answer)


def _level(error: Exception) -> int:
    return logging.INFO if isinstance(error, _NotDone) and error.kind == REFUSED else logging.WARNING


def _failure(order: Order, error: Exception) -> str:
    return f"worker {order.address}: {error}"


class _NotDone(Exception):
    """A worker answered an order with an error."""

    def __init__(self, kind: str, text: str = "") -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text
