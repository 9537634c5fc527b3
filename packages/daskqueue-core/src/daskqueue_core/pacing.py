"""How many messages to lease, from measured task time.

A consumer asks for about `TARGET_S` of work per slot: one message of a function it never timed, thousands of tiny
ones. So long tasks are not hoarded, and ordinary Dask tasks on the same threads wait no longer than that. A lease
that runs longer than four times its estimate (and 100 ms) has overstayed: its unstarted tail goes back. Pure: the
measured seconds come in as arguments.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["CAP", "FUNCTIONS", "OVERSTAY_FACTOR", "OVERSTAY_S", "PREFETCH_S", "RESULT_BYTES", "TARGET_S", "Pacer"]

TARGET_S: Final = 0.090
PREFETCH_S: Final = 0.045  # before its end: busy threads yield to their event loops every 5 ms, up to 8 times a lease
PREFETCH_MOST_S: Final = 0.150  # what runs longer can afford a round trip
PREFETCH_LEAST_S: Final = 0.0002  # what runs shorter than that is over before there is an answer
OVERSTAY_FACTOR: Final = 4.0
OVERSTAY_S: Final = 0.1
CAP: Final = 32_000
RESULT_BYTES: Final = 4 << 20
FUNCTIONS: Final = 64
_SHORTEST_S: Final = 2e-8


class Pacer:
    """Seconds per message of the functions a consumer ran last."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[bytes, float] = OrderedDict()
        self._nbytes: dict[bytes, float] = {}  # of results, a message

    def observe(self, function: bytes, count: int, seconds: float, nbytes: int = 0) -> None:
        """`count` messages of `function` took `seconds` on one slot, and gave `nbytes` of results.

        A slower figure is believed at once by half (it protects the neighbours), a faster one comes in by halves: a
        first call that imported a module does not make the function slow for ever.
        """
        if count <= 0:
            return
        per = max(seconds / count, _SHORTEST_S)
        old = self._seconds.get(function)
        if old is not None:
            per = max(per, old / 2) if per < old else (min(per, 8 * old) + old) / 2
        self._seconds[function] = per
        self._seconds.move_to_end(function)
        self._nbytes[function] = max(nbytes / count, self._nbytes.get(function, 0.0) / 2)
        if len(self._seconds) > FUNCTIONS:
            del self._nbytes[self._seconds.popitem(last=False)[0]]

    def estimate(self, function: bytes, count: int) -> float | None:
        """Seconds that `count` messages of `function` should take on one slot; None if it was never timed."""
        per = self._seconds.get(function)
        return None if per is None else per * count

    def wants(self, slots: int, cap: int | None = None) -> dict[bytes, int]:
        """How many messages of each known function make `TARGET_S` of work on each of `slots` slots.

        Fewer if their results would be more than `RESULT_BYTES`.
        """
        most = CAP if cap is None else max(1, min(CAP, cap))
        wants = {}
        for function, per in self._seconds.items():
            room = RESULT_BYTES / max(self._nbytes[function], 1.0)
            wants[function] = max(1, min(most, int(TARGET_S / per), int(room))) * slots
        return wants

    def prefetch_after(self, function: bytes, count: int) -> float | None:
        """Seconds into a run of `count` messages after which the next lease may be fetched; None: not while it runs.

        Just before its end, so that little waits behind it if it takes longer. A long run can afford a round trip, and
        the request after a very short one takes its report along.
        """
        estimate = self.estimate(function, count)
        if estimate is None or not PREFETCH_LEAST_S <= estimate <= PREFETCH_MOST_S:
            return None
        return max(0.0, estimate - PREFETCH_S)

    def overstay_after(self, function: bytes, count: int) -> float:
        """Seconds after which a run of `count` messages has overstayed."""
        estimate = self.estimate(function, count)
        return OVERSTAY_S if estimate is None else max(OVERSTAY_S, OVERSTAY_FACTOR * estimate)
