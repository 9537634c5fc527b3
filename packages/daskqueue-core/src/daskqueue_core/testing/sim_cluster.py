"""A simulated cluster of one pool: scheduler, workers that host and consume, clients, and a network between them.

    cluster = SimCluster(n_queues=2)
    host, other = cluster.worker(slots=0), cluster.worker(slots=2)
    client = cluster.client()
    cluster.start()
    futures = client.submit(1000, value=42)
    cluster.network.rule("settle", "answer", drop=True)
    assert cluster.finish(futures) == [42] * 1000

Queues go to the workers that came first. Everything between the nodes is the core's own: producers, queues,
consumers, directory, pacing.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from daskqueue_core.batch import Kind
from daskqueue_core.directory import Directory
from daskqueue_core.orders import Consume, Drop, Host, Order, Place, Release, StopConsuming, TakeOver
from daskqueue_core.producer import WINDOW
from daskqueue_core.queue import TransientQueue
from daskqueue_core.testing.network import SimNetwork
from daskqueue_core.testing.sim_client import SimClient, SimFuture
from daskqueue_core.testing.sim_consumer import SimConsumer
from daskqueue_core.testing.sim_host import OK, SimHost
from daskqueue_core.testing.sim_link import SCHEDULER, SimLink
from daskqueue_core.testing.sim_work import SimWork, Start
from daskqueue_core.testing.simulation import Alive, SimNode, Simulation, Timer

__all__ = ["SimCluster", "SimDirectory", "SimWorker"]

T = TypeVar("T")

POOL: Final = "pool"
CONSUMERS: Final = "consumers"
ORDER_TIMEOUT_S: Final = 30.0
RESOLVE_WAIT_S: Final = 1.0
CLIENT_GRACE_S: Final = 60.0
KILL_NOTICED_S: Final = 0.005
SILENCE_NOTICED_S: Final = 30.0


class SimWorker(SimNode):
    """A worker: what it hosts, and what it consumes with `slots` threads (none: it only hosts)."""

    def __init__(self, cluster: SimCluster, address: str, slots: int) -> None:
        super().__init__(cluster.simulation, address)
        self.owner = f"{address}#1"
        self.slots = slots
        self.host = SimHost(self, cluster.network)
        self.link = SimLink(cluster.network, self, POOL, self.host)
        self.consumer = SimConsumer(self, self.link, self.owner, cluster.works, cluster.started)

    async def serve(self, op: str, content: dict[str, Any], alive: Alive) -> Any:
        """Operations on queues name one by uuid, orders of the directory and questions of other hosts do not."""
        arguments = dict(content)
        uuid = arguments.pop("uuid", None)
        if uuid is not None:
            return await self.host.call(op, uuid, arguments.pop("epoch"), arguments, alive)
        if op == "hand_over":
            return self.host.hand_over(arguments["queue"], arguments["epoch"])
        if op == "take_over":
            return await self.host.take_over(arguments["queue"], arguments["epoch"], arguments["source"])
        if op == "host":
            self.host.open(arguments["queue"], arguments["epoch"], arguments["expected"])
        elif op == "drop":
            self.host.drop(arguments["queue"], arguments["epoch"])
        elif op == "lost":
            for queue in self.host.queues.values():
                queue.owner_lost(arguments["owner"])
        elif op == "consume":
            self.link.places = self.link.places or arguments["places"]
            self.consumer.resize(self.slots * arguments["count"], arguments["spec"])
        else:
            assert op == "stop", op
            self.consumer.stop()
        return (OK, None)


class SimDirectory(SimNode):
    """The scheduler: carries out the orders of core's directory."""

    def __init__(self, simulation: Simulation, network: SimNetwork) -> None:
        super().__init__(simulation, SCHEDULER)
        self._lives = 0
        self.directory = Directory(self._new_uuid)
        self._network = network
        self._leaving: dict[str, Timer] = {}

    def _new_uuid(self) -> str:
        self._lives += 1
        return f"q{self._lives}"

    async def serve(self, op: str, content: dict[str, Any], alive: Alive) -> Any:
        """Two questions."""
        if op == "resolve":
            return await self._places(content["pool"])
        assert op == "client_came", op
        timer = self._leaving.pop(content["client"], None)
        if timer is not None:
            timer.cancel()
        return (OK, None)

    async def _places(self, pool: str) -> list[Place] | None:
        """After a little time for those that are not up."""
        deadline = self.simulation.clock.seconds + RESOLVE_WAIT_S
        while True:
            record = self.directory.pools.get(pool)
            if record is None:
                return None
            if all(place.up for place in record.places) or self.simulation.clock.seconds >= deadline:
                return list(record.places)
            await self.sleep(0.01)

    def worker_left(self, address: str) -> None:
        """Dask has given the worker up."""
        self.carry_out(self.directory.worker_left(address))

    def client_disconnected(self, client: str) -> None:
        """It has a grace to come back."""
        self._leaving[client] = self.later(CLIENT_GRACE_S, lambda: self.carry_out(self.directory.client_left(client)))

    def carry_out(self, orders: Iterable[Order]) -> None:
        """Tell the workers."""
        for order in orders:
            self.spawn(self._do, order)

    async def _do(self, order: Order) -> None:
        answer = await self.wait(self.spawn(self._tell, order).ended, ORDER_TIMEOUT_S)
        done = answer is not None and answer[0] == OK
        directory = self.directory
        if isinstance(order, Host) and done:
            directory.hosted(order.pool, order.uuid, order.epoch)
        elif isinstance(order, Host):
            self.carry_out(directory.host_failed(order.pool, order.uuid, order.epoch))
        elif isinstance(order, TakeOver) and answer is not None and done:
            self.carry_out(directory.moved(order.pool, order.uuid, order.epoch, answer[1]))
        elif isinstance(order, TakeOver):
            self.carry_out(directory.move_failed(order.pool, order.uuid, order.epoch))

    async def _tell(self, order: Order) -> tuple[Any, ...] | None:
        """Repeats itself as long as the worker is here: orders are idempotent, and a lost one is not given again."""
        op, content = _message(order, self.directory)
        while order.address in self.directory.workers:
            try:
                answer: tuple[Any, ...] = await self._network.call(self, order.address, op, content)
            except ConnectionError:
                await self.sleep(0.05)
            else:
                return answer
        return None


