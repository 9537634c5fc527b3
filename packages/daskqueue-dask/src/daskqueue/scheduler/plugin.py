"""The scheduler plugin: drives core's directory and carries out its orders. No message of a queue passes here.

It learns of workers when their plugin says hello, and of their loss when Dask removes them. A worker that Dask removes
in peace is not gone: it ends what it runs, gives its queues away and says farewell, or its connection breaks.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
import weakref
from time import monotonic as now
from typing import Any, Final

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler, SchedulerPlugin
from distributed.comm import get_address_host
from distributed.scheduler import WorkerState

from daskqueue.scheduler.adaptive import QueueScaling
from daskqueue.scheduler.orders import Answer, Orders
from daskqueue.wire.operations import ERROR, HANDLER, OK, PROTOCOL
from daskqueue_core.directory import Directory, PoolRecord, differences
from daskqueue_storage.errors import LockedError

__all__ = ["DaskQueueScheduler"]

logger = logging.getLogger(__name__)

RESOLVE_WAIT_S: Final = 1.0
HELLO_WAIT_S: Final = 10.0
CLOSED_S: Final = 10.0
LOOK_S: Final = 5.0

GONE: Final = ("handle-worker-cleanup-", "check-worker-ttl-")
"""How Dask's reasons to remove a worker begin where it is gone: its connection broke, or it is silent."""


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
        self.scaling = QueueScaling(scheduler, self.directory)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._opening: dict[str, asyncio.Task[None]] = {}  # durable pools that are not served yet, by id
        self._closing: dict[str, asyncio.Future[Any]] = {}  # durable pools that were shut down, by uuid
        self._leaving: dict[str, asyncio.TimerHandle] = {}  # clients
        self._retired: set[str] = set()  # workers that Dask does not count any more, and that have not left
        self._orders = Orders(self.directory, scheduler.connection_args)
        scheduler.handlers[HANDLER] = self.handle

    async def close(self) -> None:
        """The scheduler ends."""
        for timer in self._leaving.values():
            timer.cancel()
        await self._orders.close()

    # -- hooks of Dask

    def remove_worker(self, scheduler: Scheduler, worker: str, *, stimulus_id: str = "", **kwargs: Any) -> None:
        """A worker is gone, or was asked to go."""
        owner = self.directory.owner_of(worker)
        if owner is None or stimulus_id.startswith(GONE):
            self._worker_left(worker)
        else:
            self._orders.carry_out(self.directory.worker_leaves(worker))
            self._retired.add(worker)
            self._orders.spawn(self._see_off(worker, owner))

    async def _see_off(self, worker: str, owner: str) -> None:
        """It says when it has left; if it cannot be asked, it has. It does not get for ever."""
        with contextlib.suppress(Exception):
            await self._orders.ask(worker, "farewell")
        self._retired.discard(worker)
        if self.directory.owner_of(worker) == owner:
            self._worker_left(worker)

    def _worker_left(self, worker: str) -> None:
        """A worker is gone: its queues and consumers move. Orders that it has not answered end."""
        self._orders.disconnect(worker)
        self._orders.carry_out(self.directory.worker_left(worker))

    def valid_workers_downscaling(self, scheduler: Scheduler, workers: list[WorkerState]) -> list[WorkerState]:
        """Those that `cluster.adapt` may close."""
        return self.scaling.closable(workers)

    def add_client(self, scheduler: Scheduler, client: str) -> None:
        """A client came, or came back."""
        timer = self._leaving.pop(client, None)
        if timer is not None:
            timer.cancel()

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Dask calls this on any loss of the connection, and clients reconnect: they get a grace."""
        if any(client in pool.clients for pool in self.directory.pools.values()):
            grace = parse_timedelta(dask.config.get("daskqueue.client-grace", default="60s"))
            self.add_client(scheduler, client)  # an older grace is over
            self._leaving[client] = asyncio.get_running_loop().call_later(grace, self._client_left, client)

    def _client_left(self, client: str) -> None:
        self._leaving.pop(client, None)
        if client not in self.scheduler.clients:
            self._orders.carry_out(self.directory.client_left(client))

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
        self._orders.carry_out(self.directory.worker_joined(address, owner, nthreads))

    async def do_open(
        self,
        name: str | None,
        options: dict[str, Any],
        n_queues: int | None,
        client: str,
        owned: bool,
        create: bool,
        protocol: int,
    ) -> Answer:
        """Create a pool, or attach to the one of that name if its options are equal. Answers its name, its id, its
        places, and a warning. A durable pool is that of its directory, and takes its name from there if it is given
        none.
        """
        self._check_protocol(protocol, f"client {client}")
        if not options.get("dirpath"):
            assert name is not None
            assert n_queues is not None, "only a directory says by itself how many there are"
            if name not in self.directory.pools:
                await self._expect_workers()
            record = self._open(name, options, n_queues, client, owned, None)
            return record.name, record.id, await self._there(record), ""
        async with self._turn(options["dirpath"]):  # another client may be making it
            found, warning = await self._look_into(options, n_queues, create)
        own_uuid, uuids = found
        async with self._turn(own_uuid):
            await self._closed(own_uuid)
            name = self._name_of(own_uuid, name)
            count = len(uuids) if n_queues is None else n_queues
            record = self._open(name, {**options, "_uuid": own_uuid}, count, client, owned, uuids)
        if record.id in self._opening:
            await asyncio.shield(self._opening[record.id])
        return record.name, record.id, await self._there(record), warning

    def _turn(self, of: str) -> asyncio.Lock:
        return self._turns.setdefault(of, asyncio.Lock())

    def _open(
        self,
        name: str,
        options: dict[str, Any],
        n_queues: int,
        client: str,
        owned: bool,
        uuids: tuple[str, ...] | None,
    ) -> PoolRecord:
        """The pool of that name, made if it is not there. `uuids`: of the queues of a durable one."""
        record = self.directory.attach(name, client)
        there = options if record is None else record.options
        count = len(record.places) if record is not None else n_queues if uuids is None else len(uuids)
        differ = differences({**there, "n_queues": count}, {**options, "n_queues": n_queues})
        if differ:
            raise _Refused("PoolExists", (name, differ))
        if record is None:
            # A durable pool that was shut down is the same one when it comes again.
            id = options.get("_uuid") or uuid.uuid4().hex
            orders = self.directory.open(name, options, n_queues, client=client, owned=owned, uuids=uuids, id=id)
            record = self.directory.pools[name]
            self._orders.carry_out(orders)
            if uuids is not None:
                opening = self._opening[id] = self._orders.spawn(self._opened(record))
                opening.add_done_callback(lambda _: self._opening.pop(id))
        if client not in self.scheduler.clients:  # it went while its pool was looked for
            self.remove_client(self.scheduler, client)
        return record

    async def _closed(self, uuid: str) -> None:
        """Wait until the workers have closed what somebody has just shut down: till then its directory is locked."""
        closing = self._closing.get(uuid)
        if closing is not None:
            await asyncio.wait([closing], timeout=CLOSED_S)

    async def _opened(self, record: PoolRecord) -> None:
        """Wait until the queues of a new durable pool are served. If one cannot be, the pool is not there."""
        while self._is_there(record) and not all(place.up for place in record.places):
            for trouble in record.trouble.values():
                locked = [each for each in trouble if each[0] == LockedError.__name__]
                if locked or len(trouble) >= max(1, len(self.directory.staying)):
                    self._orders.carry_out(self.directory.close(record.name))
                    raise _Refused("Storage", (locked or trouble)[-1])
            await self._orders.await_change(RESOLVE_WAIT_S)

    def _name_of(self, uuid: str, name: str | None) -> str:
        """The name of a durable pool: the one it has in this cluster, the one that is asked for, or one of its own."""
        for record in self.directory.pools.values():
            if record.options.get("_uuid") == uuid:
                if name not in (None, record.name):
                    raise _Refused("PoolExists", (record.name, {"name": (record.name, name)}))
                return record.name
        return name if name is not None else f"durable-{uuid}"

    async def _look_into(self, options: dict[str, Any], n_queues: int | None, create: bool) -> tuple[Answer, str]:
        """What a worker finds in a pool's directory (uuid and those of its queues), made if need be; and a warning."""
        with self.scaling.awaiting_a_worker():
            while not self.directory.staying:
                await self._expect_workers()
                await self._orders.await_change(RESOLVE_WAIT_S)
        message = {"dirpath": options["dirpath"], "n_queues": n_queues if create else None, "options": options}
        trouble: Answer = ()
        for address in self.directory.staying:
            try:
                answer = await self._orders.ask(address, "prepare", **message)
            except OSError:
                continue  # it leaves
            if answer[0] == OK and answer[1] is not None:
                return answer[1], await self._is_seen_elsewhere(address, {**message, "n_queues": None}, answer[1])
            trouble = trouble or answer
        if trouble and trouble[0] != OK:
            raise _Refused("Storage", trouble[1:])
        raise _Refused("NoPool", f"there is no durable pool in {options['dirpath']}, as far as the workers see")

    async def _is_seen_elsewhere(self, address: str, message: dict[str, Any], found: Answer) -> str:
        """A warning, if workers of another host do not see what one has found."""
        here = get_address_host(address)
        for other in self.directory.staying:
            if get_address_host(other) != here:
                with contextlib.suppress(OSError, asyncio.TimeoutError):  # also a file system that hangs there
                    answer = await asyncio.wait_for(self._orders.ask(other, "prepare", **message), LOOK_S)
                    if answer[0] == OK and answer[1] == found:
                        return ""
                    return (
                        f"{message['dirpath']} is there on {address} but not on {other}: if it is local to its host, "
                        "the pool's queues wait whenever that host has no worker. A directory on a shared file system "
                        "has no such limit"
                    )
        return ""

    async def do_depart(self, address: str) -> bool:
        """A worker is about to end. Answers whether Dask retires it, and so gives it time."""
        self._orders.carry_out(self.directory.worker_leaves(address))
        return address in self._retired

    async def do_given(self, address: str) -> None:
        """Answered when what a worker hosted that leaves is taken over, as far as anybody can."""
        while self.directory.is_giving(address):
            await self._orders.await_change(RESOLVE_WAIT_S)

    async def do_over(self, pool: str, queue: str, epoch: int) -> None:
        """The host of a queue does not serve it any more: its disk failed, or somebody else has its directory."""
        self._orders.carry_out(self.directory.host_failed(pool, queue, epoch))

    async def do_attach(self, name: str, client: str, protocol: int) -> Answer | None:
        """Take part in a pool. Answers its options and places, None if there is no such pool."""
        self._check_protocol(protocol, f"client {client}")
        record = self.directory.attach(name, client)
        places = None if record is None else await self._up(record)
        return None if record is None or places is None else (record.options, record.id, places)

    async def do_resolve(self, pool: str, id: str) -> Answer | None:
        """Where the pool's queues are; waits a little for one that has no host. None if it is over."""
        record = self._pool(pool, id)
        return None if record is None else await self._up(record)

    def _pool(self, name: str, id: str) -> PoolRecord | None:
        record = self.directory.pools.get(name)
        return None if record is None or record.id != id else record

    async def do_consume(
        self,
        pool: str,
        id: str,
        consumers: str,
        spec: dict[str, Any],
        count: int | None,
        kinds: tuple[int, ...],
        early_ack: bool,
    ) -> None:
        """Start a consumer pool; an error of a worker (it cannot load the class) is an error here."""
        if self._pool(pool, id) is None:
            raise _Refused("PoolClosed", f"pool {pool} was shut down")
        orders = self.directory.start_consumers(pool, consumers, spec, count=count, kinds=kinds, early_ack=early_ack)
        failures = [failure for failure in await asyncio.gather(*self._orders.carry_out(orders)) if failure is not None]
        if failures:
            self._orders.carry_out(self.directory.stop_consumers(pool, consumers, drain=False))
            raise _Refused("ConsumerFailed", failures[0])

    async def do_stop(self, pool: str, consumers: str, drain: bool) -> None:
        """End a consumer pool; returns when its workers have stopped."""
        await asyncio.gather(*self._orders.carry_out(self.directory.stop_consumers(pool, consumers, drain=drain)))

    async def do_leave(self, pool: str, consumers: str, address: str) -> None:
        """The job of a worker ends soon: its consumers have stopped."""
        self._orders.carry_out(self.directory.consumers_left(pool, consumers, address))

    async def do_places(self, pool: str, consumers: str) -> tuple[str, ...]:
        """Where the consumers of a consumer pool are: an address for each."""
        record = self.directory.pools.get(pool)
        there = record.consumers.get(consumers) if record is not None else None
        placed = {} if there is None else there.placed
        return tuple(address for address, count in placed.items() for _ in range(count))

    async def do_served(self, pool: str) -> Answer:
        """Which kinds of work the pool's consumers take, whether one of them acknowledges early, who they are in
        detail (`ConsumersOf`), how many workers there are, and why queues have no host."""
        consumers = self.directory.served(pool, now())
        record = self.directory.pools.get(pool)
        kinds = sorted({kind for each in consumers for kind in each.kinds})
        early_ack = record is not None and record.early_ack
        workers, trouble = len(self.directory.staying), self.directory.trouble(pool)
        return tuple(kinds), early_ack, tuple(map(tuple, consumers)), workers, trouble

    async def do_close(self, pool: str, id: str) -> None:
        """The pool is over."""
        record = self._pool(pool, id)
        if record is None:
            return
        closing = asyncio.gather(*self._orders.carry_out(self.directory.close(pool)))
        uuid = record.options.get("_uuid")
        if uuid is not None:
            self._closing[uuid] = closing
            closing.add_done_callback(lambda _: self._closing.get(uuid) is closing and self._closing.pop(uuid))
        await asyncio.wait([closing], timeout=CLOSED_S)  # a worker that hangs hears of it when it wakes up

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
        while self.scheduler.workers and not self.directory.staying:
            if asyncio.get_running_loop().time() > deadline:
                raise _Refused(
                    "NotInstalled",
                    f"none of the {len(self.scheduler.workers)} workers answers: "
                    "is daskqueue-dask installed in their environment?",
                )
            await self._orders.await_change(RESOLVE_WAIT_S)

    def _is_there(self, record: PoolRecord) -> bool:
        return self.directory.pools.get(record.name) is record

    async def _up(self, record: PoolRecord) -> Answer | None:
        """The pool's places, after a little time for those that are not up, or that move. None if it is over then."""
        deadline = asyncio.get_running_loop().time() + RESOLVE_WAIT_S
        while self._is_there(record):
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0 or (all(place.up for place in record.places) and not record.moves):
                return tuple(map(tuple, record.places))
            await self._orders.await_change(left)
        return None

    async def _there(self, record: PoolRecord) -> Answer:
        """The same, for a client that has just made it, or found it."""
        places = await self._up(record)
        if places is None:
            raise _Refused("PoolClosed", f"pool {record.name!r} was shut down while it was opened")
        return places


class _Refused(Exception):
    def __init__(self, kind: str, detail: Any) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
