"""The store: speed, memory and disk of 100-byte messages, each of them different, beside peers and the bare file.

The raw write of the same bytes is in the same run and first in its group, so the ratios say what the machine can do at
this minute; beside it what must be done to them in any case (`Floor`) and what the rules cost without a disk (`Core`).
`DASKQUEUE_BENCH_LIVE` is how many messages live in the tests of memory and opening (default 1,000,000; put
one by one a fifth of them), `DASKQUEUE_BENCH_CYCLES` how many go through one queue.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from storage_peers import (
    BATCH,
    PEERS,
    Core,
    DiskCache,
    Floor,
    LiteQueue,
    Lmdb,
    Log,
    PersistQueue,
    Queue,
    QueueLib,
    Raw,
    Sqlite,
    Store,
)

from daskqueue_storage import DurableQueue

S1 = "S1 put, batches of 1,000, no sync"
S2 = "S2 put, batches of 1,000, on disk before each returns"
S3 = "S3 put one by one, on disk before each returns"
S4 = "S4 lease and ack, batches of 1,000"
S5 = "S5 lease and ack, one by one"
S6 = "S6 put one by one, no sync"
S7 = "S7 memory and disk of what lives"
S8 = "S8 opening"
S9 = "S9 put, lease and ack through one queue"

SIZE = 100
LIVE = int(os.environ.get("DASKQUEUE_BENCH_LIVE", 1_000_000))
CYCLES = int(os.environ.get("DASKQUEUE_BENCH_CYCLES", 10_000_000))
_BYTES = random.Random(1).randbytes(SIZE * BATCH * 50)
BATCHES = [
    [_BYTES[at : at + SIZE] for at in range(first, first + SIZE * BATCH, SIZE)]
    for first in range(0, len(_BYTES), SIZE * BATCH)
]


def batch(number: int) -> list[bytes]:
    """One of fifty."""
    return BATCHES[number % len(BATCHES)]


def rounds(
    benchmark: Any,
    kind: type[Store],
    tmp_path: Path,
    count: int,
    run: Callable[[Store, int], object],
    *,
    durable: bool = False,
    fill: bool = False,
) -> None:
    """Five rounds, each on a store of its own; `fill` it before the clock runs."""
    benchmark.extra_info.update(who=kind.who, size=count, unit="msg/s")
    made: list[Store] = []

    def setup() -> tuple[tuple[Store, int], dict[str, Any]]:
        close()
        path = tmp_path / str(time.monotonic_ns())
        path.mkdir()
        store = kind(path, durable=durable)
        made.append(store)
        for number in range(count // BATCH if fill else 0):
            store.put(batch(number))
        gc.collect()
        return (store, count), {}

    def close() -> None:
        while made:
            store = made.pop()
            store.close()
            shutil.rmtree(store.path)

    benchmark.pedantic(run, setup=setup, rounds=5, iterations=1, warmup_rounds=1)
    close()


def put_batches(store: Store, count: int) -> None:
    """`count` messages, a thousand in one go."""
    for number in range(count // BATCH):
        store.put(batch(number))


def put_singles(store: Store, count: int) -> None:
    """`count` messages, each by itself."""
    for at in range(count):
        store.put([BATCHES[at // BATCH % len(BATCHES)][at % BATCH]])


def take_batches(store: Store, count: int) -> None:
    """All, a thousand in one go."""
    assert sum(store.take(BATCH) for _ in range(count // BATCH)) == count


def take_singles(store: Store, count: int) -> None:
    """All, each by itself."""
    assert sum(store.take(1) for _ in range(count)) == count


def _some(kind: type[Store], count: int) -> int:
    return max(BATCH, int(count * kind.share) // BATCH * BATCH)


@pytest.mark.benchmark(group=S1)
@pytest.mark.parametrize("kind", [Raw, Floor, Core, Log, Queue, *PEERS])
def test_put_batches(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """Target: 8 M/s, three times LMDB."""
    rounds(benchmark, kind, tmp_path, _some(kind, 1_000_000), put_batches)


@pytest.mark.benchmark(group=S2)
@pytest.mark.parametrize("kind", [Raw, Log, Queue, Lmdb, Sqlite])
def test_put_batches_durably(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """Target: 0.7 of the raw write."""
    rounds(benchmark, kind, tmp_path, 200_000 if kind.share == 1 else 50_000, put_batches, durable=True)


@pytest.mark.benchmark(group=S3)
@pytest.mark.parametrize("threads", [1, 16])
def test_put_singles_durably(benchmark: Any, tmp_path: Path, threads: int) -> None:
    """Target: sixteen threads three times as fast as one, since they share syncs."""

    def run(store: Store, count: int) -> None:
        work = [threading.Thread(target=put_singles, args=(store, count // threads)) for _ in range(threads)]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()

    rounds(benchmark, Queue, tmp_path, 2_000 * min(4, threads), run, durable=True)
    benchmark.extra_info["who"] = f"daskqueue DurableQueue, {threads} threads"


@pytest.mark.benchmark(group=S3)
@pytest.mark.parametrize("kind", [Raw, Sqlite])
def test_peers_put_singles_durably(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """One thread."""
    rounds(benchmark, kind, tmp_path, 1_000, put_singles, durable=True)


@pytest.mark.benchmark(group=S4)
@pytest.mark.parametrize("kind", [Queue, Floor, Core, Lmdb, Sqlite, QueueLib])
def test_take_batches(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """Target: 8 M/s, with the records of both."""
    rounds(benchmark, kind, tmp_path, _some(kind, 1_000_000), take_batches, fill=True)


@pytest.mark.benchmark(group=S5)
@pytest.mark.parametrize("kind", [Queue, Core, *PEERS])
def test_take_singles(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """Target: 150,000/s."""
    rounds(benchmark, kind, tmp_path, 1_000 if kind.share < 0.1 else 10_000, take_singles, fill=True)


@pytest.mark.benchmark(group=S6)
@pytest.mark.parametrize(
    "kind", [Raw, Floor, Core, Log, Queue, Lmdb, Sqlite, QueueLib, LiteQueue, PersistQueue, DiskCache]
)
def test_put_singles(benchmark: Any, tmp_path: Path, kind: type[Store]) -> None:
    """Each by itself."""
    rounds(benchmark, kind, tmp_path, 1_000 if kind.share < 0.1 else 10_000, put_singles)


@pytest.mark.benchmark(group=S7)
@pytest.mark.parametrize("size", [BATCH, 1])
def test_memory_and_disk(benchmark: Any, tmp_path: Path, size: int) -> None:
    """Targets: 10 B of memory a message; 101 B of disk in batches."""
    count = LIVE if size == BATCH else LIVE // 5
    process = psutil.Process()
    with DurableQueue(tmp_path / "queue", sync="none") as queue:
        queue.put_many(BATCHES[0])
        gc.collect()
        before = process.memory_info().rss

        def run() -> None:
            for at in range(count // BATCH):
                if size == BATCH:
                    queue.put_many(batch(at))
                else:
                    for body in batch(at):
                        queue.put(body)

        benchmark.pedantic(run, rounds=1)
        gc.collect()
        log = sum(path.stat().st_size for path in (tmp_path / "queue" / "log").iterdir())
        benchmark.extra_info.update(who=f"put by {size}", size=count, unit="msg/s")
        benchmark.extra_info["memory"] = f"{(process.memory_info().rss - before) / count:.1f} B a message"
        disk = log / count, queue.size_bytes / count
        benchmark.extra_info["disk"] = f"{disk[0]:.1f} B a message in the log, {disk[1]:.1f} in all"


_FILLER = """
import os, sys
from bench_storage import BATCH, batch
from daskqueue_storage import DurableQueue
path, count, size, kill = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "kill"
queue = DurableQueue(path, sync="none")
for at in range(count // BATCH):
    for first in range(0, BATCH, size):
        queue.put_many(batch(at)[first : first + size])
if kill:
    os._exit(0)
queue.close()
"""


@pytest.mark.benchmark(group=S8)
@pytest.mark.parametrize("end", ["close", "kill"])
@pytest.mark.parametrize("size", [BATCH, 1])
def test_opening(benchmark: Any, tmp_path: Path, size: int, end: str) -> None:
    """Targets for 10 M: 0.2 s and 1 s in batches, 0.3 s and 8 s one by one, after close and after a kill."""
    count = LIVE if size == BATCH else LIVE // 5
    path = str(tmp_path / "queue")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", _FILLER, path, str(count), str(size), end]
    subprocess.run(command, check=True, env=env, timeout=1200)
    os.sync()  # what is dirty is written before anything is believed: the disk's time, not ours
    queue = benchmark.pedantic(lambda: DurableQueue(path, sync="none"), rounds=1)
    assert queue.ready == count
    lease = queue.lease(1)
    assert lease is not None
    queue.close()
    benchmark.extra_info.update(who=f"{count:,} put by {size}, after a {end}", size=1, unit="ms")


@pytest.mark.benchmark(group=S9)
def test_cycles(benchmark: Any, tmp_path: Path) -> None:
    """Memory and disk along the way, and what is left at the end."""
    path, process = tmp_path / "queue", psutil.Process()
    said: list[str] = []

    def parts() -> dict[str, int]:
        return {part: len(list((path / part).iterdir())) for part in ("log", "index")}

    def run() -> None:
        with DurableQueue(path, sync="none") as queue:
            tenth = CYCLES // BATCH // 10
            for at in range(CYCLES // BATCH):
                queue.put_many(batch(at))
                lease = queue.lease(BATCH)
                assert lease is not None
                assert queue.ack(lease) == BATCH
                if at % tenth == tenth - 1:
                    memory, disk = process.memory_info().rss / 2**20, queue.size_bytes / 2**20
                    said.append(f"{(at + 1) * BATCH:,}: {memory:.0f} MiB of memory, {disk:.0f} of disk, {parts()}")
            assert parts()["log"] <= 1
            assert parts()["index"] <= 2

    benchmark.pedantic(run, rounds=1)
    benchmark.extra_info.update(who="put, lease, ack by 1000", size=CYCLES, unit="msg/s")
    for line in said:
        benchmark.extra_info[f"after {line.partition(':')[0]}"] = line.partition(": ")[2]
