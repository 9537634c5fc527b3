"""The directory: which pools exist, where their queues live, who consumes them. Pure; the control plane's only state.

It decides and returns *orders* (host this queue there, release that owner's leases, ...), which the scheduler plugin
carries out. A queue's place is `(uuid, address, epoch)`. The uuid is the life of a transient queue: when its host is
lost, the queue gets a new uuid on another worker, and everybody who still names the old one learns that it is lost. A
durable queue keeps its uuid, which is that of its directory: it is opened again on a worker that can.

A queue *moves* with its uuid. The new host is ordered to take it over from the old one, under an epoch that is given
before the move begins and never again; when it says that it serves, its place is switched, and who calls the old host
is sent on. Until then the move can be called off: then the old host takes the queue over from itself, under another
epoch, or, if it is gone with what it held, the queue is lost.

Invariants: a queue has an address only of a worker that is here; no epoch of a queue is given twice; a consumer pool
with a number runs that many consumers as long as there is a worker that can, spread so that no two workers differ by
more than one; an order is given once, and whoever fails to carry it out says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Final

from daskqueue_core.orders import Consume, Drop, Host, Order, Place, Release, StopConsuming, TakeOver
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

REMEMBERED_OWNERS: Final = 1000


@dataclass
class _Worker:
    owner: str
    nthreads: int


@dataclass
class _Move:
    """A queue is about to be served by `to`, under `epoch`."""

    to: str
    epoch: int
    lost: list[str]
    """Owners that were lost meanwhile: neither host may have been told."""


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
    left: set[str] = field(default_factory=set)
    """Workers on which they have stopped, since its end is near."""
    ends: dict[str, float] = field(default_factory=dict)
    """When each of the workers is over, in seconds of the caller's clock; infinite: never."""
    longest: float = 0.0
    """The most seconds that a worker had when they began there."""


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
    epochs: list[int] = field(default_factory=list)
    """The last one given, of each queue."""
    moves: dict[str, _Move] = field(default_factory=dict)
    """By uuid."""
    durable: bool = False
    refused: dict[str, set[str]] = field(default_factory=dict)
    """Workers that could not open a durable queue, by uuid, since one of them last could or all had been asked."""
    trouble: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """What those said that could not serve a queue since one last could, by uuid: `(kind, text)`."""

    def next_epoch(self, index: int) -> int:
        """An epoch that queue `index` never had."""
        self.epochs[index] += 1
        return self.epochs[index]


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


