"""Which worker hosts a queue: the first one, and another after a loss. Pure.

One that stays, and of these one that its pool's consumers have not left because its end is near, if there is any. Else
a durable queue is served by those that leave, one after the other, as long as one of them may still have to report what
it runs; what is in memory would be lost with them.

Not here: moving a queue with what it holds (`moves`), pools and consumers (`directory`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from daskqueue_core.orders import Drop, Host, Order, Place, Release
from daskqueue_core.pool_records import PoolRecord, WorkerRecord

__all__ = ["Placing"]

REMEMBERED_OWNERS: Final = 1000


class Placing:
    """The workers, and the queues' places on them. `new_uuid` names a life of a queue."""

    def __init__(self, new_uuid: Callable[[], str]) -> None:
        self._new_uuid = new_uuid
        self._workers: dict[str, WorkerRecord] = {}
        self._lost: dict[str, None] = {}  # owners that were lost last, in order
        self.pools: dict[str, PoolRecord] = {}

    @property
    def workers(self) -> list[str]:
        """Addresses of the workers that are here, also of those that are about to leave."""
        return list(self._workers)

    @property
    def staying(self) -> list[str]:
        """Addresses of the workers that can host and consume."""
        return [address for address, worker in self._workers.items() if not worker.leaving]

    def _lasting(self, pool: PoolRecord) -> list[str]:
        """Who of those that stay is to host that pool's queues: not where its consumers know that the end is near."""
        near = {address for consumers in pool.consumers.values() for address in consumers.left}
        return [address for address in self.staying if address not in near] or self.staying

    def owner_of(self, address: str) -> str | None:
        """The owner that the worker there is; None if it is not here."""
        worker = self._workers.get(address)
        return None if worker is None else worker.owner

    def _remember_lost(self, owner: str) -> None:
        """Whoever opens a durable queue hears of it: what that owner ran may have killed it."""
        self._lost[owner] = None
        if len(self._lost) > REMEMBERED_OWNERS:
            del self._lost[next(iter(self._lost))]

    def hosted(self, pool: str, uuid: str, epoch: int) -> list[Order]:
        """The host of queue `uuid` serves it now. `epoch` says which order that was.

        An owner that was here then, and was lost while a durable queue was opened, keeps no leases there.
        """
        record = self.pools.get(pool)
        if record is None or not self._is_at(record, uuid, epoch):
            return []
        record.refused.pop(uuid, None)
        record.trouble.pop(uuid, None)
        record.places = [place._replace(up=True) if place.uuid == uuid else place for place in record.places]
        host = record.places[record.index_of(uuid)].address
        living = {worker.owner for worker in self._workers.values()}
        return [Release(host, owner) for owner in record.told.pop(uuid, ()) if owner not in living]

    def host_failed(self, pool: str, uuid: str, epoch: int, trouble: tuple[str, str] = ("", "")) -> list[Order]:
        """The worker that was told to host queue `uuid` did not, or does no more: try the next."""
        record = self.pools.get(pool)
        if record is None or not self._is_at(record, uuid, epoch):
            return []
        index = record.index_of(uuid)
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
        able = self._lasting(pool)
        if refused.issuperset(able):
            able = self.staying
        leaving = pool.durable and not able
        if leaving:  # what they still run, they report there
            able = self.workers
        if refused.issuperset(able):  # nobody could: all are asked once more
            refused.clear()
        address = self._least_loaded(able, avoid, refused)
        if address is None:
            return []
        place = pool.places[index] = pool.places[index]._replace(address=address)
        expected: tuple[str, ...] = ()
        owners: tuple[str, ...] = ()
        lost: tuple[str, ...] = ()
        if pool.durable:
            owners = tuple(sorted(worker.owner for worker in self._workers.values()))
            pool.told[place.uuid] = owners
            lost = tuple(self._lost)
        elif place.epoch:
            expected = tuple(sorted(pool.clients))
        return [Host(address, pool.name, index, place.uuid, place.epoch, pool.options, expected, owners, lost, leaving)]

    def _least_loaded(self, able: Sequence[str], avoid: str = "", refused: Collection[str] = ()) -> str | None:
        """Who of `able` hosts least, counting what is on its way there; `avoid` only if there is no other."""
        load = dict.fromkeys([address for address in able if address not in refused], 0)
        for pool in self.pools.values():
            for place in pool.places:
                move = pool.moves.get(place.uuid)
                address = place.address if move is None else move.to
                if address in load:
                    load[address] += 1
        return min(load, key=lambda address: (address == avoid, load[address]), default=None)
