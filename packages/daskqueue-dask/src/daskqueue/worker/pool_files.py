"""The directory of a durable pool: `pool.json`, and a directory `q<i>` for each queue.

`pool.json` is written once, after the queues were made, and says which they are: so a pool is there with all its
queues, or it is not there. What a crash left before that is taken over if it is empty. Everything here is blocking.

Not here: what is in a queue's directory (`daskqueue_storage`), who opens it (`durable_host`).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from daskqueue_storage import DurableQueue
from daskqueue_storage.access import refusals
from daskqueue_storage.directory import check_safe
from daskqueue_storage.errors import FormatError, NotAQueue
from daskqueue_storage.files import OsFiles

__all__ = ["POOL_FILE", "PoolFiles", "find_pool", "pool_in", "prepare_pool", "queue_path"]

POOL_FILE: Final = "pool.json"
PART: Final = f"{POOL_FILE}.{{}}.tmp"
FORMAT: Final = 1


class PoolFiles(NamedTuple):
    """What `pool.json` says: the pool's uuid, and that of each queue, as 32 hexadecimal digits."""

    uuid: str
    queues: tuple[str, ...]


def queue_path(dirpath: str, index: int) -> Path:
    """The directory of queue `index`."""
    return Path(dirpath) / f"q{index}"


def pool_in(dirpath: str, n_queues: int | None, storage: Mapping[str, Any]) -> PoolFiles | None:
    """The pool in a directory, made with `n_queues` if it is not there; None if it is not to be made.

    `storage`: how its queues are opened. Raises what the store says: `AccessError`, `UnsafeDirectory`, `NotAQueue` ...
    """
    with refusals(dirpath):
        if os.path.isdir(dirpath) and not storage["allow_shared"]:
            check_safe(OsFiles(), dirpath)  # others could put a queue of theirs there
        return find_pool(dirpath) if n_queues is None else prepare_pool(dirpath, n_queues, storage)


def find_pool(dirpath: str) -> PoolFiles | None:
    """The pool that lives in a directory; None if there is none. Raises what the operating system says."""
    try:
        text = (Path(dirpath) / POOL_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        said = json.loads(text)
        found = PoolFiles(uuid.UUID(said["uuid"]).hex, tuple(uuid.UUID(each).hex for each in said["queues"]))
        version = int(said["format"])
    except (ValueError, TypeError, KeyError, AttributeError):
        why = f"its {POOL_FILE} cannot be read: it was not written by daskqueue, or is damaged"
        raise NotAQueue(dirpath, why) from None
    if version > FORMAT:
        raise FormatError(dirpath, f"{POOL_FILE} has format {version}, and this daskqueue knows {FORMAT}")
    return found


def prepare_pool(dirpath: str, n_queues: int, storage: Mapping[str, Any]) -> PoolFiles:
    """The pool in a directory, made if it is not there. `storage`: how its queues are opened."""
    found = find_pool(dirpath)
    if found is not None:
        _sweep(dirpath)
        return found
    os.makedirs(dirpath, mode=0o700, exist_ok=True)
    queues = tuple(_make_queue(queue_path(dirpath, index), storage) for index in range(n_queues))
    return _write(dirpath, PoolFiles(uuid.uuid4().hex, queues))


def _make_queue(path: Path, storage: Mapping[str, Any]) -> str:
    """An empty queue; its uuid."""
    with DurableQueue(path, lock_ttl=storage["lock_ttl"], allow_shared=storage["allow_shared"]) as queue:
        if queue.puts or queue.unfinished:
            raise NotAQueue(str(path), f"it holds messages and belongs to no pool: {path.parent} has no {POOL_FILE}")
        return queue.uuid


def _write(dirpath: str, pool: PoolFiles) -> PoolFiles:
    """Write `pool.json` unless somebody else has meanwhile: then theirs holds."""
    path, part = Path(dirpath) / POOL_FILE, Path(dirpath) / PART.format(secrets.token_hex(8))
    text = json.dumps({"format": FORMAT, "uuid": pool.uuid, "n_queues": len(pool.queues), "queues": pool.queues})
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(file, "w", encoding="utf-8") as out:
            out.write(text + "\n")
            out.flush()
            os.fsync(out.fileno())
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # or it was swept away by whoever was first
            os.link(part, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
    _sweep(dirpath)
    directory = os.open(dirpath, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    written = find_pool(dirpath)
    assert written is not None, "it was linked"
    return written


def _sweep(dirpath: str) -> None:
    """Remove what a crash left: once there is a `pool.json`, nobody's part becomes it."""
    with contextlib.suppress(OSError):
        for part in Path(dirpath).glob(PART.format("*")):
            part.unlink(missing_ok=True)