class Directory:
    """Pools, queues, consumers and workers of one cluster. `new_uuid` names a life of a queue."""

    def __init__(self, new_uuid: Callable[[], str]) -> None:
        self._new_uuid = new_uuid
        self._workers: dict[str, _Worker] = {}
        self._lost: dict[str, None] = {}  # owners that left last, in order
        self.pools: dict[str, PoolRecord] = {}
        self._past: dict[str, int] = {}
        """The last epoch of each durable queue of pools that are over: they may come again."""

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
                if not place.address and place.uuid not in pool.moves:
                    orders += self._host(pool, index)
            for consumers in pool.consumers.values():
                orders += self._place_consumers(consumers)
        return orders

    def worker_left(self, address: str) -> list[Order]:
        """A worker is gone: its leases go back, its queues get a new life elsewhere, its consumers another place."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return []
        self._lost[worker.owner] = None
        if len(self._lost) > REMEMBERED_OWNERS:
            del self._lost[next(iter(self._lost))]
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
    ) -> list[Order]:
        """Create a pool (which must not exist). `owned`: it belongs to `client` and ends with it.

        `uuids`: of the queues of a durable pool.
        """
        pool = PoolRecord(name, options, client if owned else None, durable=uuids is not None)
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

    # -- places

    def hosted(self, pool: str, uuid: str, epoch: int) -> None:
        """The host of queue `uuid` serves it now. `epoch` says which order that was."""
        record = self.pools.get(pool)
        if record is not None and self._is_at(record, uuid, epoch):
            record.refused.pop(uuid, None)
            record.trouble.pop(uuid, None)
            record.places = [place._replace(up=True) if place.uuid == uuid else place for place in record.places]

    def host_failed(self, pool: str, uuid: str, epoch: int, trouble: tuple[str, str] = ("", "")) -> list[Order]:
        """The worker that was told to host queue `uuid` did not, or does no more: try the next."""
        record = self.pools.get(pool)
        if record is None or not self._is_at(record, uuid, epoch):
            return []
        index = next(index for index, place in enumerate(record.places) if place.uuid == uuid)
        address = record.places[index].address
        if record.durable:
            record.refused.setdefault(uuid, set()).add(address)
            record.trouble[uuid] = [*record.trouble.get(uuid, ()), trouble][-len(self._workers) - 1 :]
        return self._rehost(record, index, avoid=address)

    def trouble(self, pool: str) -> tuple[str, ...]:
        """What the last worker said that could not serve a queue, for each queue; empty where one serves it."""
        record = self.pools.get(pool)
        said = [] if record is None else [record.trouble.get(place.uuid, ()) for place in record.places]
        return tuple(": ".join(filter(None, each[-1])) if each else "" for each in said)

    @staticmethod
    def _is_at(pool: PoolRecord, uuid: str, epoch: int) -> bool:
        return any(place.uuid == uuid and place.epoch == epoch for place in pool.places)

    def _rehost(self, pool: PoolRecord, index: int, avoid: str = "") -> list[Order]:
        uuid = pool.places[index].uuid
        move = pool.moves.pop(uuid, None)
        orders: list[Order] = [Drop(move.to, pool.name, uuid, move.epoch)] if move is not None else []
        pool.places[index] = Place(uuid if pool.durable else self._new_uuid(), "", pool.next_epoch(index), False)
        return orders + self._host(pool, index, avoid)

    def _host(self, pool: PoolRecord, index: int, avoid: str = "") -> list[Order]:
        refused = pool.refused.get(pool.places[index].uuid, set())
        if refused.issuperset(self._workers):  # nobody could: all are asked once more
            refused.clear()
        address = self._least_loaded(avoid, refused)
        if address is None:
            return []
        place = pool.places[index] = pool.places[index]._replace(address=address)
        expected: tuple[str, ...] = ()
        owners: tuple[str, ...] = ()
        lost: tuple[str, ...] = ()
        if pool.durable:
            owners = tuple(sorted(worker.owner for worker in self._workers.values()))
            lost = tuple(self._lost)
        elif place.epoch:
            expected = tuple(sorted(pool.clients))
        return [Host(address, pool.name, index, place.uuid, place.epoch, pool.options, expected, owners, lost)]

    # -- moves

    def move(self, pool: str, index: int, to: str) -> list[Order]:
        """Let the worker `to` host queue `index`, with all it holds. Nothing, if it cannot be moved there now.

        A durable queue is not: it is closed where it is, and opened by another.
        """
        record = self.pools.get(pool)
        if record is None or record.durable or not 0 <= index < len(record.places) or to not in self._workers:
            return []
        place = record.places[index]
        if not place.up or place.address == to or place.uuid in record.moves:
            return []
        return self._move(record, index, to, [])

    def _move(self, pool: PoolRecord, index: int, to: str, lost: list[str]) -> list[Order]:
        place, epoch = pool.places[index], pool.next_epoch(index)
        pool.moves[place.uuid] = _Move(to, epoch, lost)
        return [TakeOver(to, pool.name, index, place.uuid, epoch, place.address, pool.options)]

    def moved(self, pool: str, uuid: str, epoch: int, owners: Sequence[str] = ()) -> list[Order]:
        """The worker that was told to take queue `uuid` over serves it; `owners` hold leases there.

        This is the switch. Of a move that was called off it is too late to say so, and changes nothing.
        """
        record, index, move = self._moving(pool, uuid, epoch)
        if record is None or move is None:
            return []
        del record.moves[uuid]
        old = record.places[index]
        record.places[index] = Place(uuid, move.to, epoch, True)
        living = {worker.owner for worker in self._workers.values()}
        gone = dict.fromkeys([*move.lost, *(owner for owner in owners if owner not in living)])
        orders: list[Order] = [Release(move.to, owner) for owner in gone]
        if old.address and old.address != move.to:
            orders.append(Drop(old.address, pool, uuid, old.epoch))
        return orders

    def move_failed(self, pool: str, uuid: str, epoch: int) -> list[Order]:
        """The worker that was told to take queue `uuid` over did not, or is gone: call the move off."""
        record, index, move = self._moving(pool, uuid, epoch)
        if record is None or move is None:
            return []
        del record.moves[uuid]
        place = record.places[index]
        orders: list[Order] = [Drop(move.to, pool, uuid, epoch)] if move.to in self._workers else []
        if place.address in self._workers and place.address != move.to:
            return orders + self._move(record, index, place.address, move.lost)
        return orders + self._rehost(record, index, avoid=move.to)

    def _moving(self, pool: str, uuid: str, epoch: int) -> tuple[PoolRecord | None, int, _Move | None]:
        record = self.pools.get(pool)
        move = record.moves.get(uuid) if record is not None else None
        if record is None or move is None or move.epoch != epoch:
            return None, 0, None
        return record, next(index for index, place in enumerate(record.places) if place.uuid == uuid), move

    def _host_left(self, pool: PoolRecord, index: int) -> list[Order]:
        """A queue's host is gone. If it was handing it over, who takes it over knows whether that was in time."""
        place = pool.places[index]
        move = pool.moves.get(place.uuid)
        if move is None:
            return self._rehost(pool, index)
        pool.places[index] = place._replace(address="", up=False)
        return []

    def _least_loaded(self, avoid: str, refused: Collection[str] = ()) -> str | None:
        load = dict.fromkeys([address for address in self._workers if address not in refused], 0)
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

    def consumers_began(self, pool: str, id: str, address: str, time_left: float, now: float) -> None:
        """The consumers on that worker are set up; it is there for `time_left` more seconds (infinite: no end)."""
        record = self.pools.get(pool)
        consumers = record.consumers.get(id) if record is not None else None
        if consumers is not None and address in self._workers:
            consumers.ends[address] = now + time_left
            consumers.longest = max(consumers.longest, time_left)

    def consumers_left(self, pool: str, id: str, address: str) -> list[Order]:
        """The end of that worker is near, and its consumers have stopped: others take their place."""
        record = self.pools.get(pool)
        consumers = record.consumers.get(id) if record is not None else None
        if consumers is None or address not in self._workers:
            return []
        consumers.placed.pop(address, None)
        consumers.left.add(address)
        return self._place_consumers(consumers)

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
        able = [address for address in self._workers if address not in consumers.failed | consumers.left]
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
