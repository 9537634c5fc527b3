"""The directory: which pools exist, where their queues live, who consumes them. Pure; the control plane's only state.

It decides and returns *orders* (host this queue there, release that owner's leases, ...), which the scheduler plugin
carries out. A queue's place is `(uuid, address, epoch)`. The uuid is the life of a transient queue: when its host is
lost, the queue gets a new uuid on another worker, and everybody who still names the old one learns that it is lost. A
durable queue keeps its uuid, which is that of its directory: it is opened again on a worker that can.

Put together of `pool_records` (what it knows), `placing` (which worker hosts a queue), `moves` (queues that go to
another worker with what they hold) and, here, workers, pools and consumers.

Invariants: a queue has an address only of a worker that is here; no epoch of a queue is given twice; a consumer pool
with a number runs that many consumers as long as there is a worker that can, spread so that no two workers differ by
more than one; an order is given once, and whoever fails to carry it out says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

from daskqueue_core.moves import Moves
from daskqueue_core.orders import Consume, Drop, Host, Order, Place, Release, StopConsuming, TakeOver
from daskqueue_core.pool_records import ConsumerPoolRecord, PoolRecord, WorkerRecord
from daskqueue_core.serving import ConsumersOf

__all__ = [
    "Consume",
    "ConsumerPoolRecord",
    "ConsumersOf",
    "Directory",
    "Drop",
    "Host",
    "Order",
    "Place",
    "PoolRecord",
    "Release",
    "StopConsuming",
    "TakeOver",
    "differences",
    "newest",
]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that differ: `{name: (existing, asked)}`. Names with an underscore are carried and not compared."""
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted({*ours, *theirs})
        if not name.startswith("_") and ours.get(name) != theirs.get(name)
    }


def newest(known: Sequence[Place], told: Sequence[Place]) -> list[Place]:
    """What to believe of a pool's places when `told` comes in: an answer that was overtaken brings no old life back.

    Otherwise a client would take the old life for a newer one, and put everything again a second time.
    """
    if len(known) != len(told):
        return list(told)
    return [new if new.epoch >= old.epoch else old for old, new in zip(known, told, strict=True)]


