"""Queues that move with what they hold, because somebody says so or because their host leaves. Pure.

The new host is ordered to take a queue over from the old one, under an epoch that is given before the move begins and
never again; when it says that it serves, its place is switched, and who calls the old host is sent on. Until then the
move can be called off: then the old host takes the queue over from itself, under another epoch, or, if it is gone with
what it held, the queue is lost.

A worker whose *end is near*, as a consumer pool says that leaves it, gives that pool's queues to others that last, if
there are any: one that joins, if need be.

A worker that *leaves* is here until `worker_left` says otherwise, and its owner keeps its leases: what it runs ends
there. What it hosts goes to those that stay: a queue in memory is taken over, and if one cannot, by the next; a durable
one is closed, and opened elsewhere. If nobody stays, the queues stay too, and end with the worker; a durable one is
then opened by another that leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from daskqueue_core.orders import Drop, Order, Place, Release, TakeOver
from daskqueue_core.placing import Placing
from daskqueue_core.pool_records import Move, PoolRecord

__all__ = ["Moves"]


class Moves(Placing):
    """Moves, and the workers that leave."""

    def move(self, pool: str, index: int, to: str) -> list[Order]:
        """Let the worker `to` host queue `index`, with all it holds. Nothing, if it cannot be moved there now.

        A durable queue is not: it is closed where it is, and opened by another.
        """
        record = self.pools.get(pool)
        if record is None or record.durable or not 0 <= index < len(record.places) or to not in self.staying:
            return []
        place = record.places[index]
        if not place.up or place.address == to or place.uuid in record.moves:
            return []
        return self._move(record, index, Move(to, record.next_epoch(index), []))

    def _move(self, pool: PoolRecord, index: int, move: Move) -> list[Order]:
        place = pool.places[index]
        pool.moves[place.uuid] = move
        return [TakeOver(move.to, pool.name, index, place.uuid, move.epoch, place.address, pool.options)]

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
        is_home = old.address == move.to
        if old.address and not is_home:
            orders.append(Drop(old.address, pool, uuid, old.epoch))
        # Its host may leave, and did not when it was asked. At home, only who came since has not been tried.
        return orders + self._give_on(record, index, move.tried if is_home else ())

    def move_failed(self, pool: str, uuid: str, epoch: int) -> list[Order]:
        """The worker that was told to take queue `uuid` over did not, or is gone: call the move off."""
        record, index, move = self._moving(pool, uuid, epoch)
        if record is None or move is None:
            return []
        del record.moves[uuid]
        home = record.places[index].address
        orders: list[Order] = [Drop(move.to, pool, uuid, epoch)] if move.to in self._workers else []
        if home not in self._workers or home == move.to:
            return orders + self._rehost(record, index, avoid=move.to)
        to, tried = home, move.tried | {move.to}
        if home not in self._lasting(record):
            to = self._least_loaded(self._lasting(record), refused=tried) or home
        return orders + self._move(record, index, Move(to, record.next_epoch(index), move.lost, tried))

    def _moving(self, pool: str, uuid: str, epoch: int) -> tuple[PoolRecord | None, int, Move | None]:
        record = self.pools.get(pool)
        move = record.moves.get(uuid) if record is not None else None
        if record is None or move is None or move.epoch != epoch:
            return None, 0, None
        return record, record.index_of(uuid), move

    # -- leaving

    def _give_all_on(self, pool: PoolRecord) -> list[Order]:
        return [order for index in range(len(pool.places)) for order in self._give_on(pool, index)]

    def _give_on(self, pool: PoolRecord, index: int, tried: Collection[str] = ()) -> list[Order]:
        """If queue `index` is hosted where it should not stay, and not on the move: let another have it.

        But none of those that were `tried`.
        """
        place = pool.places[index]
        lasting = self._lasting(pool)
        if not place.address or place.uuid in pool.moves or place.address in lasting or not lasting:
            return []
        if place.up and not pool.durable:
            to = self._least_loaded(lasting, refused=tried)
            return [] if to is None else self._move(pool, index, Move(to, pool.next_epoch(index), [], set(tried)))
        # A durable queue is on the disk; what is not served yet holds nothing, and nobody knows it.
        return [Drop(place.address, pool.name, place.uuid, place.epoch), *self._rehost(pool, index)]

    def is_giving(self, address: str) -> bool:
        """Whether a queue is about to be taken over from this worker."""
        return any(
            place.address == address and place.uuid in pool.moves
            for pool in self.pools.values()
            for place in pool.places
        )

    def _host_left(self, pool: PoolRecord, index: int) -> list[Order]:
        """A queue's host is gone. If it was handing it over, who takes it over knows whether that was in time."""
        place = pool.places[index]
        move = pool.moves.get(place.uuid)
        if move is None:
            return self._rehost(pool, index)
        pool.places[index] = place._replace(address="", up=False)
        return []
