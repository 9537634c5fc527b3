"""The directory: which pools exist, where their queues live, who consumes them. Pure; the control plane's only state.

It decides and returns *orders* (host this queue there, release that owner's leases, ...), which the scheduler plugin
carries out. A queue's place is `(uuid, address, epoch)`. The uuid is the life of a transient queue: when its host is
lost, the queue gets a new uuid on another worker, and everybody who still names the old one learns that it is lost.

Invariants: a queue has an address only of a worker that is here; a consumer pool with a number runs that many
consumers as long as there is a worker that can, spread so that no two workers differ by more than one; an order is
given once, and whoever fails to carry it out says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = [
    "Consume",
    "ConsumerPoolRecord",
    "Directory",
    "Drop",
    "Host",
    "Order",
    "Place",
    "PoolRecord",
    "Release",
    "StopConsuming",
    "differences",
    "newest",
]


class Place(NamedTuple):
    """Where a queue is. `address` is empty while no worker hosts it, `up` once its host has said it serves."""

    uuid: str
    address: str
    epoch: int
    up: bool


class Host(NamedTuple):
    """Serve queue `index` of `pool` on the worker `address`, as `uuid`."""

    address: str
    pool: str
    index: int  # type: ignore[assignment]  # hides tuple's method, unused in a record
    uuid: str
    epoch: int
    options: Mapping[str, Any]
    expected: tuple[str, ...]  # clients that may put again what the life before this lost


class Drop(NamedTuple):
    """The queue `uuid` on `address` is over."""

    address: str
    pool: str
    uuid: str


class Release(NamedTuple):
    """Owner `owner` is gone: the queue host `address` takes its leases back."""

    address: str
    owner: str


class Consume(NamedTuple):
    """Run `count` consumers of consumer pool `consumers` on the worker `address` (0: none for now)."""

    address: str
    pool: str
    consumers: str
    count: int  # type: ignore[assignment]
    spec: Mapping[str, Any]


class StopConsuming(NamedTuple):
    """Consumer pool `consumers` is over on the worker `address`; with `drain`, what runs is finished first."""

    address: str
    consumers: str
    drain: bool


Order = Host | Drop | Release | Consume | StopConsuming


@dataclass
class _Worker:
    owner: str
    nthreads: int


@dataclass
class ConsumerPoolRecord:
    """A consumer pool: `count` consumers in all, or one on each worker (None)."""

    id: str
    pool: str
    spec: Mapping[str, Any]
    count: int | None
    kinds: tuple[int, ...]
    placed: dict[str, int] = field(default_factory=dict)
    """How many each worker runs; 0 where they are idle and may come back."""
    failed: set[str] = field(default_factory=set)
    """Workers that could not run them."""


@dataclass
class PoolRecord:
    """A queue pool."""

    name: str
    options: Mapping[str, Any]
    client: str | None  # whom an unnamed pool belongs to
    places: list[Place] = field(default_factory=list)
    clients: set[str] = field(default_factory=set)
    consumers: dict[str, ConsumerPoolRecord] = field(default_factory=dict)
    early_ack: bool = False


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options that differ: `{name: (existing, asked)}`."""
    return {
        name: (ours.get(name), theirs.get(name))
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    }


def newest(known: Sequence[Place], told: Sequence[Place]) -> list[Place]:
    """What to believe of a pool's places when `told` comes in: an answer that was overtaken brings no old life back.

    Otherwise a client would take the old life for a newer one, and put everything again a second time.
    """
    if len(known) != len(told):
        return list(told)
    return [new if new.epoch >= old.epoch else old for old, new in zip(known, told, strict=True)]


