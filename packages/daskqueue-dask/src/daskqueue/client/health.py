"""What is wrong with a pool: its counts, and who serves it, compared.

`diagnose` is a pure function of what the queues and the directory say. A problem has a text for people, which says
what, where and what to do, and a cause that stays the same while the counts in the text change: a client that has
waited in vain for an outcome for some twenty seconds looks here (`checkup`) and logs each cause once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from daskqueue_core.batch import Kind
from daskqueue_core.directory import ConsumersOf
from daskqueue_core.stats import QueueStats
from daskqueue_core.time_requests import split_request

__all__ = ["OLD_S", "PoolHealth", "Problem", "Served", "diagnose", "only_unserved_left"]

OLD_S: Final = 60.0
"""Nothing that is ready should wait longer while consumers are there."""

_KINDS: Final = {
    Kind.CALL: ("call(s)", "ConsumerPool(client, pool"),
    Kind.ITEM: ("item(s)", "ConsumerPool(client, pool, YourConsumer"),
}


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """How a pool is."""

    ok: bool
    """Whether there is no problem."""
    problems: tuple[str, ...]
    """What is wrong, where, and what to do."""
    queues: tuple[QueueStats, ...]
    """Of the queues that answered."""
    workers: int
    """Workers of the cluster that can host queues and consumers."""
    consumers: int
    """Consumers on them."""
    ready: int
    scheduled: int
    """Delayed, or waiting for their next attempt."""
    delivered: int
    dead_letters: int
    """Failed for good and neither requeued nor purged: no problem of the pool's."""
    leaving: tuple[str, ...] = ()
    """Workers whose job ends soon: consumers have stopped there (`ConsumerPool(drain_before=)`)."""


class Served(NamedTuple):
    """What the directory says of a pool."""

    kinds: tuple[int, ...] = ()
    early_ack: bool = False
    consumers: tuple[ConsumersOf, ...] = ()
    workers: int = 0
    trouble: tuple[str, ...] = ()
    """Why a queue has no host, in the words of the last worker that tried; empty where it has one."""

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Served:
        """What came as a message."""
        kinds, early_ack, consumers, workers, trouble = answer
        consumers = tuple(ConsumersOf(*each) for each in consumers)
        return cls(tuple(kinds), bool(early_ack), consumers, workers, tuple(trouble))

    def serves(self, kind: int, tags: Sequence[str]) -> bool:
        """Whether a consumer takes such work."""
        return any(each.serve(kind, tags) for each in self.consumers)


class Problem(NamedTuple):
    """One thing that is wrong."""

    cause: tuple[object, ...]
    text: str


def diagnose(pool: str, queues: Mapping[int, QueueStats | str], served: Served, now: int) -> list[Problem]:
    """What is wrong with `pool`: `queues` gives counts, or why there are none; `now` in nanoseconds of the epoch."""
    problems: list[Problem] = []
    if not served.workers:
        problems.append(Problem(("workers",), f"pool {pool}: the cluster has no worker; add some: cluster.scale(n)"))
    for index, stats in queues.items():
        where = f"queue {index} of pool {pool}"
        if isinstance(stats, str):
            said = served.trouble[index] if index < len(served.trouble) else ""
            why = f"{stats}; the last worker that tried said: {said}" if said else stats
            text = f"{where} does not answer ({why}); its tasks wait for a worker that hosts it"
            problems.append(Problem(("host", index), text))
            continue
        problems += [_unserved(index, where, served, *waiting) for waiting in _unserved_by(stats, served)]
        age = (now - stats.oldest_ready_at) / 1e9 if stats.oldest_ready_at else 0.0
        if age > OLD_S and stats.ready > sum(count for _, _, count in _unserved_by(stats, served)):
            text = (
                f"{where}: the oldest of {stats.ready} ready message(s) was put {age:.0f} s ago; more workers or "
                "concurrency would help, unless those that are there are paused or stuck"
            )
            problems.append(Problem(("old", index), text))
    for consumers in served.consumers:
        if consumers.failed:
            text = f"pool {pool}: consumers did not start on {consumers.failed} worker(s); the scheduler's log says why"
            problems.append(Problem(("failed",), text))
    return problems


def only_unserved_left(queues: Sequence[QueueStats], served: Served) -> bool:
    """Whether something waits that no consumer takes, and nothing else: nothing runs, nothing waits for a consumer."""
    unserved = sum(count for stats in queues for _, _, count in _unserved_by(stats, served))
    return 0 < unserved == sum(stats.unfinished for stats in queues)


def _unserved_by(stats: QueueStats, served: Served) -> list[tuple[int, tuple[str, ...], int]]:
    """Of what waits, what nobody takes."""
    return [(kind, tuple(tags), count) for kind, tags, count in stats.waiting if not served.serves(kind, tags)]


def _unserved(index: int, where: str, served: Served, kind: int, tags: tuple[str, ...], count: int) -> Problem:
    what, consumers = _KINDS[Kind(kind)]
    plain, seconds = split_request(tags)
    have = f"with the tags {', '.join(map(repr, plain))} " if plain else ""
    need = f"that need {seconds} s " if seconds else ""
    head = f"{where}: {count} {what} {have}{need}wait and no consumer serves them"
    start = f"{consumers}{f', tags={list(plain)!r}' if plain else ''}).start()"
    left = {address for each in served.consumers for address in each.left}
    if left and not any(each.running for each in served.consumers):
        text = f"{head}: they have left all {len(left)} worker(s), whose jobs end soon; add workers in new jobs"
    elif not any(each.running for each in served.consumers):
        text = f"{head}: none runs at all; {start}"
    elif not any(each.running and kind in each.kinds for each in served.consumers):
        text = f"{head}: none takes this kind of work; {start}"
    elif not served.serves(kind, plain):
        text = f"{head}: none has all of these tags; {start}"
    else:
        longest = max(each.time_left for each in served.consumers if each.serve(kind, plain))
        text = f"{head}: their jobs end in {max(0.0, longest):.0f} s at the latest; add workers in longer jobs"
    return Problem(("unserved", index, kind, tags), text)