def _message(order: Order, directory: Directory) -> tuple[str, dict[str, Any]]:
    if isinstance(order, Host):
        return "host", {"queue": order.uuid, "epoch": order.epoch, "expected": order.expected}
    if isinstance(order, TakeOver):
        return "take_over", {"queue": order.uuid, "epoch": order.epoch, "source": order.source}
    if isinstance(order, Drop):
        return "drop", {"queue": order.uuid, "epoch": order.epoch}
    if isinstance(order, Release):
        return "lost", {"owner": order.owner}
    if isinstance(order, StopConsuming):
        return "stop", {}
    assert isinstance(order, Consume)
    places = list(directory.pools[order.pool].places)
    return "consume", {"places": places, "count": order.count, "spec": order.spec}


class SimCluster:
    """Builds the nodes, breaks them, and remembers what ran where."""

    def __init__(
        self,
        *,
        n_queues: int = 1,
        n_consumers: int | None = None,
        ttl_s: float = 300.0,
        early_ack: bool = False,
        resubmit: bool = True,
    ) -> None:
        self.simulation = Simulation()
        self.network = SimNetwork(self.simulation)
        self.scheduler = SimDirectory(self.simulation, self.network)
        self.network.add(self.scheduler)
        self.workers: list[SimWorker] = []
        self.clients: list[SimClient] = []
        self.works: list[SimWork] = []
        self.starts: dict[int, list[Start]] = {}
        self._n_queues = n_queues
        self._n_consumers = n_consumers
        self._spec = {"ttl": round(ttl_s * 1e9), "early_ack": early_ack}
        self._resubmit = resubmit and not early_ack

    @property
    def directory(self) -> Directory:
        """The core's."""
        return self.scheduler.directory

    def worker(self, slots: int = 1) -> SimWorker:
        """A worker joins."""
        worker = SimWorker(self, f"w{len(self.workers)}", slots)
        self.workers.append(worker)
        self.network.add(worker)
        self.scheduler.carry_out(self.directory.worker_joined(worker.address, worker.owner, slots))
        return worker

    def client(self, window: int = WINDOW) -> SimClient:
        """A client; before `start`."""
        number = len(self.clients) + 1
        client = SimClient(self.simulation, self.network, f"client{number}", number, self.works, window)
        self.clients.append(client)
        self.network.add(client)
        return client

    def start(self) -> None:
        """The first client opens the pool, the others attach; consumers start, on every worker unless numbered."""
        first, *others = self.clients
        options: dict[str, Any] = {}
        directory = self.directory
        self.scheduler.carry_out(directory.open(POOL, options, self._n_queues, client=first.address, owned=not others))
        for client in others:
            directory.attach(POOL, client.address)
        self.run(lambda: all(place.up for place in directory.pools[POOL].places))
        kinds = tuple(int(kind) for kind in Kind)
        early_ack = bool(self._spec["early_ack"])
        self.scheduler.carry_out(
            directory.start_consumers(
                POOL, CONSUMERS, self._spec, count=self._n_consumers, kinds=kinds, early_ack=early_ack
            )
        )
        for client in self.clients:
            client.link.places = list(directory.pools[POOL].places)
            client.start(resubmit=self._resubmit)
        self.run(seconds=0.1)

    def run(self, until: Callable[[], bool] | None = None, *, seconds: float = 3600.0) -> None:
        """Run for `seconds`, or until something is so, which it must be by then."""
        self.simulation.run(until, seconds=seconds)

    def result(self, node: SimNode, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> T:
        """Run until a coroutine of `node` has ended; its result."""
        return self.simulation.result(node.spawn(function, *args))

    def end(self, futures: Iterable[SimFuture], *, seconds: float = 3600.0) -> None:
        """Run until these have ended, one way or another."""
        waiting = [future for future in futures if not future.done]
        left = len(waiting)

        def ended(_: SimFuture) -> None:
            nonlocal left
            left -= 1

        for future in waiting:
            future.when_done(ended)
        self.run(lambda: left == 0, seconds=seconds)

    def finish(self, futures: Iterable[SimFuture], *, seconds: float = 3600.0) -> list[Any]:
        """Run until these have ended; their values, or the first error raised."""
        futures = list(futures)
        self.end(futures, seconds=seconds)
        return [future.result() for future in futures]

    def queue(self, index: int = 0) -> TransientQueue:
        """The core queue that serves now."""
        place = self.directory.pools[POOL].places[index]
        return next(worker for worker in self.workers if worker.address == place.address).host.queues[place.uuid].queue

    def started(self, work: int, start: Start) -> None:
        """A consumer says so."""
        self.starts.setdefault(work, []).append(start)

    @property
    def reruns(self) -> dict[int, list[Start]]:
        """What began more than once."""
        return {work: starts for work, starts in self.starts.items() if len(starts) > 1}

    def move(self, index: int, to: SimWorker) -> None:
        """Let another worker host a queue."""
        self.scheduler.carry_out(self.directory.move(POOL, index, to.address))

    def moved(self, index: int, to: SimWorker) -> None:
        """The same, and run until it does."""
        self.move(index, to)
        self.run(lambda: self.directory.pools[POOL].places[index].address == to.address)

    def leave(self, worker: SimWorker, seconds: float) -> None:
        """A worker begins to leave in peace: it says so, leases nothing more, and is gone after `seconds`."""
        worker.consumer.stop()
        self.scheduler.carry_out(self.directory.worker_leaves(worker.address))
        self.scheduler.later(seconds, lambda: self.kill(worker))

    # -- disasters

    def kill(self, worker: SimWorker, *, silent: bool = False) -> None:
        """A worker dies: its process, which is noticed at once, or its machine (`silent`)."""
        self.network.kill(worker, silent=silent)
        noticed = SILENCE_NOTICED_S if silent else KILL_NOTICED_S
        self.scheduler.later(noticed, lambda: self.scheduler.worker_left(worker.address))

    def disconnect(self, client: SimClient) -> None:
        """All TCP connections of a client break, that to the scheduler too."""
        self.network.disconnect(client)
        self.scheduler.client_disconnected(client.address)
