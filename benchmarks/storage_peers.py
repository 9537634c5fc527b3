"""The store and its peers behind four words: open, put a batch, take a batch and acknowledge it, close.

A peer does what its documentation says to do for speed, without waiting for the disk unless `durable`. `share`: what
part of the messages a slow one is given, so that a run ends.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from struct import Struct
from typing import Any
from zlib import crc32

import pytest

from daskqueue_core.queue import TransientQueue
from daskqueue_storage import DurableQueue, SegmentedLog

__all__ = [
    "BATCH",
    "PEERS",
    "Core",
    "DiskCache",
    "Floor",
    "LiteQueue",
    "Lmdb",
    "Log",
    "PersistQueue",
    "Queue",
    "QueueLib",
    "Raw",
    "Sqlite",
    "Store",
]

BATCH = 1_000
_KEY = Struct(">Q")


class Store:
    """What is measured."""

    who = ""
    share = 1.0

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self.durable = durable

    def put(self, batch: Sequence[bytes]) -> None:
        """Add messages, all or nothing where there is a way to say so."""
        raise NotImplementedError

    def take(self, count: int) -> int:
        """Get so many, then say that they are done. Returns how many there were."""
        raise NotImplementedError

    def close(self) -> None:
        """End."""


class Raw(Store):
    """A file, and the bytes."""

    who = "raw write"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._file = os.open(path / "raw", os.O_CREAT | os.O_RDWR)

    def put(self, batch: Sequence[bytes]) -> None:
        os.write(self._file, b"".join(batch))
        if self.durable:
            os.fdatasync(self._file)

    def close(self) -> None:
        os.close(self._file)


class Floor(Store):
    """What any store of this design does to the bytes, and nothing else: what is left for rules and bookkeeping."""

    who = "join, lengths, crc32, write; read, crc32"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._file = os.open(path / "messages", os.O_CREAT | os.O_RDWR)
        self._events = os.open(path / "events", os.O_CREAT | os.O_RDWR)
        self._end = self._at = 0
        self._records: list[int] = []  # their sizes

    def put(self, batch: Sequence[bytes]) -> None:
        body = b"".join(batch)
        lengths = list(map(len, batch))
        header = bytes(60) + crc32(body).to_bytes(4, "little")
        self._end += os.pwritev(self._file, (header, body), self._end)
        self._records.append(64 + sum(lengths))

    def take(self, count: int) -> int:
        assert count == BATCH, "it reads whole records"
        size = self._records.pop(0)
        data = os.pread(self._file, size, self._at)
        assert crc32(memoryview(data)[64:]).to_bytes(4, "little") == data[60:64]
        self._at += size
        for _ in ("delivered", "acked"):
            os.write(self._events, bytes(128))
        return count

    def close(self) -> None:
        os.close(self._file)
        os.close(self._events)


class Core(Store):
    """The same queue in memory: what the rules cost, without a disk."""

    who = "core's TransientQueue, in memory"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._queue = TransientQueue(clock=time.monotonic_ns)

    def put(self, batch: Sequence[bytes]) -> None:
        self._queue.put_many(batch)

    def take(self, count: int) -> int:
        lease = self._queue.lease(count)
        return 0 if lease is None else self._queue.ack(lease)


class Log(Store):
    """`SegmentedLog`."""

    who = "daskqueue SegmentedLog"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._log = SegmentedLog(path / "log", sync="batch" if durable else "none")

    def put(self, batch: Sequence[bytes]) -> None:
        self._log.append_many(batch)

    def close(self) -> None:
        self._log.close()


class Queue(Store):
    """`DurableQueue`."""

    who = "daskqueue DurableQueue"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self.queue = DurableQueue(path / "queue", sync="batch" if durable else "none")

    def put(self, batch: Sequence[bytes]) -> None:
        if len(batch) == 1:
            self.queue.put(batch[0])
        else:
            self.queue.put_many(batch)

    def take(self, count: int) -> int:
        lease = self.queue.lease(count)
        return 0 if lease is None else self.queue.ack(lease)

    def close(self) -> None:
        self.queue.close()


class Lmdb(Store):
    """Keys that rise, appended; a batch is a transaction."""

    who = "lmdb"

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        lmdb: Any = pytest.importorskip("lmdb")
        self._env = lmdb.open(str(path / "lmdb"), map_size=4 << 30, sync=durable, metasync=durable)
        self._next = 0

    def put(self, batch: Sequence[bytes]) -> None:
        first = self._next
        self._next += len(batch)
        with self._env.begin(write=True) as txn, txn.cursor() as cursor:
            keys = map(_KEY.pack, range(first, self._next))
            cursor.putmulti(zip(keys, batch), append=True)

    def take(self, count: int) -> int:
        taken = []
        with self._env.begin() as txn, txn.cursor() as cursor:
            for key, body in cursor:
                taken.append((key, body))
                if len(taken) == count:
                    break
        with self._env.begin(write=True) as txn:
            for key, _ in taken:
                txn.delete(key)
        return len(taken)

    def close(self) -> None:
        self._env.close()


class Sqlite(Store):
    """A table with a state, in WAL mode; two transactions a batch taken."""

    who = "sqlite3 WAL"
    share = 0.2

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._db = db = sqlite3.connect(path / "queue.db", isolation_level=None)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute(f"PRAGMA synchronous={'FULL' if durable else 'OFF'}")
        db.execute("CREATE TABLE q (id INTEGER PRIMARY KEY, state INTEGER, body BLOB)")
        self._at = 0

    def put(self, batch: Sequence[bytes]) -> None:
        self._db.execute("BEGIN")
        self._db.executemany("INSERT INTO q (state, body) VALUES (0, ?)", [(body,) for body in batch])
        self._db.execute("COMMIT")

    def take(self, count: int) -> int:
        self._db.execute("BEGIN IMMEDIATE")
        rows = self._db.execute(
            "SELECT id, body FROM q WHERE id > ? AND state = 0 ORDER BY id LIMIT ?", (self._at, count)
        ).fetchall()
        if rows:
            first, self._at = rows[0][0], rows[-1][0]
            self._db.execute("UPDATE q SET state = 1 WHERE id BETWEEN ? AND ?", (first, self._at))
        self._db.execute("COMMIT")
        if rows:
            self._db.execute("DELETE FROM q WHERE id BETWEEN ? AND ?", (first, self._at))
        return len(rows)

    def close(self) -> None:
        self._db.close()


class QueueLib(Store):
    """A file queue without acknowledgement: what is popped is gone."""

    who = "queuelib (no ack)"
    share = 0.2

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._queue: Any = pytest.importorskip("queuelib").FifoDiskQueue(str(path / "queuelib"))

    def put(self, batch: Sequence[bytes]) -> None:
        for body in batch:
            self._queue.push(body)

    def take(self, count: int) -> int:
        return sum(self._queue.pop() is not None for _ in range(count))

    def close(self) -> None:
        self._queue.close()


class PersistQueue(Store):
    """Its queue with acknowledgement."""

    who = "persist-queue"
    share = 0.005

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        persistqueue: Any = pytest.importorskip("persistqueue")
        self._queue = persistqueue.SQLiteAckQueue(str(path / "persist"), auto_commit=True)

    def put(self, batch: Sequence[bytes]) -> None:
        for body in batch:
            self._queue.put(body)

    def take(self, count: int) -> int:
        for _ in range(count):
            self._queue.ack(self._queue.get(block=False))
        return count

    def close(self) -> None:
        self._queue.close()


class LiteQueue(Store):
    """A table, a statement a message."""

    who = "litequeue"
    share = 0.02

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._queue: Any = pytest.importorskip("litequeue").LiteQueue(str(path / "lite.db"))

    def put(self, batch: Sequence[bytes]) -> None:
        for body in batch:
            self._queue.put(body)

    def take(self, count: int) -> int:
        for _ in range(count):
            self._queue.done(self._queue.pop().message_id)
        return count


class DiskCache(Store):
    """Its deque, without acknowledgement."""

    who = "diskcache Deque (no ack)"
    share = 0.005

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        super().__init__(path, durable=durable)
        self._deque: Any = pytest.importorskip("diskcache").Deque(directory=str(path / "deque"))

    def put(self, batch: Sequence[bytes]) -> None:
        self._deque.extend(batch)

    def take(self, count: int) -> int:
        for _ in range(count):
            self._deque.popleft()
        return count

    def close(self) -> None:
        self._deque.cache.close()


PEERS: list[type[Store]] = [Lmdb, Sqlite, QueueLib, LiteQueue, PersistQueue, DiskCache]
"""Fastest first."""
