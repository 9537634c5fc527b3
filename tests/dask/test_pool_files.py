"""The directory of a durable pool: made whole or not at all, found again, and nothing of somebody else's touched."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from daskqueue.worker.pool_files import POOL_FILE, PoolFiles, find_pool, pool_in, prepare_pool, queue_path
from daskqueue_storage import DurableQueue
from daskqueue_storage.errors import AccessError, FormatError, NotAQueue, StorageError, UnsafeDirectory

STORAGE: Final = {"lock_ttl": 10.0, "allow_shared": False}


def put_into(path: Path) -> None:
    """A queue that holds something."""
    with DurableQueue(path) as queue:
        queue.put(b"x")


def test_made_and_found(tmp_path: Path) -> None:
    """With as many queues as were asked for; whoever asks later gets the same, however many it asks for."""
    where = str(tmp_path / "a" / "pool")
    assert find_pool(where) is None
    made = prepare_pool(where, 3, STORAGE)
    assert find_pool(where) == made == prepare_pool(where, 7, STORAGE)
    assert len(set(made.queues)) == 3
    for index, uuid in enumerate(made.queues):
        with DurableQueue(queue_path(where, index), create=False, uuid=bytes.fromhex(uuid)) as queue:
            assert queue.unfinished == 0
    assert sorted(os.listdir(where)) == [POOL_FILE, "q0", "q1", "q2"]


def test_only_its_owner_may_look(tmp_path: Path) -> None:
    """What is in a queue is run by whoever opens it."""
    prepare_pool(str(tmp_path / "pool"), 1, STORAGE)
    for path in (tmp_path / "pool", tmp_path / "pool" / "q0"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.fixture
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory of somebody who is not root, and be that one."""
    if os.geteuid() != 0:
        yield tmp_path_factory.mktemp("mine")
        return
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


def test_whose_directory_it_is(nobody: Path) -> None:
    """One that others may write to is refused, and left as it is, unless that is what was asked for."""
    where = nobody / "pool"
    where.mkdir()
    where.chmod(0o777)
    for n_queues in (None, 1):
        with pytest.raises(UnsafeDirectory, match="written by others"):
            pool_in(str(where), n_queues, STORAGE)
    assert os.listdir(where) == []
    assert pool_in(str(where), None, {**STORAGE, "allow_shared": True}) is None
    made = pool_in(str(where), 1, {**STORAGE, "allow_shared": True})
    where.chmod(0o700)
    assert pool_in(str(where), None, STORAGE) == made


def test_what_the_system_refuses(nobody: Path) -> None:
    """A file in the way, a directory that may not be written: an error of the store, with path and advice."""
    (nobody / "file").write_text("")
    (nobody / "closed").mkdir(mode=0o500)
    for where in (nobody / "file", nobody / "file" / "pool", nobody / "closed" / "pool"):
        with pytest.raises(AccessError, match=str(where)) as caught:
            pool_in(str(where), 1, STORAGE)
        assert isinstance(caught.value, OSError)


def test_what_a_crash_left(tmp_path: Path) -> None:
    """Empty queues without a pool are taken over, with their uuids; the rest is made."""
    with DurableQueue(queue_path(str(tmp_path), 0)) as queue:
        uuid = queue.uuid.replace("-", "")
    made = prepare_pool(str(tmp_path), 2, STORAGE)
    assert made.queues[0].replace("-", "") == uuid


def test_what_a_crash_left_of_the_file(tmp_path: Path) -> None:
    """Parts of a `pool.json` that nobody finished are removed by who makes the pool, or finds it."""
    part = tmp_path / f"{POOL_FILE}.0123456789abcdef.tmp"
    for _ in range(2):
        part.write_text("{")
        prepare_pool(str(tmp_path), 1, STORAGE)
        assert sorted(os.listdir(tmp_path)) == [POOL_FILE, "q0"]


def test_messages_without_a_pool(tmp_path: Path) -> None:
    """Somebody's queue is not taken."""
    put_into(queue_path(str(tmp_path), 0))
    with pytest.raises(NotAQueue, match="belongs to no pool"):
        prepare_pool(str(tmp_path), 1, STORAGE)
    assert find_pool(str(tmp_path)) is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"uuid": 5}', '{"format": 1, "uuid": "x", "queues": []}'])
def test_a_file_that_is_not_ours(tmp_path: Path, text: str) -> None:
    """It says so, and nothing is made."""
    (tmp_path / POOL_FILE).write_text(text)
    with pytest.raises(NotAQueue, match="cannot be read"):
        prepare_pool(str(tmp_path), 1, STORAGE)
    assert os.listdir(tmp_path) == [POOL_FILE]


def test_a_newer_format(tmp_path: Path) -> None:
    """Refused, with the number."""
    made = prepare_pool(str(tmp_path), 1, STORAGE)
    newer = {"format": 2, "uuid": made.uuid, "n_queues": 1, "queues": made.queues}
    (tmp_path / POOL_FILE).write_text(json.dumps(newer))
    with pytest.raises(FormatError, match="format 2"):
        find_pool(str(tmp_path))


def test_a_file_instead_of_a_directory(tmp_path: Path) -> None:
    """The operating system's word for it."""
    (tmp_path / "file").write_text("")
    assert find_pool(str(tmp_path / "file")) is None
    with pytest.raises(OSError, match="file"):
        prepare_pool(str(tmp_path / "file"), 1, STORAGE)


def test_several_make_it_at_once(tmp_path: Path) -> None:
    """One pool comes of it; who finds a queue locked says so, and finds the pool when it asks again."""
    found: list[Any] = []
    together = threading.Barrier(4)

    def make() -> None:
        together.wait()
        while True:
            try:
                found.append(prepare_pool(str(tmp_path), 2, STORAGE))
            except StorageError:
                continue
            return

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4
    assert len(set(found)) == 1
    assert found[0] == find_pool(str(tmp_path))
    assert isinstance(found[0], PoolFiles)
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".tmp")]