class Directory:
    """Pools, queues, consumers and workers of one cluster. `new_uuid` names a life of a queue."""

    def __init__(self, new_uuid: Callable[[], str]) -> None:
        self._new_uuid = new_uuid
        self._workers: dict[str, _Worker] = {}
        self.pools: dict[str, PoolRecord] = {}

    # -- workers

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers that can host and consume."""
        return list(self._workers)

    def worker_joined(self, address: str, owner: str, nthreads: int) -> list[Order]:
        """A worker is ready: it may host what waits for a host, and consume. `owner` = address + incarnation."""
        orders: list[Order] = []
        known = self._workers.get(address)
        if known is not None:
            if known.owner == owner:
                return []
            orders += self.worker_left(address)
        self._workers[address] = _Worker(owner, nthreads)
        for pool in self.pools.values():
            for index, place in enumerate(pool.places):
                if not place.address:
                    orders += self._host(pool, index)
            for consumers in pool.consumers.values():
                orders += self._place_consumers(consumers)
        return orders

    def worker_left(self, address: str) -> list[Order]:
        """A worker is gone: its leases go back, its queues get a new life elsewhere, its consumers another place."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return []
        orders: list[Order] = []
        hosts: set[str] = set()
        for pool in self.pools.values():
            for index, place in enumerate(pool.places):
                if place.address == address:
                    orders += self._rehost(pool, index)
                elif place.address:
                    hosts.add(place.address)
            for consumers in pool.consumers.values():
                consumers.failed.discard(address)
                if consumers.placed.pop(address, 0):
                    orders += self._place_consumers(consumers)
        return [*(Release(host, worker.owner) for host in sorted(hosts)), *orders]

    # -- pools

    def open(self, name: str, options: Mapping[str, Any], n_queues: int, *, client: str, owned: bool) -> list[Order]:
        """Create a pool (which must not exist). `owned`: it belongs to `client` and ends with it."""
        pool = PoolRecord(name, options, client if owned else None)
        pool.clients.add(client)
        self.pools[name] = pool
        orders: list[Order] = []
        for index in range(n_queues):
            pool.places.append(Place(self._new_uuid(), "", 0, False))
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
            orders += [StopConsuming(address, consumers.id, drain=False) for address in consumers.placed]
        orders += [Drop(place.address, name, place.uuid) for place in pool.places if place.address]
        return orders

    def client_left(self, client: str) -> list[Order]:
        """A client is gone for good: the pools that belong to it end, the others do not expect it any more."""
        orders: list[Order] = []
        for pool in list(self.pools.values()):
            pool.clients.discard(client)
            if pool.client == client:
                orders += self.close(pool.name)
        return orders

    # -- places

    def hosted(self, pool: str, uuid: str) -> None:
        """The host of queue `uuid` serves it now."""
        record = self.pools.get(pool)
        if record is not None:
            record.places = [place._replace(up=True) if place.uuid == uuid else place for place in record.places]

    def host_failed(self, pool: str, uuid: str) -> list[Order]:
        """The worker that was told to host queue `uuid` did not: try the next."""
        record = self.pools.get(pool)
        if record is None:
            return []
        orders: list[Order] = []
        for index, place in enumerate(record.places):
            if place.uuid == uuid:
                orders += self._rehost(record, index, avoid=place.address)
        return orders

    def _rehost(self, pool: PoolRecord, index: int, avoid: str = "") -> list[Order]:
        old = pool.places[index]
        pool.places[index] = Place(self._new_uuid(), "", old.epoch + 1, False)
        return self._host(pool, index, avoid)

    def _host(self, pool: PoolRecord, index: int, avoid: str = "") -> list[Order]:
        address = self._least_loaded(avoid)
        if address is None:
            return []
        place = pool.places[index] = pool.places[index]._replace(address=address)
        expected = tuple(sorted(pool.clients)) if place.epoch else ()
        return [Host(address, pool.name, index, place.uuid, place.epoch, pool.options, expected)]

    def _least_loaded(self, avoid: str) -> str | None:
        load = dict.fromkeys(self._workers, 0)
        for pool in self.pools.values():
            for place in pool.places:
                if place.address in load:
                    load[place.address] += 1
        order = sorted(load, key=lambda address: (address == avoid, load[address]))
        return order[0] if order else None

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

    def stop_consumers(self, pool: str, id: str, *, drain: bool) -> list[Order]:
        """End a consumer pool."""
        record = self.pools.get(pool)
        consumers = record.consumers.pop(id, None) if record is not None else None
        if consumers is None:
            return []
        return [StopConsuming(address, id, drain) for address in consumers.placed]

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
        able = [address for address in self._workers if address not in consumers.failed]
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
