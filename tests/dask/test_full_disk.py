"""A disk that fills up under a running durable pool, really: a small file system of its own.

Submitters get `DiskFullError` or wait, as they chose. Consumers go on: what is theirs to say has room of its own. Once
there is space again, all continues, and nothing is lost.
"""

from __future__ import annotations

import os
import queue
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from daskqueue import ConsumerPool, QueuePool
from daskqueue.testing import Oracle
from daskqueue_storage import DiskFullError

LIMIT = 60
MEBIBYTE = 1 << 20
LOAD = b"x" * 50_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """One of 24 MiB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system of its own: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def fill(disk: Path, leaving: int) -> Path:
    """Somebody else's file, which leaves so many bytes."""
    ballast, block = disk / "ballast", bytes(1 << 16)
    with ballast.open("wb") as file:
        while (space := os.statvfs(disk)).f_bavail * space.f_frsize >= leaving + len(block):
            file.write(block)
            file.flush()
    return ballast


def noted(oracle: Oracle) -> Callable[[int, bytes], int]:
    """A task that says that it ran."""

    def task(n: int, load: bytes) -> int:
        oracle.mark(n)
        return n

    return task


def test_submitters_are_told(
    client: Client, disk: Path, gate: Any, oracle: Oracle, eventually: Callable[..., Any]
) -> None:
    """`on_full="raise"`: the futures of what was refused say so; what was accepted is done, on the full disk."""
    task = noted(oracle)
    with QueuePool(client, durability="durable", dirpath=disk / "pool", on_full="raise") as pool:
        ConsumerPool(client, pool).start()
        held = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2, LIMIT)
        ballast = fill(disk, leaving=2 * MEBIBYTE)
        futures = []
        for n in range(200):
            futures.append(pool.submit(task, n, LOAD))
            pool.flush()
        gate.open()
        errors = [future.exception(LIMIT) for future in futures]
        accepted = [n for n, error in enumerate(errors) if error is None]
        assert accepted, "there was room for some"
        assert len(accepted) < 100, "and not for all"
        assert all(error is None or isinstance(error, DiskFullError) for error in errors)
        assert [future.result(LIMIT) for future in held] == [0, 1]
        assert oracle.counts() == {str(n): 1 for n in accepted}
        with pytest.raises(DiskFullError):
            pool.submit(task, 1000, LOAD).result(LIMIT)
        ballast.unlink()
        assert [pool.submit(task, n, LOAD).result(LIMIT) for n in range(1000, 1010)] == list(range(1000, 1010))
        pool.join(timeout=LIMIT)


def test_items(client: Client, disk: Path) -> None:
    """Items hear of it as calls do: at once, in time, or they wait, with a key of their own too."""
    item = os.urandom(MEBIBYTE)
    with QueuePool(client, durability="durable", dirpath=disk / "pool", on_full="raise") as pool:
        ballast = fill(disk, leaving=MEBIBYTE // 2)
        for put in (pool.put, pool.options(key="named").put, lambda item: pool.put_many([item])):
            with pytest.raises(DiskFullError):
                put(item)
        ballast.unlink()
    with QueuePool(client, durability="durable", dirpath=disk / "pool") as pool:
        ballast = fill(disk, leaving=MEBIBYTE // 2)
        with pytest.raises(DiskFullError):
            pool.put(item, timeout=0.1)
        with pytest.raises(DiskFullError):
            pool.put(item, block=False)
        waiting = [threading.Thread(target=door.put, args=(item,)) for door in (pool, pool.options(key="named"))]
        for thread in waiting:
            thread.start()
        with pytest.raises((queue.Full, DiskFullError)):  # Full: behind those that wait
            pool.put(item, timeout=0.5)
        assert all(thread.is_alive() for thread in waiting)
        ballast.unlink()
        for thread in waiting:
            thread.join(LIMIT)
            assert not thread.is_alive()
        assert pool.stats()[0].ready == 2


def test_submitters_wait(client: Client, disk: Path, gate: Any, oracle: Oracle, eventually: Callable[..., Any]) -> None:
    """By default: all is done in the end, once each, and consumers do not wait for it."""
    task = noted(oracle)
    with QueuePool(client, durability="durable", dirpath=disk / "pool") as pool:
        ConsumerPool(client, pool).start()
        held = [pool.submit(gate, n) for n in range(2)]
        eventually(lambda: gate.count("came") == 2, LIMIT)
        ballast = fill(disk, leaving=2 * MEBIBYTE)
        futures = [pool.submit(task, 0, LOAD)]
        pool.flush()  # those that wait travel together, perhaps more than there is room for
        futures += [pool.submit(task, n, LOAD) for n in range(1, 200)]
        gate.open()
        assert [future.result(LIMIT) for future in held] == [0, 1]
        assert futures[0].result(LIMIT) == 0
        with pytest.raises(TimeoutError):
            futures[-1].result(0.5)
        done = sum(future.done() for future in futures)
        assert done < 100, "there is no room for the others"
        ballast.unlink()
        assert [future.result(LIMIT) for future in futures] == list(range(200))
        pool.join(timeout=LIMIT)
    assert oracle.counts() == {str(n): 1 for n in range(200)}