class Directory(Moves):
    """Pools, queues, consumers and workers of one cluster. `new_uuid` names a life of a queue."""

    def __init__(self, new_uuid: Callable[[], str]) -> None:
        super().__init__(new_uuid)
        self._past: dict[str, int] = {}
        """The last epoch of each durable queue of pools that are over: they may come again."""

    # -- workers

    def worker_joined(self, address: str, owner: str, nthreads: int) -> list[Order]:
        """A worker is ready: it may host what waits for a host, and consume. `owner` = address + incarnation."""
        orders: list[Order] = []
        known = self._workers.get(address)
        if known is not None:
            if known.owner == owner:
                return []
            orders += self.worker_left(address)
        self._workers[address] = WorkerRecord(owner, nthreads)
        for pool in self.pools.values():
            for index, place in enumerate(pool.places):
                if not place.address and place.uuid not in pool.moves:
                    orders += self._host(pool, index)
            orders += self._give_all_on(pool)  # until now there may have been nobody to take them
            for consumers in pool.consumers.values():
                orders += self._place_consumers(consumers)
        return orders

    def worker_leaves(self, address: str) -> list[Order]:
        """The worker is about to leave: what it hosts and consumes goes to others, while it ends what it runs.

        To say so again changes nothing. `worker_left` says when it is gone, and what it leased until then is released.
        """
        worker = self._workers.get(address)
        if worker is None or worker.leaving:
            return []
        worker.leaving = True
        orders: list[Order] = []
        for pool in self.pools.values():
            orders += self._give_all_on(pool)
            for consumers in pool.consumers.values():
                if consumers.placed.pop(address, 0):
                    consumers.left.add(address)
                    orders += self._place_consumers(consumers)
        return orders

    def worker_left(self, address: str) -> list[Order]:
        """A worker is gone: its leases go back, its queues get a new life elsewhere, its consumers another place."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return []
        if not worker.leaving:
            self._remember_lost(worker.owner)
        orders: list[Order] = []
        hosts: set[str] = set()
        for pool in self.pools.values():
            for index, place in enumerate(pool.places):
                if place.address == address:
                    orders += self._host_left(pool, index)
                elif place.address:
                    hosts.add(place.address)
            for uuid, move in list(pool.moves.items()):
                move.lost.append(worker.owner)
                if move.to == address:
                    orders += self.move_failed(pool.name, uuid, move.epoch)
            for consumers in pool.consumers.values():
                consumers.failed.discard(address)
                consumers.left.discard(address)
                consumers.ends.pop(address, None)
                if consumers.placed.pop(address, 0):
                    orders += self._place_consumers(consumers)
        return [*(Release(host, worker.owner) for host in sorted(hosts)), *orders]

    # -- pools

    def open(
        self,
        name: str,
        options: Mapping[str, Any],
        n_queues: int,
        *,
        client: str,
        owned: bool,
        uuids: Sequence[str] | None = None,
        id: str = "",
    ) -> list[Order]:
        """Create a pool (which must not exist). `owned`: it belongs to `client` and ends with it.

        `uuids`: of the queues of a durable pool. `id`: tells it from others of its name.
        """
        pool = PoolRecord(name, options, client if owned else None, id, durable=uuids is not None)
        pool.clients.add(client)
        self.pools[name] = pool
        orders: list[Order] = []
        for index in range(n_queues):
            uuid = self._new_uuid() if uuids is None else uuids[index]
            epoch = self._past.get(uuid, -1) + 1
            pool.places.append(Place(uuid, "", epoch, False))
            pool.epochs.append(epoch)
            orders += self._host(pool, index)
        return orders

    def attach(self, name: str, client: str) -> PoolRecord | None:
        """`client` takes part in a pool; None if there is no such pool."""
        pool = self.pools.get(name)
        if pool is not None:
            pool.clients.add(client)
        return pool

    def close(self, name: str) -> list[Order]:
        """The pool is over."""
        pool = self.pools.pop(name, None)
        if pool is None:
            return []
        orders: list[Order] = []
        for consumers in pool.consumers.values():
            orders += [StopConsuming(address, consumers.id, drain=False) for address in _where(consumers)]
        orders += [Drop(place.address, name, place.uuid, place.epoch) for place in pool.places if place.address]
        orders += [Drop(move.to, name, uuid, move.epoch) for uuid, move in pool.moves.items()]
        if pool.durable:
            self._past.update((place.uuid, epoch) for place, epoch in zip(pool.places, pool.epochs, strict=True))
        return orders

    def client_left(self, client: str) -> list[Order]:
        """A client is gone for good: the pools that belong to it end, the others do not expect it any more."""
        orders: list[Order] = []
        for pool in list(self.pools.values()):
            pool.clients.discard(client)
            if pool.client == client:
                orders += self.close(pool.name)
        return orders

    # -- consumers

    def start_consumers(
        self, pool: str, id: str, spec: Mapping[str, Any], *, count: int | None, kinds: tuple[int, ...], early_ack: bool
    ) -> list[Order]:
        """Start a consumer pool: `count` consumers, or one on each worker, now and later (None)."""
        record = self.pools[pool]
        record.early_ack = record.early_ack or early_ack
        if id in record.consumers:
            return []
        consumers = record.consumers[id] = ConsumerPoolRecord(id, pool, spec, count, kinds)
        return self._place_consumers(consumers)

    def consumers_began(self, pool: str, id: str, address: str, time_left: float, now: float) -> None:
        """The consumers on that worker are set up; it is there for `time_left` more seconds (infinite: no end)."""
        record = self.pools.get(pool)
        consumers = record.consumers.get(id) if record is not None else None
        if consumers is not None and address in self._workers:
            consumers.ends[address] = now + time_left
            consumers.longest = max(consumers.longest, time_left)

    def consumers_left(self, pool: str, id: str, address: str) -> list[Order]:
        """The end of that worker is near, and its consumers have stopped: others take their place, and its queues."""
        record = self.pools.get(pool)
        consumers = record.consumers.get(id) if record is not None else None
        if record is None or consumers is None or address not in self._workers:
            return []
        consumers.placed.pop(address, None)
        consumers.left.add(address)
        return [*self._give_all_on(record), *self._place_consumers(consumers)]

    def served(self, pool: str, now: float = 0.0) -> tuple[ConsumersOf, ...]:
        """Who serves a pool."""
        record = self.pools.get(pool)
        return () if record is None else tuple(_described(each, now) for each in record.consumers.values())

    def stop_consumers(self, pool: str, id: str, *, drain: bool) -> list[Order]:
        """End a consumer pool."""
        record = self.pools.get(pool)
        consumers = record.consumers.pop(id, None) if record is not None else None
        if consumers is None:
            return []
        return [StopConsuming(address, id, drain) for address in _where(consumers)]

    def consume_failed(self, pool: str, id: str, address: str) -> list[Order]:
        """The worker could not run these consumers: others do, and it is not asked again as long as it is here."""
        record = self.pools.get(pool)
        consumers = record.consumers.get(id) if record is not None else None
        if consumers is None or address not in consumers.placed:
            return []
        del consumers.placed[address]
        consumers.failed.add(address)
        return self._place_consumers(consumers)

    def _place_consumers(self, consumers: ConsumerPoolRecord) -> list[Order]:
        """Spread them evenly over the workers; those that run already stay where they can."""
        placed = consumers.placed
        able = [address for address in self.staying if address not in consumers.failed | consumers.left]
        if consumers.count is None:
            target = dict.fromkeys(able, 1)
        else:
            each, more = divmod(consumers.count, max(1, len(able)))
            fullest = sorted(able, key=lambda address: -placed.get(address, 0))[:more]
            target = {address: each + (address in fullest) for address in able}
        orders: list[Order] = [
            Consume(address, consumers.pool, consumers.id, count, consumers.spec)
            for address, count in target.items()
            if placed.get(address, 0) != count
        ]
        consumers.placed = {address: count for address, count in target.items() if count or address in placed}
        return orders


def _where(consumers: ConsumerPoolRecord) -> list[str]:
    """Where consumers may still run something."""
    return [*consumers.placed, *sorted(consumers.left)]


def _described(consumers: ConsumerPoolRecord, now: float) -> ConsumersOf:
    running = {address: count for address, count in consumers.placed.items() if count}
    return ConsumersOf(
        consumers.kinds,
        tuple(consumers.spec.get("tags", ())),
        sum(running.values()),
        len(consumers.failed),
        max([consumers.ends.get(address, inf) - now for address in running], default=0.0),
        tuple(sorted(consumers.left)),
        consumers.longest or inf,
    )
