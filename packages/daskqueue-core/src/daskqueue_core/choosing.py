"""Which of the ready messages one lease takes: of one function, so that its estimate holds, and not too many bytes.

The ledger offers only what the consumer serves, in order; this looks at what the messages are. Near the end of the work
leases of long tasks are shorter, down to a quarter, so that nobody has much to do while another has nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from daskqueue_core.batch import Run, merge_runs
from daskqueue_core.payloads import Payloads
from daskqueue_core.protocols import Demand

__all__ = ["LEASE_BYTES", "chooser"]

LEASE_BYTES: Final = 4 << 20
DEEP: Final = 16  # leases like this one that are ready: enough for everybody
MANY: Final = 1_800  # in a lease: so short that another round trip costs more than the end can win


def chooser(limit: int, demand: Demand, payloads: Payloads, count: int) -> Callable[[Iterator[Run]], list[Run]]:
    """Takes the first messages somebody like this can run, of `count` that are ready."""
    wants, have, slots = demand.wants, demand.have, demand.unknown  # never timed: one a slot

    def choose(ready: Iterator[Run]) -> list[Run]:
        picked: list[Run] = []
        function: bytes | None = None
        room, room_bytes = limit, LEASE_BYTES
        for start, stop in ready:
            while start < stop:
                entry = payloads.entry(start)
                batch, end = entry.batch, payloads.stop(entry, start, stop)
                if function is None:
                    function = batch.function
                    wanted = wants.get(function)
                    if wanted is None:
                        wanted = slots
                    elif wanted < MANY and count < DEEP * wanted:
                        wanted = max(count // DEEP, -(-wanted // 4), (min(wanted, slots) + 1) // 2)
                    room = min(limit, wanted)
                    if room <= 0:
                        return picked
                elif function != batch.function:
                    return list(merge_runs(picked))
                end = min(end, start + room)
                picked.append((start, end))
                room -= end - start
                if batch.lengths or entry.base not in have:
                    room_bytes -= entry.nbytes_of(start, end)
                if room <= 0 or room_bytes <= 0:
                    return list(merge_runs(picked))
                start = end
        return list(merge_runs(picked))

    return choose
