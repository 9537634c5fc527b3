"""How the nodes of a simulated cluster call a queue: by name, failing fast, asking the directory again, repeating."""

from __future__ import annotations

from typing import Any, Final

from daskqueue_core.directory import Place, newest
from daskqueue_core.errors import QueueUnavailable
from daskqueue_core.testing.network import SimNetwork
from daskqueue_core.testing.sim_host import LOST, SimHost
from daskqueue_core.testing.simulation import SimNode

__all__ = ["SCHEDULER", "PoolGone", "QueueReplaced", "SimLink"]

SCHEDULER: Final = "scheduler"
_FIRST_PAUSE_S: Final = 0.01
_LONGEST_PAUSE_S: Final = 0.25


class QueueReplaced(Exception):
    """The life of the queue that was named is over, there is another."""


class PoolGone(Exception):
    """The directory knows no such pool any more."""


class SimLink:
    """Calls the queues of one pool. `places` is what this node knows of them."""

    def __init__(self, network: SimNetwork, node: SimNode, pool: str, host: SimHost | None = None) -> None:
        self.places: list[Place] = []
        self.pool = pool
        self._network = network
        self._node = node
        self._host = host

    async def call(
        self, index: int, op: str, *, uuid: str | None = None, patience: float | None = None, **args: Any
    ) -> Any:
        """Call `op` of queue `index`, of its life `uuid`, until it is answered.

        Raises `QueueReplaced`, `PoolGone`, or `QueueUnavailable` after `patience` seconds.
        """
        clock = self._node.simulation.clock
        failing_since: float | None = None
        pause, why = _FIRST_PAUSE_S, "no worker hosts it"
        while True:
            place = self.places[index]
            if uuid is not None and place.uuid != uuid:
                raise QueueReplaced(place.uuid)
            if place.up:
                try:
                    answer = await self._ask(place, op, args)
                except ConnectionError as error:
                    why = str(error)
                else:
                    if answer[0] != LOST:
                        return answer[1]
                    why = f"{place.address} does not have it"
            if failing_since is None:
                failing_since = clock.seconds
            elif patience is not None and clock.seconds - failing_since >= patience:
                raise QueueUnavailable(self.pool, index, why)
            await self.refresh()
            if self.places[index] == place:
                await self._node.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE_S)

    async def _ask(self, place: Place, op: str, args: dict[str, Any]) -> Any:
        if self._host is not None and place.uuid in self._host.queues:
            await self._node.sleep(0)
            return await self._host.call(op, place.uuid, place.epoch, args, None)
        content = {"uuid": place.uuid, "epoch": place.epoch, **args}
        return await self._network.call(self._node, place.address, op, content)

    async def refresh(self) -> None:
        """Ask the directory where the queues are."""
        try:
            places = await self._network.call(self._node, SCHEDULER, "resolve", {"pool": self.pool})
        except ConnectionError:
            await self._node.sleep(_LONGEST_PAUSE_S)
            return
        if places is None:
            raise PoolGone(self.pool)
        self.places = newest(self.places, places)
