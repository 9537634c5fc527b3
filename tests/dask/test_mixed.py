"""Thousands of tasks of every kind in one run, with a worker killed in the middle: each ends exactly as it must."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any

import pytest

from daskqueue import (
    ConsumerPool,
    QueuePool,
    Reject,
    RetryPolicy,
    TaskExpired,
    TaskTimeout,
    WorkerCrashed,
    current_task,
)

LIMIT = 120
FAILS = {"raises", "exhausted", "rejected", "slow", "crashes"}
POLICY = RetryPolicy(max_attempts=3, backoff=0.02)


def succeeds(n: int) -> int:
    """Nothing special."""
    return n


def raises(n: int) -> None:
    """Fails for good at its first attempt."""
    raise ValueError(n)


def succeeds_at_last(n: int) -> int:
    """At the third attempt."""
    if current_task().attempt < 3:
        raise OSError(n)
    return n


def never_succeeds(n: int) -> None:
    """However often it is tried."""
    raise OSError(n)


def rejects(n: int) -> None:
    """Says that no other attempt can help."""
    raise Reject(n)


def is_slow(n: int) -> None:
    """Longer than its timeout."""
    for _ in range(300):
        time.sleep(0.1)  # in a thread, a timeout comes between two steps


def dies(n: int) -> None:
    """Takes its worker along."""
    os._exit(1)


def when(n: int) -> float:
    """The time it ran."""
    return time.time()


class Mix:
    """What was submitted, and what must come of it."""

    def __init__(self, pool: QueuePool) -> None:
        self.pool = pool
        self.futures: list[tuple[str, int, Any, float]] = []
        self.kinds: list[tuple[int, str, Callable[[int], Any]]] = [
            (1, "slow", lambda n: pool.options(timeout=0.1).submit(is_slow, n)),
            (4, "raises", lambda n: pool.submit(raises, n)),
            (4, "retried", lambda n: pool.options(retry=POLICY).submit(succeeds_at_last, n)),
            (2, "exhausted", lambda n: pool.options(retry=POLICY).submit(never_succeeds, n)),
            (2, "rejected", lambda n: pool.options(retry=POLICY).submit(rejects, n)),
            (2, "cancelled", lambda n: pool.options(delay=3600).submit(succeeds, n)),
            (2, "expired", lambda n: pool.options(delay=3600, expires=0.2).submit(succeeds, n)),
            (4, "delayed", lambda n: pool.options(delay=1.5).submit(when, n)),
            (4, "urgent", lambda n: pool.options(priority=5).submit(succeeds, n)),
        ]

    def submit(self, count: int, *, crashing: int) -> None:
        """About `count` tasks: one of 40 is slow, a quarter special in some other way, two in a row share a key."""
        kinds = [(kind, make) for weight, kind, make in self.kinds for _ in range(weight)]
        for n in range(count):
            if n % (count // (crashing + 1)) == count // 2 // (crashing + 1):
                kind, make = "crashes", lambda n: self.pool.options(retry=RetryPolicy(max_crashes=2)).submit(dies, n)
            elif n % 4 == 0:
                kind, make = kinds[n // 4 % len(kinds)]
                if kind == "slow" and n % 16:
                    kind, make = "ok", lambda n: self.pool.submit(succeeds, n)
            elif n % 50 in (1, 2):
                kind = "keyed"
                make = lambda n: self.pool.options(key=f"key {n // 50}").submit(when, n)
            else:
                kind, make = "ok", lambda n: self.pool.submit(succeeds, n)
            submitted = time.time()
            self.futures.append((kind, n, make(n), submitted))

    def check(self) -> Counter[str]:
        """Each outcome is the one it must be; returns how many there were of each kind."""
        seen: dict[str, float] = {}
        for kind, n, future, submitted in self.futures:
            error = None if kind == "cancelled" else future.exception(LIMIT)
            if kind in ("ok", "urgent", "retried"):
                assert (error, future.result()) == (None, n), kind
                assert future.attempts == (3 if kind == "retried" else 1)
            elif kind == "keyed":
                assert error is None
                assert seen.setdefault(future.key, future.result()) == future.result(), "it ran twice"
            elif kind == "delayed":
                assert error is None
                assert future.result() >= submitted + 1.5
            elif kind == "cancelled":
                with pytest.raises(CancelledError):
                    future.result(LIMIT)
            else:
                expected, attempts = {
                    "slow": (TaskTimeout, 1), "raises": (ValueError, 1), "exhausted": (OSError, 3),
                    "rejected": (Reject, 1), "expired": (TaskExpired, None), "crashes": (WorkerCrashed, None),
                }[kind]  # fmt: skip
                assert type(error) is expected, (kind, n, error)
                assert attempts is None or future.attempts == attempts, (kind, n, future.attempts)
        return Counter(kind for kind, *_ in self.futures)


def kills(cluster: Any, pool: QueuePool) -> bool:
    """SIGKILL for a worker that does not host the queue; False if none can be named: one is dying just now."""
    try:
        cluster.kill(cluster.others(pool)[0])
    except (OSError, IndexError, KeyError):
        return False
    return True


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(300)
def test_every_outcome_is_exact(
    new_cluster: Callable[..., Any], victims: Any, eventually: Callable[..., Any], count: int
) -> None:
    """Ok, raising, retried, rejected, timed out, cancelled, expired, crashing, delayed, urgent, keyed twice."""
    _, client = new_cluster(n_workers=2, threads_per_worker=2)
    pool = QueuePool(client)
    ConsumerPool(client, pool).start()
    mix = Mix(pool)
    mix.submit(count, crashing=1 if count < 5_000 else 3)
    for kind, _, future, _ in mix.futures:
        if kind == "cancelled":
            future.cancel()  # False if the queue's host dies at this moment; cancelled it is all the same
    eventually(lambda: sum(future.done() for _, _, future, _ in mix.futures) > count // 2, LIMIT)
    eventually(lambda: kills(victims(client), pool), LIMIT)
    kinds = mix.check()
    assert len(kinds) == 12
    failed = {future.key for kind, _, future, _ in mix.futures if kind in FAILS}
    assert failed <= set(pool.failures())
    assert {letter.key for letter in pool.dead_letters()} <= failed  # those of a lost host are gone with it
    pool.join(timeout=LIMIT)
    client.wait_for_workers(2, timeout=LIMIT)
